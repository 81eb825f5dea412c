"""`gist predict`: classes of unlabelled images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gistcli.artifacts.predictions import write_top_k
from gistcli.atomic import require_writable
from gistcli.data import expand_inputs, load_images
from gistcli.data.images import is_image_name
from gistcli.errors import DataError, Refused
from gistcli.evaluate.classify import autocast
from gistcli.reporting import SILENT, Reporter
from gistcli.run.loading import Loaded, open_target
from gistcli.run.text_prediction import Asked, predict_text

CHUNK = 64


def predict(
    target: Path,
    inputs: Sequence[Path],
    *,
    output: Path | None = None,
    top_k: int = 5,
    prompts: Sequence[str] = (),
    prefix: Path | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    alpaca_eval: bool = False,
    generator: str | None = None,
    model: str | None = None,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """The most probable classes of every image or text, or what a language model answers.

    Args:
        target: run or merged folder.
        inputs: image files and folders of them; for text files of prompts, chats or texts.
        output: a CSV file, for text one of JSON lines; None writes none.
        top_k: classes per image or text.
        prompts: texts that a language model goes on from.
        prefix: what `gist compress` wrote, for in front of them.
        max_new_tokens: of each answer, at most; None for 256.
        temperature: of sampling; 0 takes the likeliest token each time.
        seed: of sampling.
        alpaca_eval: answer AlpacaEval's instructions, decoded as published; the output is its list.
        generator: what the model is called there; None for the name of the target's folder.
        model: where the backbone lies now.
        device: where to compute.
        reporter: gets all talk.

    Raises:
        DataError: images that cannot be decoded, all of them named; nothing is written.
        Refused, StorageError: `output` cannot be written.
        GistError: as `open_target`.
    """
    start = time.perf_counter()
    if output is not None:
        _refuse_picture(output)
        require_writable(output, folder=False)
    if not inputs and not prompts:
        raise Refused("There is nothing to predict on.", "Give files, or --prompt TEXT.")
    loaded = open_target(target, model=model, device=device)
    if loaded.backbone.modality == "text":
        named = (generator or target.resolve().name) if alpaca_eval else None
        asked = Asked(inputs, prompts, top_k, max_new_tokens, temperature, seed, named, prefix)
        found = predict_text(loaded, asked, output, reporter)
        return {
            "output": str(output) if output is not None else None,
            **found,
            "seconds": round(time.perf_counter() - start, 3),
        }
    texts = {"--prompt": prompts, "--alpaca-eval": alpaca_eval, "--prefix": prefix is not None}
    for flag in (flag for flag, given in texts.items() if given):
        raise Refused(f"{target} reads pictures, and answers no {flag}.", "Give image files.")
    files = expand_inputs(inputs)
    probabilities = _probabilities(loaded, files, reporter)
    names = [str(f) for f in files]
    if output is not None:
        write_top_k(output, names, probabilities, loaded.classes, top_k)
    return {
        "output": str(output) if output is not None else None,
        "examples": len(files),
        "predictions": _rows(names, probabilities, loaded.classes, top_k),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _refuse_picture(output: Path) -> None:
    """`predict RUN -o a.jpg b.jpg` must not cost the first of the photos."""
    if is_image_name(output.name):
        raise Refused(
            f"--output {output} is named like a picture, but becomes a CSV file.",
            "Choose another name, such as predictions.csv.",
        )


def _probabilities(loaded: Loaded, files: Sequence[Path], reporter: Reporter) -> Tensor:
    """(N, K), a portion of the files at a time; broken ones are named behind the last portion."""
    rows, broken = [], []
    reporter.start("predict", len(files), "images")
    try:
        for first in range(0, len(files), CHUNK):
            part = files[first : first + CHUNK]
            try:
                pixels, _ = load_images(part, loaded.preprocess, loaded.device, display=0)
            except DataError as error:
                broken.append(error.message)
                continue
            with (
                torch.no_grad(),
                autocast(loaded.device, loaded.precision()),
                loaded.tuner.step(),
            ):
                logits = loaded.tuner({"pixels": pixels}).logits
            rows.append(logits.float().cpu().softmax(dim=-1))
            reporter.advance("predict", len(part))
    finally:
        reporter.finish("predict")
    if broken:
        raise DataError(" ".join(broken), "Remove or repair these files.")
    return torch.cat(rows)


def _rows(
    names: Sequence[str], probabilities: Tensor, classes: Sequence[str], top_k: int
) -> list[dict[str, Any]]:
    values, indices = probabilities.topk(min(top_k, len(classes)), dim=-1)
    rows = []
    for name, value, index in zip(names, values.tolist(), indices.tolist(), strict=True):
        top = [
            {"class": classes[i], "probability": round(p, 6)}
            for i, p in zip(index, value, strict=True)
        ]
        rows.append({"file": name, **top[0], "top": top})
    return rows
