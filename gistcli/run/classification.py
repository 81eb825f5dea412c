"""One class an example, whatever the network reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gistcli import registry
from gistcli.artifacts.predictions import write_predictions
from gistcli.artifacts.rundir import RunDirectory
from gistcli.evaluate.classify import predict, score
from gistcli.evaluate.plots import write_classification_plots
from gistcli.methods.base import Tuner
from gistcli.objectives import Objective
from gistcli.reporting import Reporter
from gistcli.run.workload import Measured, Setting, Workload


class Classification(Workload):
    """Loss, figures and outputs of examples with one class each."""

    task: ClassVar[str] = "classification"

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

    def keep(self, run: RunDirectory, split: str, measured: Measured) -> None:
        """Every prediction, and the confusion matrix."""
        outputs = measured.outputs
        path = run.predictions_path(split)
        write_predictions(path, outputs.names, outputs.labels, outputs.probabilities, self.classes)
        write_classification_plots(run.plots, split, measured.figures, self.classes)

    def result(self, measured: Mapping[str, Measured]) -> dict[str, Any]:
        """Intervals, figures by class, and hashes of the examples."""
        return {
            **super().result(measured),
            "intervals": {f"{s}/accuracy": m.figures["interval"] for s, m in measured.items()},
            "per_class": {s: m.figures["per_class"] for s, m in measured.items()},
        }
