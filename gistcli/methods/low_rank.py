"""Updates dW = B A: one seam per linear map, whatever its row slices, and their exact export."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gistcli.backbones.sites import Site, Switch
from gistcli.methods.merged import LowRank, Merged, Patch


@dataclass(frozen=True, eq=False)
class Fused:
    """The chosen sites of one module, so that several row slices cost one product and one sum.

    Attributes:
        whole: the module with all its rows.
        sites: what was chosen: the whole map, or row slices of it.
    """

    whole: Site
    sites: tuple[Site, ...]

    def rows(self, site: Site) -> slice:
        """Rows of the whole map that belong to a site."""
        return site.rows or slice(0, self.whole.d_out)

    def mark(self, switch: Switch) -> None:
        """Note that all of these sites have acted."""
        for site in self.sites:
            switch.mark(site.name)


def fuse(sites: Iterable[Site]) -> list[Fused]:
    """The sites by module, in order."""
    by_module: dict[str, list[Site]] = {}
    for site in sites:
        by_module.setdefault(site.module_name, []).append(site)
    return [
        Fused(replace(several[0], name=name, rows=None), tuple(several))
        for name, several in by_module.items()
    ]


def parameter_key(name: str) -> str:
    """A site's name as the name of a parameter: `blocks_0_attn_qkv_query`."""
    return re.sub(r"\W+", "_", name).strip("_")


def merged_low_rank(
    parts: Sequence[tuple[Site, Tensor, Patch]], head: Mapping[str, Tensor]
) -> Merged:
    """The patches of updates dW = b(W) a.

    Args:
        parts: site, `a` (R, d_in), and `b` from the site's own weight (d_out, d_in) to (d_out, R).
        head: tensors of the trained head.
    """
    by_module: dict[str, list[tuple[Site, Tensor, Patch]]] = {}
    for part in parts:
        by_module.setdefault(part[0].module_name, []).append(part)
    low_rank = {name: _stack(several) for name, several in by_module.items()}
    patches = {f"{name}.weight": _patch(update) for name, update in low_rank.items()}
    return Merged(patches, head, low_rank=low_rank)


def _stack(parts: list[tuple[Site, Tensor, Patch]]) -> LowRank:
    """dW = B A with A stacked over row slices, and B of each slice on its own rows."""

    def b(w_OI: Tensor) -> Tensor:
        columns = []
        for site, a_RI, b_of_slice in parts:
            rows = site.rows or slice(0, w_OI.shape[0])
            b_OR = w_OI.new_zeros(w_OI.shape[0], a_RI.shape[0])
            b_OR[rows] = b_of_slice(w_OI[rows])
            columns.append(b_OR)
        return torch.cat(columns, dim=1)

    return LowRank(torch.cat([a_RI for _, a_RI, _ in parts]), b)


def _patch(update: LowRank) -> Patch:
    def patch(w_OI: Tensor) -> Tensor:
        return w_OI + update.b(w_OI) @ update.a.to(w_OI)

    return patch
