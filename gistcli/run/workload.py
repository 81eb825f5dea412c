"""Workload: everything in which runs of one kind of task differ from those of another."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from gistcli.artifacts.rundir import RunDirectory
from gistcli.data import ImageSplit
from gistcli.data.text import TextSplit
from gistcli.evaluate.features import FeatureSplit
from gistcli.methods.base import Method, Tuner
from gistcli.objectives import Objective
from gistcli.recipe import Recipe
from gistcli.reporting import Reporter
from gistcli.run.shelf import Shelf
from gistcli.train.plan import Plan

Split = ImageSplit | FeatureSplit | TextSplit


@dataclass(frozen=True)
class Setting:
    """How a run computes."""

    plan: Plan
    device: torch.device
    precision: str
    eval_batch_size: int


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
        splits: by name; empty before `load`.
    """

    task: ClassVar[str]
    """As it stands in tuner.json, and the name of the objective."""
    metric: ClassVar[str] = "accuracy"
    """What decides the best evaluation where the recipe names nothing."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.splits: Mapping[str, Split] = {}

    # --- data -------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def classes(self) -> list[str]:
        """Names in the order of the logits."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Of the data."""

    @property
    @abc.abstractmethod
    def names(self) -> list[str]:
        """Of all splits that there are."""

    @abc.abstractmethod
    def say(self, reporter: Reporter) -> None:
        """What the data hold, and what is odd about them."""

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

    @abc.abstractmethod
    def measure(self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter) -> Measured:
        """The figures of a split."""

    @abc.abstractmethod
    def scalars(self, measured: Measured) -> dict[str, float]:
        """Those figures that are one number each."""

    # --- what stays -------------------------------------------------------------------------

    @abc.abstractmethod
    def begin(self, run: RunDirectory) -> None:
        """Write down which example is in which split."""

    @abc.abstractmethod
    def keep(self, run: RunDirectory, split: str, measured: Measured) -> None:
        """Write per-example outputs and plots."""

    @abc.abstractmethod
    def result(self, measured: Mapping[str, Measured]) -> dict[str, Any]:
        """Its part of result.json."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Its part of tuner.json."""

    @staticmethod
    @abc.abstractmethod
    def commands(run: str, method: Method) -> list[list[str]]:
        """Further commands that a user is likely to want next."""
