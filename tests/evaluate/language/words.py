"""A tokenizer of sixty words, and small tuned language models that have the same vocabulary."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer as Words
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gistcli.backbones.base import Origin
from gistcli.backbones.causal import Causal
from gistcli.data.text.tokenizer import Tokenizer
from gistcli.methods.base import Tuner
from gistcli.methods.gift import Gift
from tests.objectives.tiny_lm import tiny_lm

SPECIAL = ("<unk>", "<s>", "</s>")
PROMPTS = [[1, 7, 9, 23], [1, 30], [1, *range(20, 40)], [1, 5, 5, 5, 41, 8], [1, 59, 3]]


def tokenizer(stop_ids: frozenset[int] = frozenset({2})) -> Tokenizer:
    """Words w3 to w59; <s> in front."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *(f"w{i}" for i in range(3, 60))))}
    words = Words(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    base = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    return Tokenizer(base, stop_ids)


def gpt2() -> Causal:
    """Two layers with learned positions, 64 of them."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3
    )
    return Causal(GPT2LMHeadModel(config).eval(), Origin("tiny", "GPT2LMHeadModel"))


def tuned(backbone: Causal) -> Tuner:
    """GIFT on what attention puts out, away from the identity."""
    tuner = Gift(rank=4, targets=["attn_out"]).attach(backbone)
    torch.manual_seed(3)
    for psi in tuner.psi.values():
        nn.init.normal_(psi, std=0.3)
    return tuner.eval()


KINDS = {"llama": tiny_lm, "gpt2": gpt2}
