"""One value an example, whatever the network reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from gistcli import registry
from gistcli.artifacts.predictions import write_values
from gistcli.artifacts.rundir import RunDirectory
from gistcli.evaluate.classify import predict
from gistcli.evaluate.plots import write_regression_plot
from gistcli.evaluate.regress import score_values
from gistcli.methods.base import Tuner
from gistcli.objectives import Objective
from gistcli.reporting import Reporter
from gistcli.run.workload import Measured, Setting, Workload


class Regression(Workload):
    """Loss, figures and outputs of examples with one value each."""

    task: ClassVar[str] = "regression"
    metric: ClassVar[str] = "pearson"

    @property
    def measures(self) -> frozenset[str]:
        """Both correlations, their mean, the squared error."""
        return frozenset(("pearson", "spearman", "correlation", "loss"))

    def objective(self, tuner: Tuner, setting: Setting) -> Objective:
        """The squared error."""
        made: Objective = registry.resolve("objectives", self.task)(tuner)
        return made

    def measure(self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter) -> Measured:
        """Both correlations and the squared error; the outputs are `Predictions`."""
        outputs = self.over(predict, tuner, split, setting, reporter)
        return Measured(score_values(outputs.labels.numpy(), outputs.values.numpy()), outputs)

    def write_outputs(self, path: Path, measured: Measured) -> None:
        """CSV: name, target, prediction."""
        outputs = measured.outputs
        write_values(path, outputs.names, outputs.labels.tolist(), outputs.values.tolist())

    def keep(self, run: RunDirectory, split: str, measured: Measured) -> None:
        """Every prediction, and a plot of them against the true values."""
        outputs = measured.outputs
        self.write_outputs(run.predictions_path(split), measured)
        targets, values = outputs.labels.tolist(), outputs.values.tolist()
        write_regression_plot(run.plots, split, targets, values)

    def result(self, measured: Mapping[str, Measured]) -> dict[str, Any]:
        """Hashes of the examples; the figures are no rates, and have no intervals."""
        return {**super().result(measured), "intervals": {}}
