"""`gist predict` on text: what a language model writes, or the classes of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gistcli.backbones.text import TextBackbone
from gistcli.data.text import (
    Encoder,
    Example,
    Plain,
    TextOptions,
    TextSplit,
    Tokenizer,
    encode_prompts,
    open_template,
    open_tokenizer,
    read_unanswered,
)
from gistcli.errors import Refused
from gistcli.evaluate import classify
from gistcli.evaluate.language.generation import Decoding, generate
from gistcli.evaluate.language.records import write_json_lines
from gistcli.reporting import Reporter
from gistcli.run.loading import Loaded
from gistcli.run.texts import text_options


@dataclass(frozen=True)
class Asked:
    """What `gist predict` was asked for on text.

    Attributes:
        files: with prompts, chats or texts.
        prompts: from the command line.
        top_k: classes of a text.
        max_new_tokens: of each answer, at most.
        temperature: 0 takes the likeliest token each time.
        seed: of the draws above 0.
    """

    files: Sequence[Path] = ()
    prompts: Sequence[str] = ()
    top_k: int = 5
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0


def predict_text(
    loaded: Loaded, asked: Asked, output: Path | None, reporter: Reporter
) -> dict[str, Any]:
    """Answers or classes, in the order of the files and rows.

    Args:
        loaded: a run or merged folder whose network reads text.
        asked: what for.
        output: a file of JSON lines; None writes none.
        reporter: gets all talk.

    Raises:
        DataError: rows that cannot be used, or prompts that leave no room for an answer.
        Refused: a picture's or table's name for the output.
    """
    if output is not None and output.suffix.lower() not in (".jsonl", ".json"):
        raise Refused(
            f"--output {output} becomes a file of JSON lines, one for each text.",
            "Choose a name such as predictions.jsonl.",
        )
    recipe = loaded.recipe
    options = text_options(recipe.data) if recipe is not None else TextOptions()
    tokenizer = open_tokenizer(loaded.backbone.origin.config["folder"])
    rows = (_classes if loaded.classes else _answers)(loaded, asked, options, tokenizer, reporter)
    if output is not None:
        write_json_lines(output, rows)
    return {"examples": len(rows), "predictions": rows}


def _answers(
    loaded: Loaded, asked: Asked, options: TextOptions, tokenizer: Tokenizer, reporter: Reporter
) -> list[dict[str, Any]]:
    template = open_template(tokenizer, options.chat_template)
    examples: list[Example] = [
        Plain(text, f"--prompt {n}") for n, text in enumerate(asked.prompts, 1)
    ]
    for path in asked.files:
        examples += read_unanswered(path, options, task="causal_lm", templated=template is not None)
    most = tokenizer.max_length(None, _positions(loaded))
    prompts = encode_prompts(examples, tokenizer, template, most - 1)
    written = generate(
        loaded.tuner,
        tokenizer,
        prompts,
        Decoding(
            max_new_tokens=asked.max_new_tokens,
            sample=asked.temperature > 0,
            temperature=asked.temperature or 1.0,
            seed=asked.seed,
        ),
        loaded.batch_size,
        precision=loaded.precision(),
        reporter=reporter,
    )
    return [
        {
            "name": example.origin,
            "prompt": tokenizer.base.decode(ids, skip_special_tokens=True),
            "text": found.text,
            "tokens": len(found.tokens),
            "finished": found.finished,
        }
        for example, ids, found in zip(examples, prompts, written, strict=True)
    ]


def _classes(
    loaded: Loaded, asked: Asked, options: TextOptions, tokenizer: Tokenizer, reporter: Reporter
) -> list[dict[str, Any]]:
    if asked.prompts:
        raise Refused(f"{loaded.name} names classes, and answers no --prompt.", "Give a file.")
    examples: list[Example] = []
    for path in asked.files:
        examples += read_unanswered(path, options, task="classification")
    most = tokenizer.max_length(options.max_length, _positions(loaded))
    sequences = Encoder(tokenizer, options, most).encode(examples)
    split = TextSplit(
        sequences,
        torch.zeros(len(sequences), dtype=torch.int64),
        pad_id=tokenizer.pad_id,
        capacity=most,
        device=loaded.device,
    )
    found = classify.predict(
        loaded.tuner,
        split,
        loaded.batch_size,
        precision=loaded.precision(),
        reporter=reporter,
        phase="predict",
    )
    best = found.probabilities.topk(min(asked.top_k, len(loaded.classes)), dim=1)
    return [
        {
            "name": sequence.name,
            "class": loaded.classes[places[0]],
            "probability": shares[0],
            "top": [
                {"class": loaded.classes[k], "probability": p}
                for k, p in zip(places, shares, strict=True)
            ],
        }
        for sequence, places, shares in zip(
            sequences, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]


def _positions(loaded: Loaded) -> int | None:
    assert isinstance(loaded.backbone, TextBackbone)
    return loaded.backbone.positions
