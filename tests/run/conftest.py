"""A recipe that takes seconds, and one finished run of it for the tests that only read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gistcli import run
from gistcli.recipe import Recipe

Make = Callable[..., Recipe]


def make_recipe(**changes: Any) -> Recipe:
    """gift on digits with the embedded backbone; keys as `section__key=value`."""
    tree: dict[str, Any] = {
        "model": {"name": "gist_vit_nano"},
        "data": {"path": "digits", "shots": 4},
        "method": {"name": "gift", "rank": 4},
        "train": {"max_steps": 4, "batch_size": 16},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    return Recipe.model_validate(tree)


@pytest.fixture(scope="session")
def recipe() -> Make:
    return make_recipe


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run; not to be written to."""
    path = tmp_path_factory.mktemp("runs") / "gift"
    run.finetune(make_recipe(train__max_steps=30), output=path)
    return path
