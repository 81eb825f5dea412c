"""Outputs of a tuned network on a split, their figures, and pictures of them."""

from gistcli.evaluate.classify import Predictions, predict, scalars, score
from gistcli.evaluate.metrics import wilson

__all__ = ["Predictions", "predict", "scalars", "score", "wilson"]
