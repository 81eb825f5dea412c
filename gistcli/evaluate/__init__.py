"""Outputs of a tuned network on a split, their figures, and pictures of them.

The names below are imported on first use: statistics of finished runs need no network.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gistcli.evaluate.classify import Predictions, predict, scalars, score
    from gistcli.evaluate.metrics import wilson

__all__ = ["Predictions", "predict", "scalars", "score", "wilson"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "metrics" if name == "wilson" else "classify"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
