"""Adapt pretrained Transformers with few trained parameters.

`gistcli.load(RUN)` gives a tuned network as a module, `gistcli.fit` is the training loop; both are
imported on first use, because they bring torch with them.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "fit", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from gistcli.run.loading import load

        return load
    if name == "fit":
        from gistcli.train.loop import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
