"""Learning curves of a run, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from gistcli.evaluate.plots import BLUE, GREY, ORANGE, new_figure, save_figure, tidy

Records = Sequence[Mapping[str, Any]]


def write_curves(folder: Path, history: Records) -> Path:
    """Draws loss, accuracy and learning rate over the epochs into `folder/curves.png`.

    Training is smoothed over its own pale line; validation is points, the best one circled.

    Args:
        folder: for the PNG.
        history: the records of a run, as `FitResult.history` or its metrics.jsonl hold them;
            figures that are missing leave their curve out.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    figure = new_figure(11, 3.4)
    loss, accuracy, rate = figure.subplots(1, 3)
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        _training(axes, history, f"train/{name}")
        _validation(axes, history, f"val/{name}")
        _finish(axes, name)
    _rates(rate, history)
    path = folder / "curves.png"
    save_figure(figure, path)
    return path


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Mean over up to `window` values centred on each; shorter at both ends, so never biased."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    half = np.minimum.reduce([index, len(values) - 1 - index, np.full(len(values), window // 2)])
    return (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)


def _series(history: Records, key: str) -> tuple[list[float], list[float]]:
    rows = [r for r in history if r.get(key) is not None]
    return [r["epoch"] for r in rows], [r[key] for r in rows]


def _training(axes: Axes, history: Records, key: str) -> None:
    epochs, values = _series(history, key)
    if values:
        axes.plot(epochs, values, color=GREY, alpha=0.3, linewidth=0.7)
        window = max(len(values) // 40, 5)
        axes.plot(epochs, smooth(values, window), color=BLUE, linewidth=1.6, label="training")


def _validation(axes: Axes, history: Records, key: str) -> None:
    epochs, values = _series(history, key)
    if not values:
        return
    best = int(np.argmin(values) if key.endswith("loss") else np.argmax(values))
    label = f"validation (best {values[best]:.4g})"
    axes.plot(epochs, values, "o-", color=ORANGE, linewidth=1.2, markersize=3, label=label)
    axes.plot(epochs[best], values[best], "o", color=ORANGE, markersize=7, fillstyle="none")


def _rates(axes: Axes, history: Records) -> None:
    epochs, values = _series(history, "lr")
    head = _series(history, "head_lr")
    label = "method and head" if head[1] == values else "method" if head[1] else None
    axes.plot(epochs, values, color=BLUE, linewidth=1.6, label=label)
    if head[1] and head[1] != values:
        axes.plot(*head, color=BLUE, linewidth=1.6, linestyle="--", label="head")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    _finish(axes, "learning rate")


def _finish(axes: Axes, name: str) -> None:
    tidy(axes)
    axes.margins(y=0.12)
    axes.set_xlabel("epoch")
    axes.set_title(name, fontsize=10, loc="left")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
