"""What takes part in `make bench`: the floor, methods with and without the token, PEFT's LoRA."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import peft
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli import registry
from gistcli.backbones.base import Origin
from gistcli.backbones.vit import ViT
from gistcli.evaluate.classify import evaluation_mode
from gistcli.methods.base import Method, Tuner
from gistcli.methods.gist import Gist, GistTuner
from gistcli.objectives import Classification

MODEL, BATCH, CLASSES, RANK = "vit_small_patch16_224", 8, 100, 16
FLOOR = "floor"
Batch = dict[str, Tensor]


@dataclass
class Contender:
    """One training step: loss, what surrounds it, and what is updated.

    Attributes:
        loss: forward pass.
        trained: parameters for the optimiser, none for the floor.
        method: how many of their numbers are not the head's.
        size: bytes of the network.
        around: surrounds forward and backward.
        lengthened: only a gist token makes the backward pass go through the whole network.
    """

    loss: Callable[[], Tensor]
    trained: list[nn.Parameter]
    method: int
    size: int
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    lengthened: bool = False

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW(self.trained, fused=True) if self.trained else None

    def step(self) -> None:
        """Forward, backward, update."""
        if self.optimiser is not None:
            self.optimiser.zero_grad()
        with self.around():
            self.loss().backward()
        if self.optimiser is not None:
            self.optimiser.step()

    @property
    def nbytes(self) -> int:
        """Memory between steps: the network, and gradient and two moments of what is trained."""
        return self.size + 3 * sum(p.numel() * p.element_size() for p in self.trained)


Build = Callable[[], Contender]


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(MODEL, num_classes=CLASSES)


def size_of(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def batch() -> Batch:
    torch.manual_seed(1)
    labels = torch.arange(BATCH)
    return {"pixels": torch.randn(BATCH, 3, 224, 224), "labels": labels, "index": labels}


def carry_back(model: nn.Module) -> None:
    """From now on the backward pass goes through all of the first block, whatever is trained."""
    model.blocks[0].register_forward_pre_hook(lambda _, args: (args[0].requires_grad_(),))


def floor() -> Contender:
    model, data = fresh().requires_grad_(False), batch()
    carry_back(model)

    def loss() -> Tensor:
        return F.cross_entropy(model(data["pixels"]), data["labels"])

    return Contender(loss, [], 0, size_of(model))


def ours(
    name: str,
    prepare: Callable[[Tuner, Batch], Batch] | None = None,
    *,
    token: bool = False,
    carried: bool = False,
    **options: Any,
) -> Build:
    """A registered method with these options.

    Args:
        name: of the method.
        prepare: makes its batch of the common one.
        token: with the gist token.
        carried: with a backward pass through all of the first block, as a token makes it.
        options: of the method.
    """

    def build() -> Contender:
        torch.manual_seed(0)
        method: Method = registry.resolve("methods", name)(**options)
        tuner: Tuner = (Gist().wrap(method) if token else method).attach(
            ViT(fresh(), Origin(MODEL, MODEL))
        )
        if carried:
            carry_back(tuner.backbone.model)
        objective = Classification(tuner).train()
        data = batch() if prepare is None else prepare(tuner, batch())
        trained = tuner.trainable().values()
        count = sum(t.parameter.numel() for t in trained if t.group != "head")
        size = size_of(tuner.backbone) + size_of(tuner)

        def loss() -> Tensor:
            return objective(data, BATCH).total

        lengthened = isinstance(tuner, GistTuner) and tuner.lengthens_backward()
        parameters = [t.parameter for t in trained]
        return Contender(loss, parameters, count, size, tuner.step, lengthened)

    return build


def pooled(tuner: Tuner, data: Batch) -> Batch:
    """The batch with features in place of pixels, as `linear` trains on them."""
    with evaluation_mode(tuner, tuner.backbone), torch.no_grad():
        return {
            "pooled": tuner(data).pooled.clone(),
            "labels": data["labels"],
            "index": data["index"],
        }


def lora(target: str) -> Contender:
    """PEFT's LoRA."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=RANK, target_modules=[target], modules_to_save=["head"])
    model, data = peft.get_peft_model(fresh(), config).train(), batch()
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    count = sum(p.numel() for n, p in named.items() if "lora_" in n)

    def loss() -> Tensor:
        return F.cross_entropy(model(data["pixels"]), data["labels"])

    return Contender(loss, list(named.values()), count, size_of(model))


VARIANTS: dict[str, dict[str, Build]] = {
    "gift": {"gift, query and value": ours("gift", targets=("query", "value"))},
    "linear": {"linear, features kept": ours("linear", pooled)},
    "lora": {
        "lora r16, attn.proj": ours("lora", rank=RANK, targets=("attn.proj",)),
        "PEFT LoRA r16, attn.proj": partial(lora, "attn.proj"),
        "lora r16, attn.qkv": ours("lora", rank=RANK, targets=("attn.qkv",)),
        "PEFT LoRA r16, attn.qkv": partial(lora, "attn.qkv"),
    },
}
"""Further rows behind a method's own."""


def with_token(name: str) -> str:
    """The contender that is this one with a gist token."""
    return f"{name} + gist"


def carried_back(name: str) -> str:
    """The contender that is this one with a backward pass through all of the first block."""
    return f"{name}, carried back"


def contenders(names: list[str], *, pairs_only: bool = False) -> dict[str, Build]:
    """The floor, then every method with its defaults, its two comparisons and its variants.

    Args:
        names: of methods.
        pairs_only: leave the variants out.
    """
    found: dict[str, Build] = {FLOOR: floor}
    for name in names:
        found[name] = ours(name)
        found[with_token(name)] = ours(name, token=True)
        found[carried_back(name)] = ours(name, carried=True)
        if not pairs_only:
            found |= VARIANTS.get(name, {})
    return found
