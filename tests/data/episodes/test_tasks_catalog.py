"""Which tasks are held out, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gistcli.data import Catalog
from gistcli.data.episodes import open_tasks, tasks_of
from gistcli.data.text import TextOptions
from gistcli.errors import DataError, NotFound, RecipeError
from gistcli.recipe import DataSection
from tests.data.episodes.made import lines, natural, template

Options = Callable[..., DataSection]
PLAIN = TextOptions()


@pytest.fixture
def opened(tmp_path: Path, options: Options) -> Callable[..., Catalog]:
    """`opened(path, **keys)`: the catalog of what lies there."""

    def make(path: str = "tasks", text: TextOptions = PLAIN, **keys: Any) -> Catalog:
        chosen = {key: keys.pop(key) for key in ("pinned", "whole") if key in keys}
        return open_tasks(options(path, **keys), text, base=tmp_path, **chosen)

    return make


Opened = Callable[..., Catalog]


def test_whole_tasks_are_held_out_and_can_be_pinned(tmp_path: Path, opened: Opened) -> None:
    for i in range(10):
        template(tmp_path / "tasks" / f"kind{i % 2}_t{i}.jsonl")
    catalog = opened()
    assert catalog.name == "tasks"
    assert catalog.counts() == {"train": 8, "val": 1, "test": 1}
    assert {task.name for split in catalog.splits for task in tasks_of(catalog, split)} == {
        f"kind{i % 2}_t{i}" for i in range(10)
    }
    catalog.write_splits(tmp_path / "splits.csv")
    template(tmp_path / "tasks" / "kind9_new.jsonl")
    pinned = opened(pinned=tmp_path / "splits.csv")
    assert pinned.fingerprint() == catalog.fingerprint()
    assert opened(whole=True).counts() == {"test": 11}


def test_families_are_held_out_by_their_prefix_or_by_a_regular_expression(
    tmp_path: Path, opened: Opened
) -> None:
    for family in "abc":
        for i in range(3):
            template(tmp_path / "tasks" / f"{family}_x_{i}.jsonl")
    for group_by in ("family", "^([a-z])_x"):
        catalog = opened(group_by=group_by)
        held = {split: {t.family for t in tasks_of(catalog, split)} for split in catalog.splits}
        assert sorted(map(len, held.values())) == [1, 1, 1]
        assert set.union(*held.values()) == {"a", "b", "c"}
        assert catalog.splits["val"][0].group in held["val"]
    with pytest.raises(DataError, match=r"9 task names .* without a group by"):
        opened(group_by="^([0-9])")
    with pytest.raises(RecipeError, match="has no group"):
        opened(group_by="^x")
    with pytest.raises(DataError, match=r"1 family \(x\): none can be held out for val and test"):
        opened(group_by="_(x)_")


def test_split_folders_and_files_of_a_split_and_lists_of_names_are_found(
    tmp_path: Path, opened: Opened
) -> None:
    for split, names in {"train": "ab", "dev": "c", "test": "de"}.items():
        for name in names:
            natural(tmp_path / "tasks" / split.replace("dev", "val") / f"{name}_.json")
            rows = [{"task": f"{name}_", "input": f"{name}{i}", "output": "z"} for i in range(2)]
            with (tmp_path / f"{split}.jsonl").open("a") as file:
                file.write(lines(tmp_path / "one" / "part.jsonl", rows).read_text())
            natural(tmp_path / "flat" / f"{name}_.json")
    folders = opened()
    assert {s: [t.name for t in tasks_of(folders, s)] for s in folders.splits} == {
        "train": ["a_", "b_"],
        "val": ["c_"],
        "test": ["d_", "e_"],
    }
    files = opened(".")
    assert files.counts() == folders.counts()
    (tmp_path / "train_tasks.txt").write_text("a_\nb_\n\nc_\n")
    (tmp_path / "test_tasks.txt").write_text("e_\nd_")
    splits = {"train": "../train_tasks.txt", "test": "../test_tasks.txt"}
    listed = opened("flat", splits=splits, val_fraction=0)
    assert listed.counts() == {"train": 3, "test": 2}
    (tmp_path / "test_tasks.txt").write_text("e_\nq_")
    with pytest.raises(DataError, match=r"lists 1 task \(q_\) without a file"):
        opened("flat", splits=splits)
    with pytest.raises(NotFound, match=r"1 place .* not found"):
        opened("flat", splits={"train": "trian"})


def test_what_cannot_be_used_is_named_with_its_file(tmp_path: Path, opened: Opened) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        opened()
    (tmp_path / "tasks").mkdir()
    with pytest.raises(DataError, match="tasks holds no task files"):
        opened()
    template(tmp_path / "tasks" / "a.jsonl")
    with pytest.raises(DataError, match=r"1 task \(a\): none can be held out for val and test"):
        opened()
    template(tmp_path / "tasks" / "b.jsonl", count=1)
    lines(tmp_path / "tasks" / "c.jsonl", [])
    lines(tmp_path / "tasks" / "d.jsonl", [{"odd": 1}])
    with pytest.raises(RecipeError, match=r"d.jsonl is of no known format"):
        opened()
    (tmp_path / "tasks" / "d.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"2 task files .*c.jsonl is empty.*d.jsonl: 1 line"):
        opened()
    with pytest.raises(DataError, match=r"1 task \(b: 1\) of fewer than two items"):
        opened(text=TextOptions(skip=True))


def test_a_task_in_two_splits_is_refused_and_one_with_another_name_warned_of(
    tmp_path: Path, opened: Opened
) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("test", "b")):
        template(tmp_path / "tasks" / split / f"{name}.jsonl")
    with pytest.raises(DataError, match=r"1 name \(b in train and b in test\) of two tasks"):
        opened(val_fraction=0)
    (tmp_path / "tasks/test/b.jsonl").rename(tmp_path / "tasks/test/c.jsonl")
    [warning] = opened(val_fraction=0).warnings
    assert "1 task (b = c) in two splits with the same items" in warning


def test_a_task_with_one_answer_is_warned_of(tmp_path: Path, opened: Opened) -> None:
    for i in range(3):
        template(tmp_path / "tasks" / f"t{i}.jsonl", answers=["Yes"] if i == 1 else ["Yes", "No"])
    [warning] = opened().warnings
    assert "1 task (t1) with one answer only" in warning


def test_the_built_in_family_has_its_split_and_takes_no_other(opened: Opened) -> None:
    catalog = opened("class-to-label")
    assert catalog.counts() == {"train": 3776, "val": 64, "test": 256}
    assert tasks_of(catalog, "test")[0].name == "class-to-label/AADC"
    assert catalog.fingerprint("test") == opened("class-to-label").fingerprint("test")
    with pytest.raises(RecipeError, match=r"data.group_by cannot apply"):
        opened("class-to-label", group_by="family")
    with pytest.raises(RecipeError, match=r"data.shots cannot apply"):
        opened("class-to-label", shots=3)


def test_real_sets_of_text_are_tasks(assets: Path, options: Options, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    for name in ("arc_easy", "boolq", "openbookqa"):
        source = assets / "text" / name / "test.json"
        (tmp_path / "tasks" / f"{name}.json").write_bytes(source.read_bytes())
    catalog = open_tasks(options("tasks"), PLAIN, base=tmp_path)
    assert catalog.counts() == {"train": 1, "val": 1, "test": 1}
    assert catalog.warnings == []
