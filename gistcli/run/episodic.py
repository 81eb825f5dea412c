"""Runs on rows of examples, gists and queries: many tasks, or documents cut into segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from gistcli.artifacts.rundir import RunDirectory
from gistcli.backbones import Backbone
from gistcli.backbones.locating import locate
from gistcli.backbones.text import TextBackbone
from gistcli.backbones.text_classes import family_of_class
from gistcli.data import Catalog
from gistcli.data.episodes import (
    MOST_QUERIES,
    Episode,
    EpisodeEncoder,
    EpisodeOptions,
    EpisodeSplit,
    Rows,
    SegmentSplit,
    held_out,
    open_tasks,
    passages,
    tasks_of,
)
from gistcli.data.episodes.family import NAME as BUILT_IN
from gistcli.data.text import Example, Tokenizer, examples_of, open_texts, open_tokenizer
from gistcli.errors import RecipeError, Refused
from gistcli.evaluate.language.controls import control_losses
from gistcli.evaluate.language.held_out import NEW_TOKENS, HeldOut
from gistcli.evaluate.language.records import write_json_lines
from gistcli.evaluate.language.task_scores import METRICS, TaskScores, score_tasks
from gistcli.hyper.section import WithHyper
from gistcli.methods.base import Method, Tuner
from gistcli.recipe import Recipe
from gistcli.reporting import Reporter
from gistcli.run.episode_options import (
    MEASURED_ROWS,
    enough_documents,
    episode_options,
    episodic_task,
    tokenizer_hash,
)
from gistcli.run.texts import NextToken, text_options
from gistcli.run.workload import Measured, Setting, Workload

USELESS = (
    "data.max_target_length", "data.truncate", "data.packing", "data.group_by_length",
    "data.train_on", "data.chat_template",
)  # fmt: skip
"""Keys of texts that have no say where rows are made of examples and queries."""


class Episodic(NextToken):
    """Rows of context, gists and queries, which are made where they are used.

    Attributes:
        options: budgets, and what is drawn; known once the network is.
    """

    splits: Mapping[str, Rows]  # type: ignore[assignment]
    options: EpisodeOptions

    def __init__(self, recipe: Recipe, catalog: Catalog, tokenizer: Tokenizer) -> None:
        super().__init__(recipe, catalog, tokenizer, None)

    @property
    def measures(self) -> frozenset[str]:
        """Those of a language model."""
        return frozenset(("loss", "perplexity"))

    def require_sense(self) -> None:
        """Whether the keys of `eval` and `data` fit.

        Raises:
            RecipeError: a metric that is not measured here, or keys that have no say.
        """
        Workload.require_sense(self)
        usual = type(self.recipe.data)(path=self.recipe.data.path)
        given = [key for key in USELESS if getattr(self.recipe.data, key.partition(".")[2])
                 != getattr(usual, key.partition(".")[2])]  # fmt: skip
        if self.recipe.hyper is not None and self.recipe.data.max_length is not None:
            given.append("data.max_length")
        if given:
            raise RecipeError(
                f"{', '.join(given)}: nothing comes of it where rows are examples and queries.",
                "Leave it out: hyper.example_tokens and hyper.query_tokens say how long they are.",
            )
        if self.recipe.eval.protocol is not None:
            raise RecipeError(
                f"eval.protocol: {self.task} has a measure of its own.", "Leave it out."
            )

    @property
    def objective_name(self) -> str:
        """A hypernetwork's own; else that of a language model, which it amounts to."""
        return self.task if self.recipe.hyper is not None else "causal_lm"

    @property
    def longest(self) -> int:
        """Tokens of all queries of a row."""
        return self.options.queries * self.options.query_tokens

    def encode(
        self, backbone: Backbone, splits: Sequence[str], device: torch.device, reporter: Reporter
    ) -> None:
        """Whatever the rows of some splits are made of.

        Raises:
            RecipeError: budgets that the network, or the examples, have no room for.
            DataError: data that no row can be made of.
        """
        assert isinstance(backbone, TextBackbone)
        self.options = episode_options(self.recipe, backbone.positions)
        self.splits = {split: self.rows(split, device) for split in splits}
        for split, rows in self.splits.items():
            rows.tell(f"{self.name} {split}", reporter)

    def rows(self, split: str, device: torch.device) -> Rows:
        """The rows of a split."""
        raise NotImplementedError

    def write_outputs(self, path: Path, measured: Measured) -> None:
        """Nothing but figures is kept."""

    def keep(self, run: RunDirectory, split: str, measured: Measured) -> None:
        """Whatever `write_outputs` has."""
        self.write_outputs(run.answers_path(split), measured)

    def result(self, measured: Mapping[str, Measured]) -> dict[str, Any]:
        """Hashes of the data, and the tokens that the loss is a mean of."""
        tokens = {split: one.figures.get("tokens") for split, one in measured.items()}
        return {**super().result(measured), "intervals": {}, "tokens": tokens}

    def describe(self) -> dict[str, Any]:
        """What prefixes made later have to know: the tokenizer, and how examples are put."""
        extra = {"tokenizer": tokenizer_hash(self.tokenizer), "template": self.template_name}
        return {**super().describe(), "extra": extra}

    @property
    def template_name(self) -> str:
        """Of `EpisodeOptions.template`."""
        return "input-output"

    @staticmethod
    def commands(run: str, method: Method) -> list[list[str]]:
        """Compress examples, where that is what was learnt."""
        if isinstance(method, WithHyper) and method.hyper.compresses:
            return [["gist", "compress", run, "EXAMPLES.jsonl", "-o", f"{run}-prefix"]]
        return NextToken.commands(run, method)


class Hypertuning(Episodic):
    """Tasks, some of them held out whole, whose answers follow from examples of the same task.

    Attributes:
        held_out: split -> an episode a task.
    """

    task: ClassVar[str] = "hypertuning"
    held_out: Mapping[str, Sequence[Episode]]

    @property
    def measures(self) -> frozenset[str]:
        """Those of a language model, and of its answers on held-out tasks."""
        return super().measures | {*METRICS}

    @property
    def figure(self) -> str:
        """Accuracy, where queries have options."""
        tasks = tasks_of(self.catalog, self.names[-1])
        ranked = any(len(task.items[0].options) > 1 for task in tasks)
        return METRICS[0 if ranked else 1]

    def rows(self, split: str, device: torch.device) -> EpisodeSplit:
        """Episodes: for training drawn anew in every epoch."""
        tasks, options = tasks_of(self.catalog, split), self.options
        if split != "train":
            options = self._measured(sum(len(task.items) for task in tasks))
        return EpisodeSplit(tasks, EpisodeEncoder(self.tokenizer, options), device=device)

    def _measured(self, items: int) -> EpisodeOptions:
        mode = "sample" if self.options.mode == "copy" else self.options.mode
        rows = max(1, items // self.options.queries)
        return replace(self.options, mode=mode, episodes=min(rows, MEASURED_ROWS))

    def read(
        self, tuner: Tuner, splits: Sequence[str], device: torch.device, reporter: Reporter
    ) -> None:
        """Rows, and the episodes that are answered at the end."""
        super().read(tuner, splits, device, reporter)
        asked = [split for split in splits if split != "train"]
        self.held_out = {
            split: held_out(
                tasks_of(self.catalog, split),
                self.episode_encoder(split),
                queries=self.recipe.eval.limit or MOST_QUERIES,
            )
            for split in asked
        }

    def episode_encoder(self, split: str) -> EpisodeEncoder:
        """Of a split that was read."""
        rows = self.splits[split]
        assert isinstance(rows, EpisodeSplit)
        return rows.encoder

    def measure(self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter) -> Measured:
        """The loss; the answers, too, where one of their figures decides."""
        if self.recipe.eval.metric in METRICS:
            return self.conclude(tuner, split, setting, reporter)
        return Measured(self.likelihood(tuner, split, setting, reporter), None)

    def conclude(self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter) -> Measured:
        """The loss, and the answers to the queries of held-out tasks, which are the outputs.

        Of a tuner that is disabled the answers alone: its rows have gists, which only it knows.
        """
        loss = {}
        if tuner.switch.enabled:
            loss = self.likelihood(tuner, split, setting, reporter)
        episodes = self.held_out[split]
        asked = HeldOut(
            tuner,
            self.episode_encoder(split),
            setting.eval_batch_size,
            self.recipe.eval.max_new_tokens or NEW_TOKENS,
            setting.precision,
            reporter,
            f"{split} tasks",
        )
        scores = score_tasks(episodes, asked.answers(episodes))
        return Measured({**loss, **scores.figures()}, scores)

    def write_outputs(self, path: Path, measured: Measured) -> None:
        """JSON lines: every query with what was answered to it under every condition."""
        if isinstance(measured.outputs, TaskScores):
            write_json_lines(path, measured.outputs.rows)

    def result(self, measured: Mapping[str, Measured]) -> dict[str, Any]:
        """The scores of all tasks, intervals over tasks, and how many tasks there are."""
        scores = {s: m.outputs for s, m in measured.items() if isinstance(m.outputs, TaskScores)}
        return {
            **super().result(measured),
            "tasks": [{"split": s, **task} for s, one in scores.items() for task in one.tasks],
            "intervals": {f"{s}/{k}": v for s, one in scores.items()
                          for k, v in one.intervals().items()},
            "counts": {f"{s}/{k}": n for s, one in scores.items() for k, n in one.counts().items()},
        }  # fmt: skip

    @property
    def template_name(self) -> str:
        """Plain, where all tasks are those of a rule."""
        tasks = tasks_of(self.catalog, self.names[0])
        return "plain" if all(task.rule for task in tasks) else "input-output"


class Compression(Episodic):
    """Documents, of which a segment is told from the one before it and two compressed others."""

    task: ClassVar[str] = "compression"

    def rows(self, split: str, device: torch.device) -> SegmentSplit:
        """Segments: for training cut anew in every epoch."""
        documents = documents_of(self.catalog, split, self.options)
        return SegmentSplit(documents, self.tokenizer, self.options, device=device)

    def measure(self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter) -> Measured:
        """The loss of the segments C.

        Raises:
            Refused: the tuner is disabled, and the network alone knows no gists.
        """
        if not tuner.switch.enabled:
            raise Refused(
                "The untuned network knows no gists, and has no loss behind them.",
                "Leave --untuned out.",
            )
        return Measured(self.likelihood(tuner, split, setting, reporter), None)

    def conclude(self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter) -> Measured:
        """The loss, and between what it has to lie."""
        measured = self.measure(tuner, split, setting, reporter)
        controls = self.over(control_losses, tuner, split, setting, reporter)
        return Measured({**measured.figures, **controls}, None)

    @property
    def template_name(self) -> str:
        """As the built-in tasks are put, where it was trained on their texts."""
        return "plain" if self.catalog.name == BUILT_IN else "input-output"


EPISODIC: dict[str, type[Episodic]] = {
    "compression": Compression,
    "hypertuning": Hypertuning,
}


def documents_of(catalog: Catalog, split: str, options: EpisodeOptions) -> list[Example]:
    """The documents of a split; of the built-in tasks texts of as many pairs as fill a row."""
    tasks = tasks_of(catalog, split)
    if tasks:
        return [*passages(tasks, (options.example_tokens + options.query_tokens) // 2)]
    return examples_of(catalog, split)


def is_built_in(recipe: Recipe) -> bool:
    """Whether the data are the built-in tasks, which are documents as well."""
    return recipe.data.path == BUILT_IN and not Path(BUILT_IN).exists()


def kind_of_episodes(recipe: Recipe) -> type[Episodic] | None:
    """The workload of a recipe; None for others."""
    task = episodic_task(recipe)
    return None if task is None else EPISODIC[task]


def open_episodic(
    recipe: Recipe, pinned: Path | None, *, model: str | None = None, whole: bool = False
) -> Episodic:
    """The data of such a recipe; arguments as in `open_text`.

    Raises:
        Refused: the network is no decoder.
        GistError: no tokenizer, or data that cannot be used.
    """
    kind = kind_of_episodes(recipe)
    assert kind is not None
    source = locate(model or recipe.model.name, need_weights=False)
    assert source.folder is not None
    if family_of_class(source.architecture) != "causal":
        raise Refused(
            f"{recipe.model.name} is no decoder, for which {kind.task} is.",
            "Choose a causal language model.",
        )
    tokenizer, options = open_tokenizer(source.folder), text_options(recipe.data)
    if kind is Hypertuning or is_built_in(recipe):
        catalog = open_tasks(recipe.data, options, base=Path.cwd(), pinned=pinned, whole=whole)
    else:
        catalog = open_texts(
            recipe.data,
            options,
            base=Path.cwd(),
            task="causal_lm",
            pinned=pinned,
            whole=whole,
            enough=None if whole else enough_documents(recipe),
        )
    return kind(recipe, catalog, tokenizer)
