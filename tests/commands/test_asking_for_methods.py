"""What `gist list methods` tells someone who chooses one, and what a slip in asking is answered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gistcli import registry
from gistcli.cli import invoke

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def entries(capsys: Captured) -> dict[str, dict[str, Any]]:
    assert invoke(["list", "methods", "--json"]) == 0
    return {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}


def test_every_method_is_listed_with_what_it_can_and_its_options(
    entries: dict[str, dict[str, Any]],
) -> None:
    assert list(entries) == registry.names("methods")
    for entry in entries.values():
        assert entry["summary"]
        assert {"merge", "clusters", "gateable", "tokens", "low_rank"} <= set(entry["capabilities"])
        assert all(o["description"] for o in entry["options"].values())
    rank = entries["gift"]["options"]["rank"]
    assert (rank["default"], rank["choices"]) == (16, None)
    assert entries["gift"]["options"]["share"]["choices"] == ["role", "all", "none"]
    assert entries["gift"]["options"]["layers"]["choices"] is None
    assert "non-linearity" in entries["adapter"]["capabilities"]["merge"]


def test_what_depends_on_an_option_is_listed_with_its_value(
    entries: dict[str, dict[str, Any]],
) -> None:
    assert entries["vpt"]["variants"] == [
        {"option": "deep", "value": False, "label": "vpt", "capabilities": {"merge": None}}
    ]
    assert entries["toast"]["label"] == "toast (no pre-tuning)"
    labels = {v["value"]: v["label"] for v in entries["toast"]["variants"]}
    assert labels == {"lite": "toast (lite, no pre-tuning)"}
    assert entries["lora"]["variants"] == []


def test_the_table_fits_100_columns_and_explains_its_words(capsys: Captured) -> None:
    assert invoke(["list", "methods"]) == 0
    text = capsys.readouterr().out
    table, _, legend = text.partition("merge: becomes")
    assert max(map(len, text.splitlines())) <= 100
    for name in registry.names("methods"):
        assert f"\n  {name} " in table
    for part in ("variant=pfeiffer|houlsby|parallel", "label: toast (no pre-tuning)", "deep=true",
                 "merge (deep=false)", "rank=16, targets=attn_out"):  # fmt: skip
        assert part in table, part
    for word in ("low_rank", "clusters", "tokens", "gateable"):
        assert f"\n{word}: " in legend


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--method", "adaptr"], ["method.name (--method)", "Did you mean 'adapter'"]),
        (
            ["--method", "adapter", "--set", "method.variant=houlsbi"],
            ["found 'houlsbi'", "Did you mean 'houlsby'?", "adapter_plus", "pfeiffer"],
        ),
        (["--method", "lora", "--rank", "0"], ["method.rank (--rank)", "expected at least 1"]),
        (["--method", "bitfit", "--rank", "4"], ["no option of bitfit", "Known: linear_only"]),
        (
            ["--method", "gift_v1", "--set", "method.dim=7"],
            ["method: dim 7 is no multiple of heads 4"],
        ),
        (
            ["--method", "gift", "--set", "method.clusters=9"],
            ["method: clusters acts with block paca only"],
        ),
    ],
    ids=lambda value: " ".join(value) if "--method" in value else "",
)
def test_a_wrong_method_or_option_gets_one_message_with_what_is_allowed(
    flags: list[str], parts: list[str], capsys: Captured
) -> None:
    line = ["finetune", "--model", "gist_vit_nano", "--data", "digits", "--dry-run", "--json"]
    assert invoke([*line, *flags]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "RecipeError"
    assert "1 problem:" in error["message"]
    for part in parts:
        assert part in error["message"]
    assert "Value error" not in error["message"]
