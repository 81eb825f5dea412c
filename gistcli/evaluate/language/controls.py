"""What a loss behind gists is compared with: nothing in front, the text itself, a wrong one.

    loss_in_context <= loss <= loss_alone

says what gists are worth between all that there is to know and nothing; a `loss_wrong_document`
that is as low as `loss` says that they tell of texts, and not of this one.
"""

from __future__ import annotations

from functools import partial

from gistcli.data.episodes import SegmentSplit, WrongDocuments
from gistcli.evaluate.language.perplexity import perplexity
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.methods.base import Tuner
from gistcli.reporting import SILENT, Reporter


def control_losses(
    tuner: Tuner,
    split: SegmentSplit,
    batch_size: int,
    *,
    precision: str = "fp32",
    reporter: Reporter = SILENT,
    phase: str = "evaluate",
) -> dict[str, float]:
    """Losses of the same tokens under other conditions; arguments as of `perplexity`.

    Returns:
        nats a token of C: `loss_alone` behind B only, and `loss_in_context` behind A, D and B, both
        of the network without the hypernetwork; `loss_wrong_document` behind the gists of another
        document, where there is one.
    """
    assert isinstance(tuner, HyperTuner)
    measure = partial(perplexity, tuner, batch_size=batch_size, precision=precision,
                      reporter=reporter)  # fmt: skip
    found = {
        "alone": measure(split, forward=tuner.alone, phase=f"{phase} alone"),
        "in_context": measure(split, forward=tuner.in_context, phase=f"{phase} in context"),
    }
    if WrongDocuments.has_others(split):
        others = WrongDocuments(split)
        found["wrong_document"] = measure(others, phase=f"{phase} wrong document")
    return {f"loss_{condition}": one["loss"] for condition, one in found.items()}
