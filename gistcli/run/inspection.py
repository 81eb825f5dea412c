"""`gist inspect`: a model's sites, or what a run or merged folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gistcli.artifacts.rundir import RunDirectory
from gistcli.artifacts.targets import kind_of, open_merged
from gistcli.backbones import Backbone, open_backbone
from gistcli.backbones.images import ImageBackbone
from gistcli.errors import GistError
from gistcli.reporting import SILENT, Reporter
from gistcli.run.assembling import site_rows


def inspect(target: str, *, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Describe a model, a run or a merged folder.

    Raises:
        NotFound, UnknownName: it is none of these.
    """
    path = Path(target)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return _run(path)
    found = _model(target)
    if path.is_dir() and (path / "merge.json").is_file() and kind_of(path) == "merged":
        folder = open_merged(path)
        found |= {"kind": "merged", "classes": folder.classes, "receipt": dict(folder.receipt)}
    return found


def _run(path: Path) -> dict[str, Any]:
    run = RunDirectory(path)
    found: dict[str, Any] = {
        "kind": "run",
        "path": str(path),
        "state": run.state,
        "recipe": run.read_recipe(),
        "last_step": run.last_step(),
        "files": run.files(),
    }
    if run.state == "complete":
        result = run.read_result()
        kept = ("metrics", "intervals", "examples", "parameters", "seconds", "steps", "weights")
        found |= {key: result.get(key) for key in kept}
    else:
        found["next"] = [run.resume_command()]
    try:
        found["tuner"] = run.read_tuner()[1].model_dump(mode="json")
    except GistError as error:
        found["tuner"] = None
        found["problem"] = error.message
    return found


def _model(name: str) -> dict[str, Any]:
    backbone: Backbone = open_backbone(name, meta=True)
    return {
        "kind": "model",
        "name": name,
        "architecture": backbone.architecture,
        "modality": backbone.modality,
        "parameters": backbone.count(),
        "layers": backbone.depth,
        "preprocessing": (backbone.data_config() if isinstance(backbone, ImageBackbone) else None),
        "weights": [str(p) for p in backbone.origin.weights],
        "sites": site_rows(backbone.all_sites()),
    }
