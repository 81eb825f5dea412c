"""Whether a run needs the network only once: the splits that its head is trained on."""

from __future__ import annotations

from collections.abc import Mapping

from gistcli.data import ImageSplit
from gistcli.evaluate.features import FeatureSplit, differs_in_training
from gistcli.methods.base import Tuner
from gistcli.recipe import Recipe
from gistcli.reporting import Reporter
from gistcli.train.plan import Plan


def with_features(
    splits: Mapping[str, ImageSplit],
    tuner: Tuner,
    recipe: Recipe,
    plan: Plan,
    *,
    batch_size: int,
    precision: str,
    reporter: Reporter,
) -> dict[str, ImageSplit | FeatureSplit]:
    """The splits, of features in place of pixels where these are the same in every epoch.

    Args:
        splits: by name, `train` among them.
        tuner: attached; nothing is computed yet.
        recipe: of the run.
        plan: of the run.
        batch_size: examples of a forward pass outside training.
        precision: fp32 or bf16 autocast.
        reporter: told whether features are kept, and if not, why.
    """
    if not tuner.method.capabilities().frozen_features:
        return dict(splits)
    reason = _why_not(splits["train"], tuner, recipe, plan)
    if reason is not None:
        reporter.say(f"features are computed anew for every batch, because {reason}")
        return dict(splits)
    reporter.say("features are computed once for each split; the head trains on what is kept")
    return {
        name: FeatureSplit(split, tuner, batch_size, precision=precision, reporter=reporter)
        for name, split in splits.items()
    }


def _why_not(train: ImageSplit, tuner: Tuner, recipe: Recipe, plan: Plan) -> str | None:
    per_epoch = train.batches_per_epoch(plan.batch_size)
    if plan.total_steps(per_epoch) <= per_epoch:
        return "no picture is trained on twice"
    if recipe.data.augment != "none":
        return f"data.augment is {recipe.data.augment}"
    modules = differs_in_training(tuner.backbone.model)
    if modules:
        others = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
        return f"{modules[0]}{others} of the network acts differently in training"
    return None
