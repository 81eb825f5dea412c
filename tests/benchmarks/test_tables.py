"""The tables of `make bench`, from figures written down."""

from __future__ import annotations

import pytest
import timm
from torch import nn

from tests.benchmarks.contenders import contenders
from tests.benchmarks.tables import report
from tests.benchmarks.timing import Counted, describe

SECONDS = {
    "floor": [1.0, 2.0, 1.0],
    "lora": [1.0, 2.0, 1.0],
    "lora + gist": [1.04, 2.08, 3.0],
    "ssf": [1.0, 2.0, 1.0],
    "ssf + gist": [1.06, 2.12, 1.0],
    "linear": [0.5, 1.0, 0.5],
    "linear + gist": [1.01, 2.02, 1.01],
    "linear, carried back": [1.0, 2.0, 1.0],
    "PEFT": [1.1, 2.2, 1.1],
}
KEPT = {"linear": 10, "lora + gist": 1010, "ssf + gist": 1060}


def counted(name: str) -> Counted:
    lengthened = name == "linear + gist"
    return Counted(3, KEPT.get(name, 1000) * 1000, 100, 1, lengthened)


def text() -> str:
    return report(SECONDS, {name: counted(name) for name in SECONDS}, {"vpt": "no."})


def rows() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Cells of both tables, by first cell."""
    found = []
    for part in text().split("## The gist token"):
        lines = [line for line in part.splitlines() if line.startswith("| ")]
        found.append({c[0]: c[1:] for c in (line.strip("| ").split(" | ") for line in lines)})
    first, second = found
    return first, second


def test_the_first_table_holds_every_step_without_the_token_against_the_floor() -> None:
    first, _ = rows()
    assert list(first) == ["step", "floor", "lora", "ssf", "linear", "PEFT"]
    assert first["linear"][1] == "0.500"


def test_a_token_is_held_against_the_same_method_of_the_same_round() -> None:
    _, second = rows()
    assert list(second) == ["method", "lora", "ssf", "linear"]
    assert second["lora"] == ["1.040", "1.040 to 3.000", "1.000", "1.010", "-", "-", "-", "-"]


def test_only_figures_above_the_bar_are_marked() -> None:
    _, second = rows()
    assert (second["ssf"][0], second["ssf"][3]) == ("**1.060**", "**1.060**")
    assert not any("**" in cell for cell in second["lora"])


def test_a_method_whose_backward_pass_was_short_is_also_held_against_itself_carried_back() -> None:
    _, second = rows()
    assert second["linear"][0] == "**2.020**"
    assert (second["linear"][4], second["linear"][7]) == ("1.010", "1.000")
    assert "what holds for `linear`, whose" in text()


def test_every_method_stands_next_to_itself_with_the_token() -> None:
    everything, pairs = contenders(["linear", "lora"]), contenders(["lora"], pairs_only=True)
    assert list(pairs) == ["floor", "lora", "lora + gist", "lora, carried back"]
    assert list(everything)[4:6] == ["linear, features kept", "lora"]


def test_what_is_counted_knows_who_waits_for_the_token_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def small() -> nn.Module:
        return timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=5)

    monkeypatch.setattr("tests.benchmarks.contenders.fresh", small)
    monkeypatch.setattr("tests.benchmarks.contenders.BATCH", 2)
    found, refused = describe(contenders(["linear", "layernorm"], pairs_only=True))
    assert [name for name, each in found.items() if each.lengthened] == ["linear + gist"]
    assert not refused
    assert found["layernorm + gist"].method == found["layernorm"].method + 192
    assert 1 < found["layernorm + gist"].flops / found["layernorm"].flops < 1.02
    assert found["linear + gist"].flops > 1.8 * found["linear"].flops
    assert found["linear + gist"].flops < 1.02 * found["linear, carried back"].flops
    assert "layernorm, carried back" not in found  # its first norm is in front of everything
