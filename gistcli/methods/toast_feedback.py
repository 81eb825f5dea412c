"""The feedback path of TOAST: its maps, and reading pre-tuned ones from the run that trained them.

Shape suffixes: D = width, R = rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.base import Backbone
from gistcli.backbones.fingerprint import read_header
from gistcli.errors import BaseMismatch, NotFound, Refused, WeightsError
from gistcli.methods.base import full_precision

STATE, INFO = "tuner.safetensors", "tuner.json"
"""What a run directory calls its trained tensors and their description."""


@dataclass(frozen=True)
class FeedbackOptions:
    """What decides the shape and the start of a feedback path.

    Attributes:
        rank: of the trained update of frozen A and B; None where A and B train themselves.
        alpha: that update is multiplied by alpha / rank.
        identity: A starts at I, else truncated normal of deviation 0.02; B always at 0.
        pretuned: A and B will be replaced before training.
    """

    rank: int | None
    alpha: float
    identity: bool
    pretuned: bool


class Feedback(nn.Module):
    """One step of the feedback path: A_l, downwards, and B_l, into the block."""

    a: Tensor
    b: Tensor

    def __init__(self, options: FeedbackOptions, width: int, like: Tensor) -> None:
        super().__init__()
        a_DD = full_precision((width, width), like)
        if options.identity:
            nn.init.eye_(a_DD)
        else:
            nn.init.trunc_normal_(a_DD, std=0.02)
        b_DD = torch.zeros_like(a_DD)
        self.a_update: LowRankUpdate | None = None
        self.b_update: LowRankUpdate | None = None
        if options.rank is None:
            self.a, self.b = nn.Parameter(a_DD), nn.Parameter(b_DD)
            return
        self.a, self.b = nn.Buffer(a_DD), nn.Buffer(b_DD)
        # with B_l = 0 nothing changes yet, whatever A_l is; if its update began at zero as well,
        # a part of it would stand still for two steps
        zero = options.pretuned
        self.a_update = LowRankUpdate(options.rank, options.alpha, width, like, zero=zero)
        self.b_update = LowRankUpdate(options.rank, options.alpha, width, like, zero=True)

    def descend(self, z: Tensor) -> Tensor:
        """z A_l^T (..., D)."""
        return _through(z, self.a, self.a_update)

    def read(self, z: Tensor) -> Tensor:
        """td_l = z B_l^T (..., D)."""
        return _through(z, self.b, self.b_update)


class LowRankUpdate(nn.Module):
    """z -> alpha / rank z (up down)^T with down (R, D) and up (D, R): a LoRA.

    Raises:
        Refused: a rank above the width.
    """

    def __init__(self, rank: int, alpha: float, width: int, like: Tensor, *, zero: bool) -> None:
        super().__init__()
        if rank > width:
            raise Refused(
                f"method.rank is {rank}, but the feedback path has only {width} features.",
                f"Use a rank of at most {width}.",
            )
        self.scale = alpha / rank
        # Kaiming-uniform with a = sqrt(5)
        bound = 1 / math.sqrt(width)
        self.down = nn.Parameter(full_precision((rank, width), like).uniform_(-bound, bound))
        up_DR = full_precision((width, rank), like)
        self.up = nn.Parameter(up_DR.zero_() if zero else up_DR.uniform_(-bound, bound))

    def forward(self, z: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        code = F.linear(z, self.down.to(z.dtype))
        return F.linear(code, (self.up * self.scale).to(z.dtype))


def _through(z: Tensor, weight_DD: Tensor, update: LowRankUpdate | None) -> Tensor:
    y = F.linear(z, weight_DD.to(z.dtype))
    return y if update is None else y + update(z)


def read_feedback(
    path: Path, expected: Mapping[str, Tensor], backbone: Backbone
) -> dict[str, Tensor]:
    """The tensors of a finished run of `toast`, variant full.

    Args:
        path: the run directory, or its tuner.safetensors.
        expected: tensors by name; those of the file must have their shapes.
        backbone: that they are for; checked where the file's description lies beside it.

    Raises:
        NotFound: no such file.
        WeightsError: damaged, or of another method, variant or width.
        BaseMismatch: trained on another backbone.
    """
    file = path / STATE if path.is_dir() else path
    if not file.is_file():
        raise NotFound(
            f"method.weights: {file} does not exist.",
            "Give the finished run of the pre-tuning stage, or its tuner.safetensors.",
        )
    header = read_header(file)
    problems = [f"{name} is missing" for name in expected if name not in header]
    problems += [
        f"{name} has shape {header[name]['shape']}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in header and header[name]["shape"] != list(tensor.shape)
    ]
    # the frozen A and B of a lite run lie under the same names as the trained ones of a full run
    problems += ["it is of variant lite"] if "p" in header else []
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(
            f"{file} holds no feedback path for {backbone.architecture}: "
            f"{'; '.join(problems[:5])}{more}.",
            "Give a run of toast, variant full, on the same backbone.",
        )
    _require_same_base(file.with_name(INFO), backbone)
    return load_file(file)


def _require_same_base(info: Path, backbone: Backbone) -> None:
    if not info.is_file():
        return
    try:
        there = json.loads(info.read_text(encoding="utf-8"))["backbone"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{info} cannot be read: {error}", "Give the tuner.safetensors without it."
        ) from error
    if there != backbone.fingerprint:
        raise BaseMismatch(
            f"method.weights: the feedback path in {info.parent} was trained on another backbone "
            f"(fingerprint {there[:12]}, here {backbone.fingerprint[:12]}).",
            "Pre-tune on the backbone that is to be tuned.",
        )
