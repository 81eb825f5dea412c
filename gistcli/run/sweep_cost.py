"""How long runs will take: multiplications counted without weights, over those of a short probe."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from gistcli.backbones import Backbone
from gistcli.backbones.images import require_images
from gistcli.data import Preprocess
from gistcli.evaluate.classify import autocast
from gistcli.recipe import Recipe
from gistcli.run.assembling import assemble, open_model
from gistcli.run.settings import training_plan

EFFICIENCY = 0.7
"""What runs reach of the rate of one large product: 0.5 to 1.0 on a CPU (ViT nano, ViT-Ti)."""
BATCH = 4
PROBE_SECONDS = 0.3


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one example.

    Attributes:
        forward: of an evaluation.
        step: of training, the backward pass included as far as the method needs it.
        once: whether the frozen network is read only once for each picture.
    """

    forward: float
    step: float
    once: bool


@dataclass(frozen=True)
class Sizes:
    """Examples of each split; test is 0 where it is not read."""

    train: int
    val: int
    test: int


class Counter:
    """Counts on the meta device; the last backbone and what was counted are kept."""

    def __init__(self) -> None:
        self._model = ""
        self._backbone: Backbone | None = None
        self._counted: dict[tuple[str, str], Work] = {}

    def work(self, recipe: Recipe, classes: int) -> Work:
        """Operations of a recipe, resolved; the number of classes hardly matters.

        Raises:
            GistError: whatever keeps the model or the method from being built.
        """
        model = recipe.model.model_dump_json()
        key = (model, repr((sorted(recipe.method.items()), recipe.gist)))
        if key not in self._counted:
            if self._backbone is None or model != self._model:
                self._backbone, self._model = open_model(recipe.model, meta=True), model
            self._counted[key] = _count(recipe, classes, self._backbone)
        return self._counted[key]


def _count(recipe: Recipe, classes: int, backbone: Backbone) -> Work:
    tuner = assemble(recipe, classes, meta=True, backbone=backbone).tuner
    network = require_images(backbone, "An estimate")
    preprocess = Preprocess.from_config(network.data_config())
    shape = (BATCH, preprocess.channels, *preprocess.size)
    batch = {"pixels": torch.empty(shape, device="meta")}
    try:
        with FlopCounterMode(display=False) as forward, torch.no_grad(), tuner.step():
            tuner(batch)
        with FlopCounterMode(display=False) as step, tuner.step():
            tuner(batch).logits.float().sum().backward()
        once = tuner.method.capabilities().frozen_features and recipe.data.augment == "none"
    finally:
        tuner.detach()
    return Work(forward.get_total_flops() / BATCH, step.get_total_flops() / BATCH, once)


def operations(recipe: Recipe, work: Work, sizes: Sizes) -> float:
    """Of a whole run: its steps, the validations on the way, and the last look at val and test.

    Args:
        recipe: resolved.
        work: of one example.
        sizes: of the splits.
    """
    last = (sizes.val + sizes.test) * work.forward
    if work.once:
        return sizes.train * work.forward + last
    plan = training_plan(recipe)
    per_epoch = -(-sizes.train // plan.batch_size)
    steps = plan.total_steps(per_epoch)
    # the last batch of an epoch is not filled up
    seen = min(steps * plan.batch_size, -(-steps * sizes.train // max(per_epoch, 1)))
    every = per_epoch if plan.eval_every == "epoch" else plan.eval_every
    validations = 0 if every == "none" else -(-steps // max(int(every), 1))
    return seen * work.step + validations * sizes.val * work.forward + last


def probe(device: torch.device, precision: str) -> float:
    """Operations a second of one large matrix product on a device."""
    side = 1024 if device.type == "cpu" else 8192
    a_NN = torch.randn(side, side, device=device)
    with torch.no_grad(), autocast(device, precision):
        product_NN = a_NN @ a_NN  # the first one starts the libraries
        float(product_NN[0, 0])
        start, times = time.perf_counter(), 0
        while time.perf_counter() - start < PROBE_SECONDS:
            for _ in range(4):
                product_NN = a_NN @ a_NN
            float(product_NN[0, 0])  # waits for a device that works ahead
            times += 4
        return 2.0 * side**3 * times / (time.perf_counter() - start)
