"""Keys that rotary embeddings have turned, moved to other positions.

A key at position p is s R(p) k, with R(p) a rotation whose angles grow with p and s a factor that
some scaled forms have. R(a) R(b) = R(a + b), so that turning it once more moves it. The network's
own rotation does it, whatever pairs of dimensions it turns, and however many of them.

Paper: Su et al., arXiv 2104.09864. Shape suffixes: L = layers, N = rows, H = heads of keys,
P = positions, E = width of a head, R = dimensions that are turned.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from gistcli.backbones.causal import Causal
from gistcli.backbones.prefix import Prefix, attention_of, prefix_of
from gistcli.errors import NotSupported

GROWING = ("dynamic", "longrope")
"""Forms whose angles depend on how long the text is."""
HINT = "Use a decoder with rotary embeddings (Llama, Qwen, Mistral, Gemma 2, Phi 3, GPT-NeoX, ...)."


def at_zero(backbone: Causal, prefix: Prefix) -> Prefix:
    """The prefix as if it stood at the beginning, at positions 0 to P - 1; at least float32."""
    wide = torch.promote_types(prefix.keys.dtype, torch.float32)
    keys, values = prefix.keys.to(wide), prefix.values.to(wide)
    if prefix.start is not None:
        keys = _moved(backbone, keys, -prefix.start)
    return Prefix(keys, values)


def _moved(backbone: Causal, keys_LNHPE: Tensor, by_N: Tensor) -> Tensor:
    """Keys `by_N` positions further on."""
    rotary: Any = backbone.network.rotary_emb
    cos_N1R, sin_N1R = rotary(keys_LNHPE, position_ids=by_N[:, None])
    layers, width = len(keys_LNHPE), cos_N1R.shape[-1]
    turned, rest = keys_LNHPE[..., :width].flatten(0, 1), keys_LNHPE[..., width:]
    apply = _rotation(backbone)
    _, turned = apply(turned, turned, cos_N1R.repeat(layers, 1, 1), sin_N1R.repeat(layers, 1, 1))
    # the rotation multiplies by s, which the keys have in them already
    turned = turned.unflatten(0, keys_LNHPE.shape[:2]) / rotary.attention_scaling
    return torch.cat([turned, rest], dim=-1)


def _rotation(backbone: Causal) -> Any:
    """The family's function (q, k, cos, sin) -> both turned; None where it has none."""
    attention, _ = attention_of(backbone.blocks[0], backbone.model)
    return getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)


def require_movable(backbone: Causal) -> None:
    """Refuse a network whose keys could not be moved to the beginning.

    Raises:
        NotSupported: learnt positions, angles that depend on the length of the text, or layers in
            which moved keys are not what the network computes there; says which.
    """
    rotary: Any = getattr(backbone.network, "rotary_emb", None)
    kind = getattr(rotary, "rope_type", "default")
    reason = ""
    if rotary is None or _rotation(backbone) is None:
        reason = "positions that are no rotation of the keys"
    elif kind in GROWING:
        reason = f"rotary embeddings whose angles depend on the length of the text ({kind})"
    elif not next(backbone.model.parameters()).is_meta and not _moves_exactly(backbone):
        reason = "layers with positions of another kind"
    if reason:
        raise NotSupported(
            f"{backbone.architecture} has {reason}: what was computed behind examples cannot be "
            "moved to the front of a text.",
            HINT,
        )


@torch.no_grad()
def _moves_exactly(backbone: Causal) -> bool:
    """Whether three tokens that stand further back and are moved are those at the beginning."""
    model, training = backbone.model, backbone.model.training
    ids = torch.tensor([[2, 3, 4]], device=next(model.parameters()).device)
    places, start = torch.arange(3, device=ids.device)[None], ids.new_tensor([9])
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model.eval()
    try:
        front = prefix_of(model, {**arguments, "position_ids": places})
        behind = prefix_of(model, {**arguments, "position_ids": places + start})
        moved = at_zero(backbone, Prefix(behind.keys, behind.values, start))
    except (RuntimeError, TypeError, ValueError):  # it wants more than keys and angles
        return False
    finally:
        model.train(training)
    error, size = (moved.keys - front.keys).flatten(1), front.keys.flatten(1).float()
    return bool((error.norm(dim=1) <= 0.1 * size.norm(dim=1)).all())
