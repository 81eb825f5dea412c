"""A model's tokenizer, and what of it the encoding has to know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gistcli.data.text.options import DEFAULT_LENGTH
from gistcli.errors import DataError, NotFound, NotSupported, RecipeError

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_UNLIMITED = 10**9
"""Tokenizers without a limit give a far larger number as theirs."""


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer of transformers, with the ids that end a turn.

    Attributes:
        base: the tokenizer itself.
        stop_ids: ids at which generation stops: the tokenizer's end of sequence, and those of the
            model's generation config.
    """

    base: Any
    stop_ids: frozenset[int]

    @classmethod
    def of(cls, base: Any, generation: dict[str, Any] | None = None) -> Tokenizer:
        """Around a loaded tokenizer.

        Args:
            base: a tokenizer of transformers.
            generation: the model's generation config.

        Raises:
            NotSupported: it is not one of the `tokenizers` library, which alone tell the place of
                each token in the text.
        """
        if not base.is_fast:
            raise NotSupported(
                f"{type(base).__name__} tells no places of tokens in the text.",
                "Give a folder with a tokenizer.json.",
            )
        eos = (generation or {}).get("eos_token_id")
        ids = {base.eos_token_id, *(eos if isinstance(eos, list) else [eos])}
        return cls(base, frozenset(i for i in ids if isinstance(i, int)))

    @property
    def pad_id(self) -> int:
        """An id that is put where the mask is 0; it may be that of a real token."""
        for found in (self.base.pad_token_id, self.base.eos_token_id):
            if found is not None:
                return int(found)
        return 0

    @property
    def eos_id(self) -> int | None:
        """What ends a sequence, where the tokenizer has it."""
        found = self.base.eos_token_id
        return None if found is None else int(found)

    @property
    def prefix(self) -> list[int]:
        """Ids that belong in front of every sequence, such as that of <s>."""
        return self._around[0]

    @property
    def suffix(self) -> list[int]:
        """Ids that belong behind every sequence, such as that of [SEP], or T5's </s>."""
        return self._around[1]

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        bare: list[int] = self.base("a", add_special_tokens=False)["input_ids"]
        whole: list[int] = self.base("a")["input_ids"]
        starts = range(len(whole) - len(bare) + 1)
        at = next((i for i in starts if whole[i : i + len(bare)] == bare), None)
        return ([], []) if at is None else (whole[:at], whole[at + len(bare) :])

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Tokens of each text, nothing added."""
        if not texts:
            return []
        encoded = self.base(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        found: list[list[int]] = encoded["input_ids"]
        return found

    def max_length(self, asked: int | None, positions: int | None = None) -> int:
        """The most tokens of a sequence.

        Args:
            asked: `data.max_length`.
            positions: how many the model has, if that is limited.

        Raises:
            RecipeError: more than the model can take, or fewer than two.
        """
        own = self.base.model_max_length
        limits = [n for n in (positions, own if own and own < _UNLIMITED else None) if n]
        if asked is None:
            return int(min([*limits, DEFAULT_LENGTH]))
        if asked < 2:
            raise RecipeError(f"data.max_length is {asked}: nothing can follow one token.")
        if positions and asked > positions:
            raise RecipeError(
                f"data.max_length is {asked}, but the model has {positions} positions.",
                f"Set it to {positions} at most.",
            )
        return asked


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a model's folder; code in the folder is never run.

    Raises:
        NotFound: there is none.
        NotSupported: it needs code of its own, or has no fast form.
        DataError: its files are damaged.
    """
    if not any((folder / name).is_file() for name in _FILES):
        raise NotFound(
            f"{folder} has no tokenizer ({', '.join(_FILES)}).",
            "Copy the tokenizer's files from the model's source into the folder.",
        )
    from transformers import AutoTokenizer

    try:
        config = _read_json(folder / "tokenizer_config.json")
        if "auto_map" in config:
            raise NotSupported(
                f"The tokenizer of {folder} needs Python code of its own, which is never run.",
                "Give a folder with a plain tokenizer.json.",
            )
        base = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, use_fast=True, trust_remote_code=False
        )
        generation = _read_json(folder / "generation_config.json")
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        line = str(error).strip().partition("\n")[0]
        raise DataError(f"The tokenizer of {folder} cannot be read: {line}") from error
    return Tokenizer.of(base, generation)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is no object")
    return value
