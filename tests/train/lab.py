"""A real GIFT tuner on a two-block ViT, with dropout and drop-path, on real digits.

Run as a program it trains with checkpoints into a folder, to be killed:

    python tests/train/lab.py FOLDER [SECONDS A STEP]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from gistcli.backbones.base import Origin
from gistcli.backbones.vit import ViT
from gistcli.data import ImageSplit, Preprocess, load_split, open_catalog
from gistcli.evaluate import predict, scalars, score
from gistcli.methods.base import Method
from gistcli.methods.gift import Gift
from gistcli.objectives import Classification
from gistcli.recipe import DataSection
from gistcli.train import FitResult, OptimPlan, Plan, fit, open_accelerator

CLASSES = [str(i) for i in range(10)]
PLAN = Plan(epochs=3, batch_size=16, save_steps=4, optim=OptimPlan(lr=1e-2, head_lr=1e-2))


def backbone(drop: float = 0.1, seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2,
        global_pool="avg", drop_path_rate=drop, proj_drop_rate=drop,
    )  # fmt: skip
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "head" not in name:  # random features that tell digits apart
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    torch.nn.init.normal_(model.patch_embed.proj.weight, std=0.14)
    network = ViT(model, Origin("tiny", "vit_tiny_patch16_224"))
    network.reset_head(len(CLASSES))
    return network


def objective(drop: float = 0.1, method: Method | None = None) -> Classification:
    network = backbone(drop)
    torch.manual_seed(1)
    return Classification((method or Gift(rank=4, dropout=drop)).attach(network))


def digits(split: str, augment: str = "none") -> ImageSplit:
    catalog = open_catalog(DataSection(path="digits", shots=10), base=Path())
    preprocess = Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)
    limit = 60 if split == "val" else None
    train = split == "train"
    return load_split(catalog, split, preprocess, train=train, augment=augment, limit=limit)


class Slow:
    """A split that takes its time, so that a test can interrupt it."""

    def __init__(self, split: ImageSplit, seconds: float) -> None:
        self.split, self.seconds = split, seconds
        self.names, self.labels = split.names, split.labels

    def __len__(self) -> int:
        return len(self.split)

    def batches_per_epoch(self, batch_size: int) -> int:
        return self.split.batches_per_epoch(batch_size)

    def batches(self, batch_size: int, **place: Any) -> Iterator[Mapping[str, Tensor]]:
        for batch in self.split.batches(batch_size, **place):
            time.sleep(self.seconds)
            yield batch


def train(
    task: Classification, split: Any, plan: Plan = PLAN, precision: str = "fp32", **options: Any
) -> FitResult:
    accelerator = open_accelerator(torch.device("cpu"), precision)
    return fit(task, split, plan, accelerator, **options)


def validator(task: Classification, split: ImageSplit) -> Any:
    return lambda: scalars(score(predict(task.tuner, split, 32), CLASSES))


def main(folder: Path, seconds: float) -> None:
    torch.set_num_threads(1)
    task = objective()
    slow = Slow(digits("train", "flip-crop"), seconds)
    validate = validator(task, digits("val"))
    train(task, slow, checkpoints=folder, evaluate=validate)
    torch.save(task.tuner.state(), folder / "final.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
