"""Batches: exact after a resume, equal whether resident or streamed, and honest about damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gistcli.data import Catalog, ImageSplit, Preprocess, check_images, load_split, open_catalog
from gistcli.data.cache import in_threads, place
from gistcli.data.split import _spread
from gistcli.errors import DataError, UnknownName
from gistcli.recipe import DataSection
from gistcli.reporting import Reporter


class Heard(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.phases: dict[str, list[int]] = {}
        self.finished: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def start(self, phase: str, total: int, unit: str = "steps") -> None:
        self.phases[phase] = [0, total]

    def advance(self, phase: str, units: int = 1, **figures: float) -> None:
        self.phases[phase][0] += units

    def finish(self, phase: str) -> None:
        self.finished.append(phase)


@pytest.fixture(scope="module")
def photos(assets: Path, options: Callable[..., DataSection]) -> Catalog:
    """Three photos of each of the twenty classes."""
    return open_catalog(options("caltech20", shots=3), base=assets)


@pytest.fixture
def pets(
    class_folders: Callable[..., Path], options: Callable[..., DataSection], tmp_path: Path
) -> Catalog:
    class_folders(tmp_path / "pets" / "train", cat=6, dog=5)
    class_folders(tmp_path / "pets" / "val", cat=2, dog=2)
    return open_catalog(options(tmp_path / "pets"), base=Path())


def load(catalog: Catalog, preprocess: Preprocess, augment: str, budget: int | None) -> ImageSplit:
    return load_split(
        catalog, "train", preprocess, train=True, augment=augment, budget_bytes=budget
    )


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("augment", ["none", "flip-crop", "randaugment"])
def test_a_pass_resumed_in_the_middle_equals_the_rest_of_the_whole_bit_for_bit(
    augment: str, photos: Catalog
) -> None:
    preprocess = Preprocess((48, 64), (0.5, 0.4, 0.3), (0.2,) * 3, crop_pct=0.9)
    resident, streamed = (load(photos, preprocess, augment, b) for b in (None, 0))
    assert (resident.resident, streamed.resident) == (True, False)
    assert resident.nbytes == streamed.nbytes
    assert (resident.storage, streamed.storage) == ("cpu", "streamed")
    torch.manual_seed(1)
    whole = list(resident.batches(8, seed=4, epoch=2))
    torch.manual_seed(2)
    for split in (resident, streamed):
        rest = list(split.batches(8, seed=4, epoch=2, start_batch=3))
        assert len(whole) == split.batches_per_epoch(8) == 8
        assert len(rest) == 5
        assert all(same(a, b) for a, b in zip(rest, whole[3:], strict=True))
    assert whole[0]["pixels"].shape == (8, 3, 48, 64)
    assert whole[0]["pixels"].dtype == torch.float32


@pytest.mark.parametrize("augment", ["none", "randaugment"])
def test_batches_leave_the_cache_and_the_global_generator_alone(
    augment: str, pets: Catalog, small: Preprocess
) -> None:
    split = load(pets, small, augment, None)
    state = torch.random.get_rng_state()
    first = [b["pixels"] for b in split.batches(4, seed=0)]
    for batch in split.batches(4, seed=0, epoch=1):
        batch["pixels"].zero_()
    again = [b["pixels"] for b in split.batches(4, seed=0)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_epochs_and_seeds_change_order_and_augmentation(pets: Catalog, small: Preprocess) -> None:
    split = load(pets, small, "flip-crop", None)

    def sorted_pixels(seed: int, epoch: int) -> torch.Tensor:
        batch = next(split.batches(11, seed=seed, epoch=epoch))
        return batch["pixels"][batch["index"].argsort()]

    first = sorted_pixels(0, 0)
    for seed, epoch in ((0, 1), (1, 0)):
        other = sorted_pixels(seed, epoch)
        changed = (first != other).flatten(1).any(1)
        assert changed.sum() >= 8  # by chance a crop may be drawn again


def test_evaluation_goes_in_order_without_augmentation(pets: Catalog, small: Preprocess) -> None:
    augmented, plain = (load(pets, small, a, None) for a in ("none", "flip-crop"))
    batches = list(augmented.batches(4, seed=None))
    assert torch.cat([b["index"] for b in batches]).tolist() == list(range(11))
    assert torch.equal(torch.cat([b["labels"] for b in batches]), augmented.labels)
    assert augmented.labels.tolist() == [0] * 6 + [1] * 5
    assert [len(b["index"]) for b in batches] == [4, 4, 3]
    assert augmented.names[6] == "train/dog/dog0.png"
    assert len(plain) == 11


def test_processes_share_each_global_batch(pets: Catalog, small: Preprocess) -> None:
    split = load(pets, small, "flip-crop", 0)
    whole = list(split.batches(5, seed=0, epoch=1))
    parts = [list(split.batches(5, seed=0, epoch=1, rank=r, world=3)) for r in range(3)]
    assert [len(p) for p in parts] == [3, 3, 3]
    for i, batch in enumerate(whole):
        for rank in range(3):
            assert same(parts[rank][i], {k: v[rank::3] for k, v in batch.items()})
    assert len(parts[2][2]["index"]) == 0  # eleven pictures: the last batch has one
    assert parts[2][2]["pixels"].shape == (0, 3, 16, 16)


def test_a_last_batch_may_be_dropped(pets: Catalog, small: Preprocess) -> None:
    split = load(pets, small, "none", None)
    sizes = [len(b["index"]) for b in split.batches(4, seed=0, drop_last=True)]
    assert sizes == [4, 4]
    assert split.batches_per_epoch(4, drop_last=True) == 2
    assert list(split.batches(4, seed=0, start_batch=3)) == []


def test_a_pass_may_be_left_early_and_another_started(pets: Catalog, small: Preprocess) -> None:
    split = load(pets, small, "none", 0)
    passes = split.batches(3, seed=0)
    first = next(passes)
    passes.close()
    assert same(first, next(split.batches(3, seed=0)))


def test_progress_and_the_size_of_the_cache_are_told(pets: Catalog, small: Preprocess) -> None:
    heard = Heard()
    load_split(pets, "train", small, train=True, augment="flip-crop", reporter=heard)
    assert heard.said == ["pets train: 11 images, 11 kB, resident on cpu"]
    assert heard.phases == {"decode": [11, 11]}
    load_split(pets, "val", small, train=False, reporter=heard, budget_bytes=0)
    assert heard.said[1] == "pets val: 4 images, 3 kB, streamed"
    assert heard.finished == ["decode", "check"]


def spoil(catalog: Catalog) -> None:
    """A truncated and a foreign picture in train, an empty one in val."""
    train, val = (catalog.splits[s] for s in ("train", "val"))
    for record, content in (
        (train[1], train[1].read()[:200]),
        (train[7], b"no picture"),
        (val[2], b""),
    ):
        assert isinstance(record.source, Path)
        record.source.write_bytes(content)


@pytest.mark.parametrize("budget", [None, 0], ids=["resident", "streamed"])
def test_broken_pictures_of_all_splits_are_in_one_error(
    budget: int | None, pets: Catalog, small: Preprocess
) -> None:
    spoil(pets)
    with pytest.raises(DataError) as caught:
        load(pets, small, "none", budget)
    message = str(caught.value)
    assert "3 pictures (" in message
    assert "train/cat/cat1.png: truncated" in message
    assert "train/dog/dog1.png: not an image" in message
    assert "val/dog/dog0.png: an empty file" in message
    assert "train 2 of 11, val 1 of 4" in message
    assert "on_error=skip" in caught.value.hint
    with pytest.raises(DataError, match="val 1 of 4"):
        check_images(pets, ["val"])


@pytest.mark.parametrize("augment", ["none", "flip-crop"])
def test_broken_pictures_may_be_left_out(augment: str, pets: Catalog, small: Preprocess) -> None:
    clean = load(pets, small, augment, None)
    spoil(pets)
    heard = Heard()
    resident, streamed = (
        load_split(
            pets,
            "train",
            small,
            train=True,
            augment=augment,
            on_error="skip",
            reporter=heard,
            budget_bytes=b,
        )
        for b in (None, 0)
    )
    assert len(resident) == 9
    assert "train/cat/cat1.png" not in resident.names
    assert "pets train: 2 broken pictures (train/cat/cat1.png: truncated" in heard.warned[0]
    for batches in zip(*(s.batches(4, seed=0) for s in (resident, streamed)), strict=True):
        assert same(*batches)
    left = [i for i in range(11) if i not in (1, 7)]
    both = [next(s.batches(11, seed=None)) for s in (resident, clean)]
    assert torch.equal(both[0]["pixels"], both[1]["pixels"][left])
    assert torch.equal(both[0]["labels"], both[1]["labels"][left])


def test_a_split_of_broken_pictures_only_is_an_error_even_then(
    pets: Catalog, small: Preprocess
) -> None:
    for record in pets.splits["val"]:
        assert isinstance(record.source, Path)
        record.source.unlink()
    with pytest.raises(DataError, match="no picture can be decoded"):
        load_split(pets, "val", small, train=False, on_error="skip")


def test_an_unknown_split_is_answered_with_the_known_ones(pets: Catalog, small: Preprocess) -> None:
    with pytest.raises(UnknownName, match="pets has no 'test' split") as caught:
        load_split(pets, "test", small, train=False)
    assert "Known: train, val." in caught.value.hint


def test_a_limit_spreads_over_the_classes(pets: Catalog, small: Preprocess) -> None:
    split = load_split(pets, "train", small, train=False, limit=4)
    assert split.labels.tolist() == [0, 0, 0, 1]
    assert _spread(11, 4) == [0, 2, 5, 8]
    assert _spread(3, 9) == [0, 1, 2]


def test_the_budget_decides_where_the_cache_goes() -> None:
    cpu = torch.device("cpu")
    assert place(100, cpu, 100) == cpu
    assert place(101, cpu, 100) is None
    assert place(1000, cpu, None) == cpu
    assert place(10**15, cpu, None) is None


def test_threads_keep_order_and_never_run_far_ahead() -> None:
    started: list[int] = []

    def note(i: int) -> int:
        started.append(i)
        return i

    results = in_threads(note, range(100), ahead=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    assert len(started) <= 8
