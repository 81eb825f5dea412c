"""The tables of a comparison as text cells, one layout for terminal, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gistcli.figures import lower_is_better

NARROW = 6
"""With more tasks than this, or with groups, the first table holds means only."""
WIDE = 8
"""Tasks side by side in one table."""
NONE = "-"
BEST_TEST = "best on test (selected on test)"
Value = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """Cells of a row; `best` are the columns in which it is; `published` is not ours."""

    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()
    published: bool = False


@dataclass(frozen=True)
class Section:
    """A table under a title; its first column is text, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class _Column:
    """A column of figures: how a row of ours and a published one give `{mean, ...}`, or None."""

    name: str
    ours: Callable[[Value], Value | None]
    published: Callable[[Value], float | None]
    interval: bool = False


def sections(value: Value, by_task: bool = True) -> list[Section]:
    """The tables of a comparison.

    Args:
        value: the JSON object of `gist compare`.
        by_task: with those that have a column a task where the first one has means only.
    """
    narrow = len(value["tasks"]) <= NARROW and not value["groups"]
    unit = " (%)" if is_rate(value["metric"]) else ""
    found = [_figures(value, f"{value['metric']}{unit}", _first(value, narrow), lead=True)]
    if by_task and not narrow:
        found += [
            _figures(value, f"{value['metric']}{unit}: {title}", [_task(t) for t in tasks])
            for title, tasks in _chunks(value)
        ]
    found.append(_costs(value))
    if value["differences"]:
        found.append(_differences(value, narrow))
        if by_task and not narrow:
            found += [_differences_by_task(value, *chunk) for chunk in _chunks(value)]
    for name in value["ablations"]:
        found.append(_ablation(value, name, "", _first(value, narrow, best_test=False)))
        if by_task and not narrow:
            found += [
                _ablation(value, name, f": {title}", [_task(t) for t in tasks])
                for title, tasks in _chunks(value)
            ]
    return found


def title_of(value: Value) -> str:
    """What a comparison is of, in one line."""
    runs = sum(len(row["runs"]) for row in value["rows"])
    return f"{value['metric']} of {counted(runs, 'run')} in {', '.join(value['from'])}"


def counted(number: int, noun: str) -> str:
    """`1 task`, `19 tasks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def summary_name(value: Value, key: str) -> str:
    """The name of a row's mean: `mean of 3 groups`, `mean of 19 tasks`."""
    over = key.removeprefix("mean_of_")
    return f"mean of {counted(len(value[over]), over.removesuffix('s'))}"


def percent(metric: str, figure: float) -> str:
    """A rate in percent with one decimal; another figure with four digits."""
    return f"{100 * figure:.1f}" if is_rate(metric) else f"{figure:.4g}"


def source_lines(value: Value) -> list[str]:
    """Protocol and source of the published figures, one line a row."""
    return [
        f"published beside {one['row']}: {one['source'] or 'source not stated'}; "
        f"protocol: {one['protocol'] or 'not stated'}"
        for one in value["published"]
    ]


def is_rate(metric: str) -> bool:
    """Whether a metric is a share of 1, of which more is better."""
    return not lower_is_better(metric)


# --- figures ----------------------------------------------------------------------------------


def _task(task: str, interval: bool = False) -> _Column:
    return _Column(task, lambda r: r["tasks"].get(task), lambda p: p["tasks"].get(task), interval)


def _group(group: str, size: int) -> _Column:
    return _Column(
        f"{group} ({size})", lambda r: r["groups"].get(group), lambda p: p["groups"].get(group)
    )


def _mean(name: str, key: str) -> _Column:
    return _Column(name, lambda r: r[key], lambda p: p[key])


def _first(value: Value, narrow: bool, best_test: bool = True) -> list[_Column]:
    """Tasks where there are few; groups and both means else; the best on test where asked for."""
    tasks, groups = value["tasks"], value["groups"]
    found = [_task(t, interval=True) for t in tasks] if narrow else []
    found += [_group(name, len(members)) for name, members in groups.items()]
    both = []
    if groups:
        both.append("mean_of_groups")
    if len(tasks) > 1 or not narrow:
        both.append("mean_of_tasks")
    found += [_mean(summary_name(value, key), key) for key in both]
    if best_test and any(row["best_test"] for row in value["rows"]):
        name = f": {summary_name(value, both[0])}" if both else ""
        found.append(_best_test(name, both[0] if both else "mean_of_tasks"))
    return found


def _best_test(name: str, key: str) -> _Column:
    return _Column(f"{BEST_TEST}{name}", lambda r: (r["best_test"] or {}).get(key), lambda p: None)


def _figures(value: Value, title: str, columns: Sequence[_Column], lead: bool = False) -> Section:
    """Rows over columns of figures; `lead` puts parameters, configurations and seeds first."""
    metric, rows = value["metric"], value["rows"]
    ahead = ("trained", "tried", "seeds") if lead else ()
    best = [_best([c.ours(row) for row in rows], metric) for c in columns]
    lines = []
    for row in rows:
        cells = [c.ours(row) for c in columns]
        texts = [_cell(metric, x, c.interval) for x, c in zip(cells, columns, strict=True)]
        own = tuple(_count(row[key]) for key in ("parameters", "tried", "seeds")) if lead else ()
        first = 1 + len(own)
        marked = {
            first + i
            for i, x in enumerate(cells)
            if len(rows) > 1 and x and percent(metric, x["mean"]) == best[i]
        }
        lines.append(Line((row["name"], *own, *texts), frozenset(marked)))
        papers = [one for one in value["published"] if one["row"] == row["name"]]
        lines += [_published_line(metric, one, columns, lead) for one in papers]
    return Section(title, ("method", *ahead, *(c.name for c in columns)), tuple(lines))


def _published_line(metric: str, one: Value, columns: Sequence[_Column], lead: bool) -> Line:
    theirs = [c.published(one) for c in columns]
    texts = [NONE if x is None else percent(metric, x) for x in theirs]
    own = (_count(one["parameters"]), "", "") if lead else ()
    return Line((_published_name(one), *own, *texts), published=True)


def _published_name(one: Value) -> str:
    """With the first words of its protocol, such as `last` or `best_test`."""
    protocol = (one["protocol"] or "").partition(";")[0]
    return f"published ({protocol})" if protocol else "published"


def _best(cells: Sequence[Value | None], metric: str) -> str | None:
    """The best figure of a column as it is shown, so that equal ones are equally best."""
    means = [cell["mean"] for cell in cells if cell]
    if not means:
        return None
    return percent(metric, max(means) if is_rate(metric) else min(means))


def _cell(metric: str, cell: Value | None, interval: bool) -> str:
    if not cell:
        return NONE
    text = percent(metric, cell["mean"])
    if cell["deviation"] is not None:
        return f"{text} ± {percent(metric, cell['deviation'])}"
    if interval and cell.get("interval"):
        low, high = cell["interval"]
        return f"{text} [{percent(metric, low)}, {percent(metric, high)}]"
    return text


def _chunks(value: Value) -> Iterator[tuple[str, list[str]]]:
    """(title, tasks) of tables that are not too wide: by group, and in order."""
    grouped = dict(value["groups"])
    rest = [t for t in value["tasks"] if not any(t in m for m in grouped.values())]
    for title, tasks in [*grouped.items(), ("by task", rest)]:
        for start in range(0, len(tasks), WIDE):
            yield title, tasks[start : start + WIDE]


# --- costs and differences --------------------------------------------------------------------


def _costs(value: Value) -> Section:
    lines = tuple(
        Line(
            (
                row["name"],
                _count(row["parameters"]),
                _count(row["head"]),
                _number(row["seconds"], "{:,.1f}"),
                _number(row["peak_memory_bytes"], "{:,.2f}", 2**30),
            )
        )
        for row in value["rows"]
    )
    columns = ("method", "trained", "head", "seconds a run", "peak memory (GiB)")
    return Section("cost", columns, lines)


def _differences(value: Value, narrow: bool) -> Section:
    """One line a row and mean (a task where there are few), with everything known of it."""
    columns = ("method", "over", "points", "95 % interval", "with seeds", "± seeds", "examples")
    lines = []
    for one in value["differences"]:
        cells = dict(one["tasks"]) if narrow else dict(one["groups"])
        for key in ("mean_of_groups", "mean_of_tasks"):
            if one[key] and len(value["tasks"]) > 1:
                cells[summary_name(value, key)] = one[key]
        for over, cell in cells.items():
            texts = _points(cell), _interval(cell["interval"])
            both, deviation = cell["interval_with_seeds"], cell["deviation"]
            spread = NONE if deviation is None else f"{100 * deviation:.1f}"
            extra = _interval(both) if both else NONE, spread, f"{cell['examples']:,}"
            lines.append(Line((one["row"], over, *texts, *extra)))
    return Section(f"difference to {value['reference']}", columns, tuple(lines))


def _differences_by_task(value: Value, title: str, tasks: Sequence[str]) -> Section:
    lines = []
    for one in value["differences"]:
        cells = [one["tasks"].get(task) for task in tasks]
        texts = [f"{_points(c)} {_interval(c['interval'])}" if c else NONE for c in cells]
        lines.append(Line((one["row"], *texts)))
    name = f"difference to {value['reference']}: {title}"
    return Section(name, ("method", *tasks), tuple(lines))


def _ablation(value: Value, name: str, title: str, columns: Sequence[_Column]) -> Section:
    """Pairs of rows over columns of differences, and the mean of the pairs."""
    found = value["ablations"][name]
    lines = [Line((one["row"], *_with_seeds(one, columns))) for one in found["pairs"]]
    if found["mean"]:
        mean = f"mean of {counted(len(found['pairs']), 'pair')}"
        lines.append(Line((mean, *_with_seeds(found["mean"], columns))))
    head = f"with {name} minus without, points [95 % interval]{title}"
    return Section(head, ("method", *(c.name for c in columns)), tuple(lines))


def _with_seeds(one: Value, columns: Sequence[_Column]) -> list[str]:
    cells = [column.ours(one) for column in columns]
    return [
        f"{_points(c)} {_interval(c['interval_with_seeds'] or c['interval'])}" if c else NONE
        for c in cells
    ]


def _points(cell: Value) -> str:
    return f"{100 * cell['mean']:+.1f}"


def _interval(bounds: Sequence[float]) -> str:
    return f"[{100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f}]"


def _count(span: Mapping[str, float] | None) -> str:
    if span is None:
        return NONE
    low, high = f"{span['min']:,.0f}", f"{span['max']:,.0f}"
    return low if low == high else f"{low} to {high}"


def _number(span: Mapping[str, float] | None, form: str, unit: float = 1) -> str:
    """The mean over the runs of a row."""
    return NONE if span is None else form.format(span["mean"] / unit)
