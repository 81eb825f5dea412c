"""What is known of figures by their names alone."""

from __future__ import annotations

_LOWER_IS_BETTER = frozenset({"loss", "nll", "perplexity"})


def lower_is_better(figure: str) -> bool:
    """Whether less of a figure (`loss`, `test/loss`, `test/loss_alone`) is better."""
    return figure.rpartition("/")[2].partition("_")[0] in _LOWER_IS_BETTER
