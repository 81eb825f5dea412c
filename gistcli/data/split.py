"""One split ready to be trained on: decoded once, kept as 8 bits, normalised where it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gistcli.data import augment as augmentations
from gistcli.data.base import Catalog, Preprocess, Record, some
from gistcli.data.cache import Decoder, check, fill, in_threads, place, refuse
from gistcli.data.images import quiet_pillow, read_image
from gistcli.data.transforms import Normalize, canvas, crop_transform, draft_size
from gistcli.errors import DataError, UnknownName, did_you_mean
from gistcli.reporting import SILENT, Reporter

Batch = dict[str, Tensor]


class ImageSplit:
    """Pictures, labels and names of a split, and the batches made of them.

    `resident` says whether the decoded pixels are kept (`nbytes` of them, on `storage`); else they
    are decoded anew in every pass, ahead of use. Both give the same batches, bit for bit.
    """

    def __init__(
        self,
        records: Sequence[Record],
        labels: Tensor,
        decoder: Decoder,
        pixels: Tensor | None,
        normalize: Normalize,
        augmentation: augmentations.Augmentation | None,
    ) -> None:
        self.records = list(records)
        self.labels = labels
        self.names = [r.name for r in records]
        self.resident = pixels is not None
        self.nbytes = decoder.nbytes * len(self.records)
        self._decoder = decoder
        self._pixels = pixels
        self._normalize = normalize
        self._augmentation = augmentation

    def __len__(self) -> int:
        return len(self.records)

    @property
    def storage(self) -> str:
        """Where the decoded pixels are: a device, or `streamed`."""
        return "streamed" if self._pixels is None else str(self._pixels.device)

    def batches_per_epoch(self, batch_size: int, drop_last: bool = False) -> int:
        """Global batches in one pass."""
        return len(self) // batch_size if drop_last else -(-len(self) // batch_size)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None,
        epoch: int = 0,
        start_batch: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """Batches of one pass: `pixels` float32 (B, C, H, W), `labels` and `index` int64 (B,).

        All lie on the device; `index` is the position in the split. Without a seed the order is
        that of the records and nothing is augmented. With one, order and augmentation depend on
        (seed, epoch) and (seed, epoch, index) alone, so that `start_batch=k` yields exactly the
        batches k, k+1, ... of the whole pass.

        Args:
            batch_size: pictures in a global batch; process `rank` of `world` gets every world-th
                of them, so that the last batch of a process may be shorter, even empty.
            seed: None for evaluation.
            epoch: number of the pass.
            start_batch: global batches to leave out at the beginning.
            rank: this process.
            world: the number of processes.
            drop_last: leave out a last global batch that is not full.
        """
        indices = augmentations.batch_indices(
            len(self),
            batch_size,
            seed=seed,
            epoch=epoch,
            start_batch=start_batch,
            rank=rank,
            world=world,
            drop_last=drop_last,
        )
        for index, pixels in zip(indices, self._canvases(indices), strict=True):
            if seed is not None and self._augmentation is not None:
                u = augmentations.uniforms(seed, epoch, index, self._augmentation.draws)
                pixels = self._augmentation(pixels, u)
            yield self._batch(index, pixels)

    def _batch(self, index: np.ndarray, pixels: Tensor) -> Batch:
        where = torch.from_numpy(index)
        device = self._normalize.mean.device
        return {
            "pixels": self._normalize(pixels),
            "labels": self.labels[where].to(device),
            "index": where.to(device),
        }

    def _canvases(self, indices: list[np.ndarray]) -> Iterator[Tensor]:
        """uint8 pictures of each batch, on the device, a copy that may be changed."""
        device = self._normalize.mean.device
        if self._pixels is not None:
            for index in indices:
                yield self._pixels[torch.from_numpy(index).to(self._pixels.device)].to(device)
            return
        ahead = 2 * max((len(index) for index in indices), default=0) + 1
        needed = (self.records[i] for index in indices for i in index)
        empty = torch.empty((0, *self._decoder.shape), dtype=torch.uint8)
        with closing(in_threads(self._decoder, needed, ahead)) as decoded:
            for index in indices:
                pictures = list(islice(decoded, len(index)))
                yield (torch.stack(pictures) if pictures else empty).to(device)


def load_split(
    catalog: Catalog,
    split: str,
    preprocess: Preprocess,
    *,
    train: bool,
    augment: str = "none",
    on_error: str = "raise",
    device: torch.device | str = "cpu",
    reporter: Reporter = SILENT,
    budget_bytes: int | None = None,
    limit: int | None = None,
) -> ImageSplit:
    """Decodes a split into a cache, or checks every picture where the cache would not fit.

    Evaluation pixels are exactly timm's. For training, large JPEGs are decoded at a fraction of
    their size that still holds twice the pixels asked for; with an augmentation the picture is kept
    with 8/7 of the input's size (256 for 224), from which each pass cuts its own crop.

    Args:
        catalog: what was found.
        split: which of its splits.
        preprocess: the model's preparation.
        train: pixels for training; else those of the evaluation, and `augment` is not used.
        augment: none, flip-crop or randaugment.
        on_error: `raise`, or `skip` to leave broken pictures out with a warning.
        device: where batches are wanted.
        reporter: told of the phase `decode` (or `check`) and of the cache.
        budget_bytes: the most that the cache may take; default: see `cache.place`.
        limit: only so many pictures, spread evenly over the split.

    Raises:
        UnknownName: no such split.
        DataError: broken pictures, those of the other splits named as well; or, for training,
            a class of which no picture is left.
    """
    if split not in catalog.splits:
        hint = did_you_mean(split, catalog.splits)
        raise UnknownName(f"{catalog.name} has no {split!r} split.", hint)
    device = torch.device(device)
    augmentation = augmentations.build(augment, preprocess) if train else None
    kept = preprocess if augmentation is None else canvas(preprocess)
    decoder = Decoder(kept, draft_size(kept) if train else 0)
    chosen = _spread(len(catalog.splits[split]), limit)
    records = [catalog.splits[split][i] for i in chosen]
    storage = place(decoder.nbytes * len(records), device, budget_bytes)
    pixels = None
    if storage is None:
        broken = check(records, reporter)
    else:
        pixels, broken = fill(records, decoder, storage, reporter)
    good = _without(catalog, split, records, broken, on_error, reporter)
    if train:
        _require_every_class(catalog, split, records, good)
    labels = torch.tensor(catalog.labels(split))[chosen][good]
    images = ImageSplit(
        [records[i] for i in good],
        labels,
        decoder,
        pixels,
        Normalize(preprocess, device),
        augmentation,
    )
    where = f"resident on {images.storage}" if images.resident else "streamed"
    reporter.say(f"{catalog.name} {split}: {len(images):,} images, {_size(images.nbytes)}, {where}")
    return images


def _without(
    catalog: Catalog,
    split: str,
    records: Sequence[Record],
    broken: Mapping[int, DataError],
    on_error: str,
    reporter: Reporter,
) -> list[int]:
    """Positions of the good records; raises where broken ones are not to be skipped."""
    if broken and on_error != "skip":
        # one look at the other splits now, rather than the next error after the next start
        others = {s: list(check(rs).values()) for s, rs in catalog.splits.items() if s != split}
        refuse(catalog, {split: list(broken.values()), **others})
    names = [str(error) for error in broken.values()]
    if broken:
        reporter.warn(f"{catalog.name} {split}: {some(names, 'broken picture')} left out")
    good = [i for i in range(len(records)) if i not in broken]
    if not good:
        raise DataError(
            f"{catalog.name} {split}: no picture can be decoded ({some(names, 'picture')}).",
            "Repair them, or give other data.",
        )
    return good


def _require_every_class(
    catalog: Catalog, split: str, records: Sequence[Record], good: Sequence[int]
) -> None:
    left = {records[i].label for i in good}
    lost = sorted({r.label for r in records} - left)
    if lost:
        raise DataError(
            f"{catalog.name} {split}: nothing of {some(lost, 'class', 'classes')} can be decoded.",
            "Repair them, or remove the class.",
        )


def _spread(count: int, limit: int | None) -> list[int]:
    if limit is None or limit >= count:
        return list(range(count))
    return [i * count // limit for i in range(limit)]


def _size(nbytes: int) -> str:
    for unit, size, digits in (("GB", 1e9, 1), ("MB", 1e6, 0)):
        if nbytes >= size:
            return f"{nbytes / size:,.{digits}f} {unit}"
    return f"{nbytes / 1e3:,.0f} kB"


def load_images(
    paths: Sequence[Path],
    preprocess: Preprocess,
    device: torch.device | str = "cpu",
    *,
    display: int = 448,
) -> tuple[Tensor, list[np.ndarray]]:
    """Any picture files as model input, and what the model sees of them to be shown.

    Args:
        paths: picture files.
        preprocess: the model's preparation.
        device: where the pixels are wanted.
        display: the shown pictures are the same crop at the smallest whole multiple of the input's
            size whose shorter side has this many pixels; 0 makes none.

    Returns:
        pixels float32 (N, C, H, W), normalised, exactly timm's; and N arrays uint8 (H', W', 3).

    Raises:
        DataError: files that cannot be decoded, all of them named.
    """
    times = -(-display // min(preprocess.size))
    height, width = preprocess.size
    shown = preprocess.rgb().resized((height * times, width * times))

    def decode(path: Path) -> tuple[Tensor, np.ndarray | None] | DataError:
        try:
            picture = read_image(path)
        except DataError as error:
            return error
        grey = picture.convert("L") if preprocess.channels == 1 else picture
        original = crop_transform(shown)(picture).permute(1, 2, 0).numpy() if times else None
        return crop_transform(preprocess)(grey), original

    with quiet_pillow():
        results = list(in_threads(decode, paths))
    broken = [str(result) for result in results if isinstance(result, DataError)]
    if broken:
        raise DataError(
            f"{some(broken, 'picture')} cannot be decoded.", "Remove or repair these files."
        )
    good = [result for result in results if not isinstance(result, DataError)]
    pixels = torch.stack([pixels for pixels, _ in good]).to(device)
    normalize = Normalize(preprocess, torch.device(device))
    return normalize(pixels), [original for _, original in good if original is not None]
