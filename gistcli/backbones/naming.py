"""Which sites a recipe's `targets` mean."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gistcli.backbones.sites import Site
from gistcli.errors import Refused, UnknownName, did_you_mean


def named_sites(
    sites: Sequence[Site], targets: Sequence[str], layers: Collection[int], network: str
) -> list[Site]:
    """Those that `targets` name in some layers, in their own order.

    Args:
        sites: all that a network has.
        targets: roles, the family's names at a dot boundary, or full paths.
        layers: block numbers from 0.
        network: named in messages.

    Raises:
        UnknownName: a target that matches nothing, with what could have been meant.
        Refused: targets that overlap.
    """
    hits = {target: [site for site in sites if _names(site, target)] for target in targets}
    missing = [target for target, found in hits.items() if not found]
    if missing:
        known = {s.role for s in sites} | {s.family_name for s in sites}
        text = ", ".join(map(repr, missing))
        hint = " ".join(did_you_mean(m, known) for m in missing)
        raise UnknownName(f"targets: {text} matches nothing in {network}.", hint)
    meant = {id(site) for found in hits.values() for site in found}
    chosen = [site for site in sites if id(site) in meant and site.layer in layers]
    _refuse_overlap(chosen)
    return chosen


def _names(site: Site, target: str) -> bool:
    if target in (site.role, site.name):
        return True
    whole_map = site.rows is None
    return whole_map and f".{site.module_name}".endswith(f".{target}")


def _refuse_overlap(sites: Sequence[Site]) -> None:
    wholes = {s.module_name for s in sites if s.rows is None}
    twice = sorted(s.name for s in sites if s.rows is not None and s.module_name in wholes)
    if twice:
        raise Refused(
            f"targets: {', '.join(twice)} is part of another target.",
            "Name the fused map or its slices, not both.",
        )
