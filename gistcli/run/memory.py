"""What a run will take of the memory, said before its weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gistcli import registry
from gistcli.backbones import Backbone
from gistcli.backbones.images import require_images
from gistcli.backbones.quantised import head_modules, planned_sizes
from gistcli.backbones.seq2seq import Seq2Seq
from gistcli.data.episodes import Rows, longest_rows
from gistcli.data.text import TextSplit
from gistcli.errors import NotSupported, OutOfMemory
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.methods.base import Tuner
from gistcli.objectives import Batch, Objective
from gistcli.objectives.chunked import choose_chunk
from gistcli.recipe import ModelSection, Recipe
from gistcli.reporting import Reporter
from gistcli.run.assembling import Assembly, assemble, open_model
from gistcli.run.episode_options import episode_options, episodic_task
from gistcli.run.settings import training_plan
from gistcli.run.workload import Setting, Workload
from gistcli.train.fitting import largest_by_trial
from gistcli.train.footprint import Footprint, fixed_footprint, weight_bytes
from gistcli.train.memory import free_memory, room_for_logits
from gistcli.train.precision import choose_device, choose_precision
from gistcli.train.tracing import Tracer

SMALL = 0.05
"""Share of the free memory below which nobody needs to know more exactly."""
LONGEST = 2048
"""Tokens of a sequence, where neither data nor recipe say."""
TARGET = 128
"""Tokens of a target of an encoder-decoder, where neither data nor recipe say."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        footprint: item by item.
        free: bytes that could be taken before the weights were loaded.
        rows: examples of a micro-batch.
        length: tokens of the longest of them; None for pictures.
        exact: a step was traced; else it takes less than a twentieth of what is free.
        problem: why it could not be traced.
    """

    footprint: Footprint
    free: int
    rows: int
    length: int | None
    exact: bool = True
    problem: str = ""

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return self.footprint.total <= self.free

    def as_dict(self) -> dict[str, Any]:
        """JSON values, in bytes."""
        return {
            "needed": self.footprint.total,
            "free": self.free,
            **self.footprint.items(),
            "micro_batch_size": self.rows,
            "tokens": self.length,
            "exact": self.exact,
        }

    def __str__(self) -> str:
        footprint = self.footprint
        parts = {"weights": footprint.weights, "trained and its optimiser": footprint.training,
                 "activations": footprint.activations, "logits": footprint.logits}  # fmt: skip
        words = [f"{name} {size_of(size)}" for name, size in parts.items() if size]
        if self.problem:
            words.append(f"activations unknown ({self.problem})")
        elif not self.exact:
            words.append(f"activations below {size_of(SMALL * self.free)}")
        what = "example" if self.rows == 1 else "examples"
        tokens = "" if self.length is None else f" of up to {self.length:,} tokens"
        return (
            f"about {size_of(footprint.total)} ({', '.join(words)}) for {self.rows} {what}{tokens} "
            f"at a time; {size_of(self.free)} are free"
        )


def size_of(count: float) -> str:
    """Bytes in units of 1000, as the makers of memory count."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


class Estimator:
    """Answers what a run would take, also with other settings.

    Args:
        recipe: resolved.
        workload: None without data; its training split is loaded before the first estimate.
        setting: how the run computes.
        task: of the network; None for what it is for.
        classes: of the head, their names or how many.
        held: the weights are in memory already.

    Attributes:
        planned: network and method without weights.
        weights: bytes that the network's weights take.
        free: bytes that can be taken.
    """

    def __init__(
        self,
        recipe: Recipe,
        workload: Workload | None,
        setting: Setting,
        *,
        task: str | None,
        classes: Sequence[str] | int,
        held: bool = False,
    ) -> None:
        self.recipe, self.workload, self.setting = recipe, workload, setting
        self.free = free_memory(setting.device)
        self._task, self._classes, self._held = task, classes, held
        self._tracers: dict[str, tuple[Tracer, Footprint]] = {}
        self.planned, self.weights = self._on_meta(recipe)

    def require_weights_fit(self) -> None:
        """Refuse what cannot be loaded, before it is tried.

        Raises:
            OutOfMemory: the frozen weights alone are more than is free.
        """
        if self._held or self.weights <= self.free:
            return
        model, ways = self.recipe.model, []
        if model.dtype == "float32":
            ways.append("model.dtype=bfloat16 halves them")
        if model.quantize is None and self.planned.backbone.modality == "text":
            ways.append("model.quantize=nf4 takes about a quarter of 16 bits")
        raise OutOfMemory(
            f"The weights of {model.name} take {size_of(self.weights)}, and {size_of(self.free)} "
            f"are free on {self.setting.device}.",
            f"{'; '.join([*ways, 'or choose a smaller model, or another train.device'])}.",
        )

    def estimate(
        self, rows: int | None = None, length: int | None = None, **model: Any
    ) -> Estimate:
        """What a run takes.

        Args:
            rows: examples of a micro-batch; None for those of the setting.
            length: sequences are no longer than this.
            model: keys of the section `model` with other values.
        """
        plan = self.setting.plan
        rows = rows or plan.micro_batch_size or plan.batch_size
        tracer, fixed = self._tracer(self.recipe.model.model_copy(update=model))
        backbone = tracer.tuner.backbone
        batch = self._batch(backbone, rows, length)
        tokens = batch["input_ids"].shape[1] if "input_ids" in batch else None
        fixed = replace(fixed, weights=0) if self._held else fixed
        plain = Estimate(fixed, self.free, rows, tokens, exact=False)
        if max(_bound(backbone, batch), fixed.total) < SMALL * self.free:
            return plain
        try:
            return replace(plain, footprint=self._traced(tracer, batch, fixed), exact=True)
        except Exception as error:  # an estimate that fails is no reason not to train
            return replace(plain, problem=f"{type(error).__name__}: {error}".splitlines()[0])

    def _traced(self, tracer: Tracer, batch: Batch, fixed: Footprint) -> Footprint:
        found = fixed.with_peak(tracer.peak(self._objective(tracer, batch, fixed.fixed), batch))
        if found.total > self.free and found.logits:
            # the logits come in pieces where little is left for them
            objective = self._objective(tracer, batch, found.total - found.logits)
            found = found.with_peak(tracer.peak(objective, batch))
        return found

    def _tracer(self, section: ModelSection) -> tuple[Tracer, Footprint]:
        key = section.model_dump_json()
        if key not in self._tracers:
            made, weights = self.planned, self.weights
            if section != self.recipe.model:
                made, weights = self._on_meta(self.recipe.model_copy(update={"model": section}))
            fixed = fixed_footprint(weights, made.tuner, self.recipe.optim.name)
            tracer = Tracer(made.tuner, self.setting.device, self.setting.precision)
            self._tracers[key] = tracer, fixed
        return self._tracers[key]

    def _on_meta(self, recipe: Recipe) -> tuple[Assembly, int]:
        """Network and method without weights, and the bytes of the weights."""
        backbone = open_model(recipe.model, meta=True, task=self._task)
        if self.workload is not None:
            self.workload.fit_to(backbone)
        elif self._task == "classification" and isinstance(backbone, Seq2Seq):
            backbone.set_label_words(*_words(self._classes))
        scheme = recipe.model.quantize
        sizes = None
        if scheme is not None and backbone.modality == "text":
            sizes = planned_sizes(backbone.model, head_modules(backbone.model), scheme)
        weights = weight_bytes(backbone.model, sizes)
        return assemble(recipe, self._classes, meta=True, backbone=backbone), weights

    def _batch(self, backbone: Backbone, rows: int, length: int | None) -> Batch:
        if backbone.modality == "vision":
            height, width = require_images(backbone, "An image set").data_config()["input_size"][1:]
            labels = torch.empty(rows, dtype=torch.int64, device="meta")
            return {"pixels": torch.empty(rows, 3, height, width, device="meta"), "labels": labels}
        split = self.workload.splits.get("train") if self.workload else None
        if isinstance(split, Rows):
            return split.longest(rows)
        if not isinstance(split, TextSplit):
            return _texts(self.recipe, backbone, rows, length)
        batch: Batch = split.longest(rows)
        return batch if length is None else _cut(batch, length)

    def _objective(self, tracer: Tracer, batch: Batch, reserved: int) -> Objective:
        plan = replace(self.setting.plan, micro_batch_size=len(batch["labels"]))
        if self.workload is not None and self.workload.splits:
            setting = replace(self.setting, plan=plan, reserved=reserved)
            return self.workload.objective(tracer.tuner, setting)
        return _usual_objective(tracer.tuner, batch, self.free, reserved)


def _words(classes: Sequence[str] | int) -> tuple[list[str], list[int]]:
    """Label words without a tokenizer, and ids in their place: only how many there are counts."""
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else [*classes]
    return names, [*range(len(names))]


def _usual_objective(tuner: Tuner, batch: Batch, free: int, reserved: int) -> Objective:
    """What is minimised where there are no data to ask."""
    backbone: Any = tuner.backbone
    kind, options = str(getattr(backbone, "task", "classification")), {}
    if isinstance(tuner, HyperTuner):
        kind = "hypertuning"
    if kind in ("causal_lm", "seq2seq", "hypertuning"):
        words = int(backbone.config.vocab_size)
        available = room_for_logits(free, reserved, words)
        options["chunk_tokens"] = choose_chunk(batch["labels"].numel(), words, available)
    made: Objective = registry.resolve("objectives", kind)(tuner, **options)
    return made


def say_estimate(estimate: Estimate, reporter: Reporter) -> None:
    """One line; a warning where the memory does not suffice."""
    if estimate.fits:
        reporter.say(f"memory: {estimate}")
        return
    ways = ["model.grad_checkpointing", "a model.dtype of fewer bits"]
    if estimate.rows > 1:
        ways.insert(0, "a smaller train.micro_batch_size (auto: the largest that fits)")
    reporter.warn(f"The memory may not suffice: {estimate}. Try {' or '.join(ways)}.")


def planned_setting(recipe: Recipe) -> Setting:
    """How a dry run computes: as the recipe says, or on a CPU where its device is not here."""
    try:
        device = choose_device(recipe.train.device)
    except NotSupported:
        device = torch.device("cpu")
    plan = training_plan(recipe)
    return Setting(plan, device, choose_precision(recipe.train.precision, device), plan.batch_size)


def estimate_of_dry_run(estimator: Estimator, reporter: Reporter) -> dict[str, Any]:
    """Says what the run would take, with the micro-batch that `auto` would find; JSON values."""
    size = None
    if estimator.recipe.train.micro_batch_size == "auto":
        size = largest_that_fits(estimator)
        reporter.say(f"train.micro_batch_size: {size} (auto, by the estimate)")
    estimate = estimator.estimate(size)
    say_estimate(estimate, reporter)
    return estimate.as_dict()


def reserved_beside(estimate: Estimate) -> int:
    """What is still taken once the weights are loaded, beside the logits."""
    footprint = estimate.footprint
    return footprint.training + footprint.activations


def by_trial(workload: Workload, tuner: Tuner, setting: Setting, optimiser: str) -> int | None:
    """The micro-batch of a setting or, where a GPU does not hold it, a smaller one.

    Estimates leave out what kernels take for themselves and what fragmentation wastes. None is the
    whole batch.
    """
    plan = setting.plan
    if setting.device.type != "cuda":
        return plan.micro_batch_size
    objective = workload.objective(tuner, setting).to(setting.device)
    first = plan.micro_batch_size or plan.batch_size
    size = largest_by_trial(
        objective,
        lambda rows: _real_batch(workload, rows, setting.device),
        [n for n in micro_batch_sizes(plan.batch_size) if n <= first],
        precision=setting.precision,
        spare=fixed_footprint(0, tuner, optimiser).optimiser,
    )
    return None if size == plan.batch_size else size


# --- batches ------------------------------------------------------------------------------------


def _texts(recipe: Recipe, backbone: Any, rows: int, length: int | None) -> Batch:
    """What a batch could be where there are no data: all tokens real, and all of them learnt."""
    if episodic_task(recipe) is not None:
        return longest_rows(episode_options(recipe, backbone.positions), rows)
    data, task = recipe.data, backbone.task
    longest = data.max_length or min(backbone.positions or LONGEST, LONGEST)
    tokens = min(longest, length or longest)
    ids = torch.zeros(rows, tokens, dtype=torch.int64)
    batch: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if task == "seq2seq":
        labels = torch.zeros(rows, data.max_target_length or TARGET, dtype=torch.int64)
    else:
        labels = ids if task == "causal_lm" else torch.zeros(rows, dtype=torch.int64)
    return {**batch, "labels": labels}


def _real_batch(workload: Workload, rows: int, device: torch.device) -> Batch:
    """The longest texts; of pictures, which are all of one size, the first."""
    split = workload.splits["train"]
    if isinstance(split, TextSplit | Rows):
        return {key: value.to(device) for key, value in split.longest(rows).items()}
    batch: Batch = next(iter(split.batches(rows, seed=None)))
    return batch


def _cut(batch: Batch, length: int) -> Batch:
    wide = batch["input_ids"].shape
    return {k: v[:, :length] if v.shape == wide else v for k, v in batch.items()}


def _bound(backbone: Backbone, batch: Batch) -> int:
    """Bytes that a step surely does not take, from the widths of its linear maps."""
    if "pixels" in batch:
        rows, _, height, width = batch["pixels"].shape
        tokens = height * width // 16
    else:
        rows, tokens = batch["input_ids"].shape
    sites = [site for site in backbone.all_sites() if site.rows is None]
    widths = sum(site.d_in + site.d_out for site in sites)
    heads = sum(site.d_out // 8 for site in sites if site.role in ("attn_out", "value", "qkv"))
    words = int(getattr(getattr(backbone, "config", None), "vocab_size", 0))
    return 12 * rows * tokens * (widths + heads * tokens + 2 * words)


def micro_batch_sizes(batch_size: int) -> list[int]:
    """The batch, its half, its quarter, ... and 1."""
    sizes = [batch_size]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def largest_that_fits(estimator: Estimator) -> int:
    """Of `micro_batch_sizes`, by the estimate; 1 where none does.

    What a step takes grows evenly with its examples, so that two of them are traced.
    """
    sizes = micro_batch_sizes(estimator.setting.plan.batch_size)
    whole = estimator.estimate(sizes[0])
    if whole.fits or len(sizes) == 1:
        return sizes[0]
    one = estimator.estimate(1)
    each = (whole.footprint.total - one.footprint.total) / max(sizes[0] - 1, 1)
    for size in sizes[1:]:
        if one.footprint.total + each * (size - 1) <= estimator.free:
            return size
    return 1
