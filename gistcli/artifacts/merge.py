"""The tuned network as plain weights: a folder that timm and transformers load without us.

    new = base + scale (patch(base) - base)         in float32, one tensor at a time

written aside, read back, compared with the tuned network, and only then renamed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gistcli import atomic
from gistcli.artifacts import output as outputs
from gistcli.artifacts import rounding, verify
from gistcli.artifacts.output import Receipt
from gistcli.artifacts.plan import MergePlan, floats
from gistcli.artifacts.tensors import Written, dtype_name
from gistcli.artifacts.verify import Reference
from gistcli.reporting import SILENT, Reporter

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
HEAD_NOTE = "The head is the tuned one at every scale: the base has none for these classes."


def merge_timm(
    plan: MergePlan,
    config: Mapping[str, Any],
    output: Path,
    *,
    reference: Reference | None = None,
    max_drift: float | None = None,
    verified: bool = True,
    card: Callable[[Receipt], str] | None = None,
    reporter: Reporter = SILENT,
) -> Receipt:
    """Write a timm `local-dir` folder, which transformers loads too.

    Args:
        plan: what becomes of every tensor.
        config: the content of config.json, from `timm_config`.
        output: becomes the folder, once everything is checked; an earlier merge is replaced.
        reference: real inputs and the tuned network's logits. At another scale than 1 no tuned
            network exists: the logits are then compared with those of a float32 copy.
        max_drift: the largest difference of a logit that is accepted for any dtype.
        verified: False writes without reading back.
        card: makes the text of README.md.
        reporter: hears about progress.

    Raises:
        Refused: `output` holds something else.
        VerificationFailed: a tensor or the logits differ; nothing is left behind.
        StorageError, WeightsError: the disk or the base fails.
    """
    verify.require_checkable(verified, reference, max_drift)
    with outputs.export_folder(output, plan.source.files) as folder:
        atomic.write_json(folder / CONFIG, dict(config))
        written, measured = _write(plan, folder / WEIGHTS, reporter)
        difference = None
        if verified:
            verify.verify_file(folder / WEIGHTS, written)
            difference = _compare(plan, config, folder, written, reference, max_drift)
        name = dtype_name(plan.dtype or plan.source.main_dtype)
        receipt = Receipt(
            output=output,
            format="timm",
            dtype=name,
            scale=plan.scale,
            tensors=plan.count(measured),
            max_abs_logit_difference=difference,
            verified=verified,
            rounding=measured,
            advice=rounding.advice(measured, name),
            notes=() if plan.scale == 1 else (HEAD_NOTE,),
        )
        finish(folder, receipt, card)
    return receipt


def finish(folder: Path, receipt: Receipt, card: Callable[[Receipt], str] | None) -> None:
    """Add the receipt and the model card to a folder that is ready."""
    atomic.write_json(folder / outputs.RECEIPT, receipt.as_dict())
    if card is not None:
        atomic.write_text(folder / CARD, card(receipt))


def _write(
    plan: MergePlan, path: Path, reporter: Reporter
) -> tuple[dict[str, Written], list[rounding.Rounding]]:
    reporter.start("merge", len(plan.dtypes()), "tensors")
    written, measured = plan.write(path, lambda: reporter.advance("merge"))
    reporter.finish("merge")
    return written, measured


def _compare(
    plan: MergePlan,
    config: Mapping[str, Any],
    folder: Path,
    written: Mapping[str, Written],
    reference: Reference | None,
    max_drift: float | None,
) -> float | None:
    if reference is None:
        return None
    if plan.scale != 1:
        copy = replace(plan, dtype=torch.float32)
        logits = folder_logits(copy, config, folder, reference.pixels)
        reference = Reference(reference.pixels, logits)
    difference = verify.logit_difference(verify.load_timm_folder(folder), reference)
    exact = floats(w.dtype for w in written.values()) <= {torch.float32, torch.float64}
    verify.require_close(difference, exact=exact, max_drift=max_drift)
    return difference


def folder_logits(
    plan: MergePlan, config: Mapping[str, Any], folder: Path, pixels: Tensor
) -> Tensor:
    """(B, K) float32 logits of a merge, loaded from a folder inside `folder` that is removed."""
    copy = folder / "check"
    copy.mkdir()
    try:
        atomic.write_json(copy / CONFIG, dict(config))
        plan.write(copy / WEIGHTS)
        return verify.run(verify.load_timm_folder(copy), pixels)
    finally:
        atomic.discard(copy)
