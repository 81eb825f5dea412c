"""Which of transformers' classes read text, and how, by the library's own tables."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

Family = Literal["encoder", "causal", "seq2seq"]
CLASSIFIER = "ForSequenceClassification"
HEADED = ("classification", "multilabel", "regression")
"""Tasks with a head of their own, and one row of outputs for every text."""
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
CONDITIONAL = "ForConditionalGeneration"
SEQ2SEQ = ("t5", "mt5", "umt5")
"""Types of encoder-decoders that are taken: those built like T5."""


@cache
def _tables() -> tuple[Mapping[str, str], ...]:
    """Model type -> class: language models, masked ones, classifiers, encoder-decoders."""
    from transformers.models.auto import modeling_auto as auto

    return (
        {
            kind: name
            for kind, name in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
            if isinstance(name, str) and name.endswith(LANGUAGE_MODELS)
        },
        dict(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
        dict(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
        dict(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    )


def family_of_type(model_type: str) -> Family | None:
    """encoder, causal, seq2seq, or None for other networks."""
    causal, masked, classifiers, both = _tables()
    if model_type in both:
        return "seq2seq" if model_type in SEQ2SEQ else None
    if model_type in masked:
        return "encoder" if model_type in classifiers else None
    return "causal" if model_type in causal else None


@cache
def _families() -> dict[str, Family]:
    causal, _, classifiers, both = _tables()
    found: dict[str, Family] = {both[model_type]: "seq2seq" for model_type in SEQ2SEQ}
    for model_type in {*causal, *classifiers}:
        family = family_of_type(model_type)
        if family is None or family == "seq2seq":
            continue
        for names in (causal, classifiers):
            if model_type in names and not (family == "encoder" and names is causal):
                found[names[model_type]] = family
    return found


def family_of_class(architecture: str) -> Family | None:
    """The family of a class by its name; None for what is no such class."""
    if not architecture.endswith((CLASSIFIER, CONDITIONAL, *LANGUAGE_MODELS)):
        return None  # most names are timm's: transformers' tables stay unread
    return _families().get(architecture)


def class_for(model_type: str, task: str | None) -> str | None:
    """The class of a network for a task; None where transformers has none.

    Args:
        model_type: of config.json.
        task: classification (multilabel, regression), causal_lm, seq2seq, or None for what the
            family is mostly for. An encoder-decoder classifies as it writes, by label words.
    """
    causal, _, classifiers, both = _tables()
    family = family_of_type(model_type)
    if family == "seq2seq":
        return both[model_type] if task in (None, "seq2seq", "classification") else None
    if task is None:
        task = "classification" if family == "encoder" else "causal_lm"
    if family is not None and task in HEADED:
        return classifiers.get(model_type)
    return causal.get(model_type) if family == "causal" and task == "causal_lm" else None


def is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Whether the content of a config.json is that of an encoder-decoder (T5, BART)."""
    both = _tables()[3]
    return bool(config.get("is_encoder_decoder")) or config.get("model_type") in both
