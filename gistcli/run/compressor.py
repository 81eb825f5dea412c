"""A trained hypernetwork with what it takes to read examples: tokenizer, template, budgets."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gistcli.artifacts.tuner_file import TunerInfo
from gistcli.backbones.prefix import Prefix
from gistcli.backbones.prefix_file import Made
from gistcli.data.episodes import Episode, EpisodeEncoder, Task, demonstrate, read_tasks
from gistcli.data.episodes.natural import open_natural
from gistcli.data.text import TextOptions, Tokenizer
from gistcli.data.text.records import read_rows
from gistcli.errors import BaseMismatch, DataError, NotFound, RecipeError, Refused
from gistcli.evaluate.language.held_out import compressed
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.reporting import Reporter
from gistcli.run.episode_options import options_of, tokenizer_hash

HINT = "Give a run that was trained with a section hyper (context: gists)."
ROWS = "Give a file of one task, whose rows are {prompt, completion} or {text, label}."


@dataclass(frozen=True)
class Compressor:
    """Makes prefixes.

    Attributes:
        tuner: attached, with its trained state.
        encoder: of examples, by the options of the run.
        name: of the run, for messages.
        precision: fp32 or bf16 autocast.
        state: SHA-256 of the run's tensors.
    """

    tuner: HyperTuner
    encoder: EpisodeEncoder
    name: str
    precision: str = "fp32"
    state: str = ""

    def read(self, task: Task, reporter: Reporter) -> Episode:
        """The items of a task as far as they fit, which is told where some do not.

        Raises:
            DataError: not even one fits.
        """
        labels = Counter(item.completion for item in task.items)
        if len(labels) == 1 and len(task.items) > 1:
            reporter.warn(
                f"{task.name}: all {len(task.items)} examples have the answer "
                f"{next(iter(labels))!r}: nothing about others can be learnt from them"
            )
        episode = demonstrate(task, self.encoder)
        if episode.left:
            options = self.encoder.options
            reporter.warn(
                f"{task.name}: {episode.shown} of {len(task.items)} examples are read, the others "
                f"are over the budget of the run ({options.example_tokens} tokens, "
                f"{options.max_examples} examples)"
            )
        return episode

    def prefix(self, episode: Episode) -> Prefix:
        """The prefix of an episode's examples: float32, N = 1."""
        return compressed(self.tuner, [episode], self.encoder, self.precision)

    @property
    def adapted(self) -> bool:
        """Whether texts are read by a network that was adapted to prefixes."""
        return self.tuner.method.hyper.adapt_downstream

    def made(self, episode: Episode) -> Made:
        """What the file of a prefix says of how it was made."""
        return Made(
            examples=hashlib.sha256(episode.context.tobytes()).hexdigest(),
            source_tokens=len(episode.context),
            tokenizer=tokenizer_hash(self.encoder.tokenizer),
            rope=getattr(self.tuner.network.config, "rope_parameters", None),
            adapted=self.adapted,
            template=self.encoder.options.template,
            tuner=self.state,
        )


def compressor(
    tuner: object, info: TunerInfo, tokenizer: Tokenizer, name: str, precision: str = "fp32"
) -> Compressor:
    """Of a run that was loaded.

    Raises:
        Refused: no hypernetwork, or one that makes no prefixes.
        BaseMismatch: another tokenizer than in training.
    """
    if not isinstance(tuner, HyperTuner) or not tuner.method.hyper.compresses:
        raise Refused(f"{name} makes no prefixes of examples.", HINT)
    known = info.extra.get("tokenizer")
    if known is not None and known != tokenizer_hash(tokenizer):
        raise BaseMismatch(
            f"{name}: the tokenizer beside the model is not the one that the run was trained with.",
            "Put the original tokenizer back, or say where it lies with the model: --model PATH.",
        )
    options = replace(
        options_of(tuner.method.hyper.model_dump()),
        mode="sample",
        symbols=False,
        template=info.extra.get("template", "input-output"),
    )
    return Compressor(tuner, EpisodeEncoder(tokenizer, options), name, precision, info.sha256)


def read_examples(path: Path) -> Task:
    """The only task of a file of examples; a column `options` holds those of its rows.

    Raises:
        NotFound, DataError: nothing there, no example, or several tasks.
    """
    if path.is_dir():
        raise NotFound(f"{path} is a folder, and examples stand in a file.", ROWS)
    try:
        tasks, _ = read_tasks(path, TextOptions(columns=_columns(path)))
    except (DataError, RecipeError) as error:
        # there is no recipe here whose keys a hint could name
        hint = ROWS if "data." in error.hint else error.hint
        raise DataError(error.message, hint) from error
    if not tasks[0].items:
        raise DataError(f"{path} holds no example.", ROWS)
    if len(tasks) > 1:
        names = ", ".join(task.name for task in tasks[:5])
        raise DataError(f"{path} holds {len(tasks)} tasks ({names}), and a prefix is of one.", ROWS)
    return tasks[0]


def _columns(path: Path) -> dict[str, str]:
    if not path.is_file() or open_natural(path) is not None:
        return {}
    named = any("options" in row.values for row in read_rows(path)[:1])
    return {"options": "options"} if named else {}


def with_known_options(task: Task, known: Sequence[str]) -> Task:
    """Items that have the options of other examples beside their own, where those are theirs."""
    own = {option for item in task.items for option in item.options}
    answers = {item.completion for item in task.items}
    union = tuple(dict.fromkeys([*known, *sorted(own)]))
    if not known or not answers <= set(union):
        return task
    return replace(task, items=tuple(replace(item, options=union) for item in task.items))
