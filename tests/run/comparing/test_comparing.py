"""What a comparison says: exact figures, both means, published rows, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gistcli import run
from gistcli.errors import DataError, GistError, NotFound, Refused, UnknownName, WeightsError
from gistcli.evaluate.paired import Outcomes, paired

Make = Callable[..., Path]


@pytest.fixture
def pair(tmp_path: Path, make_run: Make) -> Path:
    """gift and lora with two seeds each on ten examples, the second file in another order."""
    order = np.arange(10)
    for seed in (0, 1):
        right = np.array([1, 1, 1, 1, 1, 1, 1, 1, seed, 0])
        make_run(tmp_path / f"gift-{seed}", seed=seed, right=right, labels=order % 3)
        mixed = np.roll(order, 3)
        lora = np.array([1, 1, 1, 1, 0, 0, seed, 1, 0, 1])
        make_run(
            tmp_path / f"lora-{seed}",
            method="lora",
            seed=seed,
            right=lora[mixed],
            labels=(order % 3)[mixed],
            names=[f"e{i:05d}" for i in mixed],
            parameters=2048,
        )
    return tmp_path


def test_figures_and_differences_are_exact(pair: Path) -> None:
    value = run.compare([pair])
    gift, lora = value["rows"]
    assert gift["tasks"]["digits"]["values"] == [0.8, 0.9]
    assert gift["tasks"]["digits"]["mean"] == pytest.approx(0.85)
    assert gift["tasks"]["digits"]["deviation"] == pytest.approx(0.1 / 2**0.5)
    assert gift["parameters"] == {"min": 520, "mean": 520, "max": 520}
    assert (gift["head"]["mean"], gift["seconds"]["mean"]) == (30, 2.5)
    assert lora["tasks"]["digits"]["mean"] == pytest.approx(0.65)
    (found,) = value["differences"]
    assert (found["row"], found["reference"]) == ("lora", "gift")
    digits = found["tasks"]["digits"]
    assert digits["mean"] == pytest.approx(-0.2)
    assert digits["deviation"] == pytest.approx(0, abs=1e-12)  # -0.2 with either seed
    assert digits["interval"][0] < -0.2 < digits["interval"][1] <= 0.2
    assert digits["interval_with_seeds"] == pytest.approx(digits["interval"])
    assert digits["examples"] == 10
    assert any("not other seeds" in note for note in value["notes"])
    assert any("few test examples" in note for note in value["notes"])
    assert found["mean_of_tasks"]["mean"] == digits["mean"]


def test_pairing_goes_by_name_and_not_by_place(pair: Path) -> None:
    value = run.compare([pair], reference="lora")
    gift_SN = np.array([[1, 1, 1, 1, 1, 1, 1, 1, seed, 0] for seed in (0, 1)])
    lora_SN = np.array([[1, 1, 1, 1, 0, 0, seed, 1, 0, 1] for seed in (0, 1)])
    by_name = paired(Outcomes(gift_SN, (0, 1)), Outcomes(lora_SN, (0, 1)), "digits")
    by_place = paired(
        Outcomes(gift_SN, (0, 1)), Outcomes(np.roll(lora_SN, -3, 1), (0, 1)), "digits"
    )
    found = value["differences"][0]["tasks"]["digits"]
    assert (value["reference"], found["mean"]) == ("lora", pytest.approx(0.2))
    assert tuple(found["interval"]) == by_name.interval != by_place.interval


def test_one_seed_has_its_wilson_interval_and_says_that_it_is_one(
    tmp_path: Path, make_run: Make
) -> None:
    make_run(tmp_path / "a", right=[1] * 90 + [0] * 10)
    make_run(tmp_path / "b", method="lora", right=[1] * 80 + [0] * 20)
    value = run.compare([tmp_path])
    cell = value["rows"][0]["tasks"]["digits"]
    assert cell["deviation"] is None
    assert cell["interval"] == pytest.approx([0.8256, 0.9448], abs=1e-4)
    assert value["differences"][0]["tasks"]["digits"]["interval_with_seeds"] is None
    assert any(note.startswith("one seed") for note in value["notes"])


VTAB = [("cifar", "natural"), ("dtd", "natural"), ("pcam", "specialized"), ("kitti", "structured")]


@pytest.fixture
def family(tmp_path: Path, make_run: Make) -> Path:
    """Two methods on four tasks of three groups; lora lacks the last."""
    for place, (task, group) in enumerate(VTAB):
        published = {"value": 0.9 - place / 10, "metric": "test/accuracy", "protocol": "last; x",
                     "source": "Paper, Table 1", "parameters": 24_576}  # fmt: skip
        right = [1] * (9 - place) + [0] * (1 + place)
        make_run(tmp_path / "runs" / f"{place}-gift", task=task, task__group=group, right=right,
                 published=published, extras={"best_test/accuracy": 0.95})  # fmt: skip
        if task != "kitti":
            make_run(tmp_path / "runs" / f"{place}-lora", task=task, task__group=group,
                     method="lora", right=right[::-1])  # fmt: skip
    return tmp_path / "runs"


def test_both_means_are_given_and_none_over_fewer_tasks(family: Path) -> None:
    value = run.compare([family])
    assert value["groups"] == {
        "natural": ["cifar", "dtd"],
        "specialized": ["pcam"],
        "structured": ["kitti"],
    }
    gift, lora = value["rows"]
    assert gift["groups"]["natural"]["mean"] == pytest.approx(0.85)
    assert gift["mean_of_groups"]["mean"] == pytest.approx((0.85 + 0.7 + 0.6) / 3)
    assert gift["mean_of_tasks"]["mean"] == pytest.approx(0.75)
    assert list(lora["groups"]) == ["natural", "specialized"]
    assert (lora["mean_of_groups"], lora["mean_of_tasks"]) == (None, None)
    assert lora["missing"] == ["kitti"]
    assert any("lora lacks kitti" in note for note in value["notes"])
    (difference,) = value["differences"]
    assert list(difference["tasks"]) == ["cifar", "dtd", "pcam"]
    assert list(difference["groups"]) == ["natural", "specialized"]
    assert (difference["mean_of_groups"], difference["mean_of_tasks"]) == (None, None)


def test_published_figures_stand_beside_their_row_with_means_where_all_are_known(
    family: Path, make_run: Make
) -> None:
    (published,) = run.compare([family])["published"]
    assert published["row"] == "gift"
    assert published["tasks"]["kitti"] == pytest.approx(0.6)
    assert published["mean_of_groups"] == pytest.approx((0.85 + 0.7 + 0.6) / 3)
    assert (published["protocol"], published["source"]) == ("last; x", "Paper, Table 1")
    value = run.compare([family])
    assert any("gift trains 520 parameters, the published" in note for note in value["notes"])
    assert run.compare([family], published=False)["published"] == []
    make_run(family / "4", task="svhn", task__group="structured")
    (fewer,) = run.compare([family])["published"]
    assert list(fewer["groups"]) == ["natural", "specialized"]
    assert (fewer["mean_of_groups"], fewer["mean_of_tasks"]) == (None, None)


def test_the_best_on_test_is_shown_only_when_asked_for(family: Path, pair: Path) -> None:
    gift, lora = run.compare([family], best_test=True)["rows"]
    assert gift["best_test"]["mean_of_groups"]["mean"] == pytest.approx(0.95)
    assert lora["best_test"]["tasks"] == {}
    assert run.compare([family])["rows"][0]["best_test"] is None
    with pytest.raises(Refused, match="best on test"):
        run.compare([pair / "gift-0"], best_test=True)


def test_other_training_examples_and_other_settings_are_said(
    tmp_path: Path, make_run: Make
) -> None:
    right = [1, 1, 0, 1]
    prints = {"test": "same", "train": "first"}
    make_run(tmp_path / "a", right=right, fingerprints=prints)
    make_run(tmp_path / "b", method="lora", right=right, train__epochs=5, model__name="vit_x",
             fingerprints={**prints, "train": "second"})  # fmt: skip
    notes = run.compare([tmp_path])["notes"]
    assert any("trained on different examples with the same seed (digits)" in n for n in notes)
    assert "rows differ in train.epochs: 20 (gift), 5 (lora)" in notes
    assert "rows differ in model.name: gist_vit_nano (gift), vit_x (lora)" in notes


def files(folder: Path) -> Iterator[Path]:
    return folder.rglob("*") if folder.exists() else iter(())


def refused(
    paths: list[Path], output: Path, error: type[GistError], match: str, **more: Any
) -> str:
    """The hint of a refusal, which writes nothing."""
    with pytest.raises(error, match=match) as caught:
        run.compare(paths, output=output, **more)
    assert not list(files(output))
    return str(caught.value.hint)


def test_runs_on_different_examples_are_not_paired(tmp_path: Path, make_run: Make) -> None:
    a = make_run(tmp_path / "a", right=[1, 0, 1, 1])
    b = make_run(tmp_path / "b", right=[1, 0, 1], method="lora")
    hint = refused([a, b], tmp_path / "out", Refused, f"differ. digits: {a} against {b}")
    assert "--no-differences" in hint
    value = run.compare([a, b], paired=False)
    assert value["differences"] == []
    assert "runs were measured on different test examples: digits" in value["notes"]


def test_runs_without_the_hash_are_not_paired(tmp_path: Path, make_run: Make) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", method="lora", fingerprints={})
    refused([a, b], tmp_path / "out", Refused, f"Without the hash of their test examples.*{b}")
    assert run.compare([b])["rows"][0]["name"] == "lora"  # nothing to pair


def test_predictions_of_other_labels_or_names_are_refused(tmp_path: Path, make_run: Make) -> None:
    prints = {"test": "same", "train": "same"}
    a = make_run(tmp_path / "a", fingerprints=prints)
    b = make_run(tmp_path / "b", method="lora", labels=[0, 1, 2, 2], fingerprints=prints)
    c = make_run(tmp_path / "c", method="lora", names=list("wxyz"), fingerprints=prints)
    out = tmp_path / "out"
    refused([a, b], out, Refused, "other labels there .e00003: cat, not ant")
    refused([a, c], out, Refused, "of other examples .e00000, e00001")
    (b / "predictions" / "test.csv").unlink()
    refused([a, b], out, DataError, "cannot be read")
    (b / "predictions" / "test.csv").write_text("name,label\nx,y\n")
    refused([a, b], out, DataError, "'correct' is not in list")


def test_predictions_of_another_result_are_refused(tmp_path: Path, make_run: Make) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", method="lora", right=[0, 1, 1, 1])
    path = b / "predictions" / "test.csv"
    path.write_text(path.read_text().replace(",1,0.8", ",0,0.8"))
    refused([a, b], tmp_path / "out", WeightsError, "not of this result: accuracy 0.000000")
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    refused([a, b], tmp_path / "out", DataError, "names an example twice")


def test_a_metric_that_a_run_lacks_and_a_row_that_is_not_there(pair: Path, make_run: Make) -> None:
    out = pair / "out"
    hint = refused([pair], out, Refused, "'test/acuracy' is not among", metric="test/acuracy")
    assert "test/accuracy" in hint
    hint = refused([pair], out, UnknownName, "no row 'lorra'", reference="lorra")
    assert "'lora'" in hint
    make_run(pair / "val-only", split="val")
    refused([pair], out, Refused, f"not among the figures of {pair / 'val-only'}")
    half = make_run(pair / "halves" / "half", finished=False)
    refused([half.parent], out, NotFound, "No finished run")
    (pair / "file").write_text("")
    refused([pair], pair / "file", Refused, "is a file")


def test_another_metric_is_compared_without_differences(pair: Path) -> None:
    value = run.compare([pair], metric="test/loss")
    assert value["rows"][0]["tasks"]["digits"]["mean"] == 0.25
    assert value["differences"] == []
    assert "paired differences exist for accuracy only" in value["notes"]


def test_validation_can_be_compared_too(tmp_path: Path, make_run: Make) -> None:
    make_run(tmp_path / "a", split="val")
    make_run(tmp_path / "b", split="val", method="lora", right=[0, 0, 1, 0])
    value = run.compare([tmp_path], metric="val/accuracy")
    assert value["differences"][0]["tasks"]["digits"]["mean"] == pytest.approx(-0.5)


def test_the_value_is_json(family: Path) -> None:
    value = run.compare([family], best_test=True)
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert {"metric", "rows", "differences", "groups", "published", "files", "notes"} <= set(value)


def test_an_outcome_is_0_or_1(tmp_path: Path, make_run: Make) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", method="lora")
    path = b / "predictions" / "test.csv"
    path.write_text(path.read_text().replace(",1,0.8", ",300,0.8", 1))
    refused([a, b], tmp_path / "out", DataError, "'correct' is 300, not 0 or 1")
