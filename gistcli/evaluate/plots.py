"""Pictures of results as PNG: confusion matrix, accuracy by class, values against true ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from gistcli import atomic

BLUE, GREY, ORANGE = "#2f5d8a", "#8a8f98", "#d1772b"
NAMED_CLASSES = 60
"""With more classes than this, rows and columns of the matrix carry no names."""
COUNTED_CLASSES = 25
"""With more classes than this, the cells carry no numbers, and small shares are drawn darker."""
LISTED_CLASSES = 40
"""With more classes than this, only the worst of them are listed."""


def new_figure(width: float, height: float) -> Figure:
    """A figure in inches that belongs to no global state (pyplot's would, and is never freed)."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG aside and puts it in place.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    with atomic.atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def tidy(axes: Axes) -> None:
    """Only the two axes that are read, and a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def plot_confusion(
    figures: Mapping[str, Any], classes: Sequence[str], path: Path, title: str = ""
) -> None:
    """Rows are true classes, columns predicted ones; colour is the share of the row.

    Args:
        figures: as `classify.score` gives them.
        classes: their names, in order.
        path: the PNG.
        title: what is shown, such as the run and the split.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    counts_KK = np.array(figures["confusion"])
    shares_KK = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    named, counted = len(classes) <= NAMED_CLASSES, len(classes) <= COUNTED_CLASSES
    side = float(np.clip(0.34 * len(classes), 3.2, 13 if named else 8))
    figure = new_figure(side + 2.6, side + 1.4)
    axes = figure.add_subplot()
    image = axes.imshow(shares_KK, cmap="Blues", norm=PowerNorm(1 if counted else 0.5, 0, 1))
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    axes.spines[:].set_visible(False)
    if named:
        ticks = range(len(classes))
        short = all(len(name) <= 3 for name in classes)
        axes.set_xticks(ticks, classes, rotation=0 if short else 90, fontsize=8)
        axes.set_yticks(ticks, classes, fontsize=8)
    axes.tick_params(length=0)
    if counted:
        for i, j in zip(*np.nonzero(counts_KK), strict=True):
            colour = "white" if shares_KK[i, j] > 0.55 else "0.2"
            axes.text(j, i, str(counts_KK[i, j]), ha="center", va="center", color=colour, size=7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(_headline(title, figures), fontsize=10, loc="left")
    save_figure(figure, path)


def plot_classes(
    figures: Mapping[str, Any], classes: Sequence[str], path: Path, title: str = ""
) -> None:
    """Accuracy of every class (its recall) with a 95 % Wilson interval, best on top.

    Args:
        figures: as `classify.score` gives them.
        classes: their names, in order.
        path: the PNG.
        title: what is shown, such as the run and the split.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    named = zip(figures["per_class"], classes, strict=True)
    present = [{**row, "class": name} for row, name in named if row["n"]]
    rows = sorted(present, key=lambda row: (row["recall"], row["interval"][0]))[:LISTED_CLASSES]
    places = np.arange(len(rows))
    low, high = np.array([row["interval"] for row in rows]).reshape(-1, 2).T
    figure = new_figure(7.2, 0.24 * len(rows) + 1.5)
    axes = figure.add_subplot()
    tidy(axes)
    axes.axvline(figures["accuracy"], color=ORANGE, linewidth=1.2)
    axes.hlines(places, low, high, color=BLUE, linewidth=2.4, alpha=0.35)
    axes.plot([row["recall"] for row in rows], places, "o", color=BLUE, markersize=5, clip_on=False)
    axes.set_yticks(places, [row["class"] for row in rows], fontsize=8)
    for place, row in zip(places, rows, strict=True):
        text = f"{100 * row['recall']:.0f} %  of {row['n']}"
        axes.text(1.03, float(place), text, va="center", fontsize=7.5, color="0.35")
    axes.set_ylim(-0.8, len(rows) - 0.2)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("accuracy of the class with 95 % Wilson interval; orange: of all examples")
    cut = f"; the {len(rows)} worst of {len(present)} classes" if len(rows) < len(present) else ""
    axes.set_title(_headline(title, figures) + cut, fontsize=10, loc="left")
    save_figure(figure, path)


def _headline(title: str, figures: Mapping[str, Any]) -> str:
    low, high = (f"{100 * bound:.1f}" for bound in figures["interval"])
    rate = f"accuracy {100 * figures['accuracy']:.1f} % [{low}, {high}], n = {figures['n']}"
    return f"{title}\n{rate}" if title else rate


def write_classification_plots(
    folder: Path, split: str, figures: Mapping[str, Any], classes: Sequence[str]
) -> list[Path]:
    """`confusion-SPLIT.png` and `classes-SPLIT.png` of a split's figures, in `folder`.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    title = {"val": "validation"}.get(split, split)
    paths = [folder / f"confusion-{split}.png", folder / f"classes-{split}.png"]
    plot_confusion(figures, classes, paths[0], title)
    plot_classes(figures, classes, paths[1], title)
    return paths


def write_regression_plot(
    folder: Path, split: str, targets: Sequence[float], values: Sequence[float]
) -> Path:
    """`values-SPLIT.png` in `folder`: predicted against true values, and where they are equal.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    figure = new_figure(4.6, 4.2)
    axes = figure.add_subplot()
    tidy(axes)
    ends = [min(targets, default=0.0), max(targets, default=1.0)]
    axes.plot(ends, ends, color=ORANGE, linewidth=1.2)
    axes.plot(targets, values, "o", color=BLUE, markersize=3, alpha=0.4, markeredgewidth=0)
    axes.set_xlabel("true value")
    axes.set_ylabel("prediction; orange: equal")
    title = {"val": "validation"}.get(split, split)
    axes.set_title(f"{title}, n = {len(targets)}", fontsize=10, loc="left")
    path = folder / f"values-{split}.png"
    save_figure(figure, path)
    return path
