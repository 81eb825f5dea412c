"""The strict YAML of recipes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gistcli.errors import RecipeError
from gistcli.recipe import yaml


def value(text: str) -> object:
    return yaml.parse(text, "x.yaml")[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("0", 0),
        ("-12", -12),
        ("+3", 3),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        (".inf", math.inf),
        ("-.inf", -math.inf),
    ],
)
def test_numbers_booleans_and_null_are_what_they_look_like(text: str, expected: object) -> None:
    assert value(text) == expected
    assert type(value(text)) is type(expected)


@pytest.mark.parametrize(
    "text", ["on", "off", "yes", "No", "y", "1:30", "010", "0x1F", "1_000", "2020-01-01", "None"]
)
def test_what_yaml_1_1_would_convert_stays_text(text: str) -> None:
    assert value(text) == text


def test_a_key_named_on_stays_text() -> None:
    assert value("on: 1\nyes: 2") == {"on": 1, "yes": 2}


def test_a_key_that_stands_twice_is_refused_with_both_lines() -> None:
    with pytest.raises(RecipeError, match=r"x\.yaml:4: the key 'lr' stands here and in line 2"):
        value("optim:\n  lr: 1\n  name: sgd\n  lr: 2\n")


def test_the_same_key_in_two_sections_is_fine() -> None:
    assert value("a: {name: 1}\nb: {name: 2}") == {"a": {"name": 1}, "b": {"name": 2}}


def test_merge_keys_work_and_may_be_overridden() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n"
    assert value(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


def test_an_anchor_that_contains_itself_is_refused() -> None:
    with pytest.raises(RecipeError, match="contains itself"):
        value("a: &a\n  b: *a\n")


def test_python_objects_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"x\.yaml:1: could not determine a constructor"):
        value("!!python/object/apply:os.system ['true']")


@pytest.mark.parametrize(
    ("text", "line"), [("a: [1,\nb: 2", 2), ("a: 1\n\tb: 2", 2), ("a: 1\n b: 2", 2), ("a: b: c", 1)]
)
def test_broken_yaml_is_one_line_with_the_place(text: str, line: int) -> None:
    with pytest.raises(RecipeError) as caught:
        value(text)
    assert caught.value.message.startswith(f"x.yaml:{line}: ")
    assert "\n" not in caught.value.message


def test_two_documents_are_refused() -> None:
    with pytest.raises(RecipeError, match="expected a single document"):
        value("a: 1\n---\nb: 2\n")


def test_control_characters_are_refused_in_one_line() -> None:
    with pytest.raises(RecipeError, match=r"x\.yaml: unacceptable character"):
        value("a: \x01")


def test_a_file_with_a_byte_order_mark_is_read_and_one_in_latin_1_is_not(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: \xc3\xa9\n")
    assert yaml.parse_file(path, "r.yaml")[0] == {"a": "é"}
    path.write_bytes(b"a: \xe9\n")
    with pytest.raises(RecipeError, match="byte 3 is no UTF-8"):
        yaml.parse_file(path, "r.yaml")


def test_every_key_has_its_line() -> None:
    lines = yaml.parse("a: 1\n\nb:\n  c: {d: 2}\n", "x")[1]
    assert lines == {("a",): 1, ("b",): 3, ("b", "c"): 4, ("b", "c", "d"): 4}


@pytest.mark.parametrize(
    "thing",
    ["1e-3", "on", "true", "null", "~", "1:30", "010", "", "12", ".5", "a: b", "<<", "- x", "é",
     " x ", "two\nlines", 1e-05, 1e22, 0.1, 5, True, None, [1, "2"], {"on": {}}, -math.inf],
)  # fmt: skip
def test_what_is_dumped_is_read_back_as_it_was(thing: object) -> None:
    again = yaml.parse(yaml.dump({"key": thing}), "x")[0]["key"]
    assert again == thing
    assert type(again) is type(thing)


def test_nan_is_read_back() -> None:
    assert math.isnan(yaml.parse(yaml.dump(math.nan), "x")[0])
