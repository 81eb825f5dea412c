"""Few-shot sets: which list, which folder of pictures, and repeated pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gistcli.data import expected_counts, open_catalog
from gistcli.data.fewshot import TASKS
from gistcli.errors import DataError, NotFound, RecipeError, UnknownName
from gistcli.recipe import DataSection
from tests.data.trees import Rows, write_lists

Options = Callable[..., DataSection]


def lists(train: Rows, shots: int = 1, seed: int = 0) -> dict[str, Rows]:
    return {
        f"annotations/train_meta.list.num_shot_{shots}.seed_{seed}": train,
        "annotations/val_meta.list": [("v0.jpg", 0), ("v1.jpg", 1), ("v10.jpg", 10)],
        "annotations/test_meta.list": [("t1.jpg", 1), ("t10.jpg", 10), ("t0.jpg", 0)],
    }


PETS = lists([("p0.jpg", 0), ("p0.jpg", 0), ("p1.jpg", 1), ("p10.jpg", 10), ("p10.jpg", 10)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    home = tmp_path / "few-shot" / "oxford-pets"
    write_lists(home, PETS, pictures="images")
    write_lists(home, lists([(f"q{c}.jpg", c) for c in (0, 1, 10)], 4, 2), pictures="images")
    return tmp_path / "few-shot"


def test_shots_and_seed_choose_the_list(root: Path, options: Options) -> None:
    data = options(root, source="fewshot", subset="Pets", shots=4, shot_seed=2)
    catalog = open_catalog(data, base=Path())
    assert catalog.name == "few-shot oxford_pets"
    assert catalog.counts() == {"train": 3, "val": 3, "test": 3}
    assert [r.name for r in catalog.splits["train"]] == [f"images/q{c}.jpg" for c in (0, 1, 10)]
    assert catalog.classes == ["0", "1", "10"]
    assert catalog.labels("test") == [1, 2, 0]
    assert open_catalog(options(root, shots=4, shot_seed=2), base=Path()) == catalog


def test_a_picture_that_a_list_repeats_counts_once(root: Path, options: Options) -> None:
    """The published 1-shot lists of Pets name every picture twice."""
    data = options(root, source="fewshot", subset="pets", shots=1)
    catalog = open_catalog(data, base=Path())
    assert catalog.counts()["train"] == 3
    assert "2 rows (images/p0.jpg, images/p10.jpg) of train repeated: each picture counts once" in (
        catalog.warnings
    )


def test_without_shots_nothing_is_trained_on(root: Path, options: Options) -> None:
    with pytest.raises(RecipeError, match=r"data\.shots is missing") as caught:
        open_catalog(options(root, source="fewshot", subset="pets"), base=Path())
    assert "1, 2, 4, 8 or 16" in caught.value.hint
    assert "data.shot_seed is 0, 1 or 2" in caught.value.hint
    whole = open_catalog(options(root, source="fewshot", subset="pets"), base=Path(), whole=True)
    assert whole.counts() == {"val": 3, "test": 3}


@pytest.mark.parametrize(("shots", "seed"), [(16, 0), (4, 0), (1, 2)])
def test_a_list_that_is_not_there_is_answered_with_those_that_are(
    shots: int, seed: int, root: Path, options: Options
) -> None:
    data = options(root, source="fewshot", subset="pets", shots=shots, shot_seed=seed)
    with pytest.raises(NotFound, match=f"no list of {shots} shots with seed {seed}") as caught:
        open_catalog(data, base=Path())
    assert caught.value.hint == "There are lists of 1 (seeds 0); 4 (seeds 2) shots."


@pytest.mark.parametrize("keys", [{"include_val": True}, {"folds": 2}])
def test_what_would_add_val_leaves_it_out(
    keys: dict[str, Any], root: Path, options: Options
) -> None:
    home = root / "oxford-pets"
    rows = [(f"r{c}-{i}.jpg", c) for c in (0, 1, 10) for i in range(2)]
    write_lists(home, lists(rows, 2), pictures="images")
    data = options(root, source="fewshot", subset="pets", shots=2, **keys)
    catalog = open_catalog(data, base=Path())
    trained = [r.name for s in ("train", "val") for r in catalog.splits.get(s, [])]
    assert sorted(trained) == sorted(f"images/{file}" for file, _ in rows)
    assert any("val_meta.list is left out" in n for n in catalog.notes)


def test_cars_start_from_the_folder_of_the_set(tmp_path: Path, options: Options) -> None:
    """Under the name that the published folder has, slip of the pen included."""
    rows = [("cars_train/a 1.jpg", 0), ("cars_train/b.jpg", 1)]
    write_lists(tmp_path / "standford-cars", lists(rows))
    data = options(tmp_path, source="fewshot", subset="cars", shots=1)
    catalog = open_catalog(data, base=Path())
    assert catalog.splits["train"][0].name == "cars_train/a 1.jpg"


def test_a_path_that_leaves_the_set_is_refused(tmp_path: Path, options: Options) -> None:
    home = write_lists(tmp_path / "food101", lists([("a.jpg", 0), ("b.jpg", 1)]), pictures="images")
    with (home / "annotations/test_meta.list").open("a") as file:
        file.write("../../../etc/passwd 1\nv0.jpg 1\n")
    with pytest.raises(DataError) as caught:
        open_catalog(options(home, shots=1), base=Path())
    assert "(test_meta.list 4: ../../../etc/passwd) with a path that leaves" in str(caught.value)
    assert "(images/v0.jpg: val 0, test 1) that contradict another split" in str(caught.value)


def test_half_a_set_is_answered_with_the_layout(root: Path, options: Options) -> None:
    (root / "oxford-pets/annotations/test_meta.list").unlink()
    data = options(root, source="fewshot", subset="pets", shots=1)
    with pytest.raises(
        NotFound, match=r"set oxford_pets of few-shot .*test_meta\.list does not exist"
    ) as c:
        open_catalog(data, base=Path())
    assert "train_meta.list.num_shot_1.seed_0" in c.value.hint
    assert "ZhangYuanhan-AI/NOAH" in c.value.hint
    assert "--data DIR" in c.value.hint
    with pytest.raises(UnknownName, match="few-shot has no set 'peds'"):
        open_catalog(options(root, source="fewshot", subset="peds", shots=1), base=Path())


def test_sizes_are_known_without_the_data(options: Options) -> None:
    found = {
        t.name: expected_counts(options("x", source="fewshot", subset=t.name, shots=2))
        for t in TASKS
    }
    assert found == {
        "food101": {"train": 202, "test": 30_300},
        "stanford_cars": {"train": 392, "test": 8_041},
        "oxford_flowers": {"train": 204, "test": 2_463},
        "fgvc_aircraft": {"train": 200, "test": 3_333},
        "oxford_pets": {"train": 74, "test": 3_669},
    }
