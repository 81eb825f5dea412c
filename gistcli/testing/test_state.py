"""What is kept of a training: names, shapes, storage, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gistcli.errors import WeightsError
from gistcli.methods.base import Tuner
from gistcli.testing.acting import Batch, disturb, logits
from gistcli.testing.cases import Case


def test_the_state_survives_a_file_and_another_seed(
    case: Case, tuner: Tuner, batch: Batch, tmp_path: Path
) -> None:
    disturb(tuner)
    tuned = logits(tuner, batch)
    # refuses tensors that share storage or are not contiguous
    save_file(tuner.state(), tmp_path / "tuner.safetensors")
    other = case.attach(seed=99)
    assert not torch.allclose(logits(other, batch), tuned, atol=1e-3)
    other.load_state(load_file(tmp_path / "tuner.safetensors"))
    assert torch.equal(logits(other, batch), tuned)


@pytest.mark.needs("plain")
def test_a_wrong_state_is_refused_with_all_differences(tuner: Tuner) -> None:
    weight = tuner.backbone.head_names()[0]
    state = {n: t.clone() for n, t in tuner.state().items()}
    lost = next(n for n in state if n != weight)
    state["stranger"] = torch.zeros(1)
    del state[lost]
    state[weight] = torch.zeros(2, 2)
    kept = {n: t.clone() for n, t in tuner.state().items()}
    with pytest.raises(WeightsError) as caught:
        tuner.load_state(state)
    for word in ("stranger", f"missing {lost}", f"{weight} has shape [2, 2]"):
        assert word in caught.value.message
    assert all(torch.equal(t, kept[n]) for n, t in tuner.state().items())


@pytest.mark.needs("plain")
def test_a_state_without_storage_is_refused(tuner: Tuner) -> None:
    state = {n: t.to("meta") for n, t in tuner.state().items()}
    with pytest.raises(WeightsError, match="no storage"):
        tuner.load_state(state)


@pytest.mark.needs("seam")
def test_counts_need_no_weights(case: Case, tuner: Tuner) -> None:
    meta = case.method().attach(case.kind.backbone(meta=True)).trainable()
    real = tuner.trainable()
    assert {n: t.parameter.shape for n, t in meta.items()} == {
        n: t.parameter.shape for n, t in real.items()
    }
    assert all(t.parameter.is_meta for t in meta.values())
