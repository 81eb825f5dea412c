"""Pictures with one class each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gistcli import registry
from gistcli.artifacts.predictions import write_predictions
from gistcli.artifacts.rundir import RunDirectory
from gistcli.backbones import Backbone
from gistcli.backbones.images import require_images
from gistcli.data import Catalog, ImageSplit, Preprocess
from gistcli.evaluate.classify import predict, scalars, score
from gistcli.evaluate.plots import write_classification_plots
from gistcli.methods.base import Method, Tuner
from gistcli.methods.gist import WithGist
from gistcli.objectives import Objective
from gistcli.recipe import Recipe
from gistcli.reporting import Reporter
from gistcli.run.features import with_features
from gistcli.run.shelf import Shelf
from gistcli.run.workload import Measured, Setting, Workload


class ImageClassification(Workload):
    """Pictures with one class each.

    Attributes:
        catalog: what is where.
        preprocess: how pictures become pixels; known once the network is.
    """

    task = "classification"
    preprocess: Preprocess

    def __init__(self, recipe: Recipe, shelf: Shelf, pinned: Path | None) -> None:
        super().__init__(recipe)
        self.catalog = shelf.catalog(recipe.data, pinned)
        self._images: Mapping[str, ImageSplit] = {}

    @property
    def classes(self) -> list[str]:
        """Names in the order of the logits."""
        return self.catalog.classes

    @property
    def name(self) -> str:
        """Of the data."""
        return self.catalog.name

    @property
    def names(self) -> list[str]:
        """Of all splits that there are."""
        return list(self.catalog.splits)

    def say(self, reporter: Reporter) -> None:
        """Classes by split, and what is odd about the data."""
        say_catalog(self.catalog, reporter)

    def load(self, tuner: Tuner, setting: Setting, shelf: Shelf, reporter: Reporter) -> None:
        """Decode the pictures."""
        data = self.recipe.data
        self.preprocess = _preprocess(self.recipe, tuner.backbone)
        images = {
            split: shelf.split(data, self.catalog, split, self.preprocess, setting.device, reporter)
            for split in self.catalog.splits
            if split != "test" or self.recipe.eval.test
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

    def objective(self, tuner: Tuner, setting: Setting) -> Objective:
        """Cross-entropy."""
        kind = registry.resolve("objectives", self.task)
        made: Objective = kind(tuner, label_smoothing=self.recipe.optim.label_smoothing)
        return made

    def measure(self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter) -> Measured:
        """Accuracy and what goes with it; the outputs are `Predictions`."""
        outputs = predict(
            tuner,
            self.splits[split],
            setting.eval_batch_size,
            precision=setting.precision,
            reporter=reporter,
            phase=split,
        )
        return Measured(score(outputs, self.classes), outputs)

    def scalars(self, measured: Measured) -> dict[str, float]:
        """Those figures that are one number each."""
        return scalars(measured.figures)

    def begin(self, run: RunDirectory) -> None:
        """Write down which picture is in which split."""
        self.catalog.write_splits(run.splits_path)

    def keep(self, run: RunDirectory, split: str, measured: Measured) -> None:
        """Every prediction, and the confusion matrix."""
        outputs = measured.outputs
        path = run.predictions_path(split)
        write_predictions(path, outputs.names, outputs.labels, outputs.probabilities, self.classes)
        write_classification_plots(run.plots, split, measured.figures, self.classes)

    def result(self, measured: Mapping[str, Measured]) -> dict[str, Any]:
        """Intervals, figures by class, and hashes of the examples."""
        catalog = self.catalog
        return {
            "intervals": {f"{s}/accuracy": m.figures["interval"] for s, m in measured.items()},
            "per_class": {s: m.figures["per_class"] for s, m in measured.items()},
            "data_fingerprint": catalog.fingerprint(),
            "data_fingerprints": {s: catalog.fingerprint(s) for s in catalog.splits},
        }

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


def say_catalog(catalog: Catalog, reporter: Reporter) -> None:
    """Classes by split, and what is odd about the data."""
    columns, rows = catalog.table()
    shown = rows[:40]
    if len(rows) > len(shown):
        shown = [*shown, [f"and {len(rows) - len(shown)} more", *[""] * (len(columns) - 1)]]
    totals = [len(records) for records in catalog.splits.values()]
    title = f"{catalog.name}: {len(rows)} classes" if rows else catalog.name
    reporter.table(title, columns if rows else ["", *columns[1:]], [*shown, ["all", *totals]])
    for note in catalog.notes:
        reporter.say(note)
    for warning in catalog.warnings:
        reporter.warn(warning)
