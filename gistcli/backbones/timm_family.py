"""What all families of timm share: preprocessing, heads, names."""

from __future__ import annotations

from typing import Any, ClassVar

from timm.data import resolve_model_data_config
from timm.layers import to_2tuple
from timm.models import is_model, model_entrypoint
from torch import Tensor, nn

from gistcli.backbones.base import Origin, initialise_head
from gistcli.backbones.images import ImageBackbone
from gistcli.errors import NotSupported, UnknownName, did_you_mean

POSITIONS = "pos_embed"


class TimmBackbone(ImageBackbone):
    """A network built by timm.

    Raises:
        NotSupported: the network is of another kind; nothing about it is changed then.
    """

    networks: ClassVar[tuple[type[nn.Module], ...]]
    """timm's classes, those derived from them excluded."""

    def __init__(self, model: nn.Module, origin: Origin) -> None:
        reason = self.refusal(model)
        if reason is not None:
            raise NotSupported(
                f"{origin.architecture} is {reason}.",
                "See `gist list models` for the backbones that can be tuned.",
            )
        super().__init__()
        self.model = model
        self.origin = origin
        self.freeze()

    @classmethod
    def refusal(cls, model: Any) -> str | None:
        """What keeps a network from being of this family, behind "it is"; None for one that is."""
        if type(model) in cls.networks:
            return None
        names = " or ".join(network.__name__ for network in cls.networks)
        return f"of the class {type(model).__name__}, not {names}"

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
    def stored_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the stored weights are for."""
        stored = self.timm.pretrained_model_args.get("img_size")
        height, width = to_2tuple(stored or self.timm.pretrained_cfg["input_size"][-2:])
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

    def resampled(self) -> dict[str, Tensor]:
        """Position embeddings too where another grid has as many patches: their shape stays."""
        found, state = super().resampled(), self.model.state_dict()
        if self.origin.weights and self.image_size != self.stored_size and POSITIONS in state:
            found[POSITIONS] = state[POSITIONS]
        return found

    def heads(self) -> tuple[nn.Linear, ...]:
        """The linear maps that give logits; two where a network was distilled."""
        found = self.timm.get_classifier()
        return found if isinstance(found, tuple) else (found,)

    def reset_head(self, classes: int, seed: int = 0) -> None:
        """A new linear head for `classes`, truncated normal 0.02 and zero bias."""
        reference = next(self.model.parameters())
        self.timm.reset_classifier(classes)
        for number, head in enumerate(self.heads()):
            head.to(device=reference.device, dtype=reference.dtype)
            initialise_head(head, seed + number)  # two heads that are equal would stay so
        self.freeze()

    def head_names(self) -> list[str]:
        """`head.weight`, `head.bias`."""
        paths = {module: path for path, module in self.model.named_modules()}
        return [
            f"{paths[head]}.{name}" for head in self.heads() for name, _ in head.named_parameters()
        ]

    def classify(self, pooled: Tensor) -> Tensor:
        """(B, K): the head alone."""
        (head,) = self.heads()
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
