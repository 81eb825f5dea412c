"""What ships inside the package: the embedded backbones, so that demos and tests need no download.

`gist_vit_nano/` is a timm `local-dir:` folder, pretrained by this project on rendered letters and
symbols (`pretrain_nano.py` says how). `gist_llama_nano/` is a transformers folder with a tokenizer,
pretrained to learn a family of small tasks in context (`pretrain_llama_nano.py`).
"""

from __future__ import annotations

from pathlib import Path

NANO = "gist_vit_nano"
"""The name under which the embedded backbone of pictures is asked for."""
LLAMA = "gist_llama_nano"
"""The name under which the embedded decoder of text is asked for."""


def nano_folder(name: str = NANO) -> Path:
    """The folder of an embedded backbone: config, weights and, where it reads text, tokenizer."""
    return Path(__file__).parent / name
