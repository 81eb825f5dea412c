"""The files of a comparison: what stands in them, that it is escaped, and always the same."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gistcli import run
from gistcli.artifacts.comparison_sections import sections
from gistcli.artifacts.comparison_text import escape_latex, latex, markdown

Make = Callable[..., Path]
FILES = ["accuracy-over-parameters.png", "curves.png", "table.csv", "table.json", "table.md",
         "table.tex"]  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path, make_run: Make) -> Path:
    """Two methods, two tasks, two seeds; one name needs escaping everywhere."""
    folder = tmp_path / "my_runs & co"
    for task in ("50% | day", "digits"):
        for seed in (0, 1):
            published = {"value": 0.655, "metric": "test/accuracy", "protocol": "best_test",
                         "source": "A & B, Table_1"}  # fmt: skip
            make_run(folder / f"g-{task[:2]}-{seed}", task=task, seed=seed, curve=[0.1, 0.4 + seed],
                     right=[1] * (60 + 2 * seed) + [0] * (40 - 2 * seed), published=published,
                     fingerprints={"test": task})  # fmt: skip
            make_run(folder / f"l-{task[:2]}-{seed}", method="linear", task=task, seed=seed,
                     parameters=0, right=[1] * (40 + 2 * seed) + [0] * (60 - 2 * seed),
                     curve=[0.2, 0.3], fingerprints={"test": task})  # fmt: skip
    return folder


def test_the_same_runs_give_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        found = run.compare([runs], output=tmp_path / name)["files"]
        assert sorted(found) == FILES
        contents.append({n: Path(p).read_bytes() for n, p in found.items()})
    assert contents[0] == contents[1]


def test_the_folder_of_an_earlier_comparison_is_replaced_and_other_files_stay(
    runs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    (out / "table.md").write_text("old")
    run.compare([runs], output=out)
    assert (out / "thesis.tex").read_text() == "years"
    assert (out / "table.md").read_text().startswith("# test/accuracy of 8 runs in ")
    assert sorted(p.name for p in out.iterdir()) == sorted([*FILES, "thesis.tex"])


def test_markdown_has_the_best_bold_the_published_in_italics_and_the_runs(
    runs: Path, tmp_path: Path
) -> None:
    text = markdown(run.compare([runs]))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == (
        r"| method | trained | tried | seeds | 50% \| day | digits | mean of 2 tasks |"
    )
    first = "**61.0 ± 1.4**"
    assert rows[2] == f"| gift | 520 | - | 2 | {first} | {first} | {first} |"
    assert rows[3] == "| *published (best_test)* | *-* |  |  | *65.5* | *65.5* | *65.5* |"
    assert rows[4] == "| linear | 0 | - | 2 | 41.0 ± 1.4 | 41.0 ± 1.4 | 41.0 ± 1.4 |"
    assert "A & B, Table_1" in text
    for number in "01":
        assert str(runs / f"g-50-{number}") in text


def test_latex_is_escaped_and_every_row_has_as_many_cells_as_columns(runs: Path) -> None:
    text = latex(run.compare([runs]))
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert r"50\% | day" in text
    assert r"\textcolor{gray}{published (best\_test)}" in text
    assert r"\textbf{61.0 $\pm$ 1.4}" in text
    assert r"[$-$" in text
    widths = {}
    for line in body:
        assert not re.search(r"(?<!\\)[%#]|[^\x00-\x7f]", line), line
        if line.startswith(r"\begin{tabular}"):
            columns = len(line.partition("}{")[2].rstrip("}"))
            widths[columns] = True
        elif line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1, line
    assert len(widths) > 1
    assert all(r"\toprule" in t for t in text.split(r"\begin{table}")[1:])


def test_all_of_latex_s_own_characters_are_escaped() -> None:
    assert escape_latex(r"a_b & 50% $x$ #1 {y} ~ ^ \z") == (
        r"a\_b \& 50\% \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}z"
    )
    assert escape_latex("[-1.5, +2.0] x-1 - ±0.1") == r"[$-$1.5, +2.0] x-1 - $\pm$0.1"


def test_the_csv_has_a_line_a_row_and_task_with_every_figure_in_full(
    runs: Path, tmp_path: Path
) -> None:
    value = run.compare([runs], output=tmp_path / "out")
    with (tmp_path / "out" / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    kinds = [(one["row"], one["published"], one["over"]) for one in lines]
    assert kinds == [
        *[("gift", "0", "task")] * 2, ("gift", "0", "mean_of_tasks"),
        *[("linear", "0", "task")] * 2, ("linear", "0", "mean_of_tasks"),
        *[("gift", "1", "task")] * 2, ("gift", "1", "mean_of_tasks"),
    ]  # fmt: skip
    found, cell = lines[3], value["rows"][1]["tasks"]["50% | day"]
    assert found["name"] == "50% | day"
    assert float(found["mean"]) == cell["mean"]
    assert float(found["deviation"]) == cell["deviation"]
    assert found["runs"].split("; ") == [str(runs / "l-50-0"), str(runs / "l-50-1")]
    difference = value["differences"][0]["tasks"]["50% | day"]
    assert [float(found[k]) for k in ("difference", "difference_low", "with_seeds_high")] == [
        difference["mean"], difference["interval"][0], difference["interval_with_seeds"][1],
    ]  # fmt: skip


def test_the_json_is_the_value_without_the_files(runs: Path, tmp_path: Path) -> None:
    value = run.compare([runs], output=tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "table.json").read_text())
    assert stored == {k: v for k, v in value.items() if k != "files"}
    assert stored["rows"][0]["runs"][0] == str(runs / "g-50-0")


def test_without_validation_in_training_there_are_no_curves(tmp_path: Path, make_run: Make) -> None:
    make_run(tmp_path / "run")
    found = run.compare([tmp_path], output=tmp_path / "out")["files"]
    assert sorted(found) == [name for name in FILES if name != "curves.png"]


def test_many_tasks_have_their_own_tables_and_the_lowest_loss_is_the_best(
    tmp_path: Path, make_run: Make
) -> None:
    for place in range(9):
        make_run(tmp_path / f"g{place}", task=f"t{place}")
        make_run(tmp_path / f"l{place}", task=f"t{place}", method="lora", right=[1, 0, 0, 0])
    found = sections(run.compare([tmp_path]))
    assert [len(s.columns) - 1 for s in found if s.title.startswith("test/acc")] == [4, 8, 1]
    assert found[0].columns[-1] == "mean of 9 tasks"
    assert [len(s.columns) - 1 for s in found if s.title.endswith("lora: by task")] == []
    assert [len(s.columns) - 1 for s in found if s.title == "difference to gift: by task"] == [8, 1]
    assert [len(s.columns) for s in sections(run.compare([tmp_path]), by_task=False)] == [5, 5, 7]
    assert found[1].lines[0].best == frozenset(range(1, 9))
    assert found[1].lines[1].best == frozenset()
    loss = sections(run.compare([tmp_path], metric="test/loss"))[1]
    assert loss.lines[0].cells[1] == "0.25"
    assert loss.lines[0].best == loss.lines[1].best == frozenset(range(1, 9))  # equally good
