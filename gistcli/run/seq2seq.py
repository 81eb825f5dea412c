"""Text with an encoder-decoder: targets of sources, or classes that it writes as words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gistcli.backbones import Backbone
from gistcli.backbones.seq2seq import Seq2Seq
from gistcli.backbones.text import TextBackbone
from gistcli.data import Catalog
from gistcli.data.text import (
    ChatTemplate,
    Encoder,
    Example,
    Labelled,
    Plain,
    TargetEncoder,
    Tokenizer,
    encode_sources,
)
from gistcli.errors import RecipeError, Refused, did_you_mean
from gistcli.recipe import Recipe
from gistcli.run.texts import CausalText, TextClassification, TextTask, text_options

Words = Sequence[str] | Mapping[str, str] | None
TASKS = ("auto", "classification", "seq2seq")


class Seq2SeqText(CausalText):
    """Prompts with completions, and chats, of which the answer is written behind an encoded source.

    Raises:
        RecipeError: packed rows, or more to learn than the target.
    """

    task: ClassVar[str] = "seq2seq"

    def __init__(
        self, recipe: Recipe, catalog: Catalog, tokenizer: Tokenizer, template: ChatTemplate | None
    ) -> None:
        super().__init__(recipe, catalog, tokenizer, template)
        data, problems = recipe.data, []
        if data.packing:
            problems.append("data.packing: an encoder reads one source a row")
        if data.train_on == "all":
            problems.append("data.train_on: an encoder-decoder learns the target alone, never all")
        if problems:
            raise RecipeError(f"{'; '.join(problems)}.", "Leave it out, or choose a decoder.")

    def fit_to(self, backbone: Backbone) -> None:
        """It writes, and classifies no more."""
        assert isinstance(backbone, Seq2Seq)
        backbone.set_label_words((), ())

    def encoder(self, backbone: TextBackbone) -> Encoder:
        """Of sources and targets."""
        options, tokenizer = text_options(self.recipe.data), self.tokenizer
        most = tokenizer.max_length(options.max_length, backbone.positions)
        return TargetEncoder(
            tokenizer,
            options,
            most,
            self.template,
            max_target_length=options.max_target_length or most,
        )

    def encode_prompts(self, examples: Sequence[Example], max_length: int) -> list[list[int]]:
        """Sources, whole."""
        return encode_sources(examples, self.tokenizer, self.template, max_length)

    @property
    def longest(self) -> int:
        """Tokens of the longest target."""
        return max(len(sequence.labels) for sequence in self.splits["train"].sequences)


class LabelWords(TextClassification):
    """Texts, or pairs of them, whose class is the word that the decoder begins with.

    Attributes:
        words: label words of the classes, in their order.
        token_ids: the first token of each.

    Raises:
        RecipeError: words that are missing, unknown to the tokenizer, or begin alike.
    """

    def __init__(
        self, recipe: Recipe, catalog: Catalog, tokenizer: Tokenizer, template: ChatTemplate | None
    ) -> None:
        super().__init__(recipe, catalog, tokenizer, template)
        self.words: list[str] = []
        self.token_ids: list[int] = []

    def fit_to(self, backbone: Backbone) -> None:
        """Tells the network the words of its classes."""
        assert isinstance(backbone, Seq2Seq)
        self.words = words_of(self.classes, self.recipe.task.label_words)
        self.token_ids = first_tokens(self.words, self.tokenizer)
        backbone.set_label_words(self.words, self.token_ids)

    def describe(self) -> dict[str, Any]:
        """Classes, and the words that stand for them."""
        extra = {"label_words": self.words, "label_token_ids": self.token_ids}
        return {**super().describe(), "extra": extra}


def kind_for(recipe: Recipe, example: Example) -> type[TextTask]:
    """What an encoder-decoder does with examples of a kind.

    Raises:
        Refused: a task that is not for encoder-decoders, or documents.
    """
    name, asked = recipe.model.name, recipe.task.type
    if asked not in TASKS or (isinstance(example, Labelled) and isinstance(example.label, float)):
        task = asked if asked not in TASKS else "regression"
        raise Refused(
            f"{name} is an encoder-decoder, which writes words: {task} is none of its tasks.",
            "Use task.type seq2seq (values as the text of completions), or classification.",
        )
    if isinstance(example, Plain):
        raise Refused(
            f"{name} is an encoder-decoder, which learns targets of sources, and "
            f"{recipe.data.path} holds documents.",
            "Name the columns with data.columns ({prompt: ..., completion: ...}), or choose a "
            "decoder.",
        )
    return LabelWords if isinstance(example, Labelled) else Seq2SeqText


def words_of(classes: Sequence[str], asked: Words) -> list[str]:
    """The label word of every class; without any given, the names of the classes.

    Raises:
        RecipeError: not one word for every class.
    """
    if asked is None:
        return list(classes)
    if isinstance(asked, Mapping):
        strange = sorted(asked.keys() - set(classes))
        if strange:
            raise RecipeError(
                f"task.label_words: {', '.join(strange)} is no class.",
                did_you_mean(strange[0], classes),
            )
        missing = [name for name in classes if name not in asked]
        if missing:
            raise RecipeError(
                f"task.label_words: no word for {', '.join(missing)}.", "Give one for every class."
            )
        return [asked[name] for name in classes]
    if len(asked) != len(classes):
        raise RecipeError(
            f"task.label_words: {len(asked)} words for {len(classes)} classes "
            f"({', '.join(classes)}).",
            "Give one for every class, in this order.",
        )
    return list(asked)


def first_tokens(words: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """The token that tells each label word from the others: its first.

    Raises:
        RecipeError: words without a token of the vocabulary, or two that begin with the same.
    """
    encoded = tokenizer.ids(list(words))
    unknown = tokenizer.base.unk_token_id
    problems = [
        f"{word!r} is unknown to the tokenizer"
        for word, ids in zip(words, encoded, strict=True)
        if not ids or ids[0] == unknown
    ]
    first: dict[int, str] = {}
    for word, ids in zip(words, encoded, strict=True):
        if ids and ids[0] != unknown and ids[0] in first:
            piece = tokenizer.base.convert_ids_to_tokens(ids[0])
            problems.append(f"{first[ids[0]]!r} and {word!r} begin with the same token {piece!r}")
        elif ids:
            first[ids[0]] = word
    if problems:
        raise RecipeError(
            f"Classes are told apart by the first token of their label words: "
            f"{'; '.join(problems)}.",
            "Give other words with task.label_words, such as {negative: bad, positive: good}.",
        )
    return [ids[0] for ids in encoded]
