"""Formulas that do not drift: the outputs of every method for a fixed state, as they once were.

`python tests/methods/test_regression.py` writes regression.json anew, for a change that is meant.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gistcli import registry
from gistcli.testing.acting import logits
from gistcli.testing.cases import Case, configurations, home
from gistcli.testing.kinds import KINDS, batch

STORED = Path(__file__).with_name("regression.json")
CASES = {
    str(configuration): Case(configuration, KINDS[home(name)])
    for name in sorted(registry.TABLES["methods"])
    for configuration in configurations(name)
}


def outputs(case: Case) -> Tensor:
    """Logits (6, 5) of a state that depends on names and shapes alone."""
    tuner = case.attach()
    state = {}
    for name, tensor in tuner.state().items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        state[name] = 0.2 * torch.randn(tensor.shape, generator=generator)
    tuner.load_state(state)
    return logits(tuner, batch(case.kind))


@pytest.mark.parametrize("name", CASES)
def test_a_fixed_state_gives_the_outputs_that_it_always_gave(name: str) -> None:
    stored = torch.tensor(json.loads(STORED.read_text())[name])
    assert torch.allclose(outputs(CASES[name]), stored, atol=1e-3)


def test_every_method_has_stored_outputs_that_differ() -> None:
    stored = json.loads(STORED.read_text())
    assert set(stored) == set(CASES)
    different = {json.dumps(v) for v in stored.values()}
    assert len(different) > len(stored) / 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = {name: outputs(case).tolist() for name, case in CASES.items()}
    text = ",\n".join(
        f'"{name}": {json.dumps([[round(x, 4) for x in row] for row in values])}'
        for name, values in rows.items()
    )
    STORED.write_text(f"{{\n{text}\n}}\n")
