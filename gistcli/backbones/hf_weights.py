"""Weights of a transformers folder: safetensors only, every key loaded, no code of strangers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from gistcli.errors import WeightsError

UNREAD = re.compile(r"(^|\.)(pooler\..*|mask_token)$")
"""What a classifier does not read and its pretraining has left in the file."""
SHOWN = 5


def load_config(cls: Any, folder: Path) -> Any:
    """The config.json of a folder, for a class of transformers.

    Raises:
        WeightsError: it holds values that the class refuses.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        with quiet():
            return cls.config_class.from_pretrained(folder, local_files_only=True)
    except (StrictDataclassError, KeyError, TypeError, ValueError, OSError) as error:
        raise WeightsError(
            f"{folder / 'config.json'} does not fit {cls.__name__}: {error}", "Copy it again."
        ) from error


def load_pretrained(
    cls: Any,
    folder: Path,
    *,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    of_a_head: Callable[[str], bool] = lambda key: False,
    **options: Any,
) -> Any:
    """`cls.from_pretrained` of a folder, where every key must fit.

    Args:
        cls: class of transformers.
        folder: with config.json and safetensors.
        dtype: of the network; auto for that of the files.
        of_a_head: whether a key may be missing or unexpected: it belongs to another head.
        options: further arguments of `from_pretrained`.

    Raises:
        WeightsError: tensors missing, unexpected or of another shape; all of them counted.
    """
    try:
        with quiet():
            model, info = cls.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # named below, all at once
                output_loading_info=True,
                **options,
            )
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError, OSError) as error:
        hint = "Copy or download it again."
        raise WeightsError(f"{folder} cannot be loaded: {error}", hint) from error
    problems = _problems(info, of_a_head)
    if problems:
        raise WeightsError(
            f"{folder} does not fit {type(model).__name__}: {'; '.join(problems)}.",
            "Check config.json beside the weights (sizes, number of layers, id2label).",
        )
    return model


def _problems(info: dict[str, Any], of_a_head: Callable[[str], bool]) -> list[str]:
    unexpected = [k for k in info["unexpected_keys"] if not UNREAD.search(k)]
    found = {
        "missing": sorted(k for k in info["missing_keys"] if not of_a_head(k)),
        "unexpected": sorted(k for k in unexpected if not of_a_head(k)),
        "of another shape": sorted(
            f"{key} {list(stored)} instead of {list(wanted)}"
            for key, stored, wanted in info["mismatched_keys"]
        ),
    }
    lines = []
    for kind, names in found.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"{kind}: {', '.join(names[:SHOWN])}{more}")
    return [*lines, *map(str, info["error_msgs"])]


@contextmanager
def quiet() -> Iterator[None]:
    """transformers shows bars and reports of its own; errors here say it better."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
