"""One split of text ready to be trained on: encoded once, put into batches where it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gistcli.data.augment import batch_indices
from gistcli.data.base import some
from gistcli.data.text.collate import MULTIPLE, Packed, collate, collate_packed
from gistcli.data.text.encoding import Counts, Encoded, Encoder, number
from gistcli.data.text.examples import Example
from gistcli.data.text.packing import grouped_batches, pack, padded_share
from gistcli.data.text.records import SHOWN
from gistcli.errors import DataError, did_you_mean
from gistcli.reporting import SILENT, Reporter

Batch = dict[str, Tensor]


class TextSplit:
    """Encoded sequences, and the batches made of them: what `fit` and evaluation ask of a split.

    A unit, of which `len` counts and `batch_size` takes, is a sequence, or with packing a row of
    several. Rows are packed once, so that every epoch has the same number of batches; order depends
    on (seed, epoch) alone.

    Attributes:
        names: of each unit; a packed row is called after its first sequence.
        labels: (N,) int64 class or float32 value of each unit; without either an int64 checksum of
            its tokens, so that a fingerprint over labels notices other data.
        sequences: before packing.
        rows: positions of the sequences in each packed row; None without packing.
        capacity: the most tokens of a packed row.
        lengths: (n,) tokens of each sequence.
        unit_lengths: (N,) tokens of each unit; of its source alone where the target is apart.
        counts: what was left out or cut when the examples were encoded.
    """

    def __init__(
        self,
        sequences: Sequence[Encoded],
        labels: Tensor | None,
        *,
        pad_id: int,
        capacity: int,
        packing: bool = False,
        group_by_length: bool = False,
        counts: Counts | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sequences = list(sequences)
        self.capacity = capacity
        self.lengths = np.array([len(s) for s in self.sequences], np.int64)
        self.rows = pack(self.lengths, capacity, seed=0) if packing else None
        members = self.rows or [[i] for i in range(len(self.sequences))]
        self.unit_lengths = np.array([self.lengths[row].sum() for row in members], np.int64)
        self.counts = Counts() if counts is None else counts
        self.names = [_name([self.sequences[i].name for i in row]) for row in members]
        self.labels = self._checksums(members) if labels is None else labels
        self._targets = labels
        self._group = group_by_length and not packing
        self._pad_id, self._device = pad_id, torch.device(device)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def tokens(self) -> int:
        """Real tokens in one pass."""
        return int(self.lengths.sum())

    @property
    def supervised(self) -> int:
        """Tokens that are learnt in one pass."""
        return sum(s.supervised for s in self.sequences)

    def fingerprint(self) -> str:
        """SHA-256 over the tokens, labels and targets of all sequences and the rows they are in."""
        digest = hashlib.sha256()
        for sequence in self.sequences:
            digest.update(_content(sequence))
        digest.update(repr(self.rows).encode())
        return digest.hexdigest()

    def efficiency(self, batch_size: int, seed: int = 0) -> float:
        """Share of the places of the first epoch's batches that hold a real token."""
        return padded_share(self.unit_lengths, self._order(batch_size, seed, 0, 0, 0, 1), MULTIPLE)

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
    ) -> Iterator[Batch]:
        """Batches of one pass, on the device; `start_batch=k` yields the batches k, k+1, ... of it.

        Each holds input_ids and attention_mask (B, T) int64; labels (B, T) int64, -100 where
        nothing is learnt, or (B,) for classification and regression; index (B,) int64, the unit's
        place in the split; position_ids and segments (B, T) where rows are packed; token_type_ids
        (B, T) where the tokenizer has them.

        Args:
            batch_size: units in a global batch; process `rank` of `world` gets every world-th of
                them, so that the last batch of a process may be shorter, even empty.
            seed: of the order; None keeps that of the split.
            epoch: number of the pass.
            start_batch: global batches to leave out at the beginning.
            rank: this process.
            world: the number of processes.
        """
        for index in self._order(batch_size, seed, epoch, start_batch, rank, world):
            batch = self._batch(index)
            yield {key: value.to(self._device) for key, value in batch.items()}

    def longest(self, rows: int) -> Batch:
        """The batch of so many of the longest units, on the CPU: no other takes more memory."""
        order = np.argsort(-self.unit_lengths, kind="stable")[:rows]
        # of fewer units than rows some stand there again
        return self._batch(np.resize(order, rows))

    def tell(self, name: str, reporter: Reporter) -> None:
        """What there is, and what was left out or cut."""
        for note in self.counts.notes(self.capacity):
            reporter.warn(f"{name}: {note}")
        learnt = f", {self.supervised / self.tokens:.0%} learnt" if self._targets is None else ""
        if self.sequences[0].apart:
            learnt = f" of sources, {self.supervised:,} of targets"
        rows = "" if self.rows is None else f" in {len(self):,} rows of {self.capacity}"
        reporter.say(
            f"{name}: {number(len(self.sequences), 'sequence')}{rows}, {self.tokens:,} "
            f"tokens{learnt}, longest {self.lengths.max()}"
        )

    def _order(
        self, batch_size: int, seed: int | None, epoch: int, start: int, rank: int, world: int
    ) -> list[np.ndarray]:
        if self._group:
            return grouped_batches(
                self.lengths,
                batch_size,
                seed=seed,
                epoch=epoch,
                start_batch=start,
                rank=rank,
                world=world,
            )
        return batch_indices(
            len(self), batch_size, seed=seed, epoch=epoch, start_batch=start, rank=rank, world=world
        )

    def _batch(self, index: np.ndarray) -> Batch:
        if self.rows is not None:
            rows = [Packed.of([self.sequences[i] for i in self.rows[r]]) for r in index]
            batch = collate_packed(rows, self._pad_id)
        else:
            chosen = [self.sequences[i] for i in index]
            batch = collate(chosen, self._pad_id, most=self.capacity)
        where = torch.from_numpy(index)
        if self._targets is not None:
            batch["labels"] = self._targets[where]
        return {**batch, "index": where}

    def _checksums(self, members: Sequence[Sequence[int]]) -> Tensor:
        sums = []
        for row in members:
            digest = hashlib.sha256()
            for i in row:
                digest.update(_content(self.sequences[i]))
            sums.append(int.from_bytes(digest.digest()[:8]) >> 1)
        return torch.tensor(sums, dtype=torch.int64)


def load_texts(
    name: str,
    examples: Sequence[Example],
    encoder: Encoder,
    *,
    train: bool,
    classes: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    reporter: Reporter = SILENT,
) -> TextSplit:
    """Encodes the examples of a split.

    Args:
        name: of data and split, for messages.
        examples: of one task.
        encoder: with tokenizer, options and template.
        train: whether packing and grouping by length apply.
        classes: in the order of their ids, for classification; None for all else.
        device: where batches are wanted.
        reporter: told what was found and what was cut.

    Raises:
        DataError: nothing to learn in some example, or a label that is missing or none of
            `classes`.
        RecipeError: chats without a template.
    """
    seen = _counting(encoder)
    sequences = seen.encode(examples)
    labels = _labels(name, sequences, classes)
    options = encoder.options
    split = TextSplit(
        sequences,
        labels,
        pad_id=encoder.tokenizer.pad_id,
        capacity=encoder.max_length,
        packing=train and options.packing and labels is None,
        group_by_length=train and options.group_by_length,
        counts=seen.counts,
        device=device,
    )
    split.tell(name, reporter)
    return split


def _counting(encoder: Encoder) -> Encoder:
    """The same encoder with counts from 0."""
    return replace(encoder, counts=Counts())


def _labels(
    name: str, sequences: Sequence[Encoded], classes: Sequence[str] | None
) -> Tensor | None:
    """Class ids or values; None where tokens are learnt."""
    targets = [s.target for s in sequences]
    if classes is None and all(target is None for target in targets):
        return None
    bare = [s.name for s in sequences if s.target is None]
    if bare:
        raise DataError(f"{name}: {some(bare, 'example', shown=SHOWN)} without a label.")
    if classes is None:
        return torch.tensor([float(target or 0.0) for target in targets])
    ids: Mapping[str, int] = {label: i for i, label in enumerate(classes)}
    strange = [f"{s.name}: {s.target!r}" for s in sequences if str(s.target) not in ids]
    if strange:
        raise DataError(
            f"{name}: {some(strange, 'example', shown=SHOWN)} with a label that is none of the "
            f"classes.",
            did_you_mean(strange[0].partition(": ")[2].strip("'"), classes),
        )
    return torch.tensor([ids[str(target)] for target in targets])


def _name(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _content(sequence: Encoded) -> bytes:
    lengths = np.array([len(sequence), 0], np.int32)
    types = b"" if sequence.type_ids is None else sequence.type_ids.tobytes()
    return b"".join(
        (
            lengths.tobytes(),
            sequence.input_ids.tobytes(),
            sequence.labels.tobytes(),
            types,
            repr(sequence.target).encode(),
        )
    )
