"""Prompt tuning: trained vectors in front of a text, where the embeddings of words would stand.

    network([P; E(x)])          P (P, D) trained, E(x) the embeddings of the text

Paper: Lester, Al-Rfou and Constant, arXiv 2104.08691. In an encoder the vectors stand behind the
class token, at whose output the head reads. Shape suffixes: P = prompts, D = width of the
embeddings, B = batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gistcli.backbones.base import Backbone
from gistcli.backbones.text import TextBackbone
from gistcli.errors import NotSupported, Refused
from gistcli.methods.base import Capabilities, Method, Recommended, Tuner, full_precision

COMMON = 5000
"""The paper draws from as many words of the vocabulary, which begins with the most common ones."""
BOUND = 0.5
"""Random prompts start uniform between -0.5 and 0.5, as in the paper."""


class Prompt(Method):
    """Trained prompts; the network itself stays as it is."""

    name: ClassVar[str] = "prompt"
    summary: ClassVar[str] = "trained vectors in front of the text (prompt tuning)"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "text": Recommended(lr=1e-2, head_lr=1e-3, weight_decay=0.0, clip_norm=1.0)
    }

    length: Annotated[int, Field(ge=1)] = 20
    """Number of prompts. The paper's T5 takes 100, and gains little beyond 20; a decoder has that
    much less room for its text."""
    init: Literal["vocabulary", "random"] = "vocabulary"
    """vocabulary: the embeddings of words drawn from the 5,000 that come first, which are the most
    common ones in most tokenizers. random: uniform between -0.5 and 0.5."""
    init_text: Annotated[str, Field(min_length=1)] | None = None
    """Start from the embeddings of this text in place of `init`, repeated or cut to `length`."""

    def starts_as_base(self) -> bool:
        """No: attention sees the prompts from the start."""
        return False

    def capabilities(self) -> Capabilities:
        """Stays beside the weights, and no gate reaches it."""
        reason = "its prompts stand in the sequence, and no weight of the network could hold them"
        return Capabilities(merge=reason, gateable=False, tokens=True)

    def attach(self, backbone: Backbone, *, head: bool = True) -> PromptTuner:
        """Insert the prompts.

        Raises:
            NotSupported: pictures; a network with fewer positions than prompts.
        """
        return PromptTuner(self, backbone, head=head)


class PromptTuner(Tuner):
    """Holds the prompts (P, D)."""

    method: Prompt
    instead_of_merging: ClassVar[str] = "Write a folder for PEFT: `gist merge --format peft`."

    def __init__(self, method: Prompt, backbone: Backbone, *, head: bool = True) -> None:
        _require_text(backbone)
        super().__init__(method, backbone, head=head)
        backbone.insert_tokens("prompts", method.length, self._make, self.switch)
        like = next(backbone.model.parameters())
        shape = (method.length, backbone.token_width(method.name))
        prompt_PD = full_precision(shape, like).uniform_(-BOUND, BOUND)
        self.prompt = nn.Parameter(prompt_PD)
        if method.init == "vocabulary":
            table_VD = self._table()
            ids_P = torch.randint(min(COMMON, len(table_VD)), (method.length,))
            self._take(ids_P)

    def _make(self, batch: int) -> Tensor:
        return self.prompt.expand(batch, -1, -1)

    def start(self) -> None:
        """Take over the embeddings of `init_text`.

        Raises:
            NotFound: the model's folder has no tokenizer.
            Refused: a text without a token.
        """
        text = self.method.init_text
        if text is None:
            return
        from gistcli.data.text.tokenizer import open_tokenizer

        folder = self.backbone.origin.config.get("folder")
        assert folder is not None, "a network over text comes from a folder"
        (ids,) = open_tokenizer(Path(folder)).ids([text])
        if not ids:
            raise Refused(f"method.init_text: {text!r} has no token.", "Give a text with words.")
        length = self.method.length
        self._take(torch.tensor((ids * -(-length // len(ids)))[:length]))

    def _table(self) -> Tensor:
        network: Any = self.backbone.model
        weight_VD: Tensor = network.get_input_embeddings().weight
        return weight_VD

    def _take(self, ids_P: Tensor) -> None:
        table_VD = self._table()
        self.prompt.data.copy_(table_VD.detach()[ids_P.to(table_VD.device)])

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """No: an embedding of no length means nothing."""
        return False


def _require_text(backbone: Backbone) -> None:
    if not isinstance(backbone, TextBackbone):
        raise NotSupported(
            f"prompt puts vectors in front of a text, and {backbone.architecture} reads pictures.",
            "Use the method vpt, which does the same with pictures.",
        )
