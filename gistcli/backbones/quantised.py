"""Frozen linear maps in 4 or 8 bits, by bitsandbytes.

The files stay what they are, and so does the fingerprint: weights are made smaller as they are
loaded. Hooks on the layers act as on any other; whoever asks a site for its weight gets it back in
float32, as the layer computes with it.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from gistcli.errors import Refused

SCHEMES = ("nf4", "int8")
_KINDS = {"Linear4bit", "Linear8bitLt"}
_BYTES = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
"""An element: 4 bits and a float32 scale for every 64 of them; 8 bits, scales of rows aside."""


def require_bitsandbytes() -> None:
    """Refuse to quantise without the library that does it.

    Raises:
        Refused: it is not installed; the hint is the line that installs it.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise Refused(
            "model.quantize needs bitsandbytes, which is not installed.",
            'Run `pip install "gistcli[quantised]"`, or leave the key out.',
        )


def quantisation_config(scheme: str, dtype: torch.dtype, skip: Collection[str]) -> Any:
    """What transformers quantises by as it loads.

    Args:
        scheme: nf4 or int8.
        dtype: in which nf4 layers compute.
        skip: names of modules that stay as they are: heads.
    """
    from transformers import BitsAndBytesConfig

    # says with every layer that it computes in float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if scheme == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(skip))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=scheme,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skip),
    )


def keep_layout(model: nn.Module) -> None:
    """Let evaluation on a CPU leave the codes as they are.

    On processors with AVX512-bf16 bitsandbytes packs them anew at the first pass without gradients
    and rounds their scales: what is trained afterwards would depend on when it was evaluated.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def is_quantised(module: nn.Module) -> bool:
    """Whether a linear map keeps its weight in fewer bits."""
    return type(module).__name__ in _KINDS


def dequantised(module: Any) -> Tensor:
    """(d_out, d_in) float32: the weight that a quantised layer computes with."""
    from bitsandbytes import functional as F

    weight = module.weight
    if type(module).__name__ == "Linear4bit":
        whole: Tensor = F.dequantize_4bit(weight.data, weight.quant_state)
        return whole.float()
    scales = weight.SCB if weight.SCB is not None else module.state.SCB
    rows: Tensor = F.int8_vectorwise_dequant(weight.data, scales)
    return rows.float()


def round_trip(weight: Tensor, scheme: str) -> Tensor:
    """A stored weight as a layer of this scheme would compute with it, float32.

    What a run on quantised weights was trained on; `weight` - this is the quantisation error.
    """
    from bitsandbytes import functional as F

    if scheme == "int8":
        codes, scales, _ = F.int8_vectorwise_quant(weight.to(torch.float16))
        rows: Tensor = F.int8_vectorwise_dequant(codes, scales)
        return rows.float()
    codes, state = F.quantize_4bit(weight.contiguous(), quant_type=scheme)
    whole: Tensor = F.dequantize_4bit(codes, state)
    return whole.float()


def relative_error(weight: Tensor, delta: Tensor, scheme: str) -> float:
    """||W - Q(W)|| / ||dW||: how far quantisation moved a weight, against what was learnt."""
    error = (weight.float() - round_trip(weight, scheme)).norm()
    return float(error / delta.float().norm().clamp_min(torch.finfo(torch.float32).tiny))


def stored_elements(model: nn.Module) -> int:
    """Elements that quantised layers stand for beyond those that they store (two codes a byte)."""
    layers: list[Any] = [m for m in model.modules() if is_quantised(m)]
    return sum(m.in_features * m.out_features - int(m.weight.numel()) for m in layers)


def planned_sizes(model: nn.Module, head: Collection[str], scheme: str) -> dict[str, float]:
    """Bytes an element of the weights that will be quantised, by name, for a network on meta.

    Args:
        model: of transformers, with layers as they are without quantisation.
        head: names of modules that are left out.
        scheme: nf4 or int8.
    """
    return {
        f"{name}.weight": _BYTES[scheme]
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or hasattr(module, "nf"))
        and name.partition(".")[0] not in head
    }


def head_modules(network: Any) -> list[str]:
    """Names of what stands outside the base network, or is its map to the vocabulary."""
    base, last = network.base_model, network.get_output_embeddings()
    found = [name for name, child in network.named_children() if child is last]
    if base is not network:
        found += [n for n, child in network.named_children() if child is not base]
    return list(dict.fromkeys(found))
