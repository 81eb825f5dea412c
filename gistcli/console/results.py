"""Results on stdout: one JSON value for scripts, or tables for people."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape

from gistcli.console.comparisons import show_comparison, show_runs
from gistcli.console.listed import show_list
from gistcli.console.orderings import show_orderings
from gistcli.console.progress import duration, number
from gistcli.console.reporter import open_console
from gistcli.console.sweeps import show_plan, show_sweep
from gistcli.console.tables import make_table, make_tree

_MANY = 20


@dataclass(frozen=True)
class Result:
    """What a command hands back: its JSON value, and how people see it.

    Attributes:
        kind: names the view.
        value: the JSON value.
        title: heads the view where the kind has room for one.
        as_json: printed as JSON also without `--json`.
        exit_code: 1 where the command did its work and part of it failed.
    """

    kind: str
    value: Any
    title: str = ""
    as_json: bool = False
    exit_code: int = 0


def emit_json(value: Any, stream: TextIO) -> None:
    """Exactly one JSON value and a newline; what is not finite becomes null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, default=_plain)
    stream.write(text + "\n")
    stream.flush()


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_result(result: Result, stream: TextIO) -> None:
    """The view of a result for people."""
    console = open_console(stream)
    _VIEWS.get(result.kind, _record)(console, result)
    stream.flush()


def _record(console: Console, result: Result) -> None:
    """Any object: values as a tree, metrics and lists of objects as tables, files, commands."""
    value = result.value
    apart = {"files", "next"}
    if "intervals" in value:
        apart |= {"metrics", "intervals", "examples", "parameters"}
    lists = {key: v for key, v in value.items() if _is_table(v)}
    rest = {key: v for key, v in value.items() if key not in apart and key not in lists}
    console.print(make_tree(result.title or result.kind, rest), soft_wrap=True)
    for key, items in lists.items():
        _objects(console, key, items)
    if "intervals" in value:
        _metrics(console, value)
        _parameters(console, value.get("parameters") or {})
    _files(console, value)
    _next(console, value)


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _objects(console: Console, name: str, items: Sequence[Mapping[str, Any]]) -> None:
    """One row an object; what is itself an object is left to the JSON."""
    columns = [key for key, v in items[0].items() if not isinstance(v, Mapping)]
    rows = [[item.get(key) for key in columns] for item in items]
    console.print(make_table(f"{name.replace('_', ' ')}: {len(items)}", columns, rows))


def _finetune(console: Console, result: Result) -> None:
    value = result.value
    _metrics(console, value)
    if "parameters" in value:
        _parameters(console, value["parameters"])
    _facts(console, value)
    _files(console, value)
    _next(console, value)


def _metrics(console: Console, value: Mapping[str, Any]) -> None:
    metrics, intervals = value.get("metrics") or {}, value.get("intervals") or {}
    examples, counts = value.get("examples") or {}, value.get("counts") or {}
    rows = []
    for name, figure in metrics.items():
        low_high = intervals.get(name)
        interval = f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else ""
        split = name.partition("/")[0]
        n = examples.get(split) if isinstance(examples, Mapping) else examples
        n = counts.get(name, n)  # not all examples were answered
        shown = f"{name} (selected on)" if split == value.get("selected_on") else name
        rows.append([shown, f"{figure:.4f}", interval, n])
    if rows:
        columns = ["metric", "value", "95 % interval", "n"]
        console.print(make_table(result_title(value), columns, rows))


def result_title(value: Mapping[str, Any]) -> str:
    """The run that a result is of."""
    return str(value.get("run", ""))


def _parameters(console: Console, parameters: Mapping[str, Any]) -> None:
    trained, total = parameters.get("trainable"), parameters.get("total")
    if trained is None or not total:
        return
    groups = ", ".join(
        f"{name} {count:,}"
        for name, count in parameters.items()
        if name not in ("trainable", "total") and count
    )
    share = f"{trained / total:.4%}"
    console.print(f"trained parameters: {trained:,} of {total:,} ({share}): {groups}")


def _facts(console: Console, value: Mapping[str, Any]) -> None:
    facts = []
    if isinstance(value.get("steps"), int):
        facts.append(f"{value['steps']:,} steps")
    if value.get("seconds") is not None:
        facts.append(duration(value["seconds"]))
    if value.get("samples_per_second"):
        facts.append(f"{number(value['samples_per_second'])} samples/s")
    if value.get("peak_memory_bytes"):
        facts.append(f"peak memory {value['peak_memory_bytes'] / 2**30:.2f} GiB")
    if value.get("weights"):
        facts.append(f"weights of the {value['weights']} step")
    if facts:
        console.print(", ".join(facts))


def _files(console: Console, value: Mapping[str, Any]) -> None:
    files = value.get("files")
    pairs = files.items() if isinstance(files, Mapping) else [("", f) for f in files or ()]
    if pairs:
        console.print("\n[bold]Files[/]")
    for name, path in pairs:
        paths = path if isinstance(path, list) else [path]
        for one in paths[:_MANY]:
            label = "" if not name or Path(str(one)).name == name else f"{name}: "
            console.print(f"  {escape(label)}{escape(str(one))}", soft_wrap=True)
        if len(paths) > _MANY:
            console.print(f"  and {len(paths) - _MANY} more")


def _next(console: Console, value: Mapping[str, Any]) -> None:
    if value.get("next"):
        console.print("\n[bold]Next[/]")
    for command in value.get("next", ()):
        console.print(f"  [green]{escape(command)}[/]", soft_wrap=True)


def _dry_run(console: Console, result: Result) -> None:
    if result.value.get("sites"):
        _objects(console, "sites", result.value["sites"])
    _parameters(console, result.value.get("parameters", {}))
    _facts(console, result.value)


def _evaluate(console: Console, result: Result) -> None:
    _metrics(console, result.value)
    _facts(console, result.value)
    _files(console, result.value)


def _compress(console: Console, result: Result) -> None:
    """How much became how little, and what it is worth."""
    value = result.value
    fitted, given = value["examples"]["fitted"], value["examples"]["given"]
    of = "" if fitted == given else f" of {given:,}"
    console.print(
        f"{fitted:,}{of} examples, {value['source_tokens']:,} tokens: now {value['gists']:,} "
        f"({value['ratio']:.3g} to 1), {value['bytes']:,} bytes, in {value['seconds']:.3g} s"
    )
    _metrics(console, {**value, "examples": value.get("queries")})
    _files(console, value)


def _harness(console: Console, result: Result) -> None:
    """Figures of the harness with their standard errors."""
    value = result.value
    rows = []
    for name, figure in value["metrics"].items():
        error = value["stderr"].get(name)
        count = value["examples"].get(name.rpartition("/")[0])
        rows.append([name, f"{figure:.4f}", "" if error is None else f"{error:.4f}", count])
    columns = ["metric", "value", "standard error", "n"]
    title = f"lm-evaluation-harness {value['harness']}"
    console.print(make_table(title, columns, rows))
    _facts(console, value)


def _predict(console: Console, result: Result) -> None:
    value = result.value
    predictions: Sequence[Mapping[str, Any]] = value.get("predictions") or ()
    if predictions:
        columns = [key for key, v in predictions[0].items() if not isinstance(v, list)]
        rows = [[p[c] for c in columns] for p in predictions[:_MANY]]
        console.print(make_table("", columns, rows))
    output = f", written to {value['output']}" if value.get("output") else ""
    more = f" ({_MANY} shown)" if len(predictions) > _MANY else ""
    what = "texts" if predictions and "name" in predictions[0] else "images"
    console.print(f"{value.get('examples', len(predictions)):,} {what}{more}{escape(output)}",
                  soft_wrap=True)  # fmt: skip


def _gallery(console: Console, value: Mapping[str, Any]) -> None:
    """The page that shows everything, before the rest."""
    console.print(f"open [green]{escape(value['gallery'])}[/]", soft_wrap=True)


def _clusters(console: Console, result: Result) -> None:
    """What was drawn, with the maps that stand out, and the files."""
    value = result.value
    _gallery(console, value)
    rows = [
        [entry["image"], entry["class"], _short(entry["probability"]),
         ", ".join(f"L{p['layer']} C{p['cluster']}" for p in entry["picks"])]
        for entry in value["images"][:_MANY]
    ]  # fmt: skip
    columns = ["image", "prediction", "probability", "stand out"]
    console.print(make_table(f"cluster maps of {len(value['images'])} images", columns, rows))
    _files(console, {"files": {key: value[key] for key in ("sheets", "overview", "maps")}})


def _tokens(console: Console, result: Result) -> None:
    """Where CLS and GIST look: figures by block and by image, and the files."""
    value = result.value
    _gallery(console, value)
    figures = {f"{name} on patches": share for name, share in value["patch_share"].items()}
    figures |= {"overlap": value["overlap"], "with another image": value["overlap_chance"]}
    columns = {name: figure for name, figure in figures.items() if figure is not None}
    rows = [
        [layer, *(f"{figure[i]:.2f}" for figure in columns.values())]
        for i, layer in enumerate(value["layers"])
    ]
    title = f"mean of {len(value['images'])} images"
    console.print(make_table(title, ["layer", *columns], rows))
    names = {"image": "image", "class": "prediction", "gist_class": "gist", "jeffreys": "Jeffreys"}
    shown = [key for key in names if value["images"][0].get(key) is not None]
    rows = [[_short(entry[key]) for key in shown] for entry in value["images"][:_MANY]]
    console.print(make_table("", [names[key] for key in shown], rows))
    _files(console, {"files": {key: value[key] for key in ("sheets", "overview", "maps")}})


def _short(figure: object) -> object:
    return f"{figure:.3g}" if isinstance(figure, float) else figure


def _demo(console: Console, result: Result) -> None:
    """The run beside the probe, what the difference rests on, and what to look at."""
    value = result.value
    rows = []
    for name, one in value["runs"].items():
        low, high = one["intervals"]["test/accuracy"]
        accuracy, trained = one["metrics"]["test/accuracy"], one["parameters"]["trainable"]
        rows.append([name, f"{accuracy:.1%}", f"{low:.1%} to {high:.1%}", f"{trained:,}",
                     duration(one["seconds"])])  # fmt: skip
    example = next(iter(value["runs"].values()))["examples"]
    title = f"{example['train']} training images, {example['test']} test images"
    columns = ["method", "test accuracy", "95 % interval", "trained parameters", "training"]
    console.print(make_table(title, columns, rows))
    first, second = value["runs"]
    gap = value["difference"]
    console.print(
        f"{first} minus {second}: {gap['points']:+.1f} points; {gap['only_first']} images only "
        f"{first} gets right, {gap['only_second']} only {second}. One seed: a gap of a point or "
        "two can turn with another."
    )
    drift = value["merged"]["max_abs_logit_difference"]
    merged = value["evaluated"]["test/accuracy"]
    console.print(
        f"merged weights: {merged:.1%} on the same images, logits within {drift:.1g} of the tuned "
        f"model; timm and transformers load {escape(value['merged']['output'])}"
    )
    _files(console, value)
    _next(console, value)


def _orderings(console: Console, result: Result) -> None:
    show_orderings(console, result.value)
    _files(console, result.value)
    _next(console, result.value)


def _list(console: Console, result: Result) -> None:
    show_list(console, result.value, result.title)


def _comparison(console: Console, result: Result) -> None:
    show_comparison(console, result.value, by_task=result.kind == "comparison")
    _files(console, result.value)


def _runs(console: Console, result: Result) -> None:
    show_runs(console, result.value["runs"])


def _sweep(console: Console, result: Result) -> None:
    show_sweep(console, result.value)


def _sweep_dry_run(console: Console, result: Result) -> None:
    show_plan(console, result.value)


_VIEWS: dict[str, Callable[[Console, Result], None]] = {
    "finetune": _finetune,
    "dry-run": _dry_run,
    "compress": _compress,
    "eval": _evaluate,
    "harness": _harness,
    "demo": _demo,
    "orderings": _orderings,
    "predict": _predict,
    "clusters": _clusters,
    "tokens": _tokens,
    "list": _list,
    "sweep": _sweep,
    "sweep-dry-run": _sweep_dry_run,
    "comparison": _comparison,
    "summary": _comparison,
    "runs": _runs,
}
