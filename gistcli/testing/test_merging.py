"""The tuned network as plain weights of the same architecture, or a reason why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gistcli.artifacts.plan import MergePlan, plan_merge
from gistcli.backbones import Backbone
from gistcli.backbones.stored import tied_names
from gistcli.errors import NotMergeable, NotSupported, Refused, WeightsError
from gistcli.methods.base import Tuner
from gistcli.testing.acting import Batch, disturb, logits
from gistcli.testing.cases import Case
from gistcli.testing.kinds import CLASSES


def plain_logits(case: Case, plan: MergePlan, path: Path, batch: Batch) -> Tensor:
    """Logits of a stock network of the merged architecture, loaded from the written file."""
    plan.write(path)
    backbone = case.kind.backbone()
    family = type(backbone)
    stock = family(case.kind.network(**plan.merged.model_args), backbone.origin)
    stock.reset_head(CLASSES)
    missing, unexpected = stock.model.load_state_dict(load_file(path), strict=False)
    assert not unexpected
    assert {*missing} <= tied_names(stock.model)
    return logits(stock.eval(), batch)


def stored_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """The state of the network, each tied tensor under its first name."""
    second = tied_names(backbone.model)
    return {n: t for n, t in backbone.model.state_dict().items() if n not in second}


@pytest.mark.needs("no merge")
def test_what_does_not_merge_says_so(tuner: Tuner) -> None:
    with pytest.raises(NotMergeable) as caught:
        tuner.merge()
    assert (tuner.method.capabilities().merge or "") in caught.value.message
    assert caught.value.message.count(" ") > 3
    assert caught.value.hint


@pytest.mark.needs("merge")
def test_the_streamed_merge_is_the_tuned_network(
    case: Case, tuner: Tuner, batch: Batch, tmp_path: Path
) -> None:
    disturb(tuner)
    tuned = logits(tuner, batch)
    plan = plan_merge(tuner)
    merged = plain_logits(case, plan, tmp_path / "model.safetensors", batch)
    scale = max(float(tuned.abs().max()), 1.0)
    assert torch.allclose(merged, tuned, atol=1e-5 * scale)
    with tuner.disabled():
        assert not torch.allclose(merged, logits(tuner, batch), atol=1e-3)
    # merging reads; it does not touch
    assert torch.equal(logits(tuner, batch), tuned)


@pytest.mark.needs("merge")
def test_the_merged_file_has_the_tensors_of_the_base(
    case: Case, tuner: Tuner, tmp_path: Path
) -> None:
    plan = plan_merge(tuner)
    plan.write(tmp_path / "model.safetensors")
    written = load_file(tmp_path / "model.safetensors")
    stock = case.kind.network(**plan.merged.model_args)
    base = type(tuner.backbone)(stock, tuner.backbone.origin)
    base.reset_head(CLASSES)
    expected = stored_tensors(base)
    assert {n: (t.shape, t.dtype) for n, t in written.items()} == {
        n: (t.shape, t.dtype) for n, t in expected.items()
    }
    if not plan.merged.model_args:
        with tuner.disabled():
            assert written.keys() == stored_tensors(tuner.backbone).keys()


@pytest.mark.needs("seam")
@pytest.mark.needs("merge")
def test_at_scale_0_the_merge_is_the_base(
    case: Case, tuner: Tuner, batch: Batch, tmp_path: Path
) -> None:
    disturb(tuner)
    if not tuner.merge().scalable:
        with pytest.raises(Refused, match="no meaning"):
            plan_merge(tuner, scale=0.5)
        return
    plan = plan_merge(tuner, scale=0.0)
    plan.write(tmp_path / "model.safetensors")
    written = load_file(tmp_path / "model.safetensors")
    with tuner.disabled():
        base = stored_tensors(tuner.backbone)
        new = plan.merged.new
        assert all(torch.equal(written[n], t) for n, t in base.items() if n not in new)


@pytest.mark.needs("plain")
@pytest.mark.needs("merge")
def test_a_broken_state_is_not_merged(tuner: Tuner, tmp_path: Path) -> None:
    broken = {n: torch.full_like(t, float("nan")) for n, t in tuner.state().items()}
    tuner.load_state(broken)
    with pytest.raises(WeightsError, match="not finite"):
        plan_merge(tuner).write(tmp_path / "model.safetensors")


@pytest.mark.needs("low rank")
def test_an_exact_low_rank_update_is_the_patch(tuner: Tuner) -> None:
    disturb(tuner)
    merged, base = tuner.merge(), tuner.backbone.model.state_dict()
    assert {f"{n}.weight" for n in merged.low_rank} == set(merged.patches)
    for name, update in merged.low_rank.items():
        weight = base[f"{name}.weight"]
        tuned = merged.patches[f"{name}.weight"](weight)
        scale = max(float(tuned.abs().max()), 1.0)
        delta = update.turned(update.b(update.turned(weight)) @ update.a)
        assert torch.allclose(weight + delta, tuned, atol=1e-5 * scale)
        assert not torch.allclose(tuned, weight, atol=1e-3)


@pytest.mark.needs("family")
def test_clusters_are_there_where_they_are_promised(tuner: Tuner) -> None:
    if tuner.method.capabilities().clusters:
        with torch.no_grad(), tuner.step():
            assert all(tuner.clusters(site).shape[0] == site.d_out for site in tuner.sites)
    else:
        site = tuner.backbone.sites(["attn_out"])[0]
        with pytest.raises(NotSupported, match="no clusters"):
            tuner.clusters(site)
