"""A recipe's backbone with its method attached, and what a reader wants to know of the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gistcli.backbones import Backbone, Site, open_backbone
from gistcli.backbones.prefix import Prefix
from gistcli.methods.base import Method, Tuner
from gistcli.methods.gist import GistTuner
from gistcli.methods.prefix import PrefixTuner
from gistcli.recipe import ModelSection, Recipe
from gistcli.reporting import Reporter

SLOWER = (
    "gist: the token enters in front of the first block, so that the backward pass goes through "
    "the whole network: a step takes about twice as long as without the token"
)
NOT_KEPT = ", which could also train on features that are computed once"
NETWORK_TASKS = {"compression": "causal_lm", "hypertuning": "causal_lm"}
"""Tasks of runs -> what the network does in them, where that is called otherwise."""


@dataclass
class Assembly:
    """A tuner on its backbone."""

    method: Method
    backbone: Backbone
    tuner: Tuner

    def parameters(self) -> dict[str, int]:
        """Counts by group; `total` is the backbone with head plus what the method adds."""
        trained = self.tuner.trainable()
        groups = {
            group: sum(t.parameter.numel() for t in trained.values() if t.group == group)
            for group in ("method", "gist", "head")
        }
        added = sum(p.numel() for p in self.tuner.parameters())
        total = self.backbone.count() + added
        return {**groups, "trainable": sum(groups.values()), "total": total}


def open_model(
    model: ModelSection,
    *,
    name: str | None = None,
    dtype: str | None = None,
    meta: bool = False,
    task: str | None = None,
) -> Backbone:
    """The backbone of a recipe; from another place, or in another dtype, where those are given."""
    return open_backbone(
        name or model.name,
        task=NETWORK_TASKS.get(task or "", task),
        img_size=model.img_size,
        dtype=dtype or model.dtype,
        drop_path=model.drop_path,
        grad_checkpointing=model.grad_checkpointing,
        meta=meta,
        # another dtype is asked for where the stored weights themselves are wanted
        quantize=model.quantize if dtype is None else None,
    )


def assemble(
    recipe: Recipe,
    classes: Sequence[str] | int,
    *,
    meta: bool = False,
    fresh: bool = True,
    backbone: Backbone | None = None,
    prefix: Prefix | None = None,
) -> Assembly:
    """Backbone, new head, method; the same for the same seed.

    Args:
        recipe: resolved.
        classes: their names, or how many.
        meta: without weights, for counts.
        fresh: no trained state will be loaded: a method that starts from files reads them.
        backbone: that of the recipe, where it is open already.
        prefix: what prefix tuning starts from, where that was made for it.

    Raises:
        GistError: whatever keeps the model or the method from being built.
    """
    method: Method = recipe.build_method()
    if backbone is None:
        backbone = open_model(recipe.model, meta=meta)
    backbone.reset_head(classes if isinstance(classes, int) else len(classes), recipe.seed)
    torch.manual_seed(recipe.seed)
    tuner = method.attach(backbone)
    if fresh and not meta:
        if prefix is not None and isinstance(tuner, PrefixTuner):
            tuner.take(prefix)
        else:
            tuner.start()
    return Assembly(method, backbone, tuner)


def site_rows(sites: Sequence[Site]) -> list[dict[str, Any]]:
    """Sites as JSON."""
    return [
        {
            "name": s.name,
            "role": s.role,
            "layer": s.layer,
            "d_in": s.d_in,
            "d_out": s.d_out,
            "rows": [s.rows.start, s.rows.stop] if s.rows else None,
        }
        for s in sites
    ]


def say_parameters(assembly: Assembly, reporter: Reporter, *, head: bool = True) -> None:
    """Trained against all, the head apart, and whether the result merges.

    Args:
        assembly: what is counted.
        reporter: gets the lines.
        head: whether its classes are known; else it is left out of all counts.
    """
    counts = assembly.parameters()
    less = 0 if head else counts["head"]
    trainable, total = counts["trainable"] - less, counts["total"] - less
    reporter.say(
        f"trainable params: {trainable:,} || all params: {total:,} || "
        f"trainable%: {100 * trainable / total:.4f}  "
        f"({assembly.method.label()} {counts['method'] + counts['gist']:,}, "
        f"head {format(counts['head'], ',') if head else 'unknown'})"
    )
    if isinstance(assembly.tuner, GistTuner) and assembly.tuner.lengthens_backward():
        once = assembly.tuner.method.inner.capabilities().frozen_features
        reporter.say(SLOWER + (NOT_KEPT if once else ""))
    reason = assembly.tuner.merge_refusal()
    reporter.say(f"merge: {'exact' if reason is None else f'no: {reason}'}")
