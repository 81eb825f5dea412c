"""Text that a tuned language model writes, in left-padded batches that do not change it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from gistcli.backbones.seq2seq import Seq2Seq
from gistcli.data.text.collate import collate_prompts
from gistcli.data.text.tokenizer import Tokenizer
from gistcli.errors import NotSupported
from gistcli.evaluate.classify import autocast, evaluation_mode
from gistcli.evaluate.language.models import (
    LanguageModel,
    device_of,
    language_model,
    require_room,
)
from gistcli.methods.base import Tuner
from gistcli.reporting import SILENT, Reporter


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen; by default the likeliest, one after the other.

    Attributes:
        max_new_tokens: at most, for each prompt.
        max_length: of prompt and new tokens together, of an encoder-decoder the new ones alone;
            None for what the network can carry.
        beams: beam search with that many.
        sample: draw from the distribution that temperature, top_p and top_k leave.
        temperature, top_p, top_k: of sampling; 1, 1 and 0 leave the distribution as it is.
        repetition_penalty: above 1, for tokens that stand in the sequence already.
        no_repeat_ngram: no sequence of that many tokens twice; 0 for no such rule.
        seed: of sampling; what is drawn also depends on the batch size.
    """

    max_new_tokens: int = 256
    max_length: int | None = None
    beams: int = 1
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """For transformers; all that matters is said, so that no model's own defaults come in."""
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {
            "do_sample": self.sample,
            "num_beams": self.beams,
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram,
            **(drawn if self.sample else {}),
        }


@dataclass(frozen=True)
class Generated:
    """What follows a prompt.

    Attributes:
        text: without special tokens.
        tokens: ids, without the one that ends the text.
        finished: whether the model ended it, and not the limit.
    """

    text: str
    tokens: tuple[int, ...]
    finished: bool


def generate(
    tuner: Tuner,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    batch_size: int,
    *,
    precision: str = "fp32",
    reporter: Reporter = SILENT,
    phase: str = "generate",
) -> list[Generated]:
    """What the tuned network writes behind each prompt, in the order of the prompts.

    Prompts of like lengths share a batch. Padding stands to the left and is masked, positions count
    from the first real token, and every text has its own limit, so that without sampling a text
    depends on its prompt alone (in fp32, up to ties of rounding).

    Args:
        tuner: attached to a language model; left in the mode it was in.
        tokenizer: of the model.
        prompts: token ids, with what belongs in front (`tokenizer.prefix`); of an encoder-decoder
            whole sources.
        decoding: how.
        batch_size: prompts at a time.
        precision: fp32 or bf16 autocast.
        reporter: gets a phase of that name, in prompts.
        phase: its name.

    Raises:
        NotSupported: the network predicts no tokens, or the method acts outside of the network.
        DataError: a prompt is empty, or leaves no room for a token.
    """
    backbone = language_model(tuner)
    require_hooks_only(tuner)
    lengths, carried = [len(p) for p in prompts], backbone.positions
    total = min((n for n in (decoding.max_length, carried) if n is not None), default=None)
    most = decoding.max_new_tokens
    if isinstance(backbone, Seq2Seq):  # the prompt takes no room from what is written
        require_room(lengths, None, "prompt")
        limits = [most if total is None else min(most, total) for _ in lengths]
    else:
        require_room(lengths, None if total is None else total - 1, "prompt")
        limits = [most if total is None else min(most, total - n) for n in lengths]
    found: dict[int, Generated] = {}
    reporter.start(phase, len(prompts), "prompts")
    try:
        with evaluation_mode(tuner, backbone), tuner.step(), _seeded(backbone, decoding.seed):
            for chosen in _batches(lengths, limits, batch_size, carried):
                rows = [prompts[i] for i in chosen]
                steps = max(limits[i] for i in chosen)
                with autocast(device_of(backbone), precision):
                    written = _continue(backbone, tokenizer, rows, steps, decoding)
                for i, tokens in zip(chosen, written, strict=True):
                    found[i] = _read(tokenizer, tokens[: limits[i]])
                reporter.advance(phase, len(chosen))
    finally:
        reporter.finish(phase)
    return [found[i] for i in range(len(prompts))]


def require_hooks_only(tuner: Tuner) -> None:
    """Generation calls the network and not the tuner, step by step and with a cache.

    Raises:
        NotSupported: the method does more than its hooks in the network.
    """
    if not tuner.hooks_only:
        raise NotSupported(
            f"{tuner.method.name} acts on whole sequences, so that no text can be generated with "
            "it token by token.",
            "Use a method that acts inside the network, such as gift or lora.",
        )


def _batches(
    lengths: Sequence[int], limits: Sequence[int], size: int, carried: int | None
) -> Iterator[list[int]]:
    """Prompts of like lengths, longest first, that can go on together within the positions."""
    chosen: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        together = [*chosen, i]
        need = lengths[together[0]] + max(limits[k] for k in together)
        if chosen and (len(chosen) == size or (carried is not None and need > carried)):
            yield chosen
            chosen = []
        chosen.append(i)
    if chosen:
        yield chosen


@torch.no_grad()
def _continue(
    backbone: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    steps: int,
    decoding: Decoding,
) -> list[list[int]]:
    """New token ids of each row, as long as the longest of them."""
    from transformers import GenerationConfig

    device = device_of(backbone)
    batch = {k: v.to(device) for k, v in collate_prompts(prompts, tokenizer.pad_id).items()}
    start = batch["input_ids"].shape[1]
    if isinstance(backbone, Seq2Seq):
        start = 1  # behind the start token
        del batch["position_ids"]
    config = GenerationConfig(
        max_new_tokens=steps,
        eos_token_id=sorted(tokenizer.stop_ids) or None,
        pad_token_id=tokenizer.pad_id,
        decoder_start_token_id=getattr(backbone.config, "decoder_start_token_id", None),
        use_cache=True,
        **decoding.arguments(),
    )
    out_BT = backbone.hf.generate(**batch, generation_config=config)
    written: list[list[int]] = out_BT[:, start:].tolist()
    return written


def _read(tokenizer: Tokenizer, tokens: Sequence[int]) -> Generated:
    """The text up to the first id that ends it; what follows is padding."""
    stop = next((k for k, token in enumerate(tokens) if token in tokenizer.stop_ids), None)
    kept = tuple(tokens[:stop])
    text: str = tokenizer.base.decode(kept, skip_special_tokens=True)
    return Generated(text, kept, stop is not None)


@contextmanager
def _seeded(backbone: LanguageModel, seed: int) -> Iterator[None]:
    """Inside, draws follow from the seed; behind it the generators are as they were."""
    device = device_of(backbone)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
