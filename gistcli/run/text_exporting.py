"""`gist merge` of runs on text: the folder beside the weights, and prompts to verify them on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from gistcli.artifacts.text_export import TextForm, at_tokens, text_form
from gistcli.artifacts.verify import Reference
from gistcli.backbones.streaming import compute
from gistcli.backbones.text import TextBackbone
from gistcli.data.text import collate_prompts, open_template, open_tokenizer
from gistcli.errors import GistError
from gistcli.reporting import Reporter
from gistcli.run.assembling import NETWORK_TASKS
from gistcli.run.loading import Loaded
from gistcli.run.split_choice import choose_split
from gistcli.run.texts import open_text

ROWS, TOKENS = 4, 64
"""Of what a merge is verified on: logits of all these tokens are held twice."""


BUILT_IN = (
    "The quick brown fox jumps over the lazy dog.",
    "Once upon a time there was a girl who lived in a small house near the forest.",
    "Water boils at 100 degrees Celsius at sea level, and at a lower temperature on a mountain.",
    "def add(a, b):\n    return a + b",
)
"""What a merge is verified on where the run's data are gone."""


def form_of(loaded: Loaded) -> TextForm:
    """The folder of a run; its own chat template goes along where it had one.

    Raises:
        NotMergeable: the library stores the network in another form.
        GistError: tokenizer or template are no longer there.
    """
    _, _, recipe = loaded.require_run("merge")
    backbone = loaded.backbone
    assert isinstance(backbone, TextBackbone)
    chosen, template = recipe.data.chat_template, None
    tokenizer = open_tokenizer(backbone.origin.config["folder"])
    if chosen != "tokenizer":
        found = open_template(tokenizer, chosen)
        template = None if found is None else found.source

    @contextmanager
    def network() -> Iterator[nn.Module]:
        with loaded.tuner.disabled():
            yield backbone.model

    return text_form(backbone, loaded.classes, template, network, tokenizer.pad_id)


def reference_of(loaded: Loaded, reporter: Reporter) -> Reference | None:
    """Real texts with the tuned network's logits, computed block by block.

    The run's own, or sentences that are always there; None without a tokenizer.
    """
    try:
        batch = _own_batch(loaded, reporter)
    except GistError as error:
        reporter.warn(f"The run's data cannot be read ({error.message}); verifying on sentences.")
        try:
            batch = _sentences(loaded)
        except GistError as none:
            reporter.warn(f"{none.message} The logits are not compared.")
            return None
    kept: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")
    if loaded.task == "seq2seq":  # of the target
        kept = (*kept, "labels")
    inputs = {key: batch[key][:, :TOKENS] for key in kept if key in batch}

    def logits() -> Tensor:
        with loaded.tuner.step():
            found: Tensor = loaded.tuner(inputs).logits.float()
            return found

    found = compute(loaded.backbone.model, logits)
    writes = NETWORK_TASKS.get(loaded.task, loaded.task) == "causal_lm"
    return Reference(inputs, at_tokens(found, inputs) if writes else found)


def _own_batch(loaded: Loaded, reporter: Reporter) -> Mapping[str, Tensor]:
    run, _, recipe = loaded.require_run("merge")
    workload = open_text(recipe, run.splits_path, model=loaded.backbone.name)
    split = choose_split(workload.catalog, None)
    workload.encode(loaded.backbone, [split], loaded.device, reporter)
    batch: Mapping[str, Tensor] = next(iter(workload.splits[split].batches(ROWS, seed=None)))
    return batch


def _sentences(loaded: Loaded) -> Mapping[str, Tensor]:
    tokenizer = open_tokenizer(loaded.backbone.origin.config["folder"])
    prompts = [[*tokenizer.prefix, *ids][:TOKENS] for ids in tokenizer.ids(list(BUILT_IN))]
    return collate_prompts(prompts, tokenizer.pad_id)
