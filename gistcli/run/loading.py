"""From a run or a merged folder to a tuned network, checked against what it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gistcli.artifacts.rundir import RunDirectory
from gistcli.artifacts.targets import kind_of, open_merged
from gistcli.artifacts.tuner_file import TunerInfo
from gistcli.backbones import Backbone, open_backbone
from gistcli.backbones.images import require_images
from gistcli.backbones.quantised import (
    head_modules,
    planned_sizes,
    require_bitsandbytes,
    round_trip,
)
from gistcli.backbones.seq2seq import Seq2Seq
from gistcli.backbones.streaming import Change, empty
from gistcli.backbones.text import TextBackbone
from gistcli.data import Preprocess
from gistcli.errors import BaseMismatch, NotFound, NotSupported, Refused
from gistcli.methods.base import Tuner
from gistcli.methods.linear import Linear
from gistcli.recipe import Recipe
from gistcli.run.assembling import open_model
from gistcli.run.methods import method_of
from gistcli.train.precision import choose_device, choose_precision


@dataclass
class Loaded:
    """A tuned network with what is needed to use it.

    Attributes:
        tuner: drives the network; for a merged folder one whose head is the folder's own.
        pictures: how they become pixels; None where the network reads text.
        recipe, run, info: of a run; None for a merged folder.
        name: what the user pointed at.
        task: what it was trained for.
    """

    tuner: Tuner
    classes: list[str]
    pictures: Preprocess | None
    device: torch.device
    name: str
    recipe: Recipe | None = None
    run: RunDirectory | None = None
    info: TunerInfo | None = None
    task: str = "classification"

    @property
    def preprocess(self) -> Preprocess:
        """How pictures become pixels.

        Raises:
            NotSupported: the network reads text.
        """
        if self.pictures is None:
            raise NotSupported(
                f"{self.name} reads text: this works on pictures alone so far.",
                "`gist eval`, `predict` and `merge` take runs on text.",
            )
        return self.pictures

    @property
    def backbone(self) -> Backbone:
        """The network under the tuner."""
        return self.tuner.backbone

    @property
    def batch_size(self) -> int:
        """Examples per forward pass, where nobody says."""
        if self.recipe is None:
            return 32
        return self.recipe.eval.batch_size or self.recipe.train.batch_size

    def precision(self) -> str:
        """As the run was trained, on this device."""
        asked = self.recipe.train.precision if self.recipe else "auto"
        return choose_precision(asked, self.device)

    def require_run(self, command: str) -> tuple[RunDirectory, TunerInfo, Recipe]:
        """The run's parts.

        Raises:
            Refused: it is a merged folder, in which the method is gone.
        """
        if self.run is None or self.info is None or self.recipe is None:
            raise Refused(
                f"{self.name} is a merged folder: what the method learnt is part of its weights.",
                f"Give `gist {command}` the run it was merged from.",
            )
        return self.run, self.info, self.recipe


def open_target(
    target: Path,
    *,
    model: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    streamed: bool = False,
) -> Loaded:
    """Load a run or a merged folder for use, in evaluation mode on a device.

    Args:
        target: directory of a run or of a merged network.
        model: where the backbone now lies, if it moved.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: of a run's backbone; None for that of its recipe.
        streamed: leave the weights of a network over text on the disk; see `backbones.streaming`.

    Raises:
        NotFound, WeightsError: missing or damaged files.
        BaseMismatch: the backbone is another one.
    """
    where = choose_device(device)
    if kind_of(target) == "merged":
        loaded = _open_merged(target, where, model)
    else:
        loaded = _open_run(target, where, model, dtype, streamed)
    loaded.backbone.to(where).eval()
    loaded.tuner.to(where).eval()
    return loaded


def _open_merged(target: Path, device: torch.device, model: str | None) -> Loaded:
    if model is not None:
        raise Refused(f"{target} is a merged folder and needs no --model.", "Leave it out.")
    folder = open_merged(target)
    backbone = open_backbone(str(target))
    if backbone.modality == "text":
        return _merged_text(target, backbone, folder.classes, device)
    classes = folder.classes
    if not backbone.head_names():
        raise NotSupported(
            f"{target} is a {backbone.architecture} without a classifier.",
            f"Train one: `gist finetune --model {target} --data PATH`.",
        )
    if not classes:
        head = backbone.model.get_parameter(backbone.head_names()[0])
        classes = [str(i) for i in range(len(head))]
    network = require_images(backbone, "A merged image classifier")
    preprocess = Preprocess.from_config(
        {**network.data_config(), **folder.preprocessing}, str(target / "config.json")
    )
    # a tuner that owns the head and changes nothing: the folder's weights are the tuned ones
    return Loaded(Linear().attach(backbone), classes, preprocess, device, str(target))


def _merged_text(
    target: Path, backbone: Backbone, classes: list[str], device: torch.device
) -> Loaded:
    """A tuner that changes nothing; the classes of a language model's config are no classes."""
    assert isinstance(backbone, TextBackbone)
    values = getattr(backbone.config, "problem_type", None) == "regression"
    named = classes if backbone.task == "classification" and not values else []
    task = "regression" if values else backbone.task
    tuner = Tuner(Linear(), backbone, head=False)
    return Loaded(tuner, named, None, device, str(target), task=task)


def _open_run(
    target: Path, device: torch.device, model: str | None, dtype: str | None, streamed: bool
) -> Loaded:
    run = RunDirectory.open(target)
    state, info = run.read_tuner()
    method = method_of(info.method)  # says what to install, before the recipe asks for it
    recipe = run.load_recipe()
    backbone = open_base(info, recipe, model, dtype)
    if isinstance(backbone, Seq2Seq):
        words, ids = (info.extra.get(key, ()) for key in ("label_words", "label_token_ids"))
        backbone.set_label_words(words, ids)
    backbone.reset_head(len(info.classes) or 1, recipe.seed)  # one value, of a regression
    if streamed and backbone.modality == "text":
        empty(backbone.model, _changes(backbone, recipe.model.quantize))
    tuner = method.attach(backbone)
    tuner.load_state(state)
    preprocess = None
    if backbone.modality == "vision":
        preprocess = Preprocess.from_config(info.preprocessing, str(target / "tuner.json"))
    return Loaded(
        tuner, info.classes, preprocess, device, str(target), recipe, run, info, info.task
    )


def _changes(backbone: Backbone, scheme: str | None) -> dict[str, Change]:
    """What quantising does to stored weights, by name: a run on such weights is merged into them.

    Raises:
        Refused: the library that quantises is not installed.
    """
    if scheme is None:
        return {}
    require_bitsandbytes()
    model = backbone.model
    names = planned_sizes(model, head_modules(model), scheme)
    turned = backbone.transposed_keys()

    def rows_first(w_IO: Tensor) -> Tensor:
        return round_trip(w_IO.t(), scheme).t()

    def plain(w_OI: Tensor) -> Tensor:
        return round_trip(w_OI, scheme)

    return {name: rows_first if name in turned else plain for name in names}


def open_base(
    info: TunerInfo, recipe: Recipe, model: str | None, dtype: str | None = None
) -> Backbone:
    """The backbone of a run, recognised by its fingerprint.

    Raises:
        NotFound: it is no longer where it was.
        BaseMismatch: other weights lie there.
    """
    try:
        backbone = open_model(recipe.model, name=model, dtype=dtype, task=info.task)
    except NotFound as error:
        if model is not None:
            raise
        raise NotFound(
            f"The backbone of this run is not where it was: {error.message}",
            "Say where it lies now with --model PATH.",
        ) from error
    if backbone.fingerprint != info.backbone.fingerprint:
        raise BaseMismatch(
            f"{backbone.name} is not the backbone that the run was trained on: its weights have "
            f"the fingerprint {backbone.fingerprint[:12]}, those of the run "
            f"{info.backbone.fingerprint[:12]} ({info.backbone.name}).",
            "Give the original with --model PATH.",
        )
    return backbone


class TunedModel(nn.Module):
    """A tuned network as a plain module.

    Attributes:
        tuner: everything trained; `tuner.backbone` is the network, whose own `generate`, where it
            writes text, writes what was learnt.
        classes: names in the order of the logits; none of a language model.
        preprocess: how pictures become pixels; None where it reads text.
    """

    def __init__(self, loaded: Loaded) -> None:
        super().__init__()
        self.tuner = loaded.tuner
        self.backbone = loaded.backbone
        self.classes = loaded.classes
        self.preprocess = loaded.pictures

    def forward(
        self, inputs: Tensor, attention_mask: Tensor | None = None, **more: Tensor
    ) -> Tensor:
        """Logits, (B, K) of a classifier.

        Args:
            inputs: normalised pixels (B, C, H, W), or token ids (B, T).
            attention_mask: (B, T), 1 where a token is real; None where all are.
            more: what else a batch of text may hold (`token_type_ids`, `labels`).
        """
        if self.backbone.modality == "vision":
            batch = {"pixels": inputs}
        else:
            mask = torch.ones_like(inputs) if attention_mask is None else attention_mask
            batch = {"input_ids": inputs, "attention_mask": mask, **more}
        logits: Tensor = self.tuner(batch).logits
        return logits


def load(target: str | Path, *, model: str | None = None, device: str = "cpu") -> TunedModel:
    """A run (or merged folder) as an `nn.Module` with everything attached, in evaluation mode.

    Raises:
        GistError: as `open_target`.
    """
    return TunedModel(open_target(Path(target), model=model, device=device)).eval()
