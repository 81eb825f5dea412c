"""Pretrains `gist_llama_nano`, the decoder inside the package, to learn in context.

    python -m gistcli.assets.pretrain_llama_nano [FOLDER]

A standard `LlamaForCausalLM` (3 layers, width 64, 4 heads, 128 in the middle of the MLP) reads the
pairs of the built-in family class-to-label (`data/episodes/family.py`): after some of them it knows
the labels of the others, too, although no text names a class. Held-out tasks are in no row. A word
is a token; the words that the family does not have are in the vocabulary, but never trained.

A row is one passage of 16 pairs, or a shorter one and then single pairs, each of them a text of its
own (`<s> x y </s>`) after a gap in the positions: so stands a query behind examples, or behind a
soft prefix. One thread and fixed seeds: two runs on one machine gave the same bytes (other versions
or processors may round differently).

    2,200 steps of 64 rows, 110 CPU seconds; 132,032 parameters, 531,200 bytes (fp32)
    held-out tasks: 4, 8, 16 examples 0.738, 0.926, 0.991; none 0.133 (chance: 0.125)
    10 examples, the query a text of its own, 0, 8, 16 positions on: 0.955, 0.952, 0.952
    SHA-256 4089aad77db9594dc8c590836b5e5340b3c61faf1adb38d38e8cfed03e35102c

With 10 examples 5.6 % of the queries are of a class that none of them shows, so that 0.951 is what
a perfect reader gets on average. The curve is flat at first: for 600 steps it knows only which
labels the examples have, then within 300 which class has which.
"""

from __future__ import annotations

import logging
import string
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Generator, Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gistcli.assets import LLAMA, nano_folder
from gistcli.atomic import sha256
from gistcli.backbones.hf_weights import quiet
from gistcli.data.episodes.family import INPUTS, class_to_label

PAD, BOS, EOS, UNKNOWN = SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = (*SPECIAL, *string.ascii_lowercase, *string.ascii_uppercase, *string.digits,
         "Input:", "Output:")  # fmt: skip
"""The vocabulary: a word's id is its place."""
PAIRS = 16
LENGTH = 1 + 2 * PAIRS
"""Tokens of a row."""
GAP = 16
"""Positions that may be left out in front of a query: as many as gist tokens are usual."""
STEPS, BATCH, SEED = 2200, 64, 0
LR, DECAY, WARMUP = 3e-3, 0.01, 100
TEXT_LOSS = 0.1
"""Weight of the inputs in the loss, which cannot be known, beside the labels'."""

log = logging.getLogger("gistcli.pretrain_llama_nano")


def tokenizer() -> PreTrainedTokenizerFast:
    """Words between blanks or line breaks, <s> in front."""
    table = {word: i for i, word in enumerate(WORDS)}
    base = Tokenizer(models.WordLevel(table, unk_token=UNKNOWN))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    base.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, table[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=base,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def build(seed: int = SEED) -> LlamaForCausalLM:
    """The untrained model."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=2048,
        pad_token_id=WORDS.index(PAD),
        bos_token_id=WORDS.index(BOS),
        eos_token_id=WORDS.index(EOS),
    )
    return LlamaForCausalLM(config)


def ids(words: Iterable[str]) -> Tensor:
    """(W,) token ids of words."""
    return torch.tensor([WORDS.index(word) for word in words])


def answers(split: str) -> Tensor:
    """(N, I): the id of each input's label in the tasks of a split."""
    tasks = class_to_label()[split]
    return torch.stack([ids(item.completion for item in task.items) for task in tasks])


@dataclass(frozen=True)
class Rows:
    """Texts to read.

    Attributes:
        tokens: (B, T) ids.
        positions: (B, T), with gaps in front of queries.
        weights: (B, T), what each token counts in the loss; 0 where nothing predicts it.
    """

    tokens: Tensor
    positions: Tensor
    weights: Tensor


def draw(answers_NI: Tensor, rows: int, generator: Generator) -> Rows:
    """Rows of one task each; in half of them a part of the pairs are queries."""
    task_B = torch.randint(len(answers_NI), (rows,), generator=generator)
    chosen_BK = torch.randint(len(INPUTS), (rows, PAIRS), generator=generator)
    pairs_BK2 = torch.stack([ids(INPUTS)[chosen_BK], answers_NI[task_B[:, None], chosen_BK]], dim=2)
    examples_B = 2 * torch.randint(PAIRS // 2, (rows,), generator=generator)
    examples_B[: rows // 2] = PAIRS
    place_T = torch.arange(LENGTH)
    behind_BT = place_T - (1 + 2 * examples_B[:, None])  # the examples; a query takes four places
    word_BT = 2 * (examples_B[:, None] + behind_BT // 4) + behind_BT % 4
    word_BT = torch.where(behind_BT < 0, place_T, word_BT) - 1
    tokens_BT = pairs_BK2.flatten(1).gather(1, word_BT.clamp(0, 2 * PAIRS - 1))
    begins_BT = (behind_BT >= 0) & (behind_BT % 4 == 0)
    ends_BT = (behind_BT >= 0) & (behind_BT % 4 == 3)
    bos, eos = ids((BOS, EOS))
    tokens_BT = tokens_BT.masked_fill(begins_BT | (place_T == 0), bos).masked_fill(ends_BT, eos)
    gap_BT = torch.randint(GAP + 1, (rows, LENGTH), generator=generator)
    positions_BT = (1 + gap_BT * begins_BT).cumsum(1) - 1
    weights_BT = torch.where(torch.isin(tokens_BT, ids(INPUTS)), TEXT_LOSS, 1.0)
    return Rows(tokens_BT, positions_BT, weights_BT.masked_fill(tokens_BT == bos, 0.0))


def loss_of(model: LlamaForCausalLM, rows: Rows) -> Tensor:
    """The weighted mean cross-entropy of all tokens that something predicts."""
    logits_BTV = _logits(model, rows.tokens, rows.positions)[:, :-1]
    each_N = F.cross_entropy(
        logits_BTV.flatten(0, 1), rows.tokens[:, 1:].flatten(), reduction="none"
    )
    weights_N = rows.weights[:, 1:].flatten()
    return (each_N * weights_N).sum() / weights_N.sum()


def _logits(model: LlamaForCausalLM, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """(B, T, V); without a mask, transformers would take a gap for the end of a text."""
    network: Any = model
    seen_BT = torch.ones_like(tokens_BT)
    logits: Tensor = network(
        input_ids=tokens_BT, position_ids=positions_BT, attention_mask=seen_BT, use_cache=False
    ).logits
    return logits


def train(
    model: LlamaForCausalLM, answers_NI: Tensor, steps: int, *, rows: int = BATCH, seed: int = SEED
) -> list[float]:
    """Trains on freshly drawn rows; returns the loss of every step.

    The rate rises over the first hundred steps and then falls to zero along a line.
    """
    generator = Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min((s + 1) / WARMUP, (steps - s) / max(1, steps - WARMUP))
    )
    losses: list[float] = []
    model.train()
    for step in range(steps):
        loss = loss_of(model, draw(answers_NI, rows, generator))
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 99:
            log.info("step %d: loss %.3f", step + 1, sum(losses[-100:]) / 100)
    return losses


@torch.no_grad()
def accuracy(
    model: LlamaForCausalLM, answers_NI: Tensor, examples: int, *, apart: int | None = None
) -> float:
    """The share of right labels: every input of every task, each behind examples of its own.

    Args:
        model: to measure.
        answers_NI: of `answers`.
        examples: pairs in front of the one whose label is asked.
        apart: begin that one as a text of its own, so many positions further on; None: as one
            pair more.
    """
    generator = Generator().manual_seed(SEED + 1)
    count, inputs = answers_NI.shape
    chosen_NIK = torch.randint(inputs, (count, inputs, examples), generator=generator)
    labels_NIK = answers_NI[:, None].expand(-1, inputs, -1).gather(2, chosen_NIK)
    pairs_BT = torch.stack([ids(INPUTS)[chosen_NIK], labels_NIK], dim=3).flatten(2).flatten(0, 1)
    rows = len(pairs_BT)
    begin_B1 = ids([BOS]).expand(rows, 1)
    asked_B1 = ids(INPUTS).repeat(count)[:, None]
    query_BQ = asked_B1 if apart is None else torch.cat([begin_B1, asked_B1], dim=1)
    tokens_BT = torch.cat([begin_B1, pairs_BT, query_BQ], dim=1)
    positions_T = torch.arange(tokens_BT.shape[1])
    positions_T[-query_BQ.shape[1] :] += apart or 0
    model.eval()
    guessed_B = _logits(model, tokens_BT, positions_T.expand(rows, -1))[:, -1].argmax(1)
    return float((guessed_B == answers_NI.flatten()).float().mean())


def save(model: LlamaForCausalLM, folder: Path) -> Path:
    """Writes the folder as transformers does (fp32); returns the path of the weights."""
    with quiet():
        model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder / "model.safetensors"


def main(folder: Path) -> None:
    """Trains, measures on held-out tasks and writes the model to `folder`."""
    torch.set_num_threads(1)
    started = time.process_time()
    model = build()
    train(model, answers("train"), STEPS)
    seconds = time.process_time() - started
    weights = save(model, folder)
    held_out = answers("test")
    for examples in (4, 8, 16):
        log.info("%d examples: %.3f", examples, accuracy(model, held_out, examples))
    log.info("no example: %.3f", accuracy(model, held_out, 0))
    for apart in (0, 8, 16):
        log.info("10, query %d on: %.3f", apart, accuracy(model, held_out, 10, apart=apart))
    log.info("%d steps in %.0f CPU seconds", STEPS, seconds)
    log.info("%d parameters", sum(p.numel() for p in model.parameters()))
    log.info("%s: %d bytes, SHA-256 %s", weights, weights.stat().st_size, sha256(weights))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else nano_folder(LLAMA))
