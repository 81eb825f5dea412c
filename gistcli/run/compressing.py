"""`gist compress`: few-shot examples to a soft prefix, in one pass."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from gistcli.artifacts.output import check_output
from gistcli.artifacts.prefix_export import Front, flattened, write_front
from gistcli.artifacts.rundir import read_json
from gistcli.artifacts.text_export import at_tokens
from gistcli.artifacts.verify import Reference
from gistcli.backbones.locating import RECEIPT
from gistcli.backbones.prefix import Prefix
from gistcli.backbones.streaming import compute
from gistcli.data.episodes import Task
from gistcli.data.episodes.drawing import Drawn
from gistcli.data.text import collate_prompts, open_tokenizer
from gistcli.errors import Refused
from gistcli.reporting import SILENT, Reporter
from gistcli.run.compressed_quality import quality, unseen
from gistcli.run.compressor import Compressor, compressor, read_examples
from gistcli.run.loading import open_target
from gistcli.run.text_exporting import form_of

Format = Literal["safetensors", "peft"]
KINDS = {"safetensors": "prefix", "peft": "peft"}
CHECKED = 4
"""Examples whose logits behind the written prefix are compared."""


def compress(
    target: Path,
    examples: Path,
    output: Path,
    *,
    format: Format = "safetensors",
    evaluate: Path | None = None,
    dtype: str | None = None,
    base_name: str | None = None,
    model: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Write the prefix that a hypernetwork makes of examples.

    Args:
        target: run of a hypernetwork.
        examples: file of a task's pairs; as many are read, in their order, as fit.
        output: the folder to write; it appears when what is in it was verified.
        format: safetensors for `prefix.safetensors`, peft for a folder that PEFT loads.
        evaluate: file of further pairs of the task, by which the prefix is measured.
        dtype: of the written tensors; None for float32.
        base_name: what others call the network, for PEFT and the metadata.
        model: where the backbone lies now.
        device: where to compute.
        batch_size: texts at a time, in measuring.
        reporter: gets all talk.

    Raises:
        Refused: the run makes no prefixes.
        DataError: no examples, or none that fits.
        BaseMismatch: another network or tokenizer than in training.
        GistError: as `open_target`; the disk.
    """
    _require_folder(output, reporter)
    task, asked = read_examples(examples), None if evaluate is None else read_examples(evaluate)
    loaded = open_target(target, model=model, device=device)
    _, info, _ = loaded.require_run("compress")
    tokenizer = open_tokenizer(loaded.backbone.origin.config["folder"])
    made = compressor(loaded.tuner, info, tokenizer, str(target), loaded.precision())
    episode = made.read(task, reporter)
    asked = None if asked is None else unseen(asked, task, episode, reporter)
    start = time.perf_counter()
    prefix = made.prefix(episode)
    front = Front(flattened(prefix), prefix)
    seconds = time.perf_counter() - start  # the values were asked for, so that they are there
    receipt = write_front(
        made.tuner.network,
        front,
        KINDS[format],
        base_name or loaded.backbone.name,
        form_of(loaded),
        output,
        plain=nullcontext if made.adapted else made.tuner.disabled,
        dtype=dtype,
        reference=_reference(made, prefix, task),
        made=made.made(episode),
    )
    if made.adapted:
        reporter.warn(f"the prefix is for the network that was adapted to prefixes, not for its "
                      f"base: write that one with `gist merge {target} -o DIR`")  # fmt: skip
    found = {
        "output": str(output),
        "format": format,
        "task": task.name,
        "examples": {"given": len(task.items), "fitted": episode.shown},
        "source_tokens": len(episode.context),
        "gists": prefix.length,
        "ratio": round(len(episode.context) / prefix.length, 2),
        "bytes": sum((output / name).stat().st_size for name in _weights(receipt.files)),
        "seconds": round(seconds, 4),
        "adapted_downstream": made.adapted,
        "max_abs_logit_difference": receipt.max_abs_logit_difference,
        "verified": receipt.verified,
        "files": [str(output / name) for name in receipt.files],
    }
    if asked is None:
        return found
    size = batch_size or loaded.batch_size
    return {**found, **quality(made, loaded, task, asked, episode, prefix, size, reporter)}


def _require_folder(output: Path, reporter: Reporter) -> None:
    """Whether a prefix may go there: an earlier one gives way, merged weights do not."""
    if output.suffix == ".safetensors":
        raise Refused(
            f"{output}: -o is a folder, in which prefix.safetensors is written.",
            f"Try `-o {output.with_suffix('')}`.",
        )
    check_output(output)
    if (output / RECEIPT).is_file():
        earlier = read_json(output / RECEIPT).get("format")
        if earlier not in KINDS.values():
            raise Refused(
                f"{output} holds what `gist merge` wrote ({earlier}), and no prefix.",
                "Choose another output folder.",
            )
        reporter.say(
            f"{output} holds an earlier prefix, which is replaced once this one is verified."
        )


def _weights(files: Any) -> list[str]:
    return [name for name in files if name.endswith(".safetensors")]


def _reference(made: Compressor, prefix: Prefix, task: Task) -> Reference:
    """The first examples as texts, with the logits that the run gives them behind the prefix."""
    queries = made.encoder.episode(task, Drawn((), task.items[:CHECKED])).queries
    texts = [[*query.prompt.tolist(), *query.answer.tolist()] for query in queries]
    batch = collate_prompts(texts, made.encoder.tokenizer.pad_id)
    device = next(made.tuner.backbone.model.parameters()).device
    batch = {key: value.to(device) for key, value in batch.items()}

    def logits() -> Tensor:
        with made.tuner.step(), made.tuner.prefix_in_use(prefix):
            return made.tuner(batch).logits

    found = compute(made.tuner.backbone.model, logits)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    return Reference(inputs, at_tokens(found.float(), inputs))
