"""What the tests of TOAST share."""

from __future__ import annotations

import torch
from torch import Tensor

from gistcli.backbones import Backbone
from gistcli.methods.toast import Toast, ToastTuner

Batch = dict[str, Tensor]
VARIANTS = ("full", "lite")


def attach(backbone: Backbone, **options: object) -> ToastTuner:
    torch.manual_seed(2)
    return Toast.model_validate(options).attach(backbone).eval()


def maps(tuner: ToastTuner, layer: int) -> tuple[Tensor, Tensor]:
    """A_l and B_l with their low-rank updates written out."""
    step = tuner.layer(layer)
    a, b = step.a, step.b
    if tuner.method.variant == "lite":
        scale = tuner.method.alpha / tuner.method.rank
        a = a + scale * step.a_update.up @ step.a_update.down
        b = b + scale * step.b_update.up @ step.b_update.down
    return a, b
