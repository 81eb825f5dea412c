"""The composer: every command is one function here, and so is everything a script calls."""

from gistcli.run.demonstrating import demo
from gistcli.run.evaluation import evaluate
from gistcli.run.exporting import merge
from gistcli.run.finetuning import finetune
from gistcli.run.inspection import inspect
from gistcli.run.listing import listing
from gistcli.run.loading import load
from gistcli.run.picturing import visualize
from gistcli.run.planning import dry_run
from gistcli.run.prediction import predict
from gistcli.run.smoking import smoke

__all__ = [
    "demo",
    "dry_run",
    "evaluate",
    "finetune",
    "inspect",
    "listing",
    "load",
    "merge",
    "predict",
    "smoke",
    "visualize",
]
