"""The exact LoRA folder of a low-rank update, for PEFT and everything that reads its format.

GIFT is a LoRA: W (I + phi psi) = W + (W phi) psi, so lora_B = W phi and lora_A = psi, with
lora_alpha = r. No decomposition, no approximation; the update stays in tensors of its own, so that
rounding the base does not touch it.
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
from gistcli.artifacts import rounding, serving, verify
from gistcli.artifacts.form import Form
from gistcli.artifacts.merge import HEAD_NOTE, finish, plan_logits
from gistcli.artifacts.output import Receipt
from gistcli.artifacts.plan import MergePlan
from gistcli.artifacts.rounding import Rounding
from gistcli.artifacts.tensors import Pending, Written, dtype_name, load_tensors, write_stream
from gistcli.artifacts.verify import Comparison, Reference
from gistcli.errors import NotMergeable
from gistcli.methods.merged import LowRank, Merged
from gistcli.reporting import SILENT, Reporter

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


def export_peft(
    plan: MergePlan,
    base_name: str,
    form: Form,
    output: Path,
    *,
    reference: Reference | None = None,
    max_drift: float | None = None,
    verified: bool = True,
    card: Callable[[Receipt], str] | None = None,
    reporter: Reporter = SILENT,
) -> Receipt:
    """Write adapter_config.json and adapter_model.safetensors.

    Verified without PEFT: the adapter is read back, B A is added to the base, and the logits are
    compared with the tuned network's.

    Args:
        plan: as for `merge_weights`; its dtype (default float32) is that of the adapter.
        base_name: of what the adapter goes on, for `base_model_name_or_path`.
        form: the folder of the tuned network, for the verification.
        output, reference, max_drift, verified, card, reporter: as for `merge_weights`.

    Raises:
        NotMergeable: the update is not low-rank.
        Refused, VerificationFailed, StorageError, WeightsError: as `merge_weights`.
    """
    _require_low_rank(plan.merged)
    dtype = plan.dtype or torch.float32
    verify.require_checkable(verified, reference, max_drift)
    outputs.require_room(output, _nbytes(plan, dtype))
    config = adapter_config(plan.merged, base_name, form.peft_task)
    with outputs.export_folder(output, plan.source.files) as folder:
        atomic.write_json(folder / ADAPTER_CONFIG, config)
        form.write_beside_adapter(folder)
        reporter.say(f"{len(plan.merged.low_rank)} maps as LoRA, exactly.")
        written, measured = _write(plan, folder / ADAPTER, dtype)
        found = None
        if verified:
            verify.verify_file(folder / ADAPTER, written)
        if verified and reference is not None:
            exact = dtype == torch.float32
            found = _compare(plan, form, folder, reference)
            verify.require_close(found.difference, exact=exact, max_drift=max_drift)
        serve, notes = _serving(config, base_name, output, form)
        quantised = rounding.quantised_note(measured, apart=True)
        head = HEAD_NOTE if plan.scale != 1 and plan.merged.new else ""
        notes = tuple(note for note in (*notes, head, quantised) if note)
        receipt = Receipt(
            output=output,
            format="peft",
            dtype=dtype_name(dtype),
            scale=plan.scale,
            tensors={"patched": len(plan.merged.low_rank), "new": len(plan.merged.new)},
            max_abs_logit_difference=None if found is None else found.difference,
            agreement=None if found is None else found.agreement,
            verified=verified,
            rounding=measured,
            notes=notes,
            serve=serve,
            files=sorted(entry.name for entry in folder.iterdir()),
        )
        finish(folder, receipt, card)
    return receipt


def _nbytes(plan: MergePlan, dtype: torch.dtype) -> int:
    layout = plan.source.layout()
    elements = sum(t.numel() for t in plan.merged.new.values())
    for name, update in plan.merged.low_rank.items():
        elements += update.a.shape[0] * sum(layout[f"{name}.weight"][1])
    return elements * dtype.itemsize


def _serving(
    config: Mapping[str, Any], base_name: str, output: Path, form: Form
) -> tuple[str | None, tuple[str, ...]]:
    """The command that serves the folder, or a note why vLLM does not; for text alone."""
    if form.peft_task is None and not form.of_text:
        return None, ()
    refusals = serving.vllm_refusals(config)
    if refusals:
        return None, (f"vLLM does not load this adapter: {'; '.join(refusals)}.",)
    template = None if form.own_template is None else output / form.own_template
    return serving.vllm_command(config, base_name, output, template), ()


def _require_low_rank(merged: Merged) -> None:
    if not merged.low_rank:
        raise NotMergeable(
            "This method has no low-rank form, so there is no LoRA folder of it.",
            "Use `gist merge` without --format.",
        )
    outside = sorted(merged.patches.keys() - {f"{name}.weight" for name in merged.low_rank})
    if outside:
        raise NotMergeable(
            f"The update of {', '.join(outside)} is not low-rank.",
            "Use `gist merge` without --format.",
        )


def adapter_config(merged: Merged, base_name: str, task: str | None = None) -> dict[str, Any]:
    """The content of adapter_config.json: exact module names, scaling 1, the head saved whole."""
    ranks = {name: update.a.shape[0] for name, update in merged.low_rank.items()}
    common = max(ranks.values())
    other = {name: r for name, r in ranks.items() if r != common}
    heads = sorted({key.rpartition(".")[0] for key in merged.new})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base_name,
        "r": common,
        "lora_alpha": common,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": all(update.transposed for update in merged.low_rank.values()),
        "inference_mode": True,
        "target_modules": sorted(ranks),
        "modules_to_save": heads or None,
    }
    if other:
        config |= {"rank_pattern": other, "alpha_pattern": other}
    return config


def _write(
    plan: MergePlan, path: Path, dtype: torch.dtype
) -> tuple[dict[str, Written], list[Rounding]]:
    measured: list[Rounding] = []
    pending = []
    for name, update in plan.merged.low_rank.items():
        make_a = _constant(update.a, dtype)
        make_b = _b_maker(plan, name, update, dtype, measured)
        pending.append(Pending(f"{PREFIX}{name}.lora_A.weight", dtype, make_a))
        pending.append(Pending(f"{PREFIX}{name}.lora_B.weight", dtype, make_b))
    for key, tensor in plan.merged.new.items():
        pending.append(Pending(f"{PREFIX}{key}", dtype, _constant(tensor, dtype)))
    with plan.source:
        written = write_stream(path, pending, {"format": "pt"})
    return written, sorted(measured, key=lambda r: r.key)


def _b_maker(
    plan: MergePlan,
    name: str,
    update: LowRank,
    dtype: torch.dtype,
    measured: list[Rounding],
) -> Callable[[], Tensor]:
    @torch.no_grad()
    def make() -> Tensor:
        key = f"{name}.weight"
        w_OI = update.turned(plan.source.read(key).to(torch.float32, copy=True))
        b_OR, a_RI = (plan.scale * update.b(w_OI)).cpu(), update.a.detach().cpu()
        written = b_OR.to(dtype)
        kept = written.float() @ a_RI.to(dtype).float()
        lost = plan.source.lost(key)
        measured.append(rounding.measure_update(key, w_OI, b_OR @ a_RI, kept, lost))
        return written

    return make


def _constant(tensor: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: tensor.detach().cpu().to(dtype)


def _compare(plan: MergePlan, form: Form, folder: Path, reference: Reference) -> Comparison:
    """The logits of the tuned network against those of base + adapter, both from disk."""
    stored = {k.removeprefix(PREFIX): t.float() for k, t in load_tensors(folder / ADAPTER).items()}
    patches = {
        f"{name}.weight": _add(
            update.turned(stored[f"{name}.lora_B.weight"] @ stored[f"{name}.lora_A.weight"])
        )
        for name, update in plan.merged.low_rank.items()
    }
    head = {key: stored[key] for key in plan.merged.new}
    rebuilt = replace(plan, merged=Merged(patches, head), dtype=torch.float32, scale=1.0)
    logits = plan_logits(rebuilt, form, folder, reference.inputs)
    wanted = reference.logits.detach().float().cpu()
    if plan.scale != 1:
        scaled = replace(plan, dtype=torch.float32)
        wanted = plan_logits(scaled, form, folder, reference.inputs)
    return verify.compare(logits, wanted)


def _add(delta: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda stored: stored + delta
