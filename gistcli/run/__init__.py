"""The composer: every command is one function here, and so is everything a script calls.

Each is imported on first use: who only looks at runs does not wait for the models' libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gistcli.run.available import listing
    from gistcli.run.beside import Beside
    from gistcli.run.comparing import compare
    from gistcli.run.compressing import compress
    from gistcli.run.demonstrating import demo
    from gistcli.run.evaluation import evaluate, evaluate_by_harness
    from gistcli.run.exporting import merge
    from gistcli.run.finetuning import finetune
    from gistcli.run.harness import Harness
    from gistcli.run.hyperpretraining import hyperpretrain, of_documents
    from gistcli.run.inspection import inspect
    from gistcli.run.loading import load
    from gistcli.run.picturing import visualize, visualize_tokens
    from gistcli.run.planning import dry_run
    from gistcli.run.prediction import predict
    from gistcli.run.smoking import smoke
    from gistcli.run.surveying import overview
    from gistcli.run.sweep_estimate import sweep_dry_run
    from gistcli.run.sweeping import sweep

__all__ = [
    "Beside",
    "Harness",
    "compare",
    "compress",
    "demo",
    "dry_run",
    "evaluate",
    "evaluate_by_harness",
    "finetune",
    "hyperpretrain",
    "inspect",
    "listing",
    "load",
    "merge",
    "of_documents",
    "overview",
    "predict",
    "smoke",
    "sweep",
    "sweep_dry_run",
    "visualize",
    "visualize_tokens",
]
_MODULES = {
    "Beside": "beside",
    "Harness": "harness",
    "compare": "comparing",
    "compress": "compressing",
    "demo": "demonstrating",
    "dry_run": "planning",
    "evaluate": "evaluation",
    "evaluate_by_harness": "evaluation",
    "finetune": "finetuning",
    "hyperpretrain": "hyperpretraining",
    "inspect": "inspection",
    "listing": "available",
    "load": "loading",
    "merge": "exporting",
    "of_documents": "hyperpretraining",
    "overview": "surveying",
    "predict": "prediction",
    "smoke": "smoking",
    "sweep": "sweeping",
    "sweep_dry_run": "sweep_estimate",
    "visualize": "picturing",
    "visualize_tokens": "picturing",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = function
    return function
