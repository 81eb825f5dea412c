"""Workload: everything in which runs of one kind of task differ from those of another."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from gistcli.artifacts.rundir import RunDirectory
from gistcli.backbones import Backbone
from gistcli.data import Catalog, ImageSplit
from gistcli.data.episodes import Rows
from gistcli.data.text import TextSplit
from gistcli.errors import RecipeError, did_you_mean
from gistcli.evaluate.classify import scalars
from gistcli.evaluate.features import FeatureSplit
from gistcli.methods.base import Method, Tuner
from gistcli.objectives import Objective
from gistcli.recipe import Recipe
from gistcli.reporting import Reporter
from gistcli.run.shelf import Shelf
from gistcli.train.plan import Plan

Split = ImageSplit | FeatureSplit | TextSplit | Rows
T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """How a run computes.

    Attributes:
        reserved: bytes of what is free now that others than the logits will take.
    """

    plan: Plan
    device: torch.device
    precision: str
    eval_batch_size: int
    reserved: int = 0


@dataclass(frozen=True)
class Measured:
    """What was measured on a split.

    Attributes:
        figures: JSON values, `loss` among them.
        outputs: of the network, as the workload keeps them.
    """

    figures: Mapping[str, Any]
    outputs: Any


class Workload(abc.ABC):
    """One run's data, loss and figures.

    Made by finding the data; `load` makes batches of them once the network is known.

    Attributes:
        recipe: of the run.
        catalog: its examples, by split.
        splits: by name; empty before `load`.
    """

    task: ClassVar[str]
    """As it stands in tuner.json, and the name of the objective."""
    metric: ClassVar[str] = "accuracy"
    """What decides the best evaluation where the recipe names nothing."""

    def __init__(self, recipe: Recipe, catalog: Catalog) -> None:
        self.recipe = recipe
        self.catalog = catalog
        self.splits: Mapping[str, Split] = {}

    @property
    @abc.abstractmethod
    def measures(self) -> frozenset[str]:
        """Figures by which the best evaluation can be chosen."""

    @property
    def figure(self) -> str:
        """What tables show: the metric that decides, but for a loss that only stands for it."""
        chosen = self.recipe.eval.metric
        return self.metric if chosen in (None, "loss") else chosen

    def require_sense(self) -> None:
        """Whether the keys of `eval` fit the task.

        Raises:
            RecipeError: a metric that is not measured here.
        """
        metric = self.recipe.eval.metric
        if metric is not None and metric not in self.measures:
            raise RecipeError(
                f"eval.metric: {metric!r} is not measured for the task {self.task}.",
                did_you_mean(metric, self.measures),
            )

    # --- data -------------------------------------------------------------------------------

    @property
    def classes(self) -> list[str]:
        """Names in the order of the logits; none of a language model."""
        return self.catalog.classes

    @property
    def name(self) -> str:
        """Of the data."""
        return self.catalog.name

    @property
    def names(self) -> list[str]:
        """Of all splits that there are."""
        return list(self.catalog.splits)

    @property
    def needed(self) -> list[str]:
        """Splits that the run reads: all, but test only where it is measured on it."""
        return [split for split in self.names if split != "test" or self.recipe.eval.test]

    def say(self, reporter: Reporter) -> None:
        """What the data hold, and what is odd about them."""
        say_catalog(self.catalog, reporter)

    def fit_to(self, backbone: Backbone) -> None:
        """Tell the network what it has to know of the task before it gets a head: nothing, mostly.

        Raises:
            RecipeError: the task cannot be put to it.
        """
        return

    @abc.abstractmethod
    def load(self, tuner: Tuner, setting: Setting, shelf: Shelf, reporter: Reporter) -> None:
        """Read all splits that the run needs, as the network reads them.

        Raises:
            DataError: examples that cannot be read; all of them named.
        """

    @property
    def memory(self) -> str:
        """What the examples take, in words; empty where that is nothing worth naming."""
        return ""

    @abc.abstractmethod
    def compute_once(self, tuner: Tuner, setting: Setting, reporter: Reporter) -> None:
        """Whatever part of the network's work is the same in every epoch."""

    # --- training and measuring -------------------------------------------------------------

    @abc.abstractmethod
    def objective(self, tuner: Tuner, setting: Setting) -> Objective:
        """What is minimised."""

    def over(
        self,
        compute: Callable[..., T],
        tuner: Tuner,
        split: str,
        setting: Setting,
        reporter: Reporter,
    ) -> T:
        """What `compute` (`predict`, `perplexity`) finds on a split, as the run computes."""
        return compute(
            tuner,
            self.splits[split],
            setting.eval_batch_size,
            precision=setting.precision,
            reporter=reporter,
            phase=split,
        )

    @abc.abstractmethod
    def measure(self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter) -> Measured:
        """The figures of a split, as they are wanted while training goes on."""

    def conclude(self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter) -> Measured:
        """All figures of a split, also those that take long."""
        return self.measure(tuner, split, setting, reporter)

    def scalars(self, measured: Measured) -> dict[str, float]:
        """Those figures that are one number each."""
        return scalars(measured.figures)

    # --- what stays -------------------------------------------------------------------------

    def begin(self, run: RunDirectory) -> None:
        """Write down which example is in which split."""
        self.catalog.write_splits(run.splits_path)

    @abc.abstractmethod
    def write_outputs(self, path: Path, measured: Measured) -> None:
        """A file with the outputs of every example; nothing where only figures are kept.

        Raises:
            StorageError: the disk is full or may not be written.
        """

    @abc.abstractmethod
    def keep(self, run: RunDirectory, split: str, measured: Measured) -> None:
        """Write per-example outputs and plots."""

    def result(self, measured: Mapping[str, Measured]) -> dict[str, Any]:
        """Its part of result.json: hashes of the examples, to which the kinds of tasks add."""
        catalog = self.catalog
        return {
            "data_fingerprint": catalog.fingerprint(),
            "data_fingerprints": {s: catalog.fingerprint(s) for s in catalog.splits},
        }

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Its part of tuner.json."""

    @staticmethod
    def exports(run: str, method: Method, refusal: str | None) -> list[list[str]]:
        """Commands that take the result away: plain weights, or else what there is.

        Args:
            run: its directory.
            method: of the run.
            refusal: why it cannot become plain weights; None where it can.
        """
        further = [f"{run}-merged"] if refusal is None else [f"{run}-onnx", "--format", "onnx"]
        return [["gist", "merge", run, "-o", *further]]

    @staticmethod
    @abc.abstractmethod
    def commands(run: str, method: Method) -> list[list[str]]:
        """Further commands that a user is likely to want next."""


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
