"""What a language model answers, and whether that is right: `eval.protocol`."""

from __future__ import annotations

import abc
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gistcli.artifacts.rundir import RunDirectory
from gistcli.backbones.seq2seq import Seq2Seq
from gistcli.data.base import some
from gistcli.data.text import Chat, ChatTemplate, Completion, Example, Tokenizer, examples_of
from gistcli.data.text.prompts import answer, prompt_text
from gistcli.errors import DataError, RecipeError
from gistcli.evaluate.language.answers import FIGURES, Answered, Query, answers, fits
from gistcli.evaluate.language.extraction import commonsense_answer, is_number
from gistcli.evaluate.language.protocols import PROTOCOLS, require_answers
from gistcli.evaluate.language.ranking import Question, encode_question
from gistcli.evaluate.language.records import write_json_lines
from gistcli.methods.base import Tuner
from gistcli.reporting import Reporter
from gistcli.run.workload import Measured, Setting, Workload

MOST_OPTIONS = 50
"""Different answers of data that may be ranked without being named as options."""
_SHOWN = 5


class Answering(Workload):
    """A language model that is measured by its loss, and by `eval.protocol` at the end.

    Attributes:
        tokenizer: of the model.
        template: of its chats, where there is one.
        queries: split -> what is answered there; made by `ask`.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    queries: Mapping[str, Sequence[Query]]

    @property
    def protocol(self) -> str | None:
        """The one that asks for answers; None where the loss is all."""
        asked = self.recipe.eval.protocol
        return asked if asked is not None and FIGURES[asked] else None

    @property
    def measures(self) -> frozenset[str]:
        """Those of the loss, and of the protocol."""
        return frozenset(("loss", "perplexity", *FIGURES[self.protocol or "perplexity"]))

    @property
    def figure(self) -> str:
        """The protocol's first; without one, the metric that decides."""
        return FIGURES[self.protocol][0] if self.protocol else super().figure

    def require_sense(self) -> None:
        """Whether the keys of `eval` fit.

        Raises:
            RecipeError: a metric that is not measured here, or keys of a protocol without one.
        """
        super().require_sense()
        section = self.recipe.eval
        asked = {"eval.limit": section.limit, "eval.max_new_tokens": section.max_new_tokens}
        given = [key for key, value in asked.items() if value is not None]
        if given and self.protocol is None:
            raise RecipeError(
                f"{' and '.join(given)}: nothing is answered without a protocol.",
                f"Set eval.protocol: {', '.join(name for name, own in FIGURES.items() if own)}.",
            )
        if section.max_new_tokens is not None and self.protocol == "rank":
            raise RecipeError("eval.max_new_tokens: rank writes nothing.", "Leave it out.")

    # --- measuring --------------------------------------------------------------------------

    @abc.abstractmethod
    def likelihood(
        self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter
    ) -> dict[str, Any]:
        """`n`, `tokens`, `loss` and `perplexity` of a split."""

    def measure(self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter) -> Measured:
        """The loss; the answers, too, where one of their figures decides."""
        metric = self.recipe.eval.metric
        if self.protocol is not None and metric in FIGURES[self.protocol]:
            return self.conclude(tuner, split, setting, reporter)
        return Measured(self.likelihood(tuner, split, setting, reporter), None)

    def conclude(self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter) -> Measured:
        """The loss, and by the protocol the answers, which are the outputs."""
        figures = self.likelihood(tuner, split, setting, reporter)
        if self.protocol is None:
            return Measured(figures, None)
        found = self.answer(tuner, split, setting, reporter)
        return Measured({**figures, **found.figures}, found.outputs)

    def answer(self, tuner: Tuner, split: str, setting: Setting, reporter: Reporter) -> Measured:
        """The figures of the protocol alone; the answers are the outputs."""
        assert self.protocol is not None
        found = answers(
            tuner,
            self.tokenizer,
            self.protocol,
            self.queries[split],
            setting.eval_batch_size,
            max_new_tokens=self.recipe.eval.max_new_tokens,
            precision=setting.precision,
            reporter=reporter,
            phase=f"{split} {self.protocol}",
        )
        return Measured(found.figures, found)

    def write_outputs(self, path: Path, measured: Measured) -> None:
        """JSON lines: every prompt with what was answered to it; nothing without a protocol."""
        if isinstance(measured.outputs, Answered):
            write_json_lines(path, measured.outputs.rows)

    def keep(self, run: RunDirectory, split: str, measured: Measured) -> None:
        """Every prompt with what was answered to it."""
        self.write_outputs(run.answers_path(split), measured)

    def result(self, measured: Mapping[str, Measured]) -> dict[str, Any]:
        """Tokens and answers that the figures rest on, intervals, hashes of the examples."""
        answered = {s: m.outputs for s, m in measured.items() if isinstance(m.outputs, Answered)}
        found = {
            **super().result(measured),
            "intervals": {
                f"{split}/{name}": list(interval)
                for split, one in answered.items()
                for name, interval in one.intervals.items()
            },
            "tokens": {s: m.figures.get("tokens") for s, m in measured.items()},
        }
        if answered:
            found["protocol"] = self.protocol
            found["answers"] = {split: one.figures["n"] for split, one in answered.items()}
            found["counts"] = {
                f"{split}/{name}": one.figures["n"]
                for split, one in answered.items()
                for name in FIGURES[str(self.protocol)]
            }
        return found

    # --- queries ----------------------------------------------------------------------------

    @abc.abstractmethod
    def encode_prompts(self, examples: Sequence[Example], max_length: int) -> list[list[int]]:
        """The ids after which each answer is written.

        Raises:
            DataError: prompts of more tokens than `max_length`.
        """

    def ask(self, tuner: Tuner, splits: Sequence[str], reporter: Reporter) -> None:
        """Find what is answered in some splits, before any of it costs time.

        Raises:
            DataError: examples without what the protocol compares, or prompts without room for the
                options.
            RecipeError: data whose answers cannot be ranked.
        """
        self.queries = {}
        if self.protocol is None:
            return
        options = self._options() if self.protocol == "rank" else ()
        for split in splits:
            if split != "train":
                self.queries[split] = self._queries(tuner, split, options)
                self._say_long(tuner, split, reporter)

    def _queries(self, tuner: Tuner, split: str, options: Sequence[str]) -> list[Query]:
        examples = examples_of(self.catalog, split)[: self.recipe.eval.limit]
        _require_answered(examples, self.name)
        assert self.protocol is not None
        golds = [gold_of(self.protocol, example) for example in examples]
        if self.protocol in PROTOCOLS:
            require_answers(self.protocol, golds, [e.origin for e in examples])
        prompts = self.encode_prompts(examples, sys.maxsize)  # long ones are told of
        texts = [prompt_text(example, self.template) for example in examples]
        queries = [
            Query(example.origin, tuple(ids), text, gold)
            for example, ids, text, gold in zip(examples, prompts, texts, golds, strict=True)
        ]
        if self.protocol != "rank":
            return queries
        apart = isinstance(tuner.backbone, Seq2Seq)
        return [
            self._ranked(query, example, options, apart)
            for query, example in zip(queries, examples, strict=True)
        ]

    def _ranked(self, query: Query, example: Example, options: Sequence[str], apart: bool) -> Query:
        """With its options; those of the data's own column win over the answers of all."""
        gold = example.gold if isinstance(example, Chat | Completion) else None
        given = tuple(gold.options) if gold is not None and gold.options else tuple(options)
        right = gold.answer if gold is not None and gold.answer in given else query.gold
        if right not in given:
            raise DataError(
                f"{query.name}: the answer {query.gold!r} is none of its options "
                f"{', '.join(map(repr, given[:_SHOWN]))}.",
                "Name the columns: data.columns.options and data.columns.answer.",
            )
        if apart:
            ids = self.tokenizer.ids(list(given))
            question = Question(query.prompt, tuple(map(tuple, ids)))
        else:
            begun = isinstance(example, Chat)
            question = encode_question(self.tokenizer, query.text, given, begun=begun)
        return Query(query.name, query.prompt, query.text, right, question, given)

    def _options(self) -> tuple[str, ...]:
        """All different answers of the data; none where every example names its own."""
        examples = [e for split in self.catalog.splits for e in examples_of(self.catalog, split)]
        bare = [e for e in examples if not (isinstance(e, Chat | Completion) and e.gold
                                            and e.gold.options)]  # fmt: skip
        found = sorted({answer(example) for example in bare} - {""})
        if len(found) > MOST_OPTIONS:
            raise RecipeError(
                f"eval.protocol: {self.name} has {len(found):,} different answers, too many to be "
                "ranked.",
                "Name the column with the options of each: data.columns.options=NAME.",
            )
        return tuple(found)

    def _say_long(self, tuner: Tuner, split: str, reporter: Reporter) -> None:
        queries = self.queries[split]
        long = [query.name for query in queries if not fits(tuner, query)]
        if not long:
            return
        named = f"{self.name} {split}: {some(long, 'prompt', shown=_SHOWN)}"
        if self.protocol == "rank":
            raise DataError(
                f"{named} with options longer than the network carries.", "Shorten or remove them."
            )
        reporter.warn(f"{named} without room for an answer: counted as not answered")


def gold_of(protocol: str, example: Example) -> str:
    """What the answer to an example is compared with: the data's own, else what is learnt."""
    learnt = answer(example)
    told = example.gold.answer if isinstance(example, Chat | Completion) and example.gold else None
    if protocol in ("rank", "rouge"):
        return learnt or told or ""
    if told is not None:
        return told
    if protocol == "commonsense":
        return commonsense_answer(learnt) or learnt.strip()
    if protocol == "math":  # a derivation is no answer
        bare = learnt.strip()
        return bare if is_number(bare) or len(bare) == 1 else ""
    return learnt


def _require_answered(examples: Sequence[Example], where: str) -> None:
    bare = [e.origin for e in examples if not answer(e) and not _told(e)]
    if bare:
        raise DataError(
            f"{where}: {some(bare, 'example', shown=_SHOWN)} without an answer to compare with.",
            "eval.protocol is for prompts with completions, and for chats that end with an answer.",
        )


def _told(example: Example) -> bool:
    gold = example.gold if isinstance(example, Chat | Completion) else None
    return gold is not None and gold.answer is not None
