"""`gist merge`: a run as plain weights, verified on real images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gistcli.artifacts.card import CardFacts, model_card
from gistcli.artifacts.form import Form
from gistcli.artifacts.merge import FORMS, merge_weights, tuned_form
from gistcli.artifacts.onnx_export import PixelsToLogits, export_onnx, require_onnx
from gistcli.artifacts.output import Receipt, check_output
from gistcli.artifacts.peft_export import export_peft
from gistcli.artifacts.plan import MergePlan, plan_merge
from gistcli.artifacts.prefix_export import export_front, front_of, require_front
from gistcli.artifacts.sharding import parse_size
from gistcli.artifacts.verify import Reference
from gistcli.backbones.locating import RECEIPT
from gistcli.backbones.seq2seq import Seq2Seq
from gistcli.data import open_catalog
from gistcli.errors import GistError, NotSupported, Refused, UnknownName, did_you_mean
from gistcli.recipe import DataSection
from gistcli.reporting import SILENT, Reporter
from gistcli.run.assembling import NETWORK_TASKS
from gistcli.run.evaluation import find_catalog, open_split
from gistcli.run.loading import Loaded, open_target
from gistcli.run.split_choice import choose_split
from gistcli.run.text_exporting import form_of, reference_of

FORMATS = (*FORMS, "peft", "prefix", "onnx")
OTHER_LIBRARY = {
    "timm": "Leave --format out: transformers loads a timm folder as it is.",
    "transformers": "Leave --format out: the folder that is written is one of transformers.",
}
REFERENCE_IMAGES = 32


def merge(
    target: Path,
    output: Path,
    *,
    format: str | None = None,
    dtype: str | None = None,
    scale: float = 1.0,
    max_drift: float | None = None,
    verify: bool = True,
    model: str | None = None,
    max_shard_size: str | None = None,
    base_name: str | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Write a run as weights that other programs load.

    Args:
        target: a run.
        output: the folder to write; it appears only when everything in it was verified.
        format: timm (also loaded by transformers), transformers, peft, prefix (the keys and values
            of that method) or onnx; None for the library of the backbone.
        dtype: float32, bfloat16 or float16; None for that of the base.
        scale: 0 for the base, 1 for the tuned network; the head is the tuned one.
        max_drift: the largest accepted difference of a logit for a dtype other than float32.
        verify: read back and compare.
        model: where the backbone lies now.
        max_shard_size: of a file of weights, such as `2GB`; None for files like the base's.
        base_name: what others call the base (a hub name), for the adapter's config and the card.
        reporter: gets all talk.

    Raises:
        NotMergeable: with the reason.
        VerificationFailed: what was read back differs.
        GistError: as `open_target`; the disk.
    """
    if format is not None:
        _known("format", format, FORMATS)
    _refuse_unused(format, max_shard_size)
    if format == "onnx" and (dtype not in (None, "float32") or scale != 1):
        raise Refused("An ONNX export is float32 at scale 1.", "Leave --dtype and --scale out.")
    check_output(output)
    if (output / RECEIPT).is_file():
        reporter.say(
            f"{output} holds an earlier merge, which is replaced once this one is verified."
        )
    # in the stored dtype also where the run computed in less: the merge starts from that
    loaded = open_target(target, model=model, device="cpu", dtype="auto", streamed=True)
    _, info, _ = loaded.require_run("merge")
    kind = format or loaded.backbone.library
    of_text = loaded.backbone.modality == "text"
    if of_text and kind == "onnx":
        raise NotSupported(
            f"{target} reads text, which is not exported to ONNX.",
            "Leave --format out: the folder that is written loads in transformers.",
        )
    _require_library(kind, loaded)
    common: dict[str, Any]
    if kind == "prefix" or (kind == "peft" and front_of(loaded.tuner) is not None):
        common = {"dtype": dtype, "scale": scale, "max_drift": max_drift, "verified": verify}
        return _beside(loaded, kind, output, base_name, reporter, **common)
    # what does not merge is refused before any example is read
    plan = None if kind == "onnx" else plan_merge(loaded.tuner, dtype=dtype, scale=scale)
    reference = None
    if verify or kind == "onnx":
        reference = reference_of(loaded, reporter) if of_text else _reference(loaded, reporter)
    card = _card(loaded, base_name)
    common = {
        "max_drift": max_drift,
        "verified": verify,
        "card": card,
        "reporter": reporter,
    }
    if plan is None:
        assert reference is not None
        assert isinstance(reference.inputs, Tensor)
        receipt = export_onnx(
            PixelsToLogits(loaded.tuner),
            reference.inputs,
            loaded.classes,
            loaded.preprocess.to_config(),
            output,
            **common,
        )
        return receipt.as_dict()
    form = form_of(loaded) if of_text else _image_form(loaded, plan)
    if kind == "peft":
        name = base_name or loaded.backbone.name
        receipt = export_peft(plan, name, form, output, reference=reference, **common)
    else:
        common |= {"max_shard_size": max_shard_size, "tuner": info.sha256 or None}
        receipt = merge_weights(plan, form, output, reference=reference, **common)
    _say(receipt, reporter)
    return receipt.as_dict()


def _beside(
    loaded: Loaded,
    kind: str,
    output: Path,
    base_name: str | None,
    reporter: Reporter,
    *,
    verified: bool,
    **options: Any,
) -> dict[str, Any]:
    """What stands in front of a text, and so beside the weights."""
    require_front(loaded.tuner, kind)
    receipt = export_front(
        loaded.tuner,
        kind,
        base_name or loaded.backbone.name,
        form_of(loaded),
        output,
        reference=reference_of(loaded, reporter) if verified else None,
        verified=verified,
        card=_card(loaded, base_name),
        **options,
    )
    _say(receipt, reporter)
    return receipt.as_dict()


def _refuse_unused(kind: str | None, max_shard_size: str | None) -> None:
    if kind in ("peft", "prefix", "onnx") and max_shard_size is not None:
        raise Refused(
            f"--format {kind} writes one small file of weights.", "Leave --max-shard-size out."
        )
    if max_shard_size is not None:
        parse_size(max_shard_size)
    if kind == "onnx":
        require_onnx()


def _say(receipt: Receipt, reporter: Reporter) -> None:
    """What somebody who goes on with the folder wants to read."""
    if receipt.agreement is not None:
        reporter.say(
            f"checked on real inputs: logits within {receipt.max_abs_logit_difference:.2g} of the "
            f"tuned network's, the same answer on {receipt.agreement:.1%}"
        )
    if receipt.advice:
        reporter.warn(receipt.advice)
    for note in receipt.notes:
        reporter.say(note)
    if receipt.serve:
        reporter.say(f"serve: {receipt.serve}")


def _image_form(loaded: Loaded, plan: MergePlan) -> Form:
    preprocessing = loaded.preprocess.to_config()
    return tuned_form(loaded.backbone, loaded.classes, preprocessing, plan.merged.model_args)


def _require_library(kind: str, loaded: Loaded) -> None:
    library = loaded.backbone.library
    if kind in FORMS and kind != library:
        raise Refused(
            f"{loaded.backbone.architecture} is a network of {library}, whose tensors have no "
            f"place in one of {kind}.",
            OTHER_LIBRARY[library],
        )


def _kind(loaded: Loaded) -> str:
    """The hub's name for what the network does."""
    if loaded.backbone.modality == "vision":
        return "image-classification"
    if isinstance(loaded.backbone, Seq2Seq):
        return "text2text-generation"
    writes = NETWORK_TASKS.get(loaded.task, loaded.task) == "causal_lm"
    return "text-generation" if writes else "text-classification"


def _known(what: str, name: str, known: Any) -> str:
    if name not in known:
        raise UnknownName(f"--{what}: {name!r} is not known.", did_you_mean(name, known))
    return name


def _reference(loaded: Loaded, reporter: Reporter) -> Reference:
    """Real images with the tuned network's logits: the run's own, or digits without them."""
    try:
        catalog = find_catalog(loaded, None, "merge")
        images = open_split(loaded, catalog, choose_split(catalog, None), limit=REFERENCE_IMAGES)
    except GistError as error:
        reporter.warn(f"The run's data cannot be read ({error.message}); verifying on digits.")
        catalog = open_catalog(DataSection(path="digits"), base=Path.cwd())
        images = open_split(loaded, catalog, "test", limit=REFERENCE_IMAGES)
    batch = next(iter(images.batches(REFERENCE_IMAGES, seed=None)))
    with torch.no_grad(), loaded.tuner.step():
        logits = loaded.tuner(batch).logits.float()
    return Reference(batch["pixels"], logits)


def _card(loaded: Loaded, base_name: str | None) -> Callable[[Receipt], str]:
    run, info, recipe = loaded.require_run("merge")
    result = run.read_result()
    summary = loaded.tuner.method.summary
    facts = CardFacts(
        base_model=base_name or info.backbone.name,
        method=f"{loaded.tuner.method.label()}: {summary}",
        classes=loaded.classes,
        data=recipe.data.path,
        counts=result["examples"],
        metrics=result["metrics"],
        intervals={k: tuple(v) for k, v in result["intervals"].items()},
        parameters=info.parameters,
        recipe=recipe.as_dict(),
        license=loaded.backbone.license,
        library=loaded.backbone.library,
        img_size=loaded.preprocess.size if recipe.model.img_size is not None else None,
        kind=_kind(loaded),
    )
    return lambda receipt: model_card(facts, receipt)
