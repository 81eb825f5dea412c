"""The tuned network as one ONNX graph: any method, mergeable or not, as a function of pixels."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gistcli import atomic
from gistcli.artifacts import output as outputs
from gistcli.artifacts import verify
from gistcli.artifacts.merge import finish
from gistcli.artifacts.output import Receipt
from gistcli.errors import NotSupported, Refused
from gistcli.methods.base import Tuner
from gistcli.reporting import SILENT, Reporter

MODEL, FACTS = "model.onnx", "onnx.json"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "pixels", "logits"


class PixelsToLogits(nn.Module):
    """A tuned network as a function of one tensor."""

    def __init__(self, tuner: Tuner) -> None:
        super().__init__()
        self.tuner = tuner
        self.model = tuner.backbone.model  # a submodule, so that its weights are found

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, K) logits of (B, 3, H, W) normalised pixels."""
        logits: Tensor = self.tuner({"pixels": pixels}).logits
        return logits


def require_onnx() -> None:
    """Refuse early where the extra is not installed.

    Raises:
        Refused: with the line that installs it.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise Refused(
            f"ONNX export needs {', '.join(missing)}.", "Run `pip install 'gistcli[onnx]'`."
        )


def export_onnx(
    network: nn.Module,
    pixels: Tensor,
    classes: Sequence[str],
    preprocessing: Mapping[str, Any],
    output: Path,
    *,
    max_drift: float | None = None,
    verified: bool = True,
    card: Callable[[Receipt], str] | None = None,
    reporter: Reporter = SILENT,
) -> Receipt:
    """Write model.onnx (float32, any batch size) and onnx.json (classes, preprocessing).

    Args:
        network: pixels (B, 3, H, W) -> logits (B, K), float32, on the CPU; `PixelsToLogits`.
        pixels: (B, 3, H, W) real inputs, B >= 2; also what the check runs on.
        classes: names in the order of the logits.
        preprocessing: timm data config.
        output, max_drift, verified, card, reporter: as for `merge_weights`.

    Raises:
        Refused: the extra is not installed, or `output` holds something else.
        NotSupported: the network has no ONNX form.
        VerificationFailed: onnxruntime's logits differ by more than 1e-4.
        StorageError: the disk is full or may not be written.
    """
    require_onnx()
    if max_drift is not None and not verified:
        raise Refused("--max-drift and --no-verify exclude each other.", "Leave one of them out.")
    pixels = pixels.float().cpu()
    network = network.eval()
    with outputs.export_folder(output) as folder, torch.no_grad():
        reporter.say("Tracing the network into an ONNX graph.")
        _trace(network, pixels, classes, preprocessing, folder / MODEL)
        facts = {
            "classes": list(classes),
            "preprocessing": dict(preprocessing),
            "input": INPUT,
            "output": OUTPUT,
        }
        atomic.write_json(folder / FACTS, facts)
        difference = None
        if verified:
            difference = _compare(network, pixels, folder / MODEL)
            verify.require_close(difference, exact=True, max_drift=max_drift)
        receipt = Receipt(
            output=output,
            format="onnx",
            dtype="float32",
            max_abs_logit_difference=difference,
            verified=verified,
        )
        finish(folder, receipt, card)
    return receipt


def _trace(
    network: nn.Module,
    pixels: Tensor,
    classes: Sequence[str],
    preprocessing: Mapping[str, Any],
    path: Path,
) -> None:
    batch = torch.export.Dim.DYNAMIC
    with _quiet():
        try:
            program = torch.onnx.export(
                network,
                (pixels[:2],),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            first = str(error).strip().splitlines()[0]
            raise NotSupported(
                f"The network has no ONNX form: {first}",
                "Use `gist merge` without --format where the method merges.",
            ) from error
        assert program is not None
        program.model.metadata_props.update(
            {
                "classes": json.dumps(list(classes)),
                "preprocessing": json.dumps(dict(preprocessing)),
            }
        )
        with atomic.storage_errors(path):
            program.save(str(path))


def _compare(network: nn.Module, pixels: Tensor, path: Path) -> float:
    """Largest difference of onnxruntime's logits, also at another batch size than the traced."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    differences = []
    for part in (pixels, pixels[:1]):
        logits = torch.from_numpy(session.run([OUTPUT], {INPUT: part.numpy()})[0])
        differences.append(verify.compare(logits, network(part).float()).difference)
    return max(differences)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own progress and its warnings about its internals are nobody's business."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
