"""Greedy text by whole passes, for models whose own `generate` cannot be trusted."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def written(model: Any, prompt: list[int], tokens: int, end: int | None = None) -> list[int]:
    """New tokens behind a prompt, `end` among them where it ends the text.

    PEFT 0.21 does not know the cache of transformers 5.24, and puts its prompts in at every step.
    """
    ids = torch.tensor([prompt])
    while ids.shape[1] < len(prompt) + tokens and (end is None or ids[0, -1] != end):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()
