"""Prompt tuning: PEFT as the oracle of loss and gradients, starts, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from pydantic import ValidationError

from gistcli.backbones import open_backbone
from gistcli.backbones.supervision import IGNORED
from gistcli.data.text.tokenizer import open_tokenizer
from gistcli.errors import NotMergeable, NotSupported, Refused
from gistcli.methods.prompt import BOUND, Prompt, PromptTuner
from gistcli.objectives import CausalLM
from gistcli.testing.kinds import KINDS
from tests.backbones.text_kinds import batch, build, network
from tests.run.text_models import save_model


def attach(name: str = "Llama", task: str = "causal_lm", **options: Any) -> PromptTuner:
    torch.manual_seed(0)
    return Prompt(**{"length": 4, **options}).attach(build(name, task)).eval()


# PEFT asks transformers by a name that the latter has given up
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_loss_and_gradient_are_pefts(name: str) -> None:
    tuner, inputs = attach(name), batch()
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], IGNORED)
    labels[:, :3] = IGNORED
    asked = {**inputs, "labels": labels}
    task = CausalLM(tuner)
    ours = task(asked, task.count(asked)).total
    ours.backward()
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(network(name, "causal_lm"), config).eval()
    weight = model.prompt_encoder["default"].embedding.weight
    weight.data = tuner.prompt.detach().clone()
    theirs = model(**asked).loss
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert tuner.prompt.grad is not None
    assert torch.allclose(tuner.prompt.grad, weight.grad, atol=1e-5)
    assert weight.grad.abs().max() > 1e-4


def test_it_trains_one_tensor_of_length_times_width_and_nothing_else() -> None:
    tuner = attach(length=7)
    assert {n: tuple(t.parameter.shape) for n, t in tuner.trainable().items()} == {
        "prompt": (7, 32)
    }
    assert not tuner.trainable()["prompt"].decay
    assert tuner.backbone.model.get_input_embeddings().weight.requires_grad is False  # type: ignore[operator, union-attr]
    wide = attach("Electra", "classification", length=2)
    assert wide.prompt.shape == (2, 32)


def test_it_starts_from_words_of_the_vocabulary_or_at_random() -> None:
    tuner = attach(length=30)
    table = tuner.backbone.model.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    rows = [(table == row).all(dim=1).nonzero().flatten().tolist() for row in tuner.prompt]
    assert all(rows)
    assert len({found[0] for found in rows}) > 10
    spread = attach(length=30, init="random").prompt
    assert spread.abs().max() <= BOUND
    assert spread.std().item() == pytest.approx(BOUND / 3**0.5, rel=0.1)


def test_it_starts_from_a_text_repeated_or_cut(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "llama", "Llama", "causal_lm")
    backbone, tokenizer = open_backbone(str(folder)), open_tokenizer(folder)
    table = backbone.model.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    text = "w3 w1 w4"
    (ids,) = tokenizer.ids([text])
    assert len(ids) == 3
    for length, expected in ((2, ids[:2]), (7, [*ids, *ids, ids[0]])):
        tuner = Prompt(length=length, init_text=text).attach(backbone)
        tuner.start()
        assert torch.equal(tuner.prompt.detach(), table[expected])
        tuner.detach()
    empty = Prompt(init_text=" ").attach(backbone)
    with pytest.raises(Refused, match="has no token"):
        empty.start()


def test_pictures_are_for_vpt() -> None:
    backbone = KINDS["class token"].backbone()
    with pytest.raises(NotSupported, match="reads pictures") as caught:
        Prompt().attach(backbone)
    assert "vpt" in caught.value.hint
    with pytest.raises(ValidationError):
        Prompt(length=0)


def test_it_does_not_merge_and_says_what_to_do() -> None:
    with pytest.raises(NotMergeable, match="stand in the sequence") as caught:
        attach().merge()
    assert "--format peft" in caught.value.hint
