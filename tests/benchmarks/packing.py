"""What packing saves on real texts, against what their lengths allow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gistcli.data.text import (
    Encoder,
    TextOptions,
    TextSplit,
    examples_of,
    load_texts,
    open_template,
    open_texts,
    open_tokenizer,
)
from gistcli.recipe import DataSection
from tests.benchmarks.sets import ASSETS
from tests.benchmarks.tables import header

BATCH = 8
SETS = {
    "boolq": TextOptions(prompt="plain", max_length=1024),
    "instruct/alpaca_en_demo.json": TextOptions(
        prompt="chat", chat_template="chatml", max_length=1024
    ),
}
COLUMNS = ("texts", "allowed", "reached", "share of it")


def split_of(path: str, options: TextOptions) -> TextSplit:
    tokenizer = open_tokenizer(ASSETS / "stories260K")
    template = open_template(tokenizer, options.chat_template)
    data = DataSection(path=path)
    catalog = open_texts(data, options, base=ASSETS / "text", templated=template is not None)
    encoder = Encoder(tokenizer, options, 1024, template)
    return load_texts(path, examples_of(catalog, "train"), encoder, train=True)


def packing_rows() -> list[str]:
    """A Markdown table; nothing where the real texts are missing."""
    if not Path(ASSETS).is_dir():
        return []
    rows = []
    for path, options in SETS.items():
        padded = split_of(path, options).efficiency(BATCH)
        packed = split_of(path, replace(options, packing=True)).efficiency(BATCH)
        allowed, reached = 1 / padded, packed / padded
        rows.append(f"| {path} | {allowed:.2f} | {reached:.2f} | {packed:.3f} |")
    return [
        f"Rows of 1,024 tokens of stories260K, batches of {BATCH}. Allowed: all places over those "
        "of real tokens where every batch is padded to its longest text; reached: that ratio with "
        "packed rows.",
        "",
        *header(COLUMNS),
        *rows,
    ]
