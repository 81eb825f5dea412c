"""What is minimised: a module around a tuner that turns a batch into a loss with named parts."""

from gistcli.objectives.base import Batch, Losses, Objective
from gistcli.objectives.causal_lm import CausalLM, Seq2SeqLM
from gistcli.objectives.classification import Classification
from gistcli.objectives.hypertuning import Compression, Hypertuning
from gistcli.objectives.regression import Regression

__all__ = [
    "Batch",
    "CausalLM",
    "Classification",
    "Compression",
    "Hypertuning",
    "Losses",
    "Objective",
    "Regression",
    "Seq2SeqLM",
]
