"""Text: classified, or written on by a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from gistcli import registry
from gistcli.backbones import Backbone
from gistcli.backbones.locating import locate
from gistcli.backbones.text import TextBackbone
from gistcli.backbones.text_classes import family_of_class
from gistcli.data import Catalog
from gistcli.data.text import (
    ChatTemplate,
    Encoder,
    Example,
    Labelled,
    TextOptions,
    TextSplit,
    Tokenizer,
    encode_prompts,
    examples_of,
    load_texts,
    open_template,
    open_texts,
    open_tokenizer,
)
from gistcli.errors import RecipeError, Refused
from gistcli.evaluate.language.perplexity import perplexity
from gistcli.methods.base import Method, Tuner
from gistcli.methods.prefix import PrefixTuning
from gistcli.methods.prompt import Prompt
from gistcli.objectives import Objective
from gistcli.objectives.chunked import choose_chunk
from gistcli.recipe import DataSection, Recipe
from gistcli.reporting import Reporter
from gistcli.run.answering import Answering
from gistcli.run.classification import Classification
from gistcli.run.episode_options import episodic_task
from gistcli.run.regression import Regression
from gistcli.run.shelf import Shelf
from gistcli.run.workload import Setting, Workload
from gistcli.train.memory import free_memory, room_for_logits


class TextTask(Workload):
    """Text in the tokens of the model's own tokenizer.

    Attributes:
        tokenizer: of the model.
        template: of its chats, where there is one.
    """

    splits: Mapping[str, TextSplit]

    def __init__(
        self, recipe: Recipe, catalog: Catalog, tokenizer: Tokenizer, template: ChatTemplate | None
    ) -> None:
        super().__init__(recipe, catalog)
        self.tokenizer, self.template = tokenizer, template

    def require_sense(self) -> None:
        """Whether the keys of `eval` fit.

        Raises:
            RecipeError: a metric that is not measured here; a protocol for what writes no answers.
        """
        super().require_sense()
        asked = self.recipe.eval.protocol
        if asked is not None and not isinstance(self, Answering):
            raise RecipeError(
                f"eval.protocol: {asked} is for language models, and the task is {self.task}.",
                "Leave it out, or choose task.type causal_lm or seq2seq.",
            )

    def say(self, reporter: Reporter) -> None:
        """The task, the examples by split, and what is odd about them."""
        reporter.say(f"task: {self.task}")
        super().say(reporter)

    def load(self, tuner: Tuner, setting: Setting, shelf: Shelf, reporter: Reporter) -> None:
        """Encode all examples."""
        self.read(tuner, self.needed, setting.device, reporter)

    def read(
        self, tuner: Tuner, splits: Sequence[str], device: torch.device, reporter: Reporter
    ) -> None:
        """Whatever measuring on some splits asks for."""
        self.encode(tuner.backbone, splits, device, reporter)

    def encode(
        self, backbone: Backbone, splits: Sequence[str], device: torch.device, reporter: Reporter
    ) -> None:
        """Encode the examples of some splits.

        Raises:
            DataError: nothing to learn in an example, or labels that are none of the classes.
            RecipeError: chats without a template; a max_length that the model does not have.
        """
        assert isinstance(backbone, TextBackbone)
        encoder = self.encoder(backbone)
        self.splits = {
            split: load_texts(
                f"{self.catalog.name} {split}",
                examples_of(self.catalog, split),
                encoder,
                train=split == "train",
                classes=self.classes or None,
                device=device,
                reporter=reporter,
            )
            for split in splits
        }

    def encoder(self, backbone: TextBackbone) -> Encoder:
        """Examples to tokens, by the keys of the recipe."""
        options = text_options(self.recipe.data)
        most = self.tokenizer.max_length(options.max_length, backbone.positions)
        return Encoder(self.tokenizer, options, most, self.template)

    def compute_once(self, tuner: Tuner, setting: Setting, reporter: Reporter) -> None:
        """Nothing: every batch goes through the network."""

    def describe(self) -> dict[str, Any]:
        """Classes."""
        return {"classes": self.classes, "preprocessing": {}}

    @staticmethod
    def exports(run: str, method: Method, refusal: str | None) -> list[list[str]]:
        """Merge; what stands in front of a text goes into a folder for PEFT."""
        if refusal is None:
            return [["gist", "merge", run, "-o", f"{run}-merged"]]
        if isinstance(method, PrefixTuning | Prompt):
            return [["gist", "merge", run, "-o", f"{run}-peft", "--format", "peft"]]
        return []

    @staticmethod
    def commands(run: str, method: Method) -> list[list[str]]:
        """Predict."""
        return [["gist", "predict", run, "INPUTS.jsonl", "-o", "predictions.jsonl"]]


class TextClassification(TextTask, Classification):
    """Texts, or pairs of them, with one class each."""


class TextRegression(TextTask, Regression):
    """Texts, or pairs of them, with one value each."""


class NextToken(TextTask):
    """A language model learns the next token, wherever one is supervised."""

    metric: ClassVar[str] = "loss"

    def objective(self, tuner: Tuner, setting: Setting) -> Objective:
        """Cross-entropy of the next token, in pieces where all logits would not fit."""
        rows = setting.plan.micro_batch_size or setting.plan.batch_size
        vocabulary = len(tuner.backbone.model.get_output_embeddings().weight)  # type: ignore[operator]
        available = room_for_logits(free_memory(setting.device), setting.reserved, vocabulary)
        chunk = choose_chunk(rows * self.longest, vocabulary, available)
        kind = registry.resolve("objectives", self.objective_name)
        smoothing = self.recipe.optim.label_smoothing
        made: Objective = kind(tuner, label_smoothing=smoothing, chunk_tokens=chunk)
        return made

    @property
    def objective_name(self) -> str:
        """In the registry."""
        return self.task

    @property
    def longest(self) -> int:
        """Positions of a row that can be learnt, at most."""
        return int(self.splits["train"].unit_lengths.max())

    def likelihood(
        self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter
    ) -> dict[str, Any]:
        """Loss a token, and perplexity."""
        return self.over(perplexity, tuner, split, setting, reporter)


class CausalText(NextToken, Answering):
    """Chats, completions and documents."""

    task: ClassVar[str] = "causal_lm"

    def read(
        self, tuner: Tuner, splits: Sequence[str], device: torch.device, reporter: Reporter
    ) -> None:
        """Examples as tokens, and what is answered at the end."""
        super().read(tuner, splits, device, reporter)
        self.ask(tuner, splits, reporter)

    def encode_prompts(self, examples: Sequence[Example], max_length: int) -> list[list[int]]:
        """As in training, whole."""
        return encode_prompts(examples, self.tokenizer, self.template, max_length)


def text_options(data: DataSection) -> TextOptions:
    """The keys of a recipe that only text has."""
    return TextOptions(
        format=data.format,
        columns={str(role): name for role, name in (data.columns or {}).items()},
        prompt=data.prompt,
        replace=data.replace or {},
        chat_template=data.chat_template,
        train_on=data.train_on,
        max_length=data.max_length,
        max_target_length=data.max_target_length,
        truncate=data.truncate,
        packing=data.packing,
        group_by_length=data.group_by_length,
        skip=data.on_error == "skip",
    )


def open_text(
    recipe: Recipe, pinned: Path | None, *, model: str | None = None, whole: bool = False
) -> TextTask:
    """The data of a recipe whose model reads text, and the task that they are for.

    Args:
        recipe: resolved.
        pinned: a `splits.csv` whose splits must be reproduced.
        model: where the model now lies, if it moved.
        whole: divide nothing, for evaluation on other data.

    Raises:
        NotFound: no tokenizer beside the model, or no data.
        Refused: an encoder for anything but classes or values.
        GistError: data that cannot be used.
    """
    if episodic_task(recipe) is not None:
        from gistcli.run.episodic import open_episodic  # stands on the classes above

        return open_episodic(recipe, pinned, model=model, whole=whole)
    source = locate(model or recipe.model.name, need_weights=False)
    assert source.folder is not None
    tokenizer, options = open_tokenizer(source.folder), text_options(recipe.data)
    template = open_template(tokenizer, options.chat_template)
    asked = None if recipe.task.type == "auto" else recipe.task.type
    catalog = open_texts(
        recipe.data,
        options,
        base=Path.cwd(),
        task=asked,
        templated=template is not None,
        pinned=pinned,
        whole=whole,
    )
    examples = examples_of(catalog, next(iter(catalog.splits)))
    if family_of_class(source.architecture) == "seq2seq":
        from gistcli.run.seq2seq import kind_for  # stands on the classes above

        return kind_for(recipe, examples[0])(recipe, catalog, tokenizer, template)
    if asked == "seq2seq":
        raise Refused(
            f"{recipe.model.name} is no encoder-decoder, for which seq2seq is.",
            "Use task.type causal_lm, or choose a T5.",
        )
    kind = _kind(examples)
    if kind is CausalText and source.architecture.endswith("ForSequenceClassification"):
        raise Refused(
            f"{recipe.model.name} is an encoder, which classifies texts, and {catalog.name} has "
            "no labels.",
            "Name the column with data.columns.label=NAME, or choose a decoder.",
        )
    return kind(recipe, catalog, tokenizer, template)


def _kind(examples: Sequence[Any]) -> type[TextTask]:
    first = examples[0]
    if not isinstance(first, Labelled):
        return CausalText
    return TextRegression if isinstance(first.label, float) else TextClassification
