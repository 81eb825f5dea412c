"""Tokenizers and templates made on the spot."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer as Rust
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from gistcli.data.text import Tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The usual form, whose turns can be told by prefixes."""
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The same text, with the assistant's words marked, without the end of the turn."""
FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Writes an answer otherwise once another turn follows."""


def letters(template: str | None = CHATML, **special: Any) -> Tokenizer:
    """Byte-level BPE with some merges; pad is unset unless given, EOS is <|im_end|>."""
    rust = Rust(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(["the answer is true", "hello there. hello to you"] * 9, trainer)
    base = PreTrainedTokenizerFast(tokenizer_object=rust, **{"eos_token": "<|im_end|>", **special})
    base.chat_template = template
    return Tokenizer.of(base)


def closed_words() -> Tokenizer:
    """A word a token, </s> behind, which is T5's way."""
    base = words().base
    template = processors.TemplateProcessing("$A </s>", None, [("</s>", 2)])
    base.backend_tokenizer.post_processor = template
    return Tokenizer.of(base)


def words(pairs: bool = False) -> Tokenizer:
    """A word a token, <s> in front (BERT's way, with types, for `pairs`); pad and EOS are one."""
    vocabulary = ["[UNK]", "<s>", "</s>", *(f"w{i}" for i in range(50))]
    rust = Rust(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    rust.normalizer = normalizers.NFC()
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("<s>", 1), ("</s>", 2)]
    rust.post_processor = (
        processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", ends)
        if pairs
        else processors.TemplateProcessing("<s> $A", None, ends[:1])
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "[UNK]"}
    if pairs:
        special |= {"sep_token": "</s>", "cls_token": "<s>"}
    base = PreTrainedTokenizerFast(tokenizer_object=rust, **special)
    if pairs:
        base.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return Tokenizer.of(base)
