"""What servers make of a LoRA folder: the command for vLLM, or why it loads none."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank."""


def vllm_command(
    config: Mapping[str, Any], base: str, folder: Path, template: Path | None = None
) -> str:
    """The line that serves a folder under its own name, for an adapter without `vllm_refusals`.

    Args:
        config: the content of adapter_config.json.
        base: name or folder of the base.
        folder: of the adapter.
        template: a chat template that is not that of the base.
    """
    rank = next(r for r in RANKS if r >= largest_rank(config))
    words = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(rank)]
    words += ["--lora-modules", f"{folder.name}={folder}"]
    if template is not None:
        words += ["--chat-template", str(template)]
    return shlex.join(words)


def largest_rank(config: Mapping[str, Any]) -> int:
    """Of all modules of an adapter."""
    return max([int(config["r"]), *(config.get("rank_pattern") or {}).values()])


def vllm_refusals(config: Mapping[str, Any]) -> list[str]:
    """Why vLLM cannot load an adapter; empty where it can."""
    found = []
    rank = largest_rank(config)
    if rank > RANKS[-1]:
        found.append(f"its rank {rank} is above {RANKS[-1]}")
    heads = config.get("modules_to_save")
    if heads:
        found.append(f"it saves whole modules ({', '.join(heads)})")
    if config.get("bias", "none") != "none":
        found.append("it changes biases")
    if config.get("task_type") == "SEQ_2_SEQ_LM":
        found.append("it serves no encoder-decoders of T5's kind")
    if config.get("fan_in_fan_out"):
        found.append("it has no LoRA for networks that keep weights as (d_in, d_out) (GPT-2)")
    return found
