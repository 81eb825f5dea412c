"""Pictures of a comparison: figure over trained parameters, and learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from gistcli.evaluate.plots import new_figure, save_figure, tidy

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, told apart by readers of any colour vision; yellow is too pale."""
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")
GREY = "0.6"
LONGEST = 45
"""Characters of a row's name in a legend."""
PANELS = 20
"""Tasks that have a panel of learning curves; more would be too small to read."""

Curves = Sequence[Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class Dot:
    """A row in the plot over parameters.

    Attributes:
        name: of the row.
        parameters: trained ones without the head; 0 is one of them.
        value: the figure.
        error: half a bar's height; None draws no bar.
        published: a paper's figure, not ours.
    """

    name: str
    parameters: float
    value: float
    error: float | None = None
    published: bool = False


def plot_over_parameters(
    dots: Sequence[Dot], path: Path, *, title: str, metric: str, rate: bool = True
) -> None:
    """Figure over trained parameters on a logarithmic axis; 0 stands apart, left of a break.

    Args:
        dots: our rows, in the order of the table, and published ones.
        path: the PNG.
        title: what is shown, and from which runs.
        metric: names the vertical axis.
        rate: the figure is a share, shown in percent.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    figure = new_figure(7.6, 4.4)
    axes = figure.add_subplot()
    tidy(axes)
    positive = [dot.parameters for dot in dots if dot.parameters > 0] or [1.0]
    zero = 10 ** (math.floor(math.log10(min(positive))) - 1)
    axes.set_xscale("log")
    ours = [dot for dot in dots if not dot.published]
    for place, dot in enumerate(ours):
        colour, marker = _style(place)[:2]
        axes.errorbar(
            dot.parameters or zero,
            dot.value,
            yerr=dot.error,
            fmt=marker,
            color=colour,
            capsize=3,
            markersize=6,
            label=dot.name,
        )
    theirs = [dot for dot in dots if dot.published]
    if theirs:
        x, y = [dot.parameters or zero for dot in theirs], [dot.value for dot in theirs]
        axes.plot(x, y, "o", color=GREY, fillstyle="none", markersize=8, label="published")
    axes.set_xlim(zero / 2, max(positive) * 3)
    if any(dot.parameters == 0 for dot in dots):
        _mark_zero(axes, zero)
    axes.set_xlabel("trained parameters without the head")
    axes.set_ylabel(metric)
    if rate:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes.set_title(title, fontsize=9, loc="left", wrap=True)
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i] == "published")
    axes.legend(
        [handles[i] for i in order],
        [_shortened(names[i]) for i in order],
        frameon=False,
        fontsize=8,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    save_figure(figure, path)


def plot_learning_curves(
    tasks: Mapping[str, Mapping[str, Curves]],
    rows: Sequence[str],
    path: Path,
    *,
    title: str,
    metric: str,
    rate: bool = True,
) -> None:
    """One panel a task, in it one line a row: the mean over its runs, the band their range.

    Args:
        tasks: task -> row -> for each of its runs the (step, figure) on validation.
        rows: their order, which gives each its colour.
        path: the PNG.
        title: what is shown, and from which runs.
        metric: names the vertical axis.
        rate: the figure is a share, shown in percent.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    shown = list(tasks)[:PANELS]
    across = min(len(shown), 4)
    down = math.ceil(len(shown) / across)
    figure = new_figure(3.1 * across + 2.2, 2.5 * down + 0.7)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, task in zip(panels, shown, strict=False):
        tidy(axes)
        for place, row in enumerate(rows):
            if row in tasks[task]:
                _curve(axes, tasks[task][row], row, place)
        axes.set_title(task, fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.set_xlabel("steps", fontsize=8)
        if rate:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    panels[0].set_ylabel(metric, fontsize=8)
    lines = {h.get_label(): h for axes in panels for h in axes.get_lines()}
    known = [row for row in rows if row in lines]
    figure.legend(
        [lines[row] for row in known],
        [_shortened(row) for row in known],
        frameon=False,
        fontsize=8,
        loc="outside right upper",
    )
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    save_figure(figure, path)


def _shortened(name: str) -> str:
    """A name that leaves room for the picture: what is in its middle, of a path mostly, goes."""
    if len(name) <= LONGEST:
        return name
    kept = (LONGEST - 1) // 2
    return f"{name[:kept]}\N{HORIZONTAL ELLIPSIS}{name[-kept:]}"


def spread(curves: Curves) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(steps, mean, lowest, highest) over the runs that have a figure at a step."""
    at: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            at.setdefault(step, []).append(value)
    steps = sorted(at)
    table = [(float(np.mean(at[s])), min(at[s]), max(at[s])) for s in steps]
    mean, low, high = np.array(table).reshape(-1, 3).T
    return np.array(steps), mean, low, high


def _curve(axes: Axes, curves: Curves, name: str, place: int) -> None:
    colour, _, dashes = _style(place)
    steps, mean, low, high = spread(curves)
    single = "o" if len(steps) == 1 else ""
    axes.plot(steps, mean, dashes + single, color=colour, linewidth=1.4, markersize=4, label=name)
    if len(curves) > 1:
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)


def _style(place: int) -> tuple[str, str, str]:
    """Colour, marker and dashes of a row: the colours repeat with another marker and dash."""
    again = place // len(PALETTE)
    return (
        PALETTE[place % len(PALETTE)],
        MARKERS[again % len(MARKERS)],
        DASHES[again % len(DASHES)],
    )


def _mark_zero(axes: Axes, zero: float) -> None:
    """The place that stands for 0, which a logarithmic axis has not, and a break behind it."""
    axes.axvline(zero * 3, color="0.75", linestyle=(0, (2, 3)), linewidth=1)
    low, high = axes.get_xlim()
    first = math.floor(math.log10(zero)) + 1
    decades = [10.0**n for n in range(first, math.ceil(math.log10(high)) + 1) if 10.0**n <= high]
    axes.set_xticks([zero, *decades])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "0" if x == zero else _power(x)))
    axes.set_xlim(low, high)


def _power(value: float) -> str:
    return f"$10^{{{round(math.log10(value))}}}$"
