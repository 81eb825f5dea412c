"""Pretrained networks behind roles, sites, points and token slots, whatever a family says."""

from gistcli.backbones.base import Backbone
from gistcli.backbones.layout import Features, TokenLayout
from gistcli.backbones.loading import open_backbone
from gistcli.backbones.sites import Output, Point, Site, Switch, Tap

__all__ = [
    "Backbone",
    "Features",
    "Output",
    "Point",
    "Site",
    "Switch",
    "Tap",
    "TokenLayout",
    "open_backbone",
]
