"""What the page says of cluster maps and of attention, from the JSON values of both commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from gistcli.explain.attention import LABELS
from gistcli.explain.gallery import Card, Part, Table
from gistcli.explain.sheet import SIGNS

NAMED = 12
"""Classes that the page names; of more it gives the number."""
OWN_SCALE = (
    "Colours lie over the picture, dim where a map is weak and bright where it is strong. Each map "
    "has its own scale: colours compare the patches of one map, not two maps."
)
CLUSTERS = (
    "L is the layer, C the cluster; at sign \N{MINUS SIGN} a map is turned round, so that the "
    "centre is strong. The score says how clearly the centre stands out against the border. Maps "
    "show what the network's tokens hold along directions that training chose: they do not explain "
    "a prediction, and a clear map is no proof of what was learnt."
)
ATTENTION = (
    "A map shows how much of a token's attention goes to each patch, {heads}, layer by layer. It "
    "says what the token gathers there, not what the prediction rests on. What goes to patches at "
    "all is a share; the rest goes to other tokens. One number of several layers is their mean."
)
BOTH = (
    "Overlap is what the maps of both tokens have in common: 1 where they are equal, 0 where they "
    "are apart; with another image's map it is what place alone explains. The Jeffreys divergence "
    "{at} sets what is read out from {other} against the prediction: 0 where they are equal."
)
ORDER = " The images with the largest divergence come first."


@dataclass(frozen=True)
class Shown:
    """What the maps are of: a run, the network under it, its method's label, and its classes."""

    run: str
    model: str
    method: str
    classes: Sequence[str]

    def lead(self, images: int) -> str:
        """One sentence."""
        names = ", ".join(self.classes[:NAMED])
        more = f" and {len(self.classes) - NAMED} more" if len(self.classes) > NAMED else ""
        return (
            f"{images} image{'s' if images != 1 else ''}, seen by {self.model} tuned with "
            f"{self.method} on {len(self.classes)} classes: {names}{more}. Run: {self.run}"
        )


def clusters_part(value: Mapping[str, Any], shown: Shown) -> Part:
    """The part of `gist visualize`."""
    cards = [
        Card(
            entry["image"],
            Path(entry["sheet"]),
            {"prediction": likeliest(entry), "maps that stand out": _picks(entry["picks"])},
        )
        for entry in value["images"]
    ]
    lead, pages = shown.lead(len(cards)), [Path(p) for p in value["overview"]]
    reading = [OWN_SCALE, CLUSTERS]
    return Part("clusters", "Where clusters respond", lead, reading, cards, pages)


def tokens_part(value: Mapping[str, Any], shown: Shown, *, heads: bool) -> Part:
    """The part of `gist visualize --tokens`: the images on which both tokens differ most first."""
    names = [LABELS[slot] for slot in value["tokens"]]
    entries: Sequence[Mapping[str, Any]] = value["images"]
    over = "mean of the heads, and each of them" if heads else "mean of the heads"
    reading = [OWN_SCALE, ATTENTION.format(heads=over)]
    order = None
    if value["jeffreys"] is not None:
        at = f"(in nats, at temperature {value['temperature']:g})"
        reading.append(BOTH.format(at=at, other=names[-1]))
        if len(entries) > 1:
            order = sorted(range(len(entries)), key=lambda i: -entries[i]["jeffreys"])
            reading[-1] += ORDER
    return Part(
        "tokens",
        f"Attention of {' and '.join(names)} to the picture",
        shown.lead(len(entries)),
        [*reading, *value["notes"]],
        [_token_card(entry, value["layers"], names[-1]) for entry in entries],
        [Path(page) for page in value["overview"]],
        _agreement(value, names[-1]),
        by_layer(value, value["layers"], f"by layer, mean of {len(entries)} images"),
        order,
    )


def likeliest(entry: Mapping[str, Any], slot: str = "") -> str:
    """Class and probability; `slot` is gist_ for what is read out from the other token."""
    return f"{entry[f'{slot}class']} ({entry[f'{slot}probability']:.1%})"


def _picks(picks: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"L{p['layer']} C{p['cluster']} {SIGNS[p['sign']]} (score {p['score']:.2f})" for p in picks
    )


def _token_card(entry: Mapping[str, Any], layers: Sequence[int], other: str) -> Card:
    facts = {"prediction": likeliest(entry)}
    flag = ""
    if "gist_class" in entry:
        facts[f"read out from {other}"] = likeliest(entry, "gist_")
        flag = "" if entry["class"] == entry["gist_class"] else "another class"
    facts |= _figures(entry)
    return Card(
        entry["image"], Path(entry["sheet"]), facts, flag, by_layer(entry, layers, "by layer")
    )


def _figures(entry: Mapping[str, Any]) -> dict[str, str]:
    """Of one image or of all: one number each, means over the layers."""
    facts = {}
    if entry["jeffreys"] is not None:
        facts["Jeffreys divergence"] = f"{entry['jeffreys']:.3g}"
    if entry["overlap"] is not None:
        facts["overlap"] = f"{fmean(entry['overlap']):.2f}"
    for slot, share in entry["patch_share"].items():
        facts[f"{LABELS[slot]} on patches"] = f"{fmean(share):.2f}"
    return facts


def _agreement(value: Mapping[str, Any], other: str) -> dict[str, str]:
    """Over all images."""
    if value["same_class"] is None:
        return {}
    facts = {f"prediction and {other} name the same class": f"{value['same_class']:.1%} of images"}
    figures = _figures(value)
    if value["overlap_chance"] is not None:
        figures["overlap with another image"] = f"{fmean(value['overlap_chance']):.2f}"
    return facts | {f"mean {name}": figure for name, figure in figures.items()}


def by_layer(figures: Mapping[str, Any], layers: Sequence[int], summary: str) -> Table:
    """Shares and overlaps, a row a layer; `figures` of one image or of all."""
    columns = {f"{LABELS[slot]} on patches": s for slot, s in figures["patch_share"].items()}
    columns |= {"overlap": figures["overlap"], "with another image": figures.get("overlap_chance")}
    there = {name: column for name, column in columns.items() if column is not None}
    rows = [
        [str(layer), *(f"{column[i]:.2f}" for column in there.values())]
        for i, layer in enumerate(layers)
    ]
    return Table(summary, ["layer", *there], rows)
