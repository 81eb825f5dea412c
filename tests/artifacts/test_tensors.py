"""The streaming safetensors writer, and reading files that are not what they should be."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from gistcli.artifacts.tensors import (
    Pending,
    load_tensors,
    open_tensors,
    parse_dtype,
    save_tensors,
    write_stream,
)
from gistcli.errors import Refused, WeightsError


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        'bf16 with ü and "quotes"': torch.randn(3, 5).bfloat16(),
        "transposed": torch.randn(4, 6).t(),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(7).half(),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "bool": torch.tensor([True, False, True]),
    }


def test_the_library_reads_what_the_stream_wrote(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    save_tensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as reader:
        assert reader.metadata() == {"format": "pt"}


def test_our_own_reader_gives_the_same(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_tensors(tmp_path / "x.safetensors", tensors, {})
    read = load_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_the_same_tensors_give_the_same_bytes_in_any_order(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    save_tensors(tmp_path / "a", tensors, {"format": "pt"})
    save_tensors(tmp_path / "b", dict(reversed(tensors.items())), {"format": "pt"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_tensor_is_aligned_to_its_element(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_tensors(tmp_path / "x", tensors, {})
    data = (tmp_path / "x").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    for name, entry in header.items():
        assert (8 + length + entry["data_offsets"][0]) % tensors[name].element_size() == 0


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def maker(value: float) -> Callable[[], Tensor]:
        def make() -> Tensor:
            nonlocal most
            gc.collect()
            most = max(most, sum(reference() is not None for reference in alive))
            tensor = torch.full((10, 10), float(value))
            alive.append(weakref.ref(tensor))
            return tensor

        return make

    pending = [Pending(f"t{i}", torch.float32, maker(i)) for i in range(6)]
    write_stream(tmp_path / "x", pending, {})
    assert most == 0  # the one before is gone when the next is computed
    assert float(load_file(tmp_path / "x")["t5"][0, 0]) == 5


def test_one_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    shared = torch.randn(4, 4)
    with pytest.raises(ValueError, match="a and b share their storage"):
        save_tensors(tmp_path / "x", {"a": shared, "b": shared.t()}, {})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, left: int) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.randn(40)}, {})
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(WeightsError, match=r"x\.safetensors") as caught, open_tensors(path):
        pass
    assert caught.value.hint
    assert caught.value.exit_code == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.safetensors does not exist"):
        load_tensors(tmp_path / "nothing.safetensors")


def test_an_error_of_the_reader_of_tensors_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", {"a": torch.randn(4)}, {})
    with pytest.raises(FileNotFoundError), open_tensors(tmp_path / "x"):
        raise FileNotFoundError("another file")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bf16", torch.bfloat16), ("float32", torch.float32), ("half", torch.float16)],
)
def test_dtypes_have_names(name: str, dtype: torch.dtype) -> None:
    assert parse_dtype(name) is dtype


def test_an_unknown_dtype_is_refused_with_the_closest() -> None:
    with pytest.raises(Refused, match="int4") as caught:
        parse_dtype("int4")
    assert "float16" in caught.value.hint
