"""What all families of timm share: preprocessing, heads, names."""

from __future__ import annotations

from typing import Any

from timm.data import resolve_model_data_config
from timm.models import is_model, model_entrypoint
from torch import Tensor, nn

from gistcli.backbones.base import Backbone, Origin, initialise_head
from gistcli.errors import UnknownName, did_you_mean


class TimmBackbone(Backbone):
    """A network built by timm."""

    def __init__(self, model: nn.Module, origin: Origin) -> None:
        super().__init__()
        self.model = model
        self.origin = origin
        self.freeze()

    @property
    def timm(self) -> Any:
        """The network, without a type: every family has its own attributes."""
        return self.model

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that the network was built for."""
        height, width = self.timm.patch_embed.img_size
        return height, width

    @property
    def license(self) -> str | None:
        """What timm's configuration says."""
        found: str | None = self.timm.pretrained_cfg.get("license")
        return found

    def data_config(self) -> dict[str, Any]:
        """timm's data config with the image size that the network was built for."""
        config = resolve_model_data_config(self.model)
        channels = config["input_size"][0]
        return {**config, "input_size": (channels, *self.image_size)}

    def heads(self) -> dict[str, nn.Linear]:
        """The linear maps that give logits, by path; two where a network was distilled."""
        found = self.timm.get_classifier()
        heads = found if isinstance(found, tuple) else (found,)
        names = {id(module): name for name, module in self.model.named_modules()}
        return {names[id(head)]: head for head in heads}

    def reset_head(self, classes: int, seed: int = 0) -> None:
        """A new linear head for `classes`, truncated normal 0.02 and zero bias."""
        reference = next(self.model.parameters())
        self.timm.reset_classifier(classes)
        for head in self.heads().values():
            head.to(device=reference.device, dtype=reference.dtype)
            initialise_head(head, seed)
        self.freeze()

    def head_names(self) -> list[str]:
        """`head.weight`, `head.bias`."""
        return [
            f"{path}.{name}"
            for path, head in self.heads().items()
            for name, _ in head.named_parameters()
        ]

    def classify(self, pooled: Tensor) -> Tensor:
        """(B, K): the head alone."""
        (head,) = self.heads().values()
        logits: Tensor = head(pooled)
        return logits


def built_in(architecture: str, *modules: str) -> bool:
    """Whether timm builds an architecture in one of these modules of `timm.models`."""
    if not is_model(architecture):
        return False
    return model_entrypoint(architecture).__module__ in {f"timm.models.{m}" for m in modules}


def unknown_point(after: str, known: Any, family: str) -> UnknownName:
    """The error for a place that a family does not have."""
    return UnknownName(f"No point {after!r} in a {family}.", did_you_mean(after, known))
