"""`--smoke` really stops after one step, goes on for the second, and uses the run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gistcli import run
from gistcli.recipe import Recipe
from tests.listening import Listener

Make = Callable[..., Recipe]


@pytest.mark.parametrize(("method", "clusters"), [("gift", 16), ("linear", None)])
def test_smoke_stops_after_a_step_and_goes_on(
    tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch, method: str, clusters: int | None
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    listener = Listener()
    found = run.smoke(recipe(method={"name": method}), reporter=listener)
    assert (found["stopped_at"], found["steps"]) == (1, 2)
    assert "Going on from step 1 of 2." in listener.lines
    assert found["predicted"] in "0123456789"
    assert found["clusters"] == clusters
    assert found["merged"] is True
    assert list(tmp_path.iterdir()) == []
