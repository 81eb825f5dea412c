"""What ships inside the package: the embedded backbone `gist_vit_nano`.

`gist_vit_nano/` is a timm `local-dir:` folder, pretrained by this project on rendered letters and
symbols (`pretrain_nano.py` says how), so that a demo and the tests need no download.
"""

from __future__ import annotations

from pathlib import Path

NANO = "gist_vit_nano"
"""The name under which the embedded backbone is asked for."""


def nano_folder() -> Path:
    """The folder of the embedded backbone: `config.json` and `model.safetensors`."""
    return Path(__file__).parent / NANO
