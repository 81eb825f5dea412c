"""Reading back what was written, before anybody sees it.

Two proofs: every stored tensor is, bit for bit, the computed one cast to the dtype of the file; and
the folder, loaded as a fresh network by its library, gives the logits of the tuned one on real
inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gistcli.artifacts.tensors import Written, digest_of, dtype_name, open_tensors, raw_bytes
from gistcli.errors import Refused, VerificationFailed

FP32_TOLERANCE = 1e-4
Inputs = Tensor | Mapping[str, Tensor]
KEPT = "Nothing was written in its place; please report this with the versions in environment.json."


@dataclass(frozen=True)
class Reference:
    """Real inputs with the tuned network's answers.

    Attributes:
        inputs: pixels (B, 3, H, W), normalised as the network wants them, or the tensors of a batch
            of text; verified on their device.
        logits: (B, K), of a language model (N, V) at the N real tokens, computed in float32 with
            the tuner attached.
    """

    inputs: Inputs
    logits: Tensor


def verify_file(path: Path, written: Mapping[str, Written]) -> None:
    """Read every tensor back and compare it with what was computed, bit for bit.

    Raises:
        VerificationFailed: keys, shapes, dtypes or contents differ; all of them named.
    """
    problems = []
    with open_tensors(path) as reader:
        keys = set(reader.keys())
        problems += [f"{key} is missing" for key in sorted(written.keys() - keys)]
        problems += [f"{key} is unexpected" for key in sorted(keys - written.keys())]
        for key in sorted(keys & written.keys()):
            tensor, wanted = reader.get_tensor(key), written[key]
            found = (tensor.dtype, tuple(tensor.shape))
            if found != (wanted.dtype, wanted.shape):
                problems.append(f"{key} is {dtype_name(tensor.dtype)} {list(tensor.shape)}")
            elif digest_of(raw_bytes(tensor)) != wanted.digest:
                problems.append(f"{key} holds other values than those computed")
    if problems:
        shown = "; ".join(problems[:10]) + ("; ..." if len(problems) > 10 else "")
        raise VerificationFailed(f"{path.name}, read back: {shown}.", KEPT)


@dataclass(frozen=True)
class Comparison:
    """How far a network is from the tuned one on real inputs.

    Attributes:
        difference: largest absolute difference of a logit.
        agreement: share of the rows of logits whose largest is the same one.
    """

    difference: float
    agreement: float


def run(model: nn.Module, inputs: Inputs) -> Tensor:
    """Float32 logits on the CPU; the network is moved to the device of the inputs."""
    parts = inputs.split(32) if isinstance(inputs, Tensor) else [inputs]
    device = inputs.device if isinstance(inputs, Tensor) else next(iter(inputs.values())).device
    model = model.to(device)
    with torch.inference_mode():
        return torch.cat([model(part).float() for part in parts]).cpu()


def compare(logits: Tensor, wanted: Tensor) -> Comparison:
    """Two (B, K) tensors of logits.

    Raises:
        VerificationFailed: another number of classes, or a logit that is not finite.
    """
    if logits.shape != wanted.shape:
        raise VerificationFailed(
            f"The written network gives logits of shape {list(logits.shape)}, "
            f"the tuned one {list(wanted.shape)}.",
            KEPT,
        )
    if not torch.isfinite(logits).all():
        raise VerificationFailed(
            "The written network gives logits that are not finite.",
            "Write it with `--dtype float32`: the chosen dtype may not hold the largest weights.",
        )
    same = logits.argmax(dim=-1) == wanted.argmax(dim=-1)
    return Comparison(float((logits - wanted).abs().max()), float(same.float().mean()))


def require_checkable(verified: bool, reference: Reference | None, max_drift: float | None) -> None:
    """A limit that nobody would look at is refused.

    Raises:
        Refused: `max_drift` without verification, or without real inputs to compare on.
    """
    if max_drift is not None and not verified:
        raise Refused("--max-drift and --no-verify exclude each other.", "Leave one of them out.")
    if max_drift is not None and reference is None:
        raise Refused(
            "--max-drift needs real inputs, and the data of the run cannot be read.",
            "Leave it out, or put the data back.",
        )


def require_close(difference: float, *, exact: bool, max_drift: float | None) -> None:
    """Hold the limits on the logits.

    Args:
        difference: as `compare` gives it.
        exact: all tensors were written in float32, so that only the order of sums may differ.
        max_drift: the user's limit, if any.

    Raises:
        VerificationFailed: above 1e-4 where `exact`, or above `max_drift`.
    """
    if exact and difference > FP32_TOLERANCE:
        raise VerificationFailed(
            f"The written float32 network differs from the tuned one by {difference:.3g} in a "
            f"logit; {FP32_TOLERANCE:g} is allowed.",
            KEPT,
        )
    if max_drift is not None and difference > max_drift:
        raise VerificationFailed(
            f"A logit drifts by {difference:.3g}, more than --max-drift {max_drift:g}.",
            "Write it with `--dtype float32`, or allow a larger drift.",
        )
