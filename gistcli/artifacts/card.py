"""README.md of an export: a model card with the front matter of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from timm.models import get_pretrained_cfg

from gistcli.artifacts.output import Receipt


@dataclass(frozen=True)
class CardFacts:
    """What a model card says.

    Attributes:
        base_model: the backbone as the user named it: repository, timm name or folder.
        method: one line: name and what it does.
        classes: names in the order of the logits.
        data: where the examples came from.
        counts: examples by split.
        metrics: "test/accuracy" -> value, from result.json.
        intervals: the same keys -> 95 % (Wilson) limits.
        parameters: counts: method, head, trainable, total.
        recipe: resolved recipe.
        license: of the base's weights, if known.
        img_size: height and width of the images, where they differ from the base's own.
        library: that loads the base: timm or transformers.
        kind: the hub's name for what the network does.
    """

    base_model: str
    method: str
    classes: Sequence[str]
    data: str
    counts: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    img_size: tuple[int, int] | None = None
    library: str = "timm"
    kind: str = "image-classification"


def model_card(facts: CardFacts, receipt: Receipt) -> str:
    """The text of README.md for the export that `receipt` describes."""
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(facts, receipt), sort_keys=False)}---",
        f"# {_title(facts)}",
        f"{facts.method}, on {facts.base_model}. Written by `gist merge` "
        f"({receipt.format}, {receipt.dtype}).",
        _data(facts),
        _figures(facts),
        f"## Use\n\n{_snippets(facts, receipt)}",
        _check(receipt),
    ]
    if facts.recipe:
        text = yaml.safe_dump(dict(facts.recipe), sort_keys=False, allow_unicode=True)
        parts.append(f"## Recipe\n\n```yaml\n{text}```")
    return "\n\n".join(p for p in parts if p) + "\n"


def _front_matter(facts: CardFacts, receipt: Receipt) -> dict[str, Any]:
    library = receipt.format
    front: dict[str, Any] = {}
    repository = hub_name(facts.base_model)
    if repository:
        front["base_model"] = repository
    if facts.license:
        front["license"] = facts.license
    front |= {"library_name": library, "pipeline_tag": facts.kind}
    name = facts.method.split()[0].lower().rstrip(":,")
    tags = [facts.kind, library, "gist", name]
    if library == "timm":
        tags.insert(2, "transformers")
    return {**front, "tags": tags}


def hub_name(base: str) -> str | None:
    """The hub repository of a base, where it has one; None for a folder or an embedded network."""
    if Path(base).exists():
        return None
    if base.count("/") == 1:
        return base.removeprefix("hf-hub:")
    config = get_pretrained_cfg(base) if "/" not in base else None
    return config.hf_hub_id if config is not None else None


def _title(facts: CardFacts) -> str:
    return f"{Path(facts.base_model).name} on {Path(facts.data).name}"


def _data(facts: CardFacts) -> str:
    counts = ", ".join(f"{n:,} {split}" for split, n in facts.counts.items())
    text = f"## Data\n\n{facts.data}" + (f": {counts} examples." if counts else ".")
    if not facts.classes:
        return text
    names = ", ".join(facts.classes[:100])
    more = f" and {len(facts.classes) - 100} more (config)" if len(facts.classes) > 100 else ""
    return f"{text}\n\n{len(facts.classes)} classes, in the order of the logits: {names}{more}."


def _figures(facts: CardFacts) -> str:
    rows = []
    for name, value in facts.metrics.items():
        low, high = facts.intervals.get(name, (None, None))
        interval = f"{low:.4f} to {high:.4f}" if low is not None and high is not None else ""
        count = facts.counts.get(name.partition("/")[0])
        rows.append(f"| {name} | {value:.4f} | {interval} | {count if count else ''} |")
    text = ""
    if rows:
        head = "| metric | value | 95 % interval | n |\n|---|---|---|---|\n"
        text = "## Figures\n\n" + head + "\n".join(rows)
    if facts.parameters:
        counts = ", ".join(f"{k} {v:,}" for k, v in facts.parameters.items())
        text += f"{chr(10) * 2 if text else ''}Parameters: {counts}."
    return text


def _snippets(facts: CardFacts, receipt: Receipt) -> str:
    folder = receipt.output.name
    if facts.kind.startswith("text"):
        auto = _AUTO[facts.kind]
        if receipt.format == "prefix":
            return _PREFIX.format(base=facts.base_model, folder=folder)
        if receipt.format == "peft":
            text = _PEFT_TEXT.format(base=facts.base_model, auto=auto, folder=folder)
            if facts.kind == SEQ2SEQ and facts.classes:
                text += _WORDS_APART
            return text if receipt.serve is None else text + _SERVE.format(command=receipt.serve)
        if facts.kind == SEQ2SEQ:
            return (_LABEL_WORDS if facts.classes else _SEQ2SEQ).format(folder=folder)
        return _TEXT.format(kind=facts.kind, folder=folder)
    if receipt.format == "peft" and facts.library == "transformers":
        call = "pixels, interpolate_pos_encoding=True" if facts.img_size else "pixels"
        base, classes = facts.base_model, len(facts.classes)
        return _PEFT_TRANSFORMERS.format(base=base, classes=classes, folder=folder, call=call)
    if receipt.format == "peft":
        size = f", img_size={facts.img_size}" if facts.img_size else ""
        options = f"num_classes={len(facts.classes)}{size}"
        return _PEFT.format(base=_timm_name(facts.base_model), options=options, folder=folder)
    if receipt.format == "onnx":
        return _ONNX.format(folder=folder)
    text = _TRANSFORMERS if receipt.format == "transformers" else f"{_TIMM}\n\n{_TRANSFORMERS}"
    return text.format(folder=folder)


def _check(receipt: Receipt) -> str:
    if not receipt.verified:
        return "## Check\n\nNot verified (`--no-verify`)."
    text = "## Check\n\nRead back after writing"
    if receipt.max_abs_logit_difference is not None:
        text += (
            "; on real inputs its logits differ from those of the tuned network by at most "
            f"{receipt.max_abs_logit_difference:.3g}"
        )
    return f"{text}. {receipt.advice}".rstrip()


def _timm_name(base: str) -> str:
    """What `timm.create_model` takes for the base."""
    if Path(base).is_dir():
        return f"local-dir:{base}"
    return f"hf-hub:{base}" if base.count("/") == 1 else base


_TIMM = """```python
import timm
from PIL import Image

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()  # pretrained=True matters
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(Image.open("photo.jpg").convert("RGB"))[None])
print(model.pretrained_cfg["label_names"][logits.argmax()])
```"""

_TRANSFORMERS = """```python
from transformers import pipeline

print(pipeline("image-classification", model="{folder}")("photo.jpg"))
```"""

_PEFT = """```python
import timm
from peft import PeftModel

base = timm.create_model("{base}", pretrained=True, {options})
model = PeftModel.from_pretrained(base, "{folder}").eval()
```"""

_PEFT_TRANSFORMERS = """```python
from peft import PeftModel
from transformers import AutoModelForImageClassification

base = AutoModelForImageClassification.from_pretrained(
    "{base}", num_labels={classes}, ignore_mismatched_sizes=True
)
model = PeftModel.from_pretrained(base, "{folder}").eval()
logits = model({call}).logits
```"""

SEQ2SEQ = "text2text-generation"

_AUTO = {
    SEQ2SEQ: "AutoModelForSeq2SeqLM",
    "text-generation": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
}

_TEXT = """```python
from transformers import pipeline

print(pipeline("{kind}", model="{folder}")("..."))
```"""

_PREFIX = """```python
from inspect import signature

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = AutoModelForCausalLM.from_pretrained("{base}").eval()
prefix = load_file("{folder}/prefix.safetensors")
cache = DynamicCache(config=model.config)  # it grows as text is written: a new one for every call
for layer, (keys, values) in enumerate(zip(prefix["keys"], prefix["values"])):
    cache.update(keys.to(model.dtype), values.to(model.dtype), layer)
ids = tokenizer("...", return_tensors="pt").input_ids
seen = torch.ones(1, cache.get_seq_length() + ids.shape[1], dtype=torch.long)  # prefix and text
named = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"  # < 5.24
out = model.generate(input_ids=ids, attention_mask=seen, max_new_tokens=32, **{{named: cache}})
print(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
```"""

_LOAD = """```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForSeq2SeqLM.from_pretrained("{folder}").eval()
inputs = tokenizer("...", return_tensors="pt")
"""
_SEQ2SEQ = f"""{_LOAD}print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))
```"""
_LABEL_WORDS = f"""{_LOAD}import torch

start = torch.tensor([[model.config.decoder_start_token_id]])
logits = model(**inputs, decoder_input_ids=start).logits[0, 0, model.config.label_token_ids]
print(model.config.id2label[int(logits.argmax())])
```"""
_WORDS_APART = (
    "\n\nThe class is the label word whose first token (`label_token_ids` in `label_words.json`) "
    "has the highest logit at the decoder's start."
)

_PEFT_TEXT = """```python
from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{folder}").eval()
```"""

_SERVE = """

```sh
{command}
```"""

_ONNX = """```python
import json, numpy, onnxruntime

session = onnxruntime.InferenceSession("{folder}/model.onnx")
facts = json.load(open("{folder}/onnx.json"))  # classes, preprocessing
pixels = numpy.zeros((1, *facts["preprocessing"]["input_size"]), "float32")  # normalised image
logits = session.run(None, {{"pixels": pixels}})[0]
print(facts["classes"][logits.argmax()])
```"""
