"""How episodes are made: the keys of the recipe's section `hyper` that concern data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Context = Literal["gists", "full", "none"]
Mode = Literal["sample", "positive", "copy"]
Template = Literal["auto", "input-output", "plain"]


@dataclass(frozen=True)
class EpisodeOptions:
    """Budgets, and what is drawn.

    Attributes:
        gists: tokens that the examples are compressed into.
        context: what stands in front of queries: `gists` behind the examples; the examples alone
            (`full`, which the queries read themselves); or nothing (`none`).
        example_tokens: the most tokens of BOS, definition, examples and gists together; the same
            examples fit in every kind of context.
        query_tokens: the most tokens of a query with its answer.
        max_examples: the most examples in front.
        queries: of the same task, asked behind the same examples.
        mode: where examples come from: drawn from the task (`sample`), its exemplary pairs
            (`positive`, where it has any), or drawn with queries among them (`copy`).
        copy_probability: of a query to be among the examples, in the mode `copy`.
        symbols: replace the options of a task by arbitrary words, anew in every episode
            (arXiv 2305.08298); the definition, which may name them, is left out.
        template: `input-output` is `Input:`, x, `Output:`, y, on lines of their own; `plain` is
            `x y`; auto is plain for the tasks of a synthetic rule.
        cap: tasks with more items are drawn as if they had so many.
        episodes: in an epoch; None is as many as there are items, over `queries`.
    """

    gists: int = 16
    context: Context = "gists"
    example_tokens: int = 1024
    query_tokens: int = 384
    max_examples: int = 32
    queries: int = 1
    mode: Mode = "sample"
    copy_probability: float = 0.5
    symbols: bool = False
    template: Template = "auto"
    cap: int = 30_000
    episodes: int | None = None

    @property
    def places(self) -> int:
        """Gist tokens in a row."""
        return self.gists if self.context == "gists" else 0
