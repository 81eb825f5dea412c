"""Model folders over text, small enough to be trained in a second."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.backbones import text_kinds
from tests.data.text.tokens import closed_words, words


def save_model(folder: Path, name: str, task: str) -> Path:
    """A folder with weights, configuration and a tokenizer of 53 words."""
    if name in text_kinds.ENCODER_DECODERS:
        text_kinds.network(name, task).save_pretrained(folder)
        closed_words().base.save_pretrained(folder)
        return folder
    text_kinds.network(name, task, max_position_embeddings=64).save_pretrained(folder)
    words(pairs=name in text_kinds.ENCODERS).base.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def completions(path: Path, count: int = 60) -> Path:
    """Prompts whose answer is their first word, twice."""
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        text = [f"w{draw.randrange(50)}" for _ in range(draw.randrange(3, 9))]
        rows.append({"prompt": " ".join(text), "completion": f" {text[0]} {text[0]}"})
    return write_rows(path, rows)


def labelled(path: Path, count: int = 300) -> Path:
    """Texts of even or of odd words."""
    draw = random.Random(0)
    rows = []
    for i in range(count):
        text = [f"w{2 * draw.randrange(25) + i % 2}" for _ in range(draw.randrange(3, 9))]
        rows.append({"text": " ".join(text), "label": ("even", "odd")[i % 2]})
    return write_rows(path, rows)


def valued(path: Path, count: int = 300) -> Path:
    """Pairs of texts, and how many words of both are early ones, from 0 to 6."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        early = draw.randrange(7)
        words = [f"w{draw.randrange(5) + (0 if i < early else 25)}" for i in range(6)]
        draw.shuffle(words)
        value = early + draw.choice((0.0, 0.25))
        first, second = " ".join(words[:3]), " ".join(words[3:])
        rows.append({"sentence1": first, "sentence2": second, "label": value})
    return write_rows(path, rows)
