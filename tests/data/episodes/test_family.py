"""The built-in family: what its tasks are, and that they stay the same."""

from collections import Counter

from gistcli.data.episodes.family import (
    CLASSES,
    INPUTS,
    LABELS,
    VOCABULARY,
    class_to_label,
    passage,
)


def test_the_family_has_4096_tasks_of_which_256_are_for_the_test():
    splits = class_to_label()
    assert {split: len(tasks) for split, tasks in splits.items()} == {
        "train": 3776,
        "val": 64,
        "test": 256,
    }
    assert len({task.name for tasks in splits.values() for task in tasks}) == 4096


def test_inputs_of_a_class_have_one_label_and_every_item_all_options():
    for task in class_to_label()["test"]:
        answers = {item.prompt: item.completion for item in task.items}
        assert [*answers] == [*INPUTS]
        assert all(answers[first] == answers[second] for first, second in CLASSES)
        assert {item.options for item in task.items} == {LABELS}


def test_without_examples_no_label_is_better_than_chance():
    answers = Counter(item.completion for task in class_to_label()["train"] for item in task.items)
    assert max(answers.values()) / sum(answers.values()) < 0.13


def test_the_split_is_the_same_in_every_version():
    tested = class_to_label()["test"]
    assert [task.name.partition("/")[2] for task in tested[:3]] == ["AADC", "AADE", "AAED"]


def test_a_passage_holds_pairs_of_its_task_in_known_words_and_depends_on_its_number():
    task = class_to_label()["train"][5]
    words = passage(task, 12, seed=3).split(" ")
    answers = {item.prompt: item.completion for item in task.items}
    assert {*words} <= {*VOCABULARY}
    assert [answers[x] for x in words[::2]] == words[1::2]
    assert passage(task, 12, seed=3) == " ".join(words) != passage(task, 12, seed=3, index=1)
