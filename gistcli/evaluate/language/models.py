"""What scoring and generation ask of a tuned network before they start."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gistcli.backbones.causal import Causal
from gistcli.backbones.seq2seq import Seq2Seq
from gistcli.errors import DataError, NotSupported
from gistcli.methods.base import Tuner

LanguageModel = Causal | Seq2Seq


def language_model(tuner: Tuner) -> LanguageModel:
    """The tuner's backbone, which has to predict tokens.

    Raises:
        NotSupported: it reads pictures, or classifies.
    """
    backbone = tuner.backbone
    if not isinstance(backbone, LanguageModel) or backbone.task == "classification":
        raise NotSupported(
            f"{backbone.architecture} predicts no next token.",
            "Use a decoder as a language model (task.type causal_lm), or an encoder-decoder "
            "(seq2seq).",
        )
    return backbone


def device_of(backbone: LanguageModel) -> torch.device:
    """Where the network is."""
    return next(backbone.model.parameters()).device


def require_room(lengths: Sequence[int], most: int | None, what: str) -> None:
    """Every sequence has a token, and at most as many as there is room for.

    Args:
        lengths: tokens of each.
        most: that fit; None for no limit.
        what: they are, in the singular.

    Raises:
        DataError: the first five that do not fit, and how many there are.
    """
    bad = [i for i, n in enumerate(lengths) if n == 0 or (most is not None and n > most)]
    if bad:
        shown = ", ".join(f"{what} {i} ({lengths[i]} tokens)" for i in bad[:5])
        room = "at least 1" if most is None else f"1 to {most}"
        raise DataError(
            f"{len(bad)} of {len(lengths)} {what}s do not fit, {room} tokens do: {shown}.",
            "Shorten or leave them out; nothing was cut.",
        )
