"""`gist eval`: the figures of a run or of a merged folder on labelled data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gistcli.artifacts.predictions import write_predictions
from gistcli.atomic import require_writable
from gistcli.data import Catalog, open_catalog
from gistcli.data.split import ImageSplit, load_split
from gistcli.errors import NotFound, Refused
from gistcli.evaluate.classify import predict, scalars, score
from gistcli.recipe import DataSection
from gistcli.reporting import SILENT, Reporter
from gistcli.run.harness import Harness, evaluate_harness, require_harness
from gistcli.run.loading import Loaded, open_target
from gistcli.run.split_choice import choose_split
from gistcli.run.text_evaluation import Asked, evaluate_text, require_untuned


def evaluate(
    target: Path,
    *,
    data: str | None = None,
    split: str | None = None,
    model: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    protocol: str | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    untuned: bool = False,
    output: Path | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Metrics on the run's own split, or on other data with the same classes.

    Args:
        target: run or merged folder.
        data: labelled data; None for those of the run, divided as they were.
        split: which split; None for test, else val.
        model: where the backbone lies now.
        device: where to compute.
        batch_size: examples per forward pass.
        protocol, limit, max_new_tokens: of a language model, in place of the recipe's.
        untuned: measure the pretrained language model, without what was trained.
        output: file for the outputs of every example: CSV, of answers JSON lines.
        reporter: gets all talk.

    Raises:
        GistError: see `open_target`; a merged folder without `data`; classes unknown to the model;
            what is for language models, asked of another network.
    """
    start = time.perf_counter()
    if output is not None:
        require_writable(output, folder=False)
    loaded = open_target(target, model=model, device=device)
    asked = Asked(data, split, batch_size, protocol, limit, max_new_tokens, untuned, output)
    if loaded.backbone.modality == "text":
        found = evaluate_text(loaded, asked, reporter)
        return {"target": str(target), **found, "seconds": round(time.perf_counter() - start, 3)}
    if untuned:
        require_untuned(loaded)
    if (protocol, limit, max_new_tokens) != (None, None, None):
        raise Refused(
            f"{target} reads pictures and answers nothing: --protocol, --limit and "
            "--max-new-tokens are for language models.",
            "Leave them out.",
        )
    catalog = find_catalog(loaded, data, "eval")
    name = choose_split(catalog, split)
    images = open_split(loaded, catalog, name, reporter=reporter)
    size = batch_size or loaded.batch_size
    outputs = predict(
        loaded.tuner, images, size, precision=loaded.precision(), reporter=reporter, phase=name
    )
    positive = loaded.recipe.eval.positive if loaded.recipe else None
    figures = score(outputs, loaded.classes, positive)
    if output is not None:
        probabilities = outputs.probabilities
        write_predictions(output, outputs.names, outputs.labels, probabilities, loaded.classes)
    return {
        "target": str(target),
        "data": data or (loaded.recipe.data.path if loaded.recipe else None),
        "metrics": {f"{name}/{key}": value for key, value in scalars(figures).items()},
        "intervals": {f"{name}/accuracy": figures["interval"]},
        "examples": len(images),
        "per_class": figures["per_class"],
        "seconds": round(time.perf_counter() - start, 3),
    }


def evaluate_by_harness(
    target: Path,
    asked: Harness,
    *,
    untuned: bool = False,
    model: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Figures of tasks of the lm-evaluation-harness.

    Args:
        target: run or merged folder of a language model.
        asked: its tasks and arguments.
        untuned: measure the pretrained network, without what was trained.
        model: where the backbone lies now.
        device: where to compute.
        batch_size: texts at a time.
        reporter: gets all talk.

    Raises:
        GistError: as `open_target` and `evaluate_harness`.
    """
    start = time.perf_counter()
    require_harness()
    loaded = open_target(target, model=model, device=device)
    found = evaluate_harness(loaded, asked, batch_size, untuned, reporter)
    return {"target": str(target), **found, "seconds": round(time.perf_counter() - start, 3)}


def find_catalog(loaded: Loaded, data: str | None, command: str) -> Catalog:
    """The run's data with its splits, or other data, under the model's class order.

    Raises:
        Refused: a merged folder knows no data of its own.
        DataError, NotFound: what is there cannot be used.
    """
    if data is not None:
        section = DataSection(path=data)
        if loaded.recipe is not None:
            section = loaded.recipe.data.model_copy(update={"path": data, "shots": None})
        return open_catalog(section, base=Path.cwd(), whole=True).with_classes(loaded.classes)
    if loaded.recipe is None or loaded.run is None:
        raise Refused(
            f"{loaded.name} is a merged folder and knows no data.",
            f"Say on what: `gist {command} {loaded.name} --data PATH`.",
        )
    pinned = loaded.run.splits_path
    try:
        catalog = open_catalog(loaded.recipe.data, base=Path.cwd(), pinned=pinned)
    except NotFound as error:
        raise NotFound(
            f"The data of this run are not where they were: {error.message}",
            f"Say where they lie now: `gist {command} {loaded.name} --data PATH`.",
        ) from error
    return catalog.with_classes(loaded.classes)


def open_split(
    loaded: Loaded,
    catalog: Catalog,
    name: str,
    *,
    limit: int | None = None,
    reporter: Reporter = SILENT,
) -> ImageSplit:
    """A split as evaluation sees it."""
    return load_split(
        catalog,
        name,
        loaded.preprocess,
        train=False,
        on_error=loaded.recipe.data.on_error if loaded.recipe else "raise",
        device=loaded.device,
        reporter=reporter,
        limit=limit,
    )
