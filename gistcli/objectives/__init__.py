"""What is minimised: a module around a tuner that turns a batch into a loss with named parts."""

from gistcli.objectives.base import Batch, Losses, Objective
from gistcli.objectives.classification import Classification

__all__ = ["Batch", "Classification", "Losses", "Objective"]
