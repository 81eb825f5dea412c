"""Pictures with one class each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gistcli.backbones import Backbone
from gistcli.backbones.images import require_images
from gistcli.data import ImageSplit, Preprocess
from gistcli.methods.base import Method, Tuner
from gistcli.methods.gist import WithGist
from gistcli.recipe import Recipe
from gistcli.reporting import Reporter
from gistcli.run.classification import Classification
from gistcli.run.features import with_features
from gistcli.run.shelf import Shelf
from gistcli.run.workload import Setting


class ImageClassification(Classification):
    """Pictures with one class each.

    Attributes:
        preprocess: how pictures become pixels; known once the network is.
    """

    preprocess: Preprocess

    def __init__(self, recipe: Recipe, shelf: Shelf, pinned: Path | None) -> None:
        super().__init__(recipe, shelf.catalog(recipe.data, pinned))
        self._images: Mapping[str, ImageSplit] = {}

    def load(self, tuner: Tuner, setting: Setting, shelf: Shelf, reporter: Reporter) -> None:
        """Decode the pictures."""
        data = self.recipe.data
        self.preprocess = _preprocess(self.recipe, tuner.backbone)
        images = {
            split: shelf.split(data, self.catalog, split, self.preprocess, setting.device, reporter)
            for split in self.needed
        }
        self.splits = self._images = images

    @property
    def memory(self) -> str:
        """What the decoded pictures take."""
        held = sum(s.nbytes for s in self._images.values() if s.resident)
        return f"images {held / 1e6:,.0f} MB"

    def compute_once(self, tuner: Tuner, setting: Setting, reporter: Reporter) -> None:
        """Features in place of pictures, where they are the same in every epoch."""
        self.splits = with_features(
            self._images,
            tuner,
            self.recipe,
            setting.plan,
            batch_size=setting.eval_batch_size,
            precision=setting.precision,
            reporter=reporter,
        )

    def describe(self) -> dict[str, Any]:
        """Classes, and how pictures become pixels."""
        size = self.preprocess.size
        return {
            "img_size": size if self.recipe.model.img_size is not None else None,
            "classes": self.classes,
            "preprocessing": self.preprocess.to_config(),
        }

    @staticmethod
    def commands(run: str, method: Method) -> list[list[str]]:
        """Predict, and draw what the method can show."""
        draw = ["gist", "visualize", run, "PHOTO", "-o", f"{run}-maps"]
        found = [["gist", "predict", run, "PHOTO", "-o", "predictions.csv"]]
        if method.capabilities().clusters:
            found.append(draw)
        if isinstance(method, WithGist):  # what holds the token lets its attention be read
            found.append([*draw, "--tokens"])
        return found


def _preprocess(recipe: Recipe, backbone: Backbone) -> Preprocess:
    """The model's own preparation of pictures, with what the recipe replaces in it."""
    given = recipe.data.preprocess.model_dump(exclude_none=True)
    network = require_images(backbone, "An image set")
    return Preprocess.from_config({**network.data_config(), **given})
