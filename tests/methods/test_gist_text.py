"""The gist token on text: the published loss on transformers' own networks, and merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gistcli.artifacts.plan import plan_merge
from gistcli.backbones.text import TextBackbone
from gistcli.errors import NotMergeable, NotSupported
from gistcli.methods.adapter import Adapter
from gistcli.methods.base import Method
from gistcli.methods.gift import Gift
from gistcli.methods.gist import Gist, GistTuner
from gistcli.methods.linear import Linear
from gistcli.methods.lora import Lora
from gistcli.methods.prefix import PrefixTuning
from gistcli.methods.prompt import Prompt
from gistcli.objectives import Classification, Regression
from gistcli.testing.acting import disturb, logits
from tests.backbones.text_kinds import PAD, batch, build, network
from tests.methods.test_gist import gradients, published_loss

LABELS = torch.tensor([0, 2, 1])
WORDS = [5, 9, 13]


def attach(backbone: TextBackbone, method: Method, **options: Any) -> GistTuner:
    """Away from the start, in evaluation mode, with the published weights of the losses."""
    torch.manual_seed(2)
    tuner = Gist(**options).wrap(method).attach(backbone).eval()
    assert isinstance(tuner, GistTuner)
    disturb(tuner)
    return tuner


def with_token(backbone: Any, token_GD: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, S, D): transformers' forward pass, beside the hooks, with the token behind <s>."""
    x = backbone.base.get_input_embeddings()(ids)
    rows, extra = len(ids), len(token_GD)
    words = torch.where(ids == PAD, PAD, torch.arange(ids.shape[1]) + 1)
    found: Tensor = backbone.base.forward(
        inputs_embeds=torch.cat([x[:, :1], token_GD.expand(rows, -1, -1), x[:, 1:]], dim=1),
        attention_mask=torch.cat([torch.ones(rows, extra).long(), mask], dim=1),
        position_ids=torch.cat([words[:, :1].expand(-1, extra), words], dim=1),
    ).last_hidden_state
    return found


def encoders(backbone: Any, token_GD: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """RoBERTa's two logits: its head reads the first position of what it is given."""
    tokens = with_token(backbone, token_GD, inputs["input_ids"], inputs["attention_mask"])
    head, extra = backbone.hf.classifier, len(token_GD)
    return head(tokens), head(tokens[:, 1 : 1 + extra].mean(dim=1, keepdim=True))


def decoders(backbone: Any, token_GD: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Llama's two logits, text by text, so that there is no padding and no mask."""
    z, g = [], []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        length = int(mask.sum())
        x = torch.cat([backbone.base.embed_tokens(ids[:length]), token_GD])[None]
        tokens = backbone.base.forward(inputs_embeds=x, use_cache=False).last_hidden_state[0]
        z.append(backbone.hf.score(tokens[length - 1]))
        g.append(backbone.hf.score(tokens[length:].mean(dim=0)))
    return torch.stack(z), torch.stack(g)


BY_HAND = {"Roberta": encoders, "Llama": decoders}


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("method", [Lora(rank=4), Adapter(dim=4), Linear()], ids=str)
@pytest.mark.parametrize("name", BY_HAND)
def test_the_loss_is_the_published_one_with_its_gradients(
    name: str, method: Method, length: int
) -> None:
    inputs = batch()
    tuner = attach(build(name), method, length=length, dropout=0)
    losses = Classification(tuner)({**inputs, "labels": LABELS}, 3)
    z, g = BY_HAND[name](tuner.backbone, tuner.gist["token"], inputs)
    expected = published_loss(z, g, LABELS)
    assert losses.parts.keys() == {"classification", "gist", "interaction"}
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, theirs = gradients(tuner, losses.total), gradients(tuner, expected)
    assert ours.keys() == theirs.keys() == tuner.trainable().keys()
    for key, gradient in ours.items():
        scale = max(float(gradient.abs().max()), 1.0)
        assert torch.allclose(gradient, theirs[key], atol=1e-6 * scale), key
        assert gradient.abs().max() > 1e-6, key


@pytest.mark.parametrize("name", ["Roberta", "Electra"])
def test_it_costs_one_vector_of_the_width_of_the_embeddings(name: str) -> None:
    extra = {"embedding_size": 16} if name == "Electra" else {}
    backbone = build(name, **extra)
    bare = Lora().attach(backbone)
    count = sum(t.parameter.numel() for t in bare.trainable().values())
    bare.detach()
    tuner = attach(backbone, Lora(), length=2)
    trained = sum(t.parameter.numel() for t in tuner.trainable().values())
    assert trained - count == 2 * (16 if name == "Electra" else 32)
    assert torch.isfinite(Classification(tuner)({**batch(), "labels": LABELS}, 3).total)


def test_a_head_with_one_output_is_pulled_by_the_squared_difference() -> None:
    backbone = build("Roberta")
    backbone.reset_head(1)
    tuner = attach(backbone, Lora(rank=4), dropout=0)
    targets = torch.tensor([0.5, -1.0, 2.0])
    losses = Regression(tuner)({**batch(), "labels": targets}, 3)
    z, g = encoders(backbone, tuner.gist["token"], batch())
    expected = (z[:, 0] - targets).square().mean() + 0.5 * (g[:, 0] - targets).square().mean()
    expected = expected + 0.75 * (z - g).square().mean()
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_decoder_without_its_losses_trains_no_token() -> None:
    tuner = attach(build("Llama"), Lora(rank=4), alpha=0, lambda_=0)
    losses = Classification(tuner)({**batch(), "labels": LABELS}, 3)
    assert losses.parts.keys() == {"classification"}
    assert tuner.idle() == {"gist.token"}
    assert not gradients(tuner, losses.total)["gist.token"].any()
    assert attach(build("Llama"), Lora(rank=4)).idle() == set()


@pytest.mark.parametrize("method", [PrefixTuning(length=2), Prompt(length=2)], ids=str)
def test_what_stands_in_front_of_a_text_is_seen_by_the_token_behind_it(method: Method) -> None:
    backbone, inputs = build("Llama"), batch()
    tuner = attach(backbone, method)
    together = backbone.read_out(tuner(inputs), "gist")
    for row in range(3):
        length = int(inputs["attention_mask"][row].sum())
        single = tuner({"input_ids": inputs["input_ids"][row : row + 1, :length]})
        assert torch.allclose(backbone.read_out(single, "gist")[0], together[row], atol=1e-5)
    found = gradients(tuner, together.square().sum())
    trained = {n for n, t in tuner.trainable().items() if t.group == "method"}
    assert all(found[n].abs().max() > 1e-6 for n in trained)


def test_in_the_source_of_an_encoder_decoder_it_is_read_by_the_decoder_alone() -> None:
    backbone: Any = build("T5", dropout_rate=0.0)
    backbone.set_label_words(["a", "b", "c"], WORDS)
    tuner = attach(backbone, Lora(rank=4), length=2, dropout=0, place="encoder")
    inputs, model, token_GD = batch(), backbone.hf, tuner.gist["token"]
    losses = Classification(tuner)({**inputs, "labels": LABELS}, 3)
    x = torch.cat([token_GD.expand(3, -1, -1), model.shared(inputs["input_ids"])], dim=1)
    mask = torch.cat([torch.ones(3, 2).long(), inputs["attention_mask"]], dim=1)
    states = model.encoder.forward(inputs_embeds=x, attention_mask=mask).last_hidden_state
    start = torch.full((3, 1), PAD)

    def decoded(seen: Tensor, mask: Tensor | None) -> Tensor:
        tokens = model.decoder.forward(
            input_ids=start, encoder_hidden_states=seen, encoder_attention_mask=mask
        ).last_hidden_state
        return 32**-0.5 * tokens[:, 0] @ model.lm_head.weight[WORDS].t()

    z = decoded(states[:, 2:], inputs["attention_mask"])
    g = decoded(states[:, :2].mean(dim=1, keepdim=True), None)
    expected = published_loss(z, g, LABELS)
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = gradients(tuner, losses.total), gradients(tuner, expected)
    assert all(
        torch.allclose(ours[n], t, atol=1e-6 * max(1, t.abs().max())) for n, t in theirs.items()
    )
    assert ours["gist.token"].abs().max() > 1e-6
    assert not tuner.droppable()
    with torch.no_grad():
        assert torch.allclose(tuner(inputs).logits, z, atol=1e-5)
    assert "no place for a trained token" in (tuner.merge_refusal() or "")
    with pytest.raises(NotSupported, match="is for encoder-decoders"):
        attach(build("Roberta"), Lora(), place="encoder")


# --- merging ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama", "GPT2", "T5"])
def test_a_token_that_stands_last_is_dropped_and_the_rest_merges(name: str, tmp_path: Path) -> None:
    backbone: Any = build(name)
    if name == "T5":
        backbone.set_label_words(["a", "b", "c"], WORDS)
    tuner = attach(backbone, Gift(rank=3, targets=["query", "value"]))
    assert tuner.merge_refusal() is None
    plan = plan_merge(tuner)
    assert plan.merged.scalable
    plan.write(tmp_path / "model.safetensors")
    tuned = logits(tuner, batch())
    stock: Any = network(name)
    left = stock.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert not left.unexpected_keys
    stock.tie_weights()
    with torch.no_grad():
        start = {"decoder_input_ids": torch.full((3, 1), PAD)} if name == "T5" else {}
        merged = stock(**batch(), **start).logits
    merged = merged[:, 0, WORDS] if name == "T5" else merged
    assert torch.allclose(merged, tuned, atol=1e-5)
    with tuner.disabled():
        assert not torch.allclose(logits(tuner, batch()), tuned, atol=1e-2)


@pytest.mark.parametrize("method", [Lora(), Linear()], ids=str)
def test_an_encoder_has_no_place_for_it_in_plain_weights(method: Method) -> None:
    tuner = attach(build("Bert"), method)
    assert "no place for a trained token" in (tuner.merge_refusal() or "")
    with pytest.raises(NotMergeable, match="no place for a trained token") as caught:
        tuner.merge()
    assert "--no-gist" in caught.value.hint
    assert "onnx" not in caught.value.hint


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"), [("Llama", "see nothing"), ("T5", "stand in the encoder")]
)
def test_prompts_whose_outputs_say_nothing_are_not_read(name: str, why: str) -> None:
    backbone: Any = build(name)
    if name == "T5":
        backbone.set_label_words(["a", "b", "c"], WORDS)
    with pytest.raises(NotSupported, match=why):
        Gist(source="prompts").wrap(Prompt(length=2)).attach(backbone)
    assert not backbone.inserted.active()


def test_prompts_of_an_encoder_are_read() -> None:
    tuner = attach(build("Roberta"), Prompt(length=2), source="prompts")
    losses = Classification(tuner)({**batch(), "labels": LABELS}, 3)
    z, g = encoders(tuner.backbone, tuner.inner.prompt, batch())  # type: ignore[arg-type]
    assert losses.total.item() == pytest.approx(published_loss(z, g, LABELS).item(), rel=1e-6)


def test_a_language_model_is_refused_in_one_line() -> None:
    backbone = build("Llama", "causal_lm")
    with pytest.raises(NotSupported, match="learns one answer a text"):
        Gist().wrap(Lora()).attach(backbone)
    assert backbone.inserted is not None
    assert not backbone.inserted.entries
