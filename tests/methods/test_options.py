"""Options that several methods share, as a shell, YAML and Python write them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gistcli.methods.lora import Lora


@pytest.mark.parametrize("text", ["query,value", "query, value", ["query", "value"]])
def test_targets_are_a_list_or_a_line_with_commas(text: object) -> None:
    assert Lora.model_validate({"targets": text}).targets == ("query", "value")


@pytest.mark.parametrize(
    ("given", "layers"), [("0,-1", (0, -1)), (3, (3,)), ([1, 2], (1, 2)), ("all", "all")]
)
def test_layers_are_numbers_or_all(given: object, layers: object) -> None:
    assert Lora.model_validate({"layers": given}).layers == layers


@pytest.mark.parametrize("options", [{"layers": "0,x"}, {"layers": True}, {"targets": []}])
def test_other_values_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Lora.model_validate(options)
