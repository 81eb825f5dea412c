"""The two tables of `make bench`: every method against the floor, and the gist token's cost."""

from __future__ import annotations

import platform
import statistics

import peft
import torch

from tests.benchmarks.contenders import BATCH, FLOOR, MODEL, carried_back, with_token
from tests.benchmarks.timing import Counted

EXPLAINED = 0.15
"""A step may take so much longer than its multiplications say before it is marked."""
COUNTABLE = 0.05
"""Below this share of the floor's multiplications, time is made of other things."""
COLUMNS = (
    *("step", "trained, head apart", "ratio to the floor", "quartiles", "median ms"),
    *("kept for backward, MB", "multiplications to the floor's", "time beyond them"),
)
BAR = 1.05
"""What a token may cost, in time and in memory."""
TOKEN_COLUMNS = (
    *("method", "time", "quartiles", "multiplications", "memory"),
    *("carried back: time", "quartiles", "multiplications", "memory"),
)
Seconds = dict[str, list[float]]
"""Of each round, by contender."""


def report(seconds: Seconds, counted: dict[str, Counted], refused: dict[str, str]) -> str:
    """Both tables, and why some contenders took no part."""
    paired = [name for name in seconds if with_token(name) in seconds]
    others = {other(name) for name in paired for other in (with_token, carried_back)}
    lines = ["# Step time and memory", "", conditions(len(seconds[FLOOR])), ""]
    lines += header(COLUMNS)
    lines += [floor_row(name, seconds, counted) for name in seconds if name not in others]
    if paired:
        lines += ["", "## The gist token", "", about_the_token(counted), "", *header(TOKEN_COLUMNS)]
        lines += [token_row(name, seconds, counted) for name in paired]
    if refused:
        lines += ["", *(f"- {name}: {reason}" for name, reason in refused.items())]
    return "\n".join(lines) + "\n"


def conditions(rounds: int, model: str = f"`{MODEL}`", batch: int = BATCH) -> str:
    """Where it was measured, and what the columns of the first table say."""
    return (
        f"{model}, batch {batch}, CPU, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__.partition('+')[0]}, peft {peft.__version__}, Python "
        f"{platform.python_version()}; {rounds} rounds, interleaved. Ratio: median over the "
        "rounds of the time against the floor of the same round, with quartiles. Time beyond "
        "multiplications: that ratio over the ratio of the multiplications, less 1; **bold** "
        f"above {EXPLAINED:.0%}, a dash where multiplications are under {COUNTABLE:.0%} of the "
        "floor's."
    )


def about_the_token(counted: dict[str, Counted]) -> str:
    """What the columns of the second table say, and what no token can go below."""
    longer = ", ".join(
        f"`{name}`"
        for name in counted
        if with_token(name) in counted and counted[with_token(name)].lengthened
    )
    return (
        "Each method with the token over the same method without. Time: median of the ratio "
        "within a round, with quartiles; memory: what is kept for the backward pass; **bold** "
        f"above {BAR}. One token more among 197 is 0.5%. As it enters in front of the first block, "
        "the backward pass also goes through what of that block lies before the first trained "
        "parameter. The columns behind *carried back* leave that out: there the method without the "
        "token, too, goes back to the input of the first block, as the floor does; a dash where it "
        "does so by itself."
        + (
            f" They are what holds for {longer}, whose backward pass otherwise "
            "ends before the first block."
            if longer
            else ""
        )
    )


def header(columns: tuple[str, ...]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]


def spread(times: list[float], base: list[float]) -> tuple[float, float, float]:
    """Quartiles of the ratio within a round."""
    ratios = [t / b for t, b in zip(times, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios if len(ratios) > 1 else ratios * 2, n=4)
    return low, middle, high


def floor_row(name: str, seconds: Seconds, counted: dict[str, Counted]) -> str:
    """One contender against the floor."""
    low, middle, high = spread(seconds[name], seconds[FLOOR])
    here, multiplications = counted[name], counted[name].flops / counted[FLOOR].flops
    beyond = "-"
    if multiplications >= COUNTABLE:
        excess = middle / multiplications - 1
        beyond = f"**{excess:+.0%}**" if excess > EXPLAINED else f"{excess:+.0%}"
    cells = (
        *(name, f"{here.method:,}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}"),
        *(f"{1000 * statistics.median(seconds[name]):.0f}", f"{here.kept / 1e6:.1f}"),
        *(f"{multiplications:.3f}", beyond),
    )
    return f"| {' | '.join(cells)} |"


def token_row(name: str, seconds: Seconds, counted: dict[str, Counted]) -> str:
    """A method with the token against itself without, and against itself carried back."""
    token, cells = with_token(name), [name]
    for base in (name, carried_back(name)):
        if base not in seconds:
            cells += ["-"] * 4
            continue
        low, middle, high = spread(seconds[token], seconds[base])
        after, before = counted[token], counted[base]
        cells += [barred(middle), f"{low:.3f} to {high:.3f}"]
        cells += [f"{after.flops / before.flops:.3f}", barred(after.kept / before.kept)]
    return f"| {' | '.join(cells)} |"


def barred(ratio: float, bar: float = BAR) -> str:
    """The figure, bold above the bar."""
    return f"**{ratio:.3f}**" if ratio > bar else f"{ratio:.3f}"
