"""Data in the shapes that people have them in: GLUE's own files, the hub's, LLM-Adapters'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from gistcli.data.fetch import hub_name
from gistcli.data.text import Completion, Labelled, TextOptions, examples_of, open_texts
from gistcli.data.text.unnamed import column_names
from gistcli.errors import DataError, NotFound, RecipeError
from gistcli.recipe import DataSection

Options = Callable[..., DataSection]
MNLI = "index promptID pairID genre sentence1_binary_parse sentence1 sentence2 label1 gold_label"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
GLUE = {
    "CoLA": {
        "train": "gj04\t1\t\tThey ran.\ngj04\t0\t*\tThem ran.\n",
        "dev": 'r-67\t1\t\t"Well," she said.\nr-67\t0\t*\tHers ran.\n',
        "test": "index\tsentence\n0\tBill ran.\n",
    },
    "SST-2": {
        "train": "sentence\tlabel\nfine \t1\nbad \t0\n",
        "dev": "sentence\tlabel\ngood\t1\nworse\t0\n",
        "test": "index\tsentence\n0\tnone\n",
    },
    "MRPC": {
        "train": 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe "ran\tHe did\n'
        "0\t9\t3\tNo\tYes\n",
        "dev": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tA b\tB a\n",
        "test": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tA\tB\n",
    },
    "STS-B": {
        "train": f"{STSB}\n0\tnews\tf\t2012\t1\tnone\tnone\tA plane\tA jet\t5.000\n"
        "1\tnews\tf\t2012\t2\tnone\tnone\tA man\tA cat\t0.500\n",
        "dev": f"{STSB}\n0\tnews\tf\t2012\t1\tnone\tnone\tA car\tA bus\t2.250\n",
    },
    "QQP": {
        "train": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWhy?\tHow?\t0\n"
        "1\t3\t4\tWho?\tWho is it?\t1\n",
        "dev": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n2\t5\t6\tWhat?\tWhat\t1\n",
    },
    "MNLI": {
        "train": "\t".join(MNLI.split()) + "\n0\t1\t1n\tfiction\t( a )\tA\tB\tneutral\tneutral\n"
        "1\t2\t2n\tfiction\t( c )\tC\tD\tneutral\tentailment\n",
        "dev_matched": "\t".join(MNLI.split()) + "\n0\t1\t1n\tfiction\t( e )\tE\tF\tx\tneutral\n",
        "dev_mismatched": "\t".join(MNLI.split()) + "\n0\t1\t1\tf\t( g )\tG\tH\tx\tneutral\n",
    },
    "QNLI": {
        "train": "index\tquestion\tsentence\tlabel\n0\tWho?\tHe.\tentailment\n"
        "1\tWhat?\tIt.\tnot_entailment\n",
        "dev": "index\tquestion\tsentence\tlabel\n0\tWhy?\tSo.\tentailment\n",
    },
}
FIRST = {
    "CoLA": ("They ran.", None, "1"),
    "SST-2": ("fine ", None, "1"),
    "MRPC": ('He "ran', "He did", "1"),
    "STS-B": ("A plane", "A jet", 5.0),
    "QQP": ("Why?", "How?", "0"),
    "MNLI": ("A", "B", "neutral"),
    "QNLI": ("Who?", "He.", "entailment"),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def save(folder: Path, files: dict[str, str], ending: str = "tsv") -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.{ending}").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", GLUE)
def test_a_folder_of_glue_is_read_as_it_was_handed_out(
    tmp_path: Path, options: Options, name: str
) -> None:
    save(tmp_path / name, GLUE[name])
    task = "regression" if name == "STS-B" else "classification"
    catalog = open_texts(options(name), TextOptions(), base=tmp_path, task=task)
    assert catalog.counts() == {"train": 2, "val": 2 if name in ("CoLA", "SST-2") else 1}
    example = examples_of(catalog, "train")[0]
    assert isinstance(example, Labelled)
    assert (example.text, example.second_text, example.label) == FIRST[name]
    told = " ".join(catalog.warnings)
    assert ("test has no labels: left out" in told) is ("test" in GLUE[name])
    assert ("no line of names: its columns are source, label" in told) is (name == "CoLA")
    assert ("dev_mismatched.tsv" in told) is (name == "MNLI")


@pytest.mark.parametrize("kind", ["files", "tables"])
def test_a_found_validation_may_be_kept_for_the_end(
    tmp_path: Path, options: Options, kind: str
) -> None:
    if kind == "files":
        text = "sentence\tlabel\n" + "".join(f"a{i}\t{i % 2}\n" for i in range(40))
        save(
            tmp_path / "set",
            {"train": text, "dev": text.replace("\na", "\nb"), "test": "sentence\nc\n"},
        )
    else:
        hub_folder(
            tmp_path / "set", {"train": [0, 1] * 20, "validation": [0, 1] * 20, "test": [-1]}
        )
    for name in ("val", "validation", "dev"):
        if (kind, name) == ("tables", "dev"):
            continue
        asked = options("set", splits={"train": "train", "test": name})
        catalog = open_texts(asked, TextOptions(), base=tmp_path)
        assert catalog.counts() == {"train": 36, "val": 4, "test": 40}


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ([["1", "fine"], ["0", "bad"]], ["label", "sentence"]),
        ([["fine", "1"], ["7", "0"]], ["sentence", "label"]),
        ([["a", "b", "2.5"]], ["sentence1", "sentence2", "label"]),
        ([["sentence", "label"], ["fine", "1"]], None),
        ([["1", "2"], ["3", "4"]], None),
        ([["1", "a"], ["b"]], None),
        ([["a", "b", "c", "d"]], None),
    ],
)
def test_columns_without_names_are_known_where_there_is_no_doubt(
    lines: list[list[str]], names: list[str] | None
) -> None:
    assert column_names(lines) == names


@pytest.mark.parametrize("path", ["sst2", "cola"])
def test_the_real_fragments_need_no_mapping(assets: Path, options: Options, path: str) -> None:
    catalog = open_texts(options(path), TextOptions(), base=assets / "text")
    assert list(catalog.splits) == ["train", "val"]
    assert catalog.classes == ["0", "1"]
    assert "no line of names" in catalog.warnings[0]


def hub_folder(folder: Path, splits: dict[str, list[int]]) -> Path:
    """Parquet files as they lie on the hub, with a test split without labels."""
    folder.mkdir(parents=True)
    for name, labels in splits.items():
        rows = {
            "premise": [f"{name} {i}" for i in range(len(labels))],
            "hypothesis": ["no"] * len(labels),
            "label": labels,
        }
        table = datasets.Dataset.from_dict(rows)
        table = table.cast_column("label", datasets.ClassLabel(names=["yes", "maybe"]))
        table.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


def test_the_hubs_files_of_mnli_keep_their_two_halves_apart(
    tmp_path: Path, options: Options
) -> None:
    splits = {"train": [0, 1, 0], "validation_matched": [1, 0], "validation_mismatched": [1] * 4,
              "test_matched": [-1, -1]}  # fmt: skip
    hub_folder(tmp_path / "mnli", splits)
    catalog = open_texts(options("mnli"), TextOptions(), base=tmp_path)
    assert catalog.counts() == {"train": 3, "val": 2}
    assert catalog.classes == ["maybe", "yes"]
    assert [e.text for e in examples_of(catalog, "val") if isinstance(e, Labelled)] == [
        "validation_matched 0",
        "validation_matched 1",
    ]
    hub_folder(tmp_path / "glue" / "cola", {"train": [0, 1]})
    hub_folder(tmp_path / "glue" / "rte", {"train": [0, 1]})
    with pytest.raises(RecipeError, match="holds several data sets: cola, rte") as caught:
        open_texts(options("glue"), TextOptions(), base=tmp_path)
    assert str(tmp_path / "glue" / "cola") in caught.value.hint
    asked = options("mnli", splits={"train": "train", "val": "validation_mismatched"})
    assert open_texts(asked, TextOptions(), base=tmp_path).counts() == {"train": 3, "val": 4}


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("glue/sst2", "nyu-mll/glue/sst2"),
        ("nyu-mll/glue/sst2", "nyu-mll/glue/sst2"),
        ("gsm8k/main", "openai/gsm8k/main"),
        ("owner/name", "owner/name"),
        ("hf:owner/name/part", "owner/name/part"),
        ("imdb", "imdb"),
        ("data/glue/sst2", None),
        ("hf:a/b/c/d", None),
        ("my data", None),
    ],
)
def test_a_name_of_the_hub_may_have_a_configuration(asked: str, name: str | None) -> None:
    assert hub_name(asked) == name


def test_a_configuration_is_asked_for_and_offline_it_says_how_to_get_it(
    tmp_path: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def load(*names: str | None, streaming: bool) -> Any:
        assert not streaming
        asked.append(names)
        table = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": ["x", "y"]})
        return datasets.DatasetDict(train=table, validation=table)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match="neither fetched nor found in the cache") as caught:
        open_texts(options("glue/sst2"), TextOptions(), base=tmp_path)
    assert "'nyu-mll/glue/sst2'" in caught.value.message
    assert "hf download nyu-mll/glue --repo-type dataset --include 'sst2/*'" in caught.value.hint
    assert "--data DIR/sst2" in caught.value.hint
    with pytest.raises(NotFound, match="does not exist") as caught:
        open_texts(options("ownr/name/part"), TextOptions(), base=tmp_path)
    assert "hf:ownr/name/part" in caught.value.hint
    monkeypatch.setattr(datasets, "load_dataset", load)
    catalog = open_texts(options("glue/sst2"), TextOptions(), base=tmp_path)
    assert asked == [("nyu-mll/glue", "sst2")]
    assert catalog.counts() == {"train": 2, "val": 2}
    assert catalog.name == "nyu-mll-glue-sst2"


def test_rows_of_llm_adapters_become_the_published_prompts(
    tmp_path: Path, options: Options
) -> None:
    row = {"instruction": "Is it?", "input": "", "output": "the correct answer is true"}
    for name in ("train", "test"):
        (tmp_path / f"{name}.json").write_text(json.dumps([{**row, "answer": "true"}] * 20))
    for prompt, before in (
        ("plain", "Is it?\n"),
        ("alpaca", "### Instruction:\nIs it?\n\n### Response:\n"),
    ):
        asked = TextOptions(prompt=prompt)
        catalog = open_texts(options("."), asked, base=tmp_path)
        example = examples_of(catalog, "test")[0]
        assert isinstance(example, Completion)
        assert example.prompt.endswith(before)
        assert example.completion == "the correct answer is true"


def test_damaged_lines_and_rows_are_left_out_with_their_numbers_where_that_is_asked_for(
    tmp_path: Path, options: Options
) -> None:
    good = json.dumps({"prompt": "a", "completion": "b"})
    bad = json.dumps({"prompt": "a", "completion": " "})
    (tmp_path / "a.jsonl").write_text("\n".join([good, "{", bad, good, good, "[]"]))
    with pytest.raises(DataError, match=r"2 lines \(line 2: .*, line 6: no object\)") as caught:
        open_texts(options("a.jsonl"), TextOptions(), base=tmp_path)
    assert "data.on_error=skip" in caught.value.hint
    catalog = open_texts(options("a.jsonl"), TextOptions(skip=True), base=tmp_path)
    assert sum(catalog.counts().values()) == 3
    told = " ".join([*catalog.warnings, *catalog.notes])
    assert "a.jsonl: 2 lines (line 2:" in told
    assert "1 row (a.jsonl:3: the completion is empty) left out" in told
    (tmp_path / "b.csv").write_text("text,label\na,1\nb\nc,0\nd,1\n")
    with pytest.raises(DataError, match="line 3: 1 fields, not 2"):
        open_texts(options("b.csv"), TextOptions(), base=tmp_path)
    some = options("b.csv", val_fraction=0.0, test_fraction=0.0)
    assert open_texts(some, TextOptions(skip=True), base=tmp_path).counts() == {"train": 3}
