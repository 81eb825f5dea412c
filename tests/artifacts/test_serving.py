"""What vLLM loads, by the rules that it documents, and the command that serves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gistcli.artifacts.serving import vllm_command, vllm_refusals

PLAIN: dict[str, Any] = {
    "r": 16, "bias": "none", "modules_to_save": None, "fan_in_fan_out": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("rank", "taken"), [(1, 1), (2, 8), (16, 16), (17, 32), (129, 256), (300, 320), (512, 512)]
)
def test_the_rank_is_rounded_up_to_one_that_is_taken(rank: int, taken: int) -> None:
    command = vllm_command({**PLAIN, "r": rank}, "owner/base", Path("out/chat-lora"))
    assert command == (
        f"vllm serve owner/base --enable-lora --max-lora-rank {taken} "
        "--lora-modules chat-lora=out/chat-lora"
    )


def test_the_largest_rank_of_all_modules_counts() -> None:
    config = {**PLAIN, "r": 8, "rank_pattern": {"a": 24, "b": 4}}
    assert "--max-lora-rank 32" in vllm_command(config, "base", Path("lora"))


def test_names_with_blanks_are_quoted() -> None:
    command = vllm_command(PLAIN, "my models/base", Path("o u/l"), Path("o u/l/t.jinja"))
    assert command.startswith("vllm serve 'my models/base' --enable-lora")
    assert command.endswith("--lora-modules 'l=o u/l' --chat-template 'o u/l/t.jinja'")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": 513}, "rank 513 is above 512"),
        ({"modules_to_save": ["score"]}, "whole modules (score)"),
        ({"bias": "lora_only"}, "biases"),
        ({"fan_in_fan_out": True}, "GPT-2"),
    ],
)
def test_what_vllm_does_not_load_has_a_reason(change: dict[str, Any], words: str) -> None:
    assert vllm_refusals(PLAIN) == []
    (reason,) = vllm_refusals({**PLAIN, **change})
    assert words in reason
