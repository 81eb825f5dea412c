"""A small ViT in a timm folder, with a method on it: what every export test starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor

from gistcli.artifacts.form import Form
from gistcli.artifacts.merge import tuned_form
from gistcli.artifacts.plan import MergePlan, plan_merge
from gistcli.artifacts.verify import Reference
from gistcli.backbones import open_backbone
from gistcli.methods.base import Method, Tuner
from gistcli.methods.gift import Gift

CLASSES = ["ant", "bee", "çe"]
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@dataclass(frozen=True)
class Tuned:
    """A tuner whose trained values are not those of the start, and what it answers."""

    tuner: Tuner
    pixels: Tensor
    logits: Tensor
    form: Form

    def plan(self, **options: Any) -> MergePlan:
        """The plan of its merge."""
        return plan_merge(self.tuner, **options)

    @property
    def reference(self) -> Reference:
        """Inputs and answers."""
        return Reference(self.pixels, self.logits)


MakeTuned = Callable[..., Tuned]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timm local-dir folder of a ViT of 2 blocks, 48 wide, 5 classes, float32."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15)
    config = {"label_names": list("abcde")}
    save_for_hf(model, folder, model_config=config, model_args=SMALL, safe_serialization=True)
    return folder


def tune(folder: Path, method: Method | None, img_size: int | tuple[int, int] | None) -> Tuned:
    """Attach a method and give everything that it trains other values."""
    backbone = open_backbone(str(folder), img_size=img_size, drop_path=0.1)
    backbone.reset_head(len(CLASSES))
    tuner = (method or Gift(rank=4)).attach(backbone)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for trained in tuner.trainable().values():
            shape = trained.parameter.shape
            trained.parameter.add_(torch.randn(shape, generator=generator), alpha=0.05)
    height, width = backbone.data_config()["input_size"][1:]
    pixels = torch.randn(3, 3, height, width, generator=generator)
    backbone.model.eval()
    tuner.eval()
    with torch.no_grad():
        logits = tuner({"pixels": pixels}).logits
    preprocessing: Mapping[str, Any] = backbone.data_config()
    args = tuner.merge().model_args
    return Tuned(tuner, pixels, logits, tuned_form(backbone, CLASSES, preprocessing, args))


@pytest.fixture
def make_tuned(base_folder: Path) -> MakeTuned:
    """`make_tuned(method, img_size)` on the small ViT, or on another `folder`."""

    def make(
        method: Method | None = None,
        img_size: int | tuple[int, int] | None = None,
        folder: Path | None = None,
    ) -> Tuned:
        return tune(folder or base_folder, method, img_size)

    return make


@pytest.fixture
def tuned(make_tuned: MakeTuned) -> Tuned:
    """GIFT rank 4 on attn.proj of the small ViT."""
    return make_tuned()
