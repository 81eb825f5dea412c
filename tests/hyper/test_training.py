"""A hypernetwork in training: what moves, what cannot, what is kept, and where it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gistcli.errors import BaseMismatch, NotFound, NotMergeable, NotSupported, Refused, WeightsError
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.hyper.section import Hyper
from gistcli.methods.adapter import Adapter
from gistcli.methods.base import Method
from gistcli.methods.gift import Gift
from gistcli.methods.linear import Linear
from gistcli.methods.lora import Lora
from gistcli.methods.low_rank import parameter_key
from gistcli.objectives import Hypertuning
from gistcli.train.engine import open_accelerator
from gistcli.train.plan import OptimPlan, Plan
from gistcli.train.stepping import Stepper
from tests.backbones.text_kinds import build
from tests.hyper.episodes import ALL_LINEAR, GISTS, LLAMA, attach, decoder, episodes, query

BATCH = episodes((7, 4, 5), ((5, 3, 4), (6,), (3, 7)))


def train(tuner: HyperTuner, steps: int = 2, micro: int | None = None) -> list[dict[str, float]]:
    """By the loop's own stepper, which proves that everything fires, gets a gradient and moves."""
    plan = Plan(optim=OptimPlan(lr=1e-2, warmup_ratio=0.0), micro_batch_size=micro)
    objective = Hypertuning(tuner)
    stepper = Stepper(objective, plan, open_accelerator(torch.device("cpu")), steps)
    return [dict(stepper.take(BATCH, step).figures) for step in range(steps)]


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("method", [LLAMA, Gift(rank=2), Adapter(dim=4)], ids=lambda m: m.name)
def test_two_steps_move_all_that_can_move_and_no_bit_of_the_base(
    method: Method, adapted: bool
) -> None:
    backbone = decoder()
    tuner = attach(backbone, method, moved=False, adapt_downstream=adapted)
    base = {n: t.clone() for n, t in backbone.model.state_dict().items()}
    before = {n: t.clone() for n, t in tuner.state().items()}
    train(tuner)
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, base[name]), name
    idle = tuner.idle()
    for name, tensor in tuner.state().items():
        assert torch.equal(tensor, before[name]) == (name in idle), name
    groups = {n: t.group for n, t in tuner.trainable().items()}
    assert groups.pop("hyper.gists") == "gist"
    assert set(groups.values()) == {"method"}
    assert any(n.startswith("downstream.") for n in groups) == adapted
    tuner.detach()
    text = query(BATCH, 0)
    assert torch.equal(backbone(text).logits, decoder()(text).logits)


def test_what_acts_behind_the_last_keys_and_values_is_idle() -> None:
    tuner = attach(decoder(), adapt_downstream=True)
    tuner(BATCH)
    fired = set(tuner.fired())
    tuner.inner.switch.fired.clear()
    behind = {s.name for s in tuner.sites if s.layer == 1 and s.role not in ("key", "value")}
    wanted = {f"hyper.{half}.{parameter_key(name)}" for half in "ab" for name in behind}
    assert len(wanted) == 10
    assert tuner.idle() == wanted
    assert tuner.inner.fired() == set()
    tuner(BATCH)
    assert tuner.fired() == fired
    assert attach(decoder(), Gift(rank=2)).idle() == set()  # shared by all layers
    assert attach(decoder(), context="full").idle() == set()


def test_micro_batches_add_up_and_checkpointing_changes_nothing() -> None:
    whole, pieces, again = (attach(decoder(), adapt_downstream=True) for _ in range(3))
    train(whole)
    train(pieces, micro=1)
    again.backbone.checkpoint_gradients()
    again.train()
    again.backbone.train()
    train(again)
    for name, tensor in whole.state().items():
        torch.testing.assert_close(pieces.state()[name], tensor, atol=2e-5, rtol=1e-3)
        torch.testing.assert_close(again.state()[name], tensor, atol=2e-5, rtol=1e-3)


def test_the_parts_of_the_loss_are_logged() -> None:
    figures = train(attach(decoder(), moved=False, distill=0.5))
    assert {"train/loss", "train/loss/hypertuning", "train/loss/distill"} <= figures[0].keys()
    assert figures[1]["train/loss"] < figures[0]["train/loss"]


def test_gists_start_as_embeddings_of_different_words() -> None:
    backbone = decoder()
    tuner = attach(backbone, moved=False)
    assert tuner.gists is not None
    table = backbone.base.get_input_embeddings().weight
    nearest = torch.cdist(tuner.gists.detach(), table).argmin(1)
    assert torch.equal(table[nearest], tuner.gists)
    assert len(set(nearest.tolist())) == GISTS
    assert not tuner.trainable()["hyper.gists"].decay


def test_texts_are_read_by_the_base_or_by_the_second_copy_alone() -> None:
    backbone, text = decoder(), query(BATCH, 0)
    plain = backbone(text).logits
    frozen = attach(backbone)
    assert torch.equal(frozen(text).logits, plain)
    with frozen.step():
        frozen(BATCH)
        assert frozen.inner.switch.gate is not None
    assert torch.equal(backbone(text).logits, plain)  # as generation calls it, after a step
    frozen.detach()
    adapted = attach(backbone, adapt_downstream=True)
    assert not torch.allclose(adapted(text).logits, plain, atol=1e-2)
    with adapted.disabled():
        assert torch.equal(adapted(text).logits, plain)
    assert frozen.fired() == {site.name for site in frozen.sites}


def test_the_state_goes_through_a_file(tmp_path: Path) -> None:
    tuner = attach(decoder(), adapt_downstream=True)
    save_file({n: t.contiguous() for n, t in tuner.state().items()}, tmp_path / "a.safetensors")
    state = load_file(tmp_path / "a.safetensors")
    assert {n.split(".")[0] for n in state} == {"hyper", "downstream"}
    other = attach(decoder(), moved=False, adapt_downstream=True)
    wanted = tuner(BATCH).logits
    assert not torch.allclose(other(BATCH).logits, wanted, atol=1e-2)
    other.load_state(state)
    assert torch.equal(other(BATCH).logits, wanted)
    with pytest.raises(WeightsError, match="unexpected downstream"):
        attach(decoder()).load_state(state)


def run_of(tuner: HyperTuner, folder: Path, fingerprint: str = "") -> Path:
    """A run directory, as far as going on from it needs one."""
    folder.mkdir()
    state = {n: t.contiguous() for n, t in tuner.state().items()}
    save_file(state, folder / "tuner.safetensors")
    info = {"backbone": {"fingerprint": fingerprint}}
    (folder / "tuner.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize("adapted", [False, True])
def test_it_goes_on_from_a_pretrained_one(adapted: bool, tmp_path: Path) -> None:
    first = attach(decoder())
    folder = run_of(first, tmp_path / "run")
    for path in (folder, folder / "tuner.safetensors"):
        tuner = attach(decoder(), moved=False, adapt_downstream=adapted, init=path)
        tuner.start()
        assert torch.allclose(tuner(BATCH).logits, first(BATCH).logits, atol=1e-6)


def test_what_it_cannot_go_on_from_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(path: Path, method: Method | None = None, **options: Any) -> None:
        attach(decoder(), method, init=path, **options).start()

    adapted = run_of(attach(decoder(), adapt_downstream=True), tmp_path / "adapted", "a" * 64)
    with pytest.raises(NotFound, match=r"hyper\.init: .*none.* does not exist"):
        start(tmp_path / "none")
    with pytest.raises(NotSupported, match="makes prefixes for a network that was adapted"):
        start(adapted)
    with pytest.raises(NotSupported, match=r"hyper\.gists: \[3, 32\] there"):
        start(adapted, gists=5, adapt_downstream=True)
    with pytest.raises(NotSupported, match="there, nothing here"):
        start(adapted, Gift(rank=2), adapt_downstream=True)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="holds no hypernetwork"):
        start(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match="no intact safetensors file"):
        start(tmp_path / "cut.safetensors")
    backbone = decoder()
    monkeypatch.setattr(type(backbone), "fingerprint", "b" * 64)
    with pytest.raises(BaseMismatch, match="fingerprint aaaaaaaaaaaa, here bbbbbbbbbbbb"):
        start(adapted, adapt_downstream=True)


def test_what_reads_texts_merges_and_what_makes_prefixes_does_not() -> None:
    assert "makes prefixes" in (attach(decoder()).merge_refusal() or "")
    with pytest.raises(NotMergeable, match="makes prefixes") as caught:
        attach(decoder()).merge()
    assert "gist compress" in caught.value.hint
    for options in ({"adapt_downstream": True}, {"context": "full"}):
        tuner = attach(decoder(), **options)
        assert tuner.merge_refusal() is None
        text = query(BATCH, 0)
        plain: Any = decoder()
        patches = tuner.merge().patches
        weights = plain.model.state_dict()
        with torch.no_grad():
            for key, patch in patches.items():
                weights[key].copy_(patch(weights[key].float()))
            torch.testing.assert_close(plain(text).logits, tuner(text).logits, atol=1e-4, rtol=1e-4)
    assert len(patches) == 2 * len(ALL_LINEAR)


def test_what_cannot_be_a_hypernetwork_is_refused_in_one_line() -> None:
    with pytest.raises(NotSupported, match="decoder that predicts tokens"):
        Hyper().wrap(Lora()).attach(build("Llama"))
    with pytest.raises(NotSupported, match="decoder that predicts tokens"):
        Hyper().wrap(Lora()).attach(build("T5"))
    with pytest.raises(NotSupported, match="trains the head alone"):
        Hyper().wrap(Linear()).attach(decoder())
    backbone = decoder()
    first = attach(backbone)
    with pytest.raises(NotSupported, match="has a prefix already"):
        attach(backbone)
    first.detach()
    assert attach(backbone)(BATCH).logits.isfinite().all()
    backbone = decoder()
    backbone.compile(backend="eager")
    with pytest.raises(NotSupported, match="already compiled"):
        attach(backbone)
    with pytest.raises(Refused, match="cannot be a hypernetwork"):
        Hyper().wrap(Hyper().wrap(Lora()))


def test_a_hypernetwork_of_llama_2_has_the_published_size() -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    from gistcli.backbones.base import Origin
    from gistcli.backbones.causal import Causal

    config = LlamaConfig(
        num_hidden_layers=32, hidden_size=4096, num_attention_heads=32, intermediate_size=11008
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    backbone = Causal(model, Origin("llama-2-7b", "LlamaForCausalLM"))
    tuner = Hyper().wrap(Lora(rank=8, targets=ALL_LINEAR)).attach(backbone)
    counts = {"method": 0, "gist": 0, "head": 0}
    for trained in tuner.trainable().values():
        counts[trained.group] += trained.parameter.numel()
    assert counts == {"method": 19_988_480, "gist": 65_536, "head": 0}
    assert len(tuner.idle()) == 10
    layers, heads, width = backbone.prefix_seam().shape
    assert 2 * layers * heads * width * 16 == 4_194_304
