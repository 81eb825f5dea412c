"""`gist visualize`: where in a picture the clusters of a method answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gistcli.atomic import require_writable
from gistcli.data import expand_inputs, load_images
from gistcli.explain.clusters import cluster_maps
from gistcli.explain.heatmap import write_sheets
from gistcli.reporting import SILENT, Reporter
from gistcli.run.loading import open_target


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
    """Contact sheets of cluster maps, and the raw maps.

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
        GistError: as `open_target`; broken images; the disk.
    """
    start = time.perf_counter()
    require_writable(output, folder=True)
    files = expand_inputs(images)
    loaded = open_target(target, model=model, device=device)
    loaded.require_run("visualize")
    pixels, shown = load_images(files, loaded.preprocess, loaded.device)
    maps = cluster_maps(loaded.tuner, pixels, layers)
    best = torch.from_numpy(maps.logits).softmax(dim=-1).max(dim=-1)
    titles = [
        f"{loaded.classes[i]} {p:.0%}"
        for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    written = write_sheets(
        maps,
        shown,
        [str(f) for f in files],
        output,
        layers=layers,
        clusters=clusters,
        show_all=show_all,
        titles=titles,
    )
    return {
        "output": str(output),
        "layers": sorted(set(maps.layers)),
        "clusters": maps.clusters,
        "maps": str(written.maps),
        "sheets": [str(p) for p in written.sheets],
        "overview": [str(p) for p in written.overview],
        "seconds": round(time.perf_counter() - start, 3),
    }
