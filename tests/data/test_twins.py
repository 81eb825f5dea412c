"""Pictures that are in two splits."""

from __future__ import annotations

import pytest

from gistcli.data import twins
from gistcli.data.base import Record
from gistcli.data.twins import identical


def test_only_content_in_two_splits_counts_as_identical() -> None:
    twin = [Record(name, "a", b"same") for name in ("one", "two", "three")]
    assert identical({"train": twin[:2], "val": [Record("x", "a", b"else")]}) == ([], 0)
    assert identical({"train": twin[:2], "val": twin[2:]}) == (
        [("train: one", "train: two", "val: three")],
        0,
    )


def test_no_more_than_the_budget_is_read_and_the_rarest_lengths_come_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is left unread is counted: three pictures of one byte, which are twins, too."""
    many = [Record(f"m{i}", "a", b"m") for i in range(3)]
    few = [Record(f"f{i}", "a", b"four") for i in range(2)]
    splits = {"train": [many[0], few[0]], "test": [*many[1:], few[1]]}
    assert len(identical(splits)[0]) == 2
    for name, limit in (("FILES", 4), ("BYTES", 10)):
        with monkeypatch.context() as patch:
            patch.setattr(twins, name, limit)
            assert identical(splits) == ([("test: f1", "train: f0")], 3)
