"""`gist visualize`: where in a picture clusters answer, and where CLS and the gist token look.

Both end with a page that shows their sheets; in one folder, both are on it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gistcli.atomic import require_writable
from gistcli.data import expand_inputs, load_images
from gistcli.errors import Refused
from gistcli.explain.attention import LABELS, AttentionMaps, attention_maps
from gistcli.explain.captions import Shown, clusters_part, tokens_part
from gistcli.explain.clusters import cluster_maps
from gistcli.explain.gallery import Part, require_own_page, write_gallery
from gistcli.explain.heatmap import SheetFiles, overview_paths, sheet_paths, write_sheets
from gistcli.explain.token_sheet import SUFFIX, TokenFiles, write_token_sheets
from gistcli.methods.gist import Gist, WithGist
from gistcli.reporting import SILENT, Reporter
from gistcli.run.loading import Loaded, open_target


def visualize(
    target: Path,
    images: Sequence[Path],
    output: Path,
    *,
    layers: Sequence[int] | None = None,
    clusters: Sequence[int] | None = None,
    show_all: bool = False,
    model: str | None = None,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Contact sheets of cluster maps, a page that shows them, and the raw maps.

    Args:
        target: a run of a method with clusters.
        images: image files and folders of them.
        output: folder for the sheets; made where missing.
        layers, clusters: which to draw; None picks the three maps that stand out most.
        show_all: draw every layer and cluster.
        model: where the backbone lies now.
        device: where to compute.
        reporter: gets all talk.

    Raises:
        NotSupported: the method has no clusters.
        UnknownName: a layer or cluster that does not exist.
        Refused: the output folder holds files that would be lost.
        GistError: as `open_target`; broken images; the disk.
    """
    start = time.perf_counter()
    loaded, files, pixels, shown = _open(target, images, output, model, device)
    maps = cluster_maps(loaded.tuner, pixels, layers)
    best = _best(maps.logits, loaded.classes)
    written = write_sheets(
        maps,
        shown,
        [str(f) for f in files],
        output,
        layers=layers,
        clusters=clusters,
        show_all=show_all,
        titles=[f"prediction: {name} {p:.0%}" for name, p in best],
    )
    rows = zip(files, written.sheets, best, written.picks, strict=True)
    value = {
        "output": str(output),
        "layers": sorted(set(maps.layers)),
        "clusters": maps.clusters,
        "images": [
            {"image": str(file), "sheet": str(sheet), "class": name, "probability": p}
            | {"picks": [asdict(pick) for pick in picks]}
            for file, sheet, (name, p), picks in rows
        ],
        **_paths(written),
    }
    return _finish(value, clusters_part(value, _subject(loaded)), output, start)


def visualize_tokens(
    target: Path,
    images: Sequence[Path],
    output: Path,
    *,
    layers: Sequence[int] | None = None,
    heads: bool = False,
    model: str | None = None,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Sheets of where CLS and the gist token look, a page of them, raw maps, how far both agree.

    Args:
        target: a run; without a gist token CLS alone is shown.
        images: image files and folders of them.
        output: folder for the sheets; made where missing.
        layers: blocks from 0; None means all.
        heads: draw every head, not their mean alone.
        model: where the backbone lies now.
        device: where to compute.
        reporter: gets all talk.

    Raises:
        NotSupported: attention within windows, or neither a class token nor a gist token.
        Refused: a layer that does not exist; the output folder holds files that would be lost.
        GistError: as `open_target`; broken images; the disk.
    """
    start = time.perf_counter()
    loaded, files, pixels, shown = _open(target, images, output, model, device, SUFFIX)
    gist, other = _beside(loaded)
    maps = attention_maps(loaded.tuner, pixels, layers, other)
    notes = _missing(maps, loaded.backbone.architecture)
    for note in notes:
        reporter.say(note)
    temperature = None if gist is None else gist.temperature
    entries = _entries(maps, [str(f) for f in files], loaded.classes, temperature)
    names = [entry["image"] for entry in entries]
    said = {
        "titles": [_title(entry, maps.slots) for entry in entries],
        "captions": [_caption(entry, maps.slots) for entry in entries],
    }
    written = write_token_sheets(maps, shown, names, output, **said, heads=heads)
    for entry, sheet in zip(entries, written.sheets, strict=True):
        entry["sheet"] = str(sheet)
    value = {
        "output": str(output),
        "tokens": maps.slots,
        "layers": maps.layers,
        "heads": maps.maps.shape[3],
        "temperature": temperature,
        **_means(maps, entries),
        "images": entries,
        **_paths(written),
        "notes": notes,
    }
    return _finish(value, tokens_part(value, _subject(loaded), heads=heads), output, start)


def _open(
    target: Path,
    images: Sequence[Path],
    output: Path,
    model: str | None,
    device: str,
    suffix: str = "",
) -> tuple[Loaded, list[Path], Tensor, list[NDArray[np.uint8]]]:
    """The run, the image files, their pixels (N, C, H, W), and what the model sees of them."""
    require_writable(output, folder=True)
    require_own_page(output)
    files = expand_inputs(images)
    _require_kept(files, output, suffix)
    loaded = open_target(target, model=model, device=device)
    loaded.require_run("visualize")
    return loaded, files, *load_images(files, loaded.preprocess, loaded.device)


def _require_kept(files: Sequence[Path], output: Path, suffix: str) -> None:
    """Whether no image is where its own or another one's sheet goes.

    Raises:
        Refused: one would be replaced.
    """
    sheets = sheet_paths([str(f) for f in files], output, suffix)
    written = {p.resolve() for p in (*sheets, *overview_paths(len(files), output, suffix))}
    lost = next((file for file in files if file.resolve() in written), None)
    if lost is not None:
        raise Refused(f"A sheet would replace {lost}.", "Choose another folder with -o.")


def _beside(loaded: Loaded) -> tuple[Gist | None, str]:
    """The run's gist token, where it has one, and the slot that stands beside CLS."""
    method = loaded.tuner.method
    gist = method.gist if isinstance(method, WithGist) else None
    return gist, "prompts" if gist is not None and gist.source == "prompts" else "gist"


def _paths(written: SheetFiles | TokenFiles) -> dict[str, Any]:
    """What was written, as JSON."""
    return {
        "maps": str(written.maps),
        "sheets": [str(p) for p in written.sheets],
        "overview": [str(p) for p in written.overview],
    }


def _finish(value: dict[str, Any], part: Part, output: Path, start: float) -> dict[str, Any]:
    """Write the page over the sheets; the JSON value with it and the time."""
    page = write_gallery(part, output)
    return {"gallery": str(page), **value, "seconds": round(time.perf_counter() - start, 3)}


def _subject(loaded: Loaded) -> Shown:
    label = loaded.tuner.method.label()
    return Shown(loaded.name, loaded.backbone.name, label, loaded.classes)


def _best(logits: NDArray[np.float32], classes: Sequence[str]) -> list[tuple[str, float]]:
    """The likeliest class of every image, and its probability."""
    best = torch.from_numpy(logits).softmax(dim=-1).max(dim=-1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(classes[i], p) for i, p in pairs]


def _missing(maps: AttentionMaps, architecture: str) -> list[str]:
    """Why there is one token to show and not two."""
    if maps.slots == ["cls"]:
        return ["The run has no gist token: CLS alone is shown. Train with --gist to compare."]
    if "cls" not in maps.slots:
        return [f"{architecture} has no class token: {LABELS[maps.slots[0]]} alone is shown."]
    return []


def _entries(
    maps: AttentionMaps, names: Sequence[str], classes: Sequence[str], temperature: float | None
) -> list[dict[str, Any]]:
    """The figures of every image."""
    read = {"": maps.logits, "gist_": maps.gist_logits}
    best = {key: _best(logits, classes) for key, logits in read.items() if logits is not None}
    apart = None if temperature is None else maps.jeffreys(temperature)
    entries: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        entry: dict[str, Any] = {"image": name}
        for key, found in best.items():
            entry |= {f"{key}class": found[i][0], f"{key}probability": found[i][1]}
        entry["jeffreys"] = None if apart is None else float(apart[i])
        entry["overlap"] = None if maps.overlap is None else maps.overlap[i].tolist()
        entry["patch_share"] = _by_slot(maps, maps.patch_share[i])
        entries.append(entry)
    return entries


def _by_slot(maps: AttentionMaps, figures_SL: NDArray[np.float32]) -> dict[str, list[float]]:
    return dict(zip(maps.slots, figures_SL.tolist(), strict=True))


def _means(maps: AttentionMaps, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same figures over all images.

    `same_class` is the share where both read-outs agree; `overlap_chance` is that of two images.
    """
    apart = [entry["jeffreys"] for entry in entries if entry["jeffreys"] is not None]
    both = [entry for entry in entries if "gist_class" in entry]
    return {
        "jeffreys": float(np.mean(apart)) if apart else None,
        "same_class": float(np.mean([e["class"] == e["gist_class"] for e in both]))
        if both
        else None,
        "overlap": None if maps.overlap is None else maps.overlap.mean(axis=0).tolist(),
        "overlap_chance": None if maps.chance is None else maps.chance.tolist(),
        "patch_share": _by_slot(maps, maps.patch_share.mean(axis=0)),
    }


def _title(entry: dict[str, Any], slots: Sequence[str]) -> str:
    """What the network says of an image, and what is read out from the gist token."""
    parts = [f"prediction: {entry['class']} {entry['probability']:.0%}"]
    if "gist_class" in entry:
        parts.append(f"{LABELS[slots[-1]]}: {entry['gist_class']} {entry['gist_probability']:.0%}")
    if entry["jeffreys"] is not None:
        parts.append(f"Jeffreys divergence {entry['jeffreys']:.3g}")
    return ", ".join(parts)


def _caption(entry: dict[str, Any], slots: Sequence[str]) -> str:
    """Its short form: the second class only where it is another one."""
    caption = f"{entry['class']} {entry['probability']:.0%}"
    if entry.get("gist_class", entry["class"]) == entry["class"]:
        return caption
    return f"{caption}, {LABELS[slots[-1]]} {entry['gist_class']} {entry['gist_probability']:.0%}"
