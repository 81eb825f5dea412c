"""Trained parameters of every method on ViT-B/16, as its paper or its authors' code has them."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from gistcli.cli import invoke
from gistcli.run import planning

DIM_48, DIM_192 = ("--set", "method.dim=48"), ("--set", "method.dim=192")
BIASED = ("--set", "method.projection_bias=true")


def options(*pairs: str) -> tuple[str, ...]:
    """`NAME=VALUE` of the method as flags."""
    return tuple(part for pair in pairs for part in ("--set", f"method.{pair}"))


COUNTS: list[tuple[str, tuple[str, ...], int]] = [
    ("gift", ("--rank", "16"), 24_576),
    ("gift_v1", (*DIM_48, *BIASED), 758_256),
    ("gift_v1", DIM_48, 757_440),
    ("gift_v1", (*DIM_192, *BIASED), 2_144_832),
    ("gift_v1", DIM_192, 2_143_872),
    ("lora", ("--rank", "8", *options("targets=[attn.qkv]")), 294_912),
    ("lora", ("--rank", "4", *options("targets=[attn.proj]")), 73_728),
    ("adapter", options("variant=parallel", "dim=4"), 82_992),
    ("adapter", options("dim=8"), 156_768),
    ("adapter", options("variant=houlsby", "dim=8"), 313_536),
    ("ssf", (), 205_824),
    ("bitfit", (), 102_912),
    ("bitfit", options("linear_only=true"), 82_944),
    ("layernorm", (), 38_400),
    ("vpt", options("deep=false", "length=100"), 76_800),
    ("vpt", options("deep=true", "length=10"), 92_160),
    ("fact", ("--rank", "16", *options("variant=tt")), 61_440),
    ("fact", ("--rank", "32", *options("variant=tk")), 86_528),
    ("repadapter", options("dim=8"), 239_808),
    ("convpass", options("dim=8"), 327_552),
    ("toast", (), 14_156_544),
    ("toast", options("variant=lite"), 738_048),
]
BACKBONE = 85_798_656


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of another machine."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"a connection to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def without_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing a step for its memory is most of a dry run; tests/run/test_memory.py tests it."""
    monkeypatch.setattr(planning, "estimate_of_dry_run", lambda *arguments: {})


def dry_run(*flags: str) -> tuple[dict[str, Any], str]:
    """The JSON value and the talk of a dry run on ViT-B/16, whose weights are nowhere."""
    line = ["finetune", "--model", "vit_base_patch16_224", "--data", "digits", *flags]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = invoke([*line, "--dry-run", "--json"])
    assert code == 0, out.getvalue()
    found: dict[str, Any] = json.loads(out.getvalue())
    return found, err.getvalue()


@pytest.mark.usefixtures("without_estimate")
@pytest.mark.parametrize(
    ("method", "flags", "count"), COUNTS, ids=[f"{m} {n:,}" for m, _, n in COUNTS]
)
def test_a_dry_run_counts_what_is_published(
    method: str, flags: tuple[str, ...], count: int
) -> None:
    found, said = dry_run("--method", method, *flags)
    assert found["parameters"]["method"] == count
    assert found["parameters"]["head"] == 768 * 10 + 10
    assert found["parameters"]["trainable"] == count + 768 * 10 + 10
    assert f" {count:,}, head 7,690" in said


@pytest.mark.usefixtures("without_estimate")
@pytest.mark.parametrize(
    ("method", "added"), [("lora", True), ("bitfit", False), ("layernorm", False)]
)
def test_parameters_of_the_network_are_not_counted_twice(method: str, added: bool) -> None:
    parameters = dry_run("--method", method)[0]["parameters"]
    whole = BACKBONE + parameters["head"]
    assert parameters["total"] == whole + (parameters["method"] if added else 0)


def test_a_dry_run_takes_no_time_to_speak_of() -> None:
    dry_run("--method", "linear")  # imports
    start = time.process_time()
    dry_run("--method", "toast")
    assert time.process_time() - start < 2


def test_pretuned_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "pretuned"
    _, said = dry_run("--method", "toast", "--set", f"method.weights={missing}")
    (line,) = [line for line in said.splitlines() if "not looked at" in line]
    assert f"method.weights ({missing} does not exist)" in line
    missing.mkdir()
    _, said = dry_run("--method", "toast", "--set", f"method.weights={missing}")
    assert "not looked at" not in said
