"""VPT: prompts in the sequence of tokens, before the first block or anew before every block.

Paper: arXiv 2203.12119. Shape suffixes: N = 1, or the number of blocks; P = prompts; D = width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli.backbones.base import Backbone
from gistcli.backbones.images import ImageBackbone, require_images
from gistcli.backbones.tokens import MakeTokens
from gistcli.methods.base import Capabilities, Method, Recommended, Tuner, full_precision
from gistcli.methods.merged import Merged


class Vpt(Method):
    """Trained prompt tokens; the network itself stays as it is."""

    name: ClassVar[str] = "vpt"
    summary: ClassVar[str] = "prompt tokens before the first block, or anew before every block"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "vision": Recommended(3e-3, 3e-3, 1e-4, clip_norm=1.0)
    }

    length: Annotated[int, Field(ge=1)] = 10
    """Number of prompts. The paper tunes it by task; 10 add 5 % to the multiplications of a
    step of ViT-B/16, 50 add 28 %."""
    deep: bool = True
    """Fresh prompts at every block (VPT-deep, the stronger form); false: before the first alone."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """On the prompts, by image and element, in training."""

    def starts_as_base(self) -> bool:
        """No: attention sees the prompts from the start."""
        return False

    def capabilities(self) -> Capabilities:
        """Shallow prompts become registers; deep ones cannot, and no gate reaches either."""
        reason = "each block replaces its prompts, and registers pass through all blocks"
        return Capabilities(merge=reason if self.deep else None, gateable=False, tokens=True)

    def attach(self, backbone: Backbone, *, head: bool = True) -> VptTuner:
        """Insert the prompts behind the class token, without a position."""
        return VptTuner(self, backbone, head=head)


class VptTuner(Tuner):
    """Holds the prompts (N, P, D)."""

    method: Vpt

    def __init__(self, method: Vpt, backbone: Backbone, *, head: bool = True) -> None:
        network = require_images(backbone, method.name)
        super().__init__(method, backbone, head=head)
        handle = backbone.insert_tokens("prompts", method.length, self._maker(0), self.switch)
        width = backbone.require_one_width(method.name)
        sets = backbone.depth if method.deep else 1
        for layer in range(1, sets):
            handle.refresh(layer, self._maker(layer))
        like = next(backbone.model.parameters())
        bound = math.sqrt(6 / (3 * patch_pixels(network) + width))
        prompts_NPD = full_precision((sets, method.length, width), like).uniform_(-bound, bound)
        self.prompts = nn.Parameter(prompts_NPD)

    def _maker(self, layer: int) -> MakeTokens:
        def make(batch: int) -> Tensor:
            tokens_BPD = self.prompts[layer].expand(batch, -1, -1)
            return F.dropout(tokens_BPD, self.method.dropout, self.training)

        return make

    def register_rows(self) -> Tensor | None:
        """(P, D): shallow prompts; deep ones are replaced in every block, as registers are not."""
        return None if self.method.deep else self.prompts[0].detach()

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        return Merged({}, head)


def patch_pixels(network: ImageBackbone) -> int:
    """Pixels of one patch, height times width."""
    _, height, width = network.data_config()["input_size"]
    rows, columns = network.layout_of(torch.empty(1, 3, height, width, device="meta")).grid
    return (height // rows) * (width // columns)
