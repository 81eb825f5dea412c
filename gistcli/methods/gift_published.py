"""Reading GIFT parameters in the form in which the authors' code stores them.

There, `in_projections.KEY.weight` (R, I) is phi^T and `out_projections.KEY.weight` (I, R) is psi^T,
with `:` for the dot in KEY (`attn:proj`), beside a head `backbone.head.{weight,bias}`
(facts of github.com/savadikarc/gift, MIT).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from gistcli.backbones.fingerprint import read_header
from gistcli.errors import WeightsError
from gistcli.methods.gift import Gift, GiftTuner

PUBLISHED = re.compile(r"(in|out)_projections\.(.+)\.weight")


def read_published(path: Path) -> tuple[Gift, dict[str, Tensor]]:
    """The method and the raw tensors of a published file.

    Args:
        path: a safetensors file, or the authors' `.pth.tar` state dict (read with
            `weights_only=True`; a file that needs more than tensors is refused).

    Raises:
        WeightsError: damaged, or not a GIFT checkpoint of the linear kind.
    """
    if path.suffix == ".safetensors":
        read_header(path)
        tensors = load_file(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise WeightsError(
                f"{path} cannot be read as plain tensors: {error}",
                "Convert it where you trust it: safetensors.torch.save_file(checkpoint"
                "['state_dict'], 'gift.safetensors').",
            ) from error
        tensors = content.get("state_dict", content)
    keys = {m[2] for m in map(PUBLISHED.fullmatch, tensors) if m}
    ranks = {tensors[f"in_projections.{k}.weight"].shape[0] for k in keys}
    known = {f"{side}_projections.{k}.weight" for k in keys for side in ("in", "out")}
    other = sorted(n for n in tensors if n not in known and not n.startswith("backbone.head."))
    if not keys or len(ranks) != 1 or other or not known <= tensors.keys():
        raise WeightsError(
            f"{path} holds no GIFT parameters of the linear kind: found {', '.join(tensors)}.",
            "Expected in_projections.KEY.weight and out_projections.KEY.weight.",
        )
    shared = "shared_projection" in keys
    targets = ("query", "value") if shared else tuple(sorted(k.replace(":", ".") for k in keys))
    method = Gift(rank=ranks.pop(), targets=targets, share="all" if shared else "role")
    return method, dict(tensors)


def load_published(tuner: GiftTuner, tensors: Mapping[str, Tensor]) -> None:
    """Put published tensors into a tuner that was attached with the method of `read_published`.

    Raises:
        WeightsError: head or widths do not fit the backbone.
    """
    state = {n.removeprefix("backbone."): t for n, t in tensors.items() if "head." in n}
    by_family_name = {s.family_name: tuner.key_of(s) for s in tuner.sites}
    for name, tensor in tensors.items():
        match = PUBLISHED.fullmatch(name)
        if match:
            site = match[2].replace(":", ".")
            key = "all" if match[2] == "shared_projection" else by_family_name.get(site, site)
            state[f"{'phi' if match[1] == 'in' else 'psi'}.{key}"] = tensor.t().contiguous()
    tuner.load_state(state)
