"""The losses of hypertuning and compression: next tokens of queries, and the full context's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gistcli import registry
from gistcli.objectives import Compression, Hypertuning
from tests.hyper.episodes import attach, decoder, episodes, front, gradients, query


def test_the_loss_is_the_cross_entropy_of_what_each_query_learns() -> None:
    tuner, batch = attach(decoder()), episodes()
    objective = Hypertuning(tuner)
    losses = objective(batch, objective.count(batch))
    wanted = []
    for row in range(3):
        prefix = tuner.compress(front(batch, row))
        text = query(batch, row)
        with tuner.prefix_in_use(prefix):
            logits = tuner(text).logits[0]
        wanted += [F.cross_entropy(logits[i - 1], text["input_ids"][0, i]) for i in (-2, -1)]
    assert objective.count(batch) == 6
    assert losses.parts.keys() == {"hypertuning"}
    torch.testing.assert_close(losses.total, torch.stack(wanted).mean(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_is_the_divergence_from_the_full_context(temperature: float) -> None:
    backbone, batch = decoder(), episodes()
    tuner = attach(backbone, distill=0.5, temperature=temperature)
    losses = Hypertuning(tuner)(batch, 6)
    kl = []
    for row in range(3):
        spans = batch["spans"][row]
        with torch.no_grad(), tuner.disabled():
            ids = batch["input_ids"][row, (spans == 1) | (spans == 3)][None]
            taught = backbone({"input_ids": ids}).logits[0, -3:-1]
        with torch.no_grad():
            alone = {n: t[row : row + 1] for n, t in batch.items()}
            ours = tuner(alone).logits
        p, q = (F.log_softmax(z / temperature, -1) for z in (taught, ours))
        kl.append((p.exp() * (p - q)).sum())
    wanted = 0.5 * temperature**2 * torch.stack(kl).sum() / 6
    assert losses.parts.keys() == {"hypertuning", "distill"}
    torch.testing.assert_close(losses.parts["distill"], wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(losses.total.detach(), sum(losses.parts.values()))
    with torch.no_grad():
        assert Hypertuning(tuner)(batch, 6).parts.keys() == {"hypertuning"}


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    # a context of no tokens: the teacher sees the query alone, and so does a student whose gists
    # say nothing
    backbone, batch = decoder(), episodes((0, 0, 0))
    tuner = attach(backbone, moved=False, distill=1.0)
    assert tuner.gists is not None
    for _, module in backbone.model.named_modules():
        if hasattr(module, "v_proj"):
            module.v_proj.weight.data.zero_()  # no token says anything to another
    losses = Hypertuning(tuner)(batch, 6)
    assert losses.parts["distill"].abs() < 1e-6
    assert losses.parts["hypertuning"] > 0.1


def test_pieces_of_the_vocabulary_change_nothing() -> None:
    tuner, batch = attach(decoder(), distill=0.5, temperature=2.0), episodes()
    whole, pieces = Hypertuning(tuner)(batch, 6), Hypertuning(tuner, chunk_tokens=4)(batch, 6)
    torch.testing.assert_close(pieces.total, whole.total)
    ours, theirs = (gradients(tuner, found.total) for found in (pieces, whole))
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-6, rtol=1e-4)


def test_both_are_in_the_table_under_their_names() -> None:
    assert registry.resolve("objectives", "hypertuning") is Hypertuning
    assert registry.resolve("objectives", "compression") is Compression
    losses = Compression(attach(decoder()))(episodes(), 6)
    assert losses.parts.keys() == {"compression"}
