"""`gist merge` of runs on text: the folder beside the weights, and prompts to verify them on."""

from __future__ import annotations

import torch

from gistcli.artifacts.text_export import TextForm, at_tokens, text_form
from gistcli.artifacts.verify import Reference
from gistcli.backbones.text import TextBackbone
from gistcli.data.text import open_template, open_tokenizer
from gistcli.errors import GistError
from gistcli.reporting import Reporter
from gistcli.run.loading import Loaded
from gistcli.run.split_choice import choose_split
from gistcli.run.texts import open_text

ROWS, TOKENS = 4, 128
"""Of what a merge is verified on."""


def form_of(loaded: Loaded) -> TextForm:
    """The folder of a run; its own chat template goes along where it had one.

    Raises:
        NotMergeable: the library stores the network in another form.
        GistError: the template is no longer there.
    """
    _, _, recipe = loaded.require_run("merge")
    backbone = loaded.backbone
    assert isinstance(backbone, TextBackbone)
    chosen, template = recipe.data.chat_template, None
    if chosen != "tokenizer":
        found = open_template(open_tokenizer(backbone.origin.config["folder"]), chosen)
        template = None if found is None else found.source
    return text_form(backbone, loaded.classes, template)


def reference_of(loaded: Loaded, reporter: Reporter) -> Reference | None:
    """Real texts of the run with the tuned network's logits; None where they cannot be read."""
    run, _, recipe = loaded.require_run("merge")
    try:
        workload = open_text(recipe, run.splits_path, model=loaded.backbone.name)
        split = choose_split(workload.catalog, None)
        workload.encode(loaded.backbone, [split], loaded.device, reporter)
    except GistError as error:
        reporter.warn(f"The run's data cannot be read ({error.message}): logits are not compared.")
        return None
    batch = next(iter(workload.splits[split].batches(ROWS, seed=None)))
    kept = ("input_ids", "attention_mask", "token_type_ids")
    if loaded.task == "seq2seq":  # of the target
        kept = (*kept, "labels")
    inputs = {key: batch[key][:, :TOKENS] for key in kept if key in batch}
    with torch.no_grad(), loaded.tuner.step():
        logits = loaded.tuner(inputs).logits.float()
    return Reference(inputs, at_tokens(logits, inputs) if loaded.task == "causal_lm" else logits)
