"""Both means of a table: on numbers of a paper, and never over fewer tasks than the column."""

from __future__ import annotations

import pytest

from gistcli.evaluate.aggregate import Mean, group_tasks, means, over_seeds

GROUPS = {
    "natural": ["cifar", "caltech101", "dtd", "flowers", "pets", "svhn", "sun397"],
    "specialized": ["camelyon", "eurosat", "resisc45", "retinopathy"],
    "structured": ["count", "dist", "dmlab", "kitti", "loc", "ori", "azi", "ele"],
}
TASKS = [task for members in GROUPS.values() for task in members]
GIFT_V1 = (
    82.0, 91.5, 70.0, 98.9, 90.9, 90.3, 52.4, 84.5, 96.2, 83.6, 71.7,
    76.7, 60.8, 48.8, 77.9, 76.2, 49.5, 33.1, 35.0,
)  # fmt: skip
"""arXiv 2312.00700v1, Table 1, GIFT, ImageNet-21k."""


def test_the_means_of_a_published_row_are_the_published_ones() -> None:
    found = means({t: {0: v} for t, v in zip(TASKS, GIFT_V1, strict=True)}, TASKS, GROUPS)
    assert {g: round(m.mean, 2) for g, m in found.groups.items()} == {
        "natural": 82.29,
        "specialized": 84.0,
        "structured": 57.25,
    }
    assert found.of_groups is not None
    assert found.of_tasks is not None
    assert round(found.of_groups.mean, 2) == 74.51
    assert round(found.of_tasks.mean, 2) == 72.11
    assert found.of_tasks.deviation is None


def test_a_mean_over_fewer_tasks_is_left_out() -> None:
    values = {t: {0: v} for t, v in zip(TASKS, GIFT_V1, strict=True) if t != "kitti"}
    found = means(values, TASKS, GROUPS)
    assert list(found.groups) == ["natural", "specialized"]
    assert found.of_groups is None
    assert found.of_tasks is None
    assert means(values, [t for t in TASKS if t != "kitti"], {}).of_tasks is not None
    assert means(values, TASKS[:3], {}).of_groups is None


def test_the_deviation_of_a_mean_is_that_of_the_seeds_means() -> None:
    values = {"a": {0: 0.5, 1: 0.7}, "b": {0: 0.9, 1: 0.7}}
    found = means(values, ["a", "b"], {"one": ["a"], "two": ["b"]})
    assert found.of_tasks == Mean(pytest.approx(0.7), pytest.approx(0.0))
    assert found.groups["one"].deviation == pytest.approx(0.2 / 2**0.5)
    other = means({"a": {0: 0.5, 1: 0.7}, "b": {0: 0.9, 2: 0.7}}, ["a", "b"], {})
    assert other.of_tasks == Mean(pytest.approx(0.7), None)


def test_seeds_have_a_sample_deviation_and_one_seed_has_none() -> None:
    assert over_seeds([1.0, 3.0]) == Mean(2.0, pytest.approx(2**0.5))
    assert over_seeds([1.0]) == Mean(1.0, None)


def test_groups_keep_the_order_of_the_tasks_and_leave_out_who_has_none() -> None:
    found = group_tasks(["c", "a", "x", "b"], {"a": "one", "b": "one", "c": "two", "x": None})
    assert found == {"two": ["c"], "one": ["a", "b"]}
