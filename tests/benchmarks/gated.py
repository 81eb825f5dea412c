"""Training steps of a hypernetwork against a causal step over the same tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from gistcli.backbones.base import Origin
from gistcli.backbones.causal import Causal
from gistcli.backbones.supervision import IGNORED
from gistcli.hyper.gisting import CONTEXT, GIST, QUERY
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.hyper.section import Hyper
from gistcli.methods.base import Tuner
from gistcli.methods.lora import Lora
from gistcli.objectives import CausalLM, Hypertuning
from tests.benchmarks.contenders import Batch, Build, Contender, size_of
from tests.benchmarks.tables import barred, header, spread
from tests.benchmarks.timing import measure

RANK = 16
ALL_LINEAR = ("query", "key", "value", "attn_out", "fc_in", "fc_gate", "fc_out")
BAR = 1.1
"""What a gated step may cost, in causal ones."""
CAUSAL, ONE_PASS, TWO_PASSES = "causal", "one pass", "two passes"
COLUMNS = (
    *("network", "rows", "context + gists + queries", "causal, ms"),
    *(ONE_PASS, "quartiles", TWO_PASSES, "quartiles"),
)


@dataclass(frozen=True)
class Network:
    """The shape of a Llama, with random weights: what a step takes does not depend on them."""

    name: str
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    words: int = 1000

    def fresh(self) -> Any:
        """The network of transformers, the same in every call."""
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.words,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        )
        return transformers.LlamaForCausalLM(config).eval()

    def backbone(self) -> Causal:
        """The same as a backbone."""
        return Causal(self.fresh(), Origin(self.name, "LlamaForCausalLM"))


@dataclass(frozen=True)
class Rows:
    """A batch of episodes: so many rows of context, gists, and queries of one length."""

    rows: int
    context: int
    gists: int
    query: int
    queries: int

    def batch(self, words: int) -> Batch:
        """With every token of a query but its first as a label."""
        torch.manual_seed(1)
        spans = [CONTEXT] * self.context + [GIST] * self.gists
        spans += [QUERY + n for n in range(self.queries) for _ in range(self.query)]
        spans_BT = torch.tensor([spans] * self.rows)
        ids_BT = torch.randint(3, words, spans_BT.shape)
        labels_BT = ids_BT.masked_fill(spans_BT < QUERY, IGNORED)
        labels_BT[:, self.context + self.gists :: self.query] = IGNORED
        found = {"input_ids": ids_BT, "spans": spans_BT, "labels": labels_BT}
        return {**found, "attention_mask": torch.ones_like(ids_BT)}


TOY = Network("3 blocks of width 64", 64, 128, 3, 4, 4)
SMALL = Network("4 blocks of width 256", 256, 512, 4, 8, 8)
SMOL = Network("6 blocks as in SmolLM2-135M", 576, 1536, 6, 9, 3, 49_152)
CASES = (
    (TOY, Rows(32, 21, 8, 10, 8)),
    (SMALL, Rows(8, 200, 16, 40, 1)),
    (SMALL, Rows(4, 500, 16, 60, 2)),
    (SMALL, Rows(1, 1008, 16, 384, 1)),
    (SMOL, Rows(1, 600, 16, 84, 1)),
)


def gated(network: Network, gists: int) -> HyperTuner:
    """LoRA on every linear map, as a hypernetwork."""
    return Hyper(gists=gists).wrap(Lora(rank=RANK, targets=ALL_LINEAR)).attach(network.backbone())


def step_of(tuner: Tuner, loss: Callable[[], Tensor]) -> Contender:
    parameters = [t.parameter for t in tuner.trainable().values()]
    count = sum(p.numel() for p in parameters)
    return Contender(loss, parameters, count, size_of(tuner.backbone), tuner.step)


def steps(network: Network, rows: Rows) -> dict[str, Build]:
    """The same tokens and labels in all of them; LoRA acts on every token of the causal one."""
    batch = rows.batch(network.words)
    text = {name: tensor for name, tensor in batch.items() if name != "spans"}
    targets_N = batch["labels"][batch["labels"] != IGNORED]
    units = float(len(targets_N))

    def causal() -> Contender:
        tuner = Lora(rank=RANK, targets=ALL_LINEAR).attach(network.backbone())
        objective = CausalLM(tuner).train()
        return step_of(tuner, lambda: objective(text, units).total)

    def one_pass() -> Contender:
        tuner = gated(network, rows.gists)
        objective = Hypertuning(tuner).train()
        return step_of(tuner, lambda: objective(batch, units).total)

    def two_passes() -> Contender:
        tuner = gated(network, rows.gists).train()
        return step_of(
            tuner,
            lambda: (
                F.cross_entropy(tuner.two_pass(batch).logits, targets_N, reduction="sum") / units
            ),
        )

    return {CAUSAL: causal, ONE_PASS: one_pass, TWO_PASSES: two_passes}


def gated_rows(rounds: int) -> list[str]:
    """A Markdown table, a row for each of `CASES`."""
    lines = list(header(COLUMNS))
    for network, rows in CASES:
        seconds = measure(steps(network, rows), rounds, together=True, clock=time.process_time)
        cells = [network.name, str(rows.rows)]
        cells += [f"{rows.context} + {rows.gists} + {rows.queries} x {rows.query}"]
        cells += [f"{1000 * median(seconds[CAUSAL]):.0f}"]
        for name in (ONE_PASS, TWO_PASSES):
            low, middle, high = spread(seconds[name], seconds[CAUSAL])
            cells += [barred(middle, BAR), f"{low:.3f} to {high:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
