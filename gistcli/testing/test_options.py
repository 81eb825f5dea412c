"""A method as it stands in the table, in a recipe and in a finished run."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from pydantic import ValidationError

from gistcli import registry
from gistcli.methods.base import Method
from gistcli.testing.cases import Configuration


@pytest.fixture
def method(configuration: Configuration) -> Method:
    return configuration.method()


def test_options_are_frozen_checked_and_survive_json(method: Method) -> None:
    kind = type(method)
    assert kind.model_validate_json(json.dumps(method.model_dump(mode="json"))) == method
    with pytest.raises(ValidationError):
        kind.model_validate({"no_such_option": 1})
    for option in kind.model_fields:
        with pytest.raises(ValidationError):
            setattr(method, option, None)


def test_every_option_is_described(name: str) -> None:
    fields = registry.resolve("methods", name).model_fields
    assert all(field.description for field in fields.values())


def test_a_method_names_itself_and_its_rates(name: str) -> None:
    kind: type[Method] = registry.resolve("methods", name)
    if ".py:" not in name:
        assert kind.name == name
    assert kind.summary
    assert kind.recommended
    assert kind.recommended.keys() <= {"vision", "text"}
    for recommended in kind.recommended.values():
        assert recommended.lr > 0
        assert recommended.head_lr > 0
        assert recommended.weight_decay >= 0


def test_a_method_says_what_it_can_do_in_json(method: Method) -> None:
    found = json.loads(json.dumps(asdict(method.capabilities())))
    reason = found.pop("merge")
    assert reason is None or len(reason) > 10
    assert set(map(type, found.values())) == {bool}
