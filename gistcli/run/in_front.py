"""`gist predict --prefix`: what `gist compress` wrote stands in front of every prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from gistcli.backbones.prefix import Prefix
from gistcli.backbones.prefix_file import (
    FILE,
    TEMPLATE,
    TOKENIZER,
    Stored,
    merged_into,
    open_prefix,
)
from gistcli.backbones.sites import Switch
from gistcli.data.episodes.encoding import put
from gistcli.data.text import Completion, Example, Plain, Tokenizer
from gistcli.errors import BaseMismatch, Refused
from gistcli.hyper.hyperllama import HyperTuner
from gistcli.methods.base import Tuner
from gistcli.run.episode_options import tokenizer_hash
from gistcli.run.loading import Loaded

ASKED = "--prefix"


def open_front(path: Path, loaded: Loaded, tokenizer: Tokenizer) -> Stored:
    """The prefix of a file, or of the folder around it, that a loaded network can read.

    Args:
        path: of either.
        loaded: a run of a hypernetwork, or a folder with the network itself, tuned or not.
        tokenizer: of the network.

    Raises:
        NotFound, WeightsError: as `open_prefix`.
        BaseMismatch: made for another network or tokenizer.
        Refused: texts are read with what another method has trained.
        NotSupported: a network that takes no prefix.
    """
    tuner, backbone = loaded.tuner, loaded.backbone
    adapted = False
    if isinstance(tuner, HyperTuner) and tuner.method.hyper.compresses:
        adapted = tuner.method.hyper.adapt_downstream
    elif loaded.run is not None:
        raise Refused(
            f"{ASKED}: {loaded.name} is a run of {tuner.method.label()}, which makes no prefixes.",
            "Give the run of the hypernetwork that made the prefix, or the folder of its network.",
        )
    stored = open_prefix(path / FILE if path.is_dir() else path, ASKED)
    info, folder = loaded.info, backbone.origin.config.get("folder")
    trained = merged_into(folder) if info is None else info.sha256
    stored.require_for(backbone.fingerprint, ASKED, adapted=adapted, tuner=trained)
    if stored.notes.get(TOKENIZER) not in (None, tokenizer_hash(tokenizer)):
        raise BaseMismatch(
            f"{ASKED}: the prefix in {stored.path} was made with another tokenizer than that of "
            f"{backbone.name}.",
            "Put the original tokenizer back.",
        )
    _require_shape(stored, backbone.prefix_seam().shape)
    both = (tensor.to(loaded.device) for tensor in (stored.prefix.keys, stored.prefix.values))
    return replace(stored, prefix=Prefix(*both))


def _require_shape(stored: Stored, shape: tuple[int, int, int]) -> None:
    layers, _, heads, _, width = stored.prefix.keys.shape
    if (layers, heads, width) != shape:
        raise BaseMismatch(
            f"{ASKED}: {stored.path} has {layers} layers of {heads} heads of width {width}, and "
            f"the network {shape[0]} of {shape[1]} of width {shape[2]}.",
            "Use the model that it was made for.",
        )


@contextmanager
def in_front(tuner: Tuner, prefix: Prefix | None) -> Iterator[None]:
    """Inside, the prefix stands in front of every text that a network reads; None for nothing.

    Raises:
        Refused: a hypernetwork makes prefixes of another length.
        NotSupported: as `PrefixSeam.add`.
    """
    if isinstance(tuner, HyperTuner):
        with tuner.prefix_in_use(prefix) if prefix is not None else nullcontext():
            yield
        return
    if prefix is None:
        yield
        return
    switch = Switch()
    tuner.backbone.prefix_seam().add(prefix.length, lambda rows: prefix, switch)
    try:
        yield
    finally:
        switch.release()


def template_of(loaded: Loaded, stored: Stored | None) -> str:
    """How prompts are put, of `EpisodeOptions.template`: as in the file, else as in the run."""
    known = None if stored is None else stored.notes.get(TEMPLATE)
    if known is None and loaded.info is not None:
        known = loaded.info.extra.get("template")
    return known or "plain"


def as_put(example: Example, template: str) -> Example:
    """A prompt as a hypernetwork's queries are put; chats stay what they are."""
    if template == "plain":
        return example
    if isinstance(example, Plain):
        return replace(example, text=put(example.text))
    if isinstance(example, Completion):
        return replace(example, prompt=put(example.prompt))
    return example
