"""Model folders over text, small enough to be trained in a second."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.backbones import text_kinds
from tests.data.text.tokens import words


def save_model(folder: Path, name: str, task: str) -> Path:
    """A folder with weights, configuration and a tokenizer of 53 words."""
    text_kinds.network(name, task, max_position_embeddings=64).save_pretrained(folder)
    words(pairs=name in text_kinds.ENCODERS).base.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
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
