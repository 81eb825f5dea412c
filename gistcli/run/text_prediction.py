"""`gist predict` on text: what a language model writes, or classes and values of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gistcli.backbones.prefix_file import Stored
from gistcli.backbones.text import TextBackbone
from gistcli.data.base import some
from gistcli.data.text import (
    Encoder,
    Example,
    Plain,
    TextOptions,
    TextSplit,
    Tokenizer,
    encode_prompts,
    encode_sources,
    open_template,
    open_tokenizer,
    read_unanswered,
)
from gistcli.data.text.records import Row, find_rows
from gistcli.errors import DataError, Refused
from gistcli.evaluate import classify
from gistcli.evaluate.language.generation import Decoding, generate
from gistcli.evaluate.language.records import write_alpaca_eval, write_json_lines
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.reporting import Reporter
from gistcli.run.episode_options import TASKS as EPISODIC
from gistcli.run.in_front import as_put, in_front, open_front, template_of
from gistcli.run.loading import Loaded
from gistcli.run.texts import text_options

WRITES = ("causal_lm", "seq2seq", *EPISODIC)
"""Tasks of networks that write text."""
MOST = 256
"""Tokens of an answer where nobody says."""
LONGEST = 2048
"""Tokens of prompt and answer together of AlpacaEval, as GIFT's tables were made."""
ALPACA_EVAL = Decoding(max_length=LONGEST, no_repeat_ngram=5, repetition_penalty=1.1)


@dataclass(frozen=True)
class Asked:
    """What `gist predict` was asked for on text.

    Attributes:
        files: with prompts, chats or texts.
        prompts: from the command line.
        top_k: classes of a text.
        max_new_tokens: of each answer, at most; None for MOST, for AlpacaEval as published.
        temperature: 0 takes the likeliest token each time.
        seed: of the draws above 0.
        generator: answers to AlpacaEval's instructions, under this name; None for other answers.
        prefix: a file of one, or the folder around it, for in front of every prompt.
    """

    files: Sequence[Path] = ()
    prompts: Sequence[str] = ()
    top_k: int = 5
    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    generator: str | None = None
    prefix: Path | None = None

    def decoding(self) -> Decoding:
        """How tokens are chosen."""
        if self.generator is not None:
            return replace(ALPACA_EVAL, max_new_tokens=self.max_new_tokens or LONGEST)
        return Decoding(
            max_new_tokens=self.max_new_tokens or MOST,
            sample=self.temperature > 0,
            temperature=self.temperature or 1.0,
            seed=self.seed,
        )


def predict_text(
    loaded: Loaded, asked: Asked, output: Path | None, reporter: Reporter
) -> dict[str, Any]:
    """Answers, classes or values, in the order of the files and rows.

    Args:
        loaded: a run or merged folder whose network reads text.
        asked: what for.
        output: a file of JSON lines; None writes none.
        reporter: gets all talk.

    Raises:
        DataError: rows that cannot be used, or prompts that leave no room for an answer.
        Refused: a picture's or table's name for the output, or a prefix where nothing is written.
        GistError: as `open_front`.
    """
    if output is not None and output.suffix.lower() not in (".jsonl", ".json"):
        raise Refused(
            f"--output {output} becomes a file of JSON lines, one for each text.",
            "Choose a name such as predictions.jsonl.",
        )
    instructions: Sequence[Row] = ()
    if asked.generator is not None:
        _require_alpaca_eval(loaded, asked, output)
        instructions = _instructions(asked.files)
    recipe = loaded.recipe
    options = text_options(recipe.data) if recipe is not None else TextOptions()
    tokenizer = open_tokenizer(loaded.backbone.origin.config["folder"])
    rows = (_answers if loaded.task in WRITES else _outputs)(
        loaded, asked, options, tokenizer, reporter
    )
    if output is not None and asked.generator is not None:
        _write_alpaca_eval(output, asked.generator, instructions, rows)
    elif output is not None:
        write_json_lines(output, rows)
    return {"examples": len(rows), "predictions": rows}


def _require_alpaca_eval(loaded: Loaded, asked: Asked, output: Path | None) -> None:
    """Whether answers can be given to AlpacaEval's instructions.

    Raises:
        Refused: something else than files of instructions, or decoding that is not the published.
    """
    wrong = [
        text
        for bad, text in (
            (loaded.task not in WRITES, f"{loaded.name} writes no answers"),
            (bool(asked.prompts), "--prompt is no instruction of the benchmark"),
            (asked.temperature > 0, "--temperature: the published decoding draws nothing"),
            (output is None or output.suffix.lower() != ".json", "there is no -o FILE.json"),
        )
        if bad
    ]
    if wrong:
        raise Refused(
            f"--alpaca-eval: {'; '.join(wrong)}.",
            "As in `gist predict RUN alpaca_eval.json --alpaca-eval -o outputs.json`.",
        )


def _instructions(files: Sequence[Path]) -> list[Row]:
    """The rows of AlpacaEval's files.

    Raises:
        DataError: rows without an instruction.
    """
    found = [row for path in files for rows in find_rows(path)[0].values() for row in rows]
    bare = [row.origin for row in found if not isinstance(row.values.get("instruction"), str)]
    if bare:
        raise DataError(
            f"{some(bare, 'row', shown=5)} without an `instruction`, which AlpacaEval asks.",
            "Give its file: a list of {instruction, dataset}.",
        )
    return found


def _write_alpaca_eval(
    output: Path, generator: str, asked: Sequence[Row], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Outputs beside the instructions as the files have them."""
    write_alpaca_eval(
        output,
        [str(row.values["instruction"]) for row in asked],
        [str(row["text"]) for row in rows],
        datasets=[str(row.values.get("dataset") or "unknown") for row in asked],
        generator=generator,
    )


def _answers(
    loaded: Loaded, asked: Asked, options: TextOptions, tokenizer: Tokenizer, reporter: Reporter
) -> list[dict[str, Any]]:
    stored = None if asked.prefix is None else open_front(asked.prefix, loaded, tokenizer)
    if stored is None and loaded.task in EPISODIC and isinstance(loaded.tuner, HyperTuner):
        reporter.say("There is no --prefix: answers come without examples.")
    prefix, positions = None if stored is None else stored.prefix, _positions(loaded)
    examples, prompts = _prompts(loaded, asked, options, tokenizer, stored)
    decoding = asked.decoding()
    if prefix is not None and positions is not None:
        most = positions - prefix.length
        decoding = replace(decoding, max_length=min(decoding.max_length or most, most))
    with in_front(loaded.tuner, prefix):
        written = generate(
            loaded.tuner,
            tokenizer,
            prompts,
            decoding,
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


def _prompts(
    loaded: Loaded,
    asked: Asked,
    options: TextOptions,
    tokenizer: Tokenizer,
    stored: Stored | None,
) -> tuple[list[Example], list[list[int]]]:
    """What is asked, and its tokens, which leave room for a prefix and an answer."""
    task = loaded.task
    if task in EPISODIC:  # which task a question is of makes no difference
        task = "causal_lm"
        columns = {role: name for role, name in options.columns.items() if role != "task"}
        options = replace(options, columns=columns)
    template = open_template(tokenizer, options.chat_template)
    examples: list[Example] = [
        Plain(text, f"--prompt {n}") for n, text in enumerate(asked.prompts, 1)
    ]
    for path in asked.files:
        examples += read_unanswered(path, options, task=task, templated=template is not None)
    if task == "seq2seq":
        most = tokenizer.max_length(options.max_length, _positions(loaded))
        return examples, encode_sources(examples, tokenizer, template, most)
    most = tokenizer.max_length(None, _positions(loaded)) - 1
    if stored is not None:
        most -= stored.prefix.length
    form = template_of(loaded, stored)
    put = [as_put(example, form) for example in examples]
    return examples, encode_prompts(put, tokenizer, template, most)


def _outputs(
    loaded: Loaded, asked: Asked, options: TextOptions, tokenizer: Tokenizer, reporter: Reporter
) -> list[dict[str, Any]]:
    if asked.prompts or asked.prefix is not None:
        flag = "--prompt" if asked.prompts else "--prefix"
        raise Refused(
            f"{loaded.name} answers no {flag}: it is no language model.", "Give a file alone."
        )
    examples: list[Example] = []
    for path in asked.files:
        examples += read_unanswered(path, options, task=loaded.task)
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
    names = [sequence.name for sequence in sequences]
    if loaded.task == "regression":
        values = found.values.tolist()
        return [{"name": n, "value": value} for n, value in zip(names, values, strict=True)]
    return _classes(names, found, loaded.classes, asked.top_k)


def _classes(
    names: Sequence[str], found: classify.Predictions, classes: Sequence[str], top_k: int
) -> list[dict[str, Any]]:
    best = found.probabilities.topk(min(top_k, len(classes)), dim=1)
    return [
        {
            "name": name,
            "class": classes[places[0]],
            "probability": shares[0],
            "top": [
                {"class": classes[k], "probability": p} for k, p in zip(places, shares, strict=True)
            ],
        }
        for name, places, shares in zip(
            names, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]


def _positions(loaded: Loaded) -> int | None:
    assert isinstance(loaded.backbone, TextBackbone)
    return loaded.backbone.positions
