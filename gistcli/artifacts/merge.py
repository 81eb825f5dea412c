"""The tuned network as plain weights: a folder that timm or transformers load without us.

    new = base + scale (patch(base) - base)         in float32, one tensor at a time

written aside, read back, compared with the tuned network, and only then renamed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gistcli import atomic
from gistcli.artifacts import output as outputs
from gistcli.artifacts import rounding, verify
from gistcli.artifacts.form import Form
from gistcli.artifacts.output import Receipt
from gistcli.artifacts.plan import MergePlan, floats
from gistcli.artifacts.sharding import Shards, divide
from gistcli.artifacts.tensors import Written, dtype_name
from gistcli.artifacts.timm_export import timm_form
from gistcli.artifacts.transformers_export import transformers_form
from gistcli.artifacts.verify import Comparison, Reference
from gistcli.backbones.base import Backbone
from gistcli.backbones.locating import INDEX, WEIGHTS
from gistcli.errors import Refused
from gistcli.reporting import SILENT, Reporter

CARD = "README.md"
FORMS: dict[str, Callable[..., Form]] = {"timm": timm_form, "transformers": transformers_form}
HEAD_NOTE = "The head is the tuned one at every scale: the base has none for these classes."


def tuned_form(
    backbone: Backbone,
    classes: Sequence[str],
    preprocessing: Mapping[str, object],
    model_args: Mapping[str, object] | None = None,
) -> Form:
    """The folder of the library that a backbone comes from.

    Args:
        backbone: with the head that was tuned.
        classes: names in the order of the logits.
        preprocessing: timm data config that the network was tuned with.
        model_args: of its `Merged`.
    """
    return FORMS[backbone.library](backbone, classes, preprocessing, model_args or {})


def merge_weights(
    plan: MergePlan,
    form: Form,
    output: Path,
    *,
    reference: Reference | None = None,
    max_drift: float | None = None,
    verified: bool = True,
    max_shard_size: str | None = None,
    tuner: str | None = None,
    card: Callable[[Receipt], str] | None = None,
    reporter: Reporter = SILENT,
) -> Receipt:
    """Write a folder that the library of the backbone loads.

    Args:
        plan: what becomes of every tensor.
        form: the files beside the weights, from `tuned_form`.
        output: becomes the folder, once everything is checked; an earlier merge is replaced.
        reference: real inputs and the tuned network's logits. At another scale than 1 no tuned
            network exists: the logits are then compared with those of a float32 copy.
        max_drift: the largest difference of a logit that is accepted for any dtype.
        verified: False writes without reading back.
        max_shard_size: of a file, such as `2GB`; None for files like those of the base.
        tuner: SHA-256 of the run's tensors, for the receipt.
        card: makes the text of README.md.
        reporter: hears about progress.

    Raises:
        Refused: `output` holds something else.
        VerificationFailed: a tensor or the logits differ; nothing is left behind.
        StorageError, WeightsError: the disk or the base fails.
    """
    verify.require_checkable(verified, reference, max_drift)
    shards = _shards(plan, form, max_shard_size)
    outputs.require_room(output, shards.nbytes)
    with outputs.export_folder(output, plan.source.files) as folder:
        name = dtype_name(plan.dtype or plan.source.main_dtype)
        form.write(folder, name)
        written, measured = _write(plan, form, folder, shards, reporter)
        found = None
        if verified:
            for file, tensors in written.items():
                verify.verify_file(folder / file, tensors)
            found = _compare(plan, form, folder, written, reference, max_drift)
        receipt = Receipt(
            output=output,
            format=form.name,
            dtype=name,
            scale=plan.scale,
            tensors=plan.count(measured),
            max_abs_logit_difference=None if found is None else found.difference,
            agreement=None if found is None else found.agreement,
            verified=verified,
            rounding=measured,
            advice=rounding.advice(measured, name, low_rank=bool(plan.merged.low_rank)),
            notes=_notes(plan, measured),
            files=sorted(entry.name for entry in folder.iterdir()),
            tuner=tuner,
        )
        finish(folder, receipt, card)
    return receipt


def _notes(plan: MergePlan, measured: list[rounding.Rounding]) -> tuple[str, ...]:
    head = HEAD_NOTE if plan.scale != 1 and plan.merged.new else ""
    return tuple(note for note in (head, rounding.quantised_note(measured, apart=False)) if note)


def _shards(plan: MergePlan, form: Form, max_size: str | None) -> Shards:
    if max_size is not None and not form.shards:
        raise Refused(f"{form.name} reads a network from one file.", "Leave --max-shard-size out.")
    homes = plan.homes(form.names) if form.shards else {}
    return divide(plan.stored_layout(form.names), homes, max_size)


def finish(folder: Path, receipt: Receipt, card: Callable[[Receipt], str] | None) -> None:
    """Add the receipt and the model card to a folder that is ready."""
    atomic.write_json(folder / outputs.RECEIPT, receipt.as_dict())
    if card is not None:
        atomic.write_text(folder / CARD, card(receipt))


def _write(
    plan: MergePlan, form: Form, folder: Path, shards: Shards, reporter: Reporter
) -> tuple[dict[str, dict[str, Written]], list[rounding.Rounding]]:
    reporter.start("merge", len(plan.dtypes()), "tensors")
    tick = partial(reporter.advance, "merge")
    written, measured = plan.write_files(folder, shards.files, tick, form.names)
    index = shards.index()
    if index is not None:
        atomic.write_json(folder / INDEX, index)
    reporter.finish("merge")
    return written, measured


def _compare(
    plan: MergePlan,
    form: Form,
    folder: Path,
    written: Mapping[str, Mapping[str, Written]],
    reference: Reference | None,
    max_drift: float | None,
) -> Comparison | None:
    if reference is None:
        return None
    wanted = reference.logits.detach().float().cpu()
    if plan.scale != 1:
        wanted = plan_logits(replace(plan, dtype=torch.float32), form, folder, reference.inputs)
    found = verify.compare(verify.run(form.load(folder), reference.inputs), wanted)
    dtypes = {entry.dtype for tensors in written.values() for entry in tensors.values()}
    exact = floats(dtypes) <= {torch.float32, torch.float64}
    verify.require_close(found.difference, exact=exact, max_drift=max_drift)
    return found


def plan_logits(plan: MergePlan, form: Form, folder: Path, inputs: verify.Inputs) -> Tensor:
    """Float32 logits of a plan's network; a folder inside `folder` may be needed for a moment."""

    def read(name: str) -> Tensor:
        return plan.compute(name)[0]

    with plan.source:
        logits = form.rebuilt(read, inputs)
    if logits is not None:
        return logits
    copy = folder / "check"
    copy.mkdir()
    try:
        form.write(copy, dtype_name(plan.dtype or plan.source.main_dtype))
        plan.write(copy / WEIGHTS, names=form.names)
        return verify.run(form.load(copy), inputs)
    finally:
        atomic.discard(copy)
