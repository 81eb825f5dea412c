"""Prefix tuning of many tasks side by side: the same as of each alone, and as in transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache

from gistcli.assets import LLAMA, nano_folder
from gistcli.backbones.prefix import Prefix, cache_name
from gistcli.data.episodes import EpisodeEncoder, Query
from gistcli.evaluate.language.held_out import OWN, Answers
from gistcli.evaluate.language.tuned import TunedPrefixes, mean_of, random_like
from gistcli.hyper.hyperllama import HyperTuner
from tests.hyper import nano

TASKS = 7


@pytest.fixture(scope="module")
def run() -> tuple[HyperTuner, EpisodeEncoder]:
    return nano.opened(nano.CHECKPOINTS / "frozen")


@pytest.fixture(scope="module")
def tuned(run: tuple[HyperTuner, EpisodeEncoder]) -> TunedPrefixes:
    return nano.tuned(*run, TASKS)


def nats(answers: Answers) -> Tensor:
    """(tasks, queries, options)."""
    return torch.tensor([[answer.nll for answer in of_task] for of_task in answers])


def test_behind_its_own_prefix_a_task_is_answered_as_in_a_single_pass(tuned: TunedPrefixes) -> None:
    held, asked = tuned.held, tuned.asked
    behind = held.behind_prefixes(asked, tuned.made())
    torch.testing.assert_close(
        nats(behind), nats(held.behind_examples(asked, OWN)), atol=1e-4, rtol=1e-4
    )


def test_a_prefix_for_all_is_in_front_of_every_task(tuned: TunedPrefixes) -> None:
    held, asked, mean = tuned.held, tuned.asked, mean_of(tuned.made())
    rows = Prefix(*(t.expand(-1, TASKS, -1, -1, -1) for t in (mean.keys, mean.values)))
    both = [nats(held.behind_prefixes(asked, prefix)) for prefix in (mean, rows)]
    torch.testing.assert_close(*both)


def test_tasks_learn_nothing_from_each_other(tuned: TunedPrefixes) -> None:
    start = random_like(tuned.made(), 0)
    alone = replace(tuned, held=replace(tuned.held, batch_size=2))
    one, other = (nats(each.curve(start, [6], "start")[6]) for each in (tuned, alone))
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_tuning_leaves_the_network_the_hypernetwork_and_the_start_alone(
    tuned: TunedPrefixes,
) -> None:
    start = tuned.made()
    state = {**tuned.tuner.state(), **tuned.tuner.backbone.model.state_dict()}
    state |= {"keys": start.keys, "values": start.values}
    before = {name: tensor.clone() for name, tensor in state.items()}
    found = tuned.curve(start, [0, 3], "start")
    assert not torch.equal(nats(found[0]), nats(found[3]))
    for name, tensor in before.items():
        assert torch.equal(tensor, state[name]), name
    assert not any(p.grad is not None for p in tuned.tuner.parameters())


def test_the_steps_are_those_of_adam_on_plain_transformers(tuned: TunedPrefixes) -> None:
    steps, start, place = 4, random_like(tuned.made(), 3), 2
    model = AutoModelForCausalLM.from_pretrained(nano_folder(LLAMA)).eval()
    both = [t[:, place : place + 1].clone().requires_grad_() for t in (start.keys, start.values)]
    optimiser = torch.optim.Adam(both, lr=nano.RATE)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = sum(answer_loss(model, both, q, q.answer) for q in tuned.learnt[place].queries)
        assert isinstance(loss, Tensor)
        loss.backward()
        optimiser.step()
    query = tuned.asked[place].queries[0]
    with torch.no_grad():
        wanted = [answer_loss(model, both, query, option) for option in query.options]
    found = tuned.curve(start, [steps], "start")[steps][place][0].nll
    torch.testing.assert_close(torch.tensor(found), torch.stack(wanted), atol=1e-3, rtol=1e-3)


def answer_loss(model: torch.nn.Module, both: list[Tensor], query: Query, answer: object) -> Tensor:
    """Nats of an answer behind the prefix."""
    prompt, told = torch.tensor(query.prompt).long(), torch.as_tensor(answer).long()
    cache = DynamicCache(list(zip(*both, strict=True)))
    ids = torch.cat([prompt, told])[None]
    seen = torch.ones(1, both[0].shape[-2] + ids.shape[1], dtype=torch.long)
    with_cache = {cache_name(model): cache}
    logits = model(input_ids=ids, attention_mask=seen, **with_cache).logits[0]
    return F.cross_entropy(logits[len(prompt) - 1 : -1], told, reduction="sum")
