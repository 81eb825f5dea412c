"""What the runs of one process share, so that none of them reads or decodes it again."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import torch

from gistcli.backbones import Backbone
from gistcli.data import Catalog, ImageSplit, Preprocess, load_split, open_catalog
from gistcli.recipe import DataSection, ModelSection
from gistcli.reporting import Reporter
from gistcli.run.assembling import open_model

Kept = TypeVar("Kept")
_CATALOGS, _SPLITS = 4, 6


class Shelf:
    """The last backbone, and the catalogs and decoded splits that were used last.

    A tuner leaves its backbone as it found it, and splits are never changed, so that a run has the
    same result with what lies here as with its own. Files that change on the disk in between are
    not noticed.
    """

    def __init__(self) -> None:
        self._backbones: OrderedDict[Hashable, Backbone] = OrderedDict()
        self._catalogs: OrderedDict[Hashable, Catalog] = OrderedDict()
        self._splits: OrderedDict[Hashable, ImageSplit] = OrderedDict()

    def backbone(self, model: ModelSection, task: str) -> Backbone:
        """The backbone of a recipe's section for a task, without a tuner; its head is whatever it
        was.

        Raises:
            GistError: whatever keeps the model from being built.
        """
        key = model.model_dump_json(), task
        if key in self._backbones and self._backbones[key].compiled:
            del self._backbones[key]  # hooks that come after the compiler are ignored
        return _recall(self._backbones, key, lambda: open_model(model, task=task), 1)

    def holds(self, model: ModelSection, task: str) -> bool:
        """Whether the backbone lies here, so that its weights take no further memory."""
        return (model.model_dump_json(), task) in self._backbones

    def catalog(self, data: DataSection, pinned: Path | None) -> Catalog:
        """What is where, from the working directory; read anew where splits are pinned.

        Raises:
            GistError: see `open_catalog`.
        """

        def find() -> Catalog:
            return open_catalog(data, base=Path.cwd(), pinned=pinned)

        if pinned is not None:
            return find()
        return _recall(self._catalogs, (Path.cwd(), data.model_dump_json()), find, _CATALOGS)

    def split(
        self,
        data: DataSection,
        catalog: Catalog,
        name: str,
        preprocess: Preprocess,
        device: torch.device,
        reporter: Reporter,
    ) -> ImageSplit:
        """A split of a catalog, ready to be trained on or evaluated.

        Raises:
            DataError: pictures that cannot be decoded.
        """
        train = name == "train"
        augment = data.augment if train else "none"

        def load() -> ImageSplit:
            return load_split(
                catalog,
                name,
                preprocess,
                train=train,
                augment=augment,
                on_error=data.on_error,
                device=device,
                reporter=reporter,
            )

        where = (Path.cwd(), data.path, data.subset, catalog.fingerprint(name), *catalog.classes)
        how = (json.dumps(preprocess.to_config()), train, augment, data.on_error, str(device))
        return _recall(self._splits, (where, how), load, _SPLITS)


def _recall(
    shelf: OrderedDict[Any, Kept], key: Hashable, make: Callable[[], Kept], keep: int
) -> Kept:
    """What lies under a key, made where nothing does; beyond `keep`, what was used first goes."""
    if key not in shelf:
        while len(shelf) >= keep:  # before, so that never one too many is in memory
            shelf.popitem(last=False)
        shelf[key] = make()
    shelf.move_to_end(key)
    return shelf[key]
