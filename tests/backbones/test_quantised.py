"""Frozen weights in 4 and 8 bits: methods act on them untouched, and the files stay theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gistcli import run
from gistcli.backbones import open_backbone
from gistcli.backbones.fingerprint import fingerprint
from gistcli.backbones.quantised import (
    dequantised,
    head_modules,
    is_quantised,
    planned_sizes,
    relative_error,
    round_trip,
)
from gistcli.errors import NotSupported, Refused
from gistcli.methods.base import Method
from gistcli.methods.bitfit import BitFit
from gistcli.methods.full import Full
from gistcli.methods.gift import Gift
from gistcli.methods.lora import Lora
from gistcli.methods.ssf import Ssf
from gistcli.recipe import Recipe
from gistcli.train.footprint import weight_bytes
from tests.backbones.text_kinds import batch, network
from tests.data.text.tokens import words
from tests.run import text_models
from tests.run.task_files import labelled_rows, task_recipe, write_tasks

SIZES = {"hidden_size": 128, "intermediate_size": 192, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    # matrices of a few blocks of codes are quantised badly on a CPU (bitsandbytes 0.50)
    network("Llama", "causal_lm", **SIZES).save_pretrained(folder)
    words(pairs=False).base.save_pretrained(folder)
    return folder


def opened(folder: Path, scheme: str) -> Any:
    pytest.importorskip("bitsandbytes", reason="the extra [quantised] is not installed")
    return open_backbone(str(folder), quantize=scheme).eval()


def linear(x: Tensor, site: Any) -> Tensor:
    return F.linear(x, site.weight().to(x.dtype))


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_a_site_has_the_widths_and_the_weight_that_its_layer_computes_with(
    folder: Path, scheme: str
) -> None:
    backbone, plain = opened(folder, scheme), open_backbone(str(folder))
    for site, original in zip(backbone.all_sites(), plain.all_sites(), strict=True):
        assert is_quantised(site.module)
        assert (site.d_in, site.d_out, site.role) == (original.d_in, original.d_out, original.role)
        assert site.weight().shape == original.weight().shape
        assert torch.equal(site.weight(), dequantised(site.module))
        x = torch.randn(3, site.d_in)
        computed = site.module(x).detach()
        scale = float(computed.abs().max())
        assert torch.allclose(linear(x, site), computed, atol=0.03 * scale)
        assert torch.equal(site.module(x).detach(), computed)
        error = (original.weight() - site.weight()).norm() / original.weight().norm()
        assert error < {"nf4": 0.11, "int8": 0.02}[scheme]
    assert not is_quantised(backbone.hf.lm_head)
    assert backbone.count() == plain.count()
    assert backbone.fingerprint == plain.fingerprint == fingerprint(plain.origin.weights)


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_its_size_is_foreseen_on_the_meta_device(folder: Path, scheme: str) -> None:
    backbone = opened(folder, scheme)
    empty: Any = open_backbone(str(folder), quantize=scheme, meta=True)
    planned = weight_bytes(empty.model, planned_sizes(empty.model, head_modules(empty.hf), scheme))
    actual = weight_bytes(backbone.model)
    scales = sum(s.d_in * s.d_out / 16 for s in backbone.all_sites()) if scheme == "nf4" else 0
    assert planned == pytest.approx(actual + scales, rel=0.01)
    assert planned < 0.7 * weight_bytes(empty.model)


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
@pytest.mark.parametrize(
    "method",
    [Gift(rank=2), Gift(rank=2, block="mlp"), Lora(rank=2), Ssf()],
    ids=["gift", "gift with a block", "lora", "ssf"],
)
def test_methods_start_at_the_quantised_network_and_learn(
    folder: Path, scheme: str, method: Method
) -> None:
    backbone = opened(folder, scheme)
    plain = backbone(batch()).logits
    tuner = method.attach(backbone)
    tuned = tuner(batch()).logits
    if method.starts_as_base():
        assert torch.allclose(tuned, plain, atol=1e-2 * float(plain.detach().abs().max()))
    for step in range(2):
        loss = tuner(batch()).logits.square().mean()
        loss.backward()
        for name, trained in tuner.trainable().items():
            gradient = trained.parameter.grad
            assert gradient is not None, name
            assert step == 0 or gradient.abs().max() > 0 or "idle" in name, name
            trained.parameter.data -= 1e-2 * gradient.sign()
            trained.parameter.grad = None
    with tuner.disabled():
        assert torch.equal(backbone(batch()).logits, plain)


def test_what_trains_the_weights_themselves_is_refused(folder: Path) -> None:
    backbone = opened(folder, "nf4")
    with pytest.raises(NotSupported, match=r"fewer bits \(model.quantize\)"):
        Full().attach(backbone)
    with pytest.raises(NotSupported, match="nothing to train"):
        BitFit().attach(opened(folder, "nf4"))


def test_gift_acts_on_the_weight_that_the_layer_has(folder: Path) -> None:
    backbone = opened(folder, "nf4")
    site = backbone.sites(["attn_out"])[0]
    x = torch.randn(2, 3, site.d_in)
    tuner = Gift(rank=2).attach(backbone)
    for trained in tuner.trainable().values():
        torch.nn.init.normal_(trained.parameter, std=0.3)
    key = tuner.key_of(site)
    phi, psi = tuner.phi[key], tuner.psi[key]
    expected = F.linear(x, site.weight() + site.weight() @ phi @ psi).detach()
    assert torch.allclose(site.module(x), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_the_error_of_a_stored_weight_is_that_of_the_layer(folder: Path, scheme: str) -> None:
    sites = opened(folder, scheme).all_sites()
    for site, original in zip(sites, open_backbone(str(folder)).all_sites(), strict=True):
        weight = original.weight()
        assert torch.allclose(round_trip(weight, scheme), site.weight(), atol=1e-6)
        moved = (weight - site.weight()).norm()
        assert relative_error(weight, weight, scheme) == pytest.approx(
            float(moved / weight.norm()), rel=1e-3
        )


def test_a_run_on_four_bits_trains_is_read_again_and_merges_into_the_stored_weights(
    folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra [quantised] is not installed")
    data = text_models.completions(tmp_path / "data.jsonl")
    recipe = Recipe.model_validate(
        {
            "model": {"name": str(folder), "quantize": "nf4"},
            "data": {"path": str(data)},
            "method": {"name": "lora", "rank": 2},
            "train": {"max_steps": 3, "batch_size": 8},
        }
    )
    result = run.finetune(recipe, output=tmp_path / "run")
    again = run.evaluate(tmp_path / "run")
    assert again["metrics"]["test/loss"] == pytest.approx(result["metrics"]["test/loss"], rel=1e-5)
    receipt = run.merge(tmp_path / "run", tmp_path / "merged")
    assert receipt["verified"]
    merged: Any = open_backbone(str(tmp_path / "merged"))
    assert not any(is_quantised(module) for module in merged.model.modules())


def test_a_hypernetwork_on_four_bits_learns_and_makes_prefixes(
    folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra [quantised] is not installed")
    tasks = write_tasks(tmp_path / "tasks", free=False)
    model = {"name": str(folder), "quantize": "nf4"}
    recipe = task_recipe(folder, tasks, model=model, hyper={"query_tokens": 16})
    result = run.finetune(recipe, output=tmp_path / "run")
    again = run.evaluate(tmp_path / "run")
    assert again["metrics"]["test/loss"] == pytest.approx(result["metrics"]["test/loss"], rel=1e-5)
    examples = tmp_path / "new.jsonl"
    text_models.write_rows(examples, labelled_rows("new", 4))
    for form in ("safetensors", "peft"):
        found = run.compress(tmp_path / "run", examples, tmp_path / form, format=form)
        assert found["verified"]
        assert found["max_abs_logit_difference"] < 1e-5


def test_without_the_library_the_line_that_installs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refused, match="needs bitsandbytes") as caught:
        open_backbone(str(folder), quantize="nf4")
    assert 'pip install "gistcli[quantised]"' in caught.value.hint


def test_pictures_are_not_quantised() -> None:
    with pytest.raises(NotSupported, match="reads pictures"):
        open_backbone("gist_vit_nano", quantize="nf4")
