"""Task files in their real formats, small."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Rust
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gistcli.data.episodes.family import VOCABULARY
from gistcli.data.text import Tokenizer


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def template(path: Path, answers: Sequence[str] = ("Yes", "No"), count: int = 12) -> Path:
    """A file of P3 as it is handed out, with answers in turn."""
    rows = [
        {
            "prompt": f"w{i} w{i + 1} {path.stem} ?\n",
            "completion": f" {answers[i % len(answers)]}<|endoftext|>",
        }
        for i in range(count)
    ]
    return lines(path, rows)


def natural(path: Path, *, count: int = 12, answers: Sequence[str] = (), **more: Any) -> Path:
    """A file of Super-NaturalInstructions; answers are free text unless given."""
    outputs = [[answers[i % len(answers)]] if answers else [f"w{i}", "x"] for i in range(count)]
    value = {
        "Contributors": ["a", "b"],
        "Categories": ["Question Generation"],
        "Definition": ["Say the word", "after it."],
        "Positive Examples": [
            {"input": f"good {i}", "output": f"better {i}", "explanation": ""} for i in range(3)
        ],
        "Negative Examples": [{"input": "bad", "output": "worse", "explanation": ""}],
        "Instances": [
            {"id": f"t-{i}", "input": f"w{i - 1}", "output": outputs[i]} for i in range(count)
        ],
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def family_words() -> Tokenizer:
    """A word a token, <s> in front, for the built-in family and the texts of `template`."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    more = ["Input:", "Output:", "Yes", "No", "?", *(f"w{i}" for i in range(60))]
    vocabulary = {word: i for i, word in enumerate([*special, *VOCABULARY, *more])}
    rust = Rust(models.WordLevel(vocabulary, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return Tokenizer.of(PreTrainedTokenizerFast(tokenizer_object=rust, **names))


def said(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Tokens as text, special ones and all."""
    text: str = tokenizer.base.decode([int(i) for i in ids], clean_up_tokenization_spaces=False)
    return text
