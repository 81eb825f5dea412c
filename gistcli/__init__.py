"""Adapt pretrained Transformers with few trained parameters."""

__version__ = "0.1.0"
