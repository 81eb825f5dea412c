"""One class an example, whatever the network reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from gistcli import registry
from gistcli.artifacts.predictions import write_predictions
from gistcli.artifacts.rundir import RunDirectory
from gistcli.errors import RecipeError, did_you_mean
from gistcli.evaluate.classify import predict, score
from gistcli.evaluate.plots import write_classification_plots
from gistcli.methods.base import Tuner
from gistcli.objectives import Objective
from gistcli.reporting import Reporter
from gistcli.run.workload import Measured, Setting, Workload


class Classification(Workload):
    """Loss, figures and outputs of examples with one class each."""

    task: ClassVar[str] = "classification"

    @property
    def measures(self) -> frozenset[str]:
        """Those that this many classes have."""
        always = ("accuracy", "balanced_accuracy", "macro_f1", "matthews", "loss")
        two, many = len(self.classes) == 2, len(self.classes) > 5
        return frozenset(
            (*always, *(("f1",) if two else ()), *(("top5_accuracy",) if many else ()))
        )

    def require_sense(self) -> None:
        """Whether the keys of `eval` fit the classes.

        Raises:
            RecipeError: a metric that these classes do not have, or an unknown positive one.
        """
        super().require_sense()
        positive, classes = self.recipe.eval.positive, self.classes
        if positive is not None and (len(classes) != 2 or positive not in classes):
            raise RecipeError(
                f"eval.positive: {positive!r} is none of two classes of {self.name}.",
                did_you_mean(positive, classes),
            )

    def objective(self, tuner: Tuner, setting: Setting) -> Objective:
        """Cross-entropy."""
        kind = registry.resolve("objectives", self.task)
        made: Objective = kind(tuner, label_smoothing=self.recipe.optim.label_smoothing)
        return made

    def measure(self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter) -> Measured:
        """Accuracy and what goes with it; the outputs are `Predictions`."""
        outputs = self.over(predict, tuner, split, setting, reporter)
        positive = self.recipe.eval.positive
        return Measured(score(outputs, self.classes, positive), outputs)

    def write_outputs(self, path: Path, measured: Measured) -> None:
        """CSV: label, predicted class and their probabilities of every example."""
        found = measured.outputs
        write_predictions(path, found.names, found.labels, found.probabilities, self.classes)

    def keep(self, run: RunDirectory, split: str, measured: Measured) -> None:
        """Every prediction, and the confusion matrix."""
        self.write_outputs(run.predictions_path(split), measured)
        write_classification_plots(run.plots, split, measured.figures, self.classes)

    def result(self, measured: Mapping[str, Measured]) -> dict[str, Any]:
        """Intervals, figures by class, and hashes of the examples."""
        return {
            **super().result(measured),
            "intervals": {f"{s}/accuracy": m.figures["interval"] for s, m in measured.items()},
            "per_class": {s: m.figures["per_class"] for s, m in measured.items()},
        }
