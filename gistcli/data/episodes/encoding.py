"""Items to tokens: examples added whole to a budget, queries cut on the left."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from gistcli.data.episodes.drawing import Drawn, Draws
from gistcli.data.episodes.layout import Episode, Query
from gistcli.data.episodes.options import EpisodeOptions
from gistcli.data.episodes.pairs import MOST_OPTIONS
from gistcli.data.episodes.tasks import Item, Task
from gistcli.data.text.tokenizer import Tokenizer
from gistcli.errors import RecipeError

_REMEMBERED = 100_000
"""Texts, and queries, whose tokens are kept: some 100 MB."""
_AT_ONCE = 8
"""Examples that go through the tokenizer together: of those that are drawn few may fit."""
_LETTERS = 3
"""Of a symbol, unless there are too few of that length."""


class EpisodeEncoder:
    """Tokens of examples and queries, each of which is tokenised alone and remembered.

    Attributes:
        tokenizer: of the model.
        options: budgets and template.
        cut_answers: those that were too long for a query.
    """

    def __init__(self, tokenizer: Tokenizer, options: EpisodeOptions) -> None:
        """Both are looked at once.

        Raises:
            RecipeError: budgets without room for examples or queries.
        """
        self.tokenizer, self.options = tokenizer, options
        self.cut_answers: set[str] = set()
        self._known: dict[str, np.ndarray] = {}
        self._queries: dict[tuple[Item, bool, bool], Query] = {}
        room = options.example_tokens - options.gists - len(tokenizer.prefix)
        if room < 1:
            raise RecipeError(
                f"hyper.example_tokens is {options.example_tokens}: {options.gists} gist tokens "
                f"leave no room for examples.",
                f"Set it to some hundreds more than {options.gists}.",
            )
        if options.query_tokens < len(tokenizer.prefix) + 4:
            raise RecipeError(
                f"hyper.query_tokens is {options.query_tokens}: no query fits.",
                "Set it to some hundreds.",
            )

    @cached_property
    def words(self) -> list[str]:
        """Words of the tokenizer that may stand for options, in the order of their ids."""
        base = self.tokenizer.base
        tokens = [token for token in base.convert_ids_to_tokens(range(len(base))) if token]
        marked = [token[1:] for token in tokens if token[:1] in ("Ġ", "▁")]
        special = {*base.all_special_tokens}
        plain = [t for t in tokens if t not in special and not t.startswith("##")]
        found = [w for w in dict.fromkeys(marked or plain) if w.isascii() and w.isalpha()]
        long = [word for word in found if len(word) >= _LETTERS]
        return long if len(long) >= 2 * MOST_OPTIONS else found

    def episode(
        self, task: Task, drawn: Drawn, *, draws: Draws | None = None, options: bool = False
    ) -> Episode:
        """Examples as far as they fit, and all queries.

        Args:
            task: of the items.
            drawn: what is shown and asked.
            draws: by which copied queries are mixed with the examples.
            options: whether the options are wanted as well, to be ranked.
        """
        plain = self._is_plain(task)
        texts = [_example(item, plain) for item in drawn.shown]
        answered = [_asked(item, item.completion, plain) for item in drawn.asked]
        self._learn([*answered, *(_prompt(item, plain) for item in drawn.asked)])
        front = self._front(task)
        room = self.options.example_tokens - self.options.gists - len(front)
        fitting = self._fitting(texts, room)
        order = fitting
        if draws is not None and drawn.copies:
            order = [fitting[i] for i in draws.picked(len(fitting), len(fitting))]
        return Episode(
            np.concatenate([front, *(self._ids(texts[i]) for i in order)]),
            tuple(self._query(item, plain, options) for item in drawn.asked),
            task.name,
            task.family,
            examples=tuple(drawn.shown[i] for i in order),
            left=len(texts) - len(fitting),
        )

    def _is_plain(self, task: Task) -> bool:
        template = self.options.template
        return task.rule if template == "auto" else template == "plain"

    def _front(self, task: Task) -> np.ndarray:
        """BOS and definition; one that is longer than half of the budget is cut."""
        ids = np.array(self.tokenizer.prefix, np.int32)
        if not task.definition or self.options.symbols:
            return ids
        most = (self.options.example_tokens - self.options.gists) // 2
        return np.concatenate([ids, self._ids(f"{task.definition}\n")[:most]])

    def _fitting(self, texts: Sequence[str], room: int) -> list[int]:
        """Places of the examples that are added: up to the first that is too long for what is left.

        As long as there is none, longer ones are passed over.
        """
        found: list[int] = []
        for i, text in enumerate(texts):
            if i % _AT_ONCE == 0:
                self._learn(texts[i : i + _AT_ONCE])
            length = len(self._ids(text))
            if length <= room:
                found.append(i)
                room -= length
            elif found:
                break
        return found

    def _query(self, item: Item, plain: bool, options: bool) -> Query:
        key = (item, plain, options)
        if key not in self._queries:
            if len(self._queries) > _REMEMBERED:
                self._queries.clear()
            self._queries[key] = self._made(item, plain, options)
        return self._queries[key]

    def _made(self, item: Item, plain: bool, options: bool) -> Query:
        prompt = self._ids(_prompt(item, plain))
        answers = [self._answer(item, answer, plain) for answer in item.options if options]
        longest = max((len(a) for a in answers), default=0)
        answer = self._answer(item, item.completion, plain)
        prefix = self.tokenizer.prefix
        room = self.options.query_tokens - len(prefix) - max(longest, len(answer))
        kept = prompt[max(0, len(prompt) - room) :]
        ids = np.array([*prefix, *kept], np.int32)
        return Query(ids, answer, item, tuple(answers))

    def _answer(self, item: Item, answer: str, plain: bool) -> np.ndarray:
        """y and EOS as they stand behind the prompt; a long one loses its end, and EOS."""
        prompt = _prompt(item, plain)
        ids, before = self._ids(_asked(item, answer, plain)), self._ids(prompt)
        # where tokens merge across the border the prompt is what it will be when nothing follows
        merged = not np.array_equal(ids[: len(before)], before)
        ids = self._ids(answer) if merged else ids[len(before) :]
        end = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
        most = self.options.query_tokens - len(self.tokenizer.prefix)
        most -= min(len(before), self.options.query_tokens // 2)
        if len(ids) + len(end) > most:
            self.cut_answers.add(answer)
            return ids[:most]
        return np.array([*ids, *end], np.int32)

    def _ids(self, text: str) -> np.ndarray:
        if text not in self._known:
            self._learn([text])
        return self._known[text]

    def _learn(self, texts: Sequence[str]) -> None:
        """Tokenise all new texts at once."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for text, ids in zip(new, self.tokenizer.ids(new), strict=True):
            self._known[text] = np.array(ids, np.int32)


def _example(item: Item, plain: bool) -> str:
    return f"{_asked(item, item.completion, plain)}{' ' if plain else chr(10) * 2}"


def _asked(item: Item, answer: str, plain: bool) -> str:
    return f"{_prompt(item, plain)}{' ' if plain else ''}{answer}"


def _prompt(item: Item, plain: bool) -> str:
    return item.prompt if plain else put(item.prompt)


def put(prompt: str) -> str:
    """A prompt by the template input-output."""
    return f"Input:\n{prompt}\nOutput:\n"
