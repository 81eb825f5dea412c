"""What holds for every kind of backbone, and for every name that timm knows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from timm.models import list_models
from torch import nn

from gistcli import registry
from gistcli.backbones import Backbone, open_backbone
from gistcli.backbones.base import Origin
from gistcli.backbones.loading import supported_models
from gistcli.backbones.timm_family import TimmBackbone, built_in
from gistcli.errors import NotSupported
from gistcli.evaluate.features import differs_in_training
from gistcli.testing.kinds import batch
from tests.backbones import hf_kinds, hierarchical
from tests.backbones.kinds import ALL, logits

BUILDERS: dict[str, Callable[[], Backbone]] = {
    **{name: kind.backbone for name, kind in ALL.items()},
    **hierarchical.KINDS,
    **{f"Hugging Face {name}": build for name, build in hf_kinds.KINDS.items()},
}
MODULES = {"beit": ("beit",), "eva": ("eva",), "vit": ("vision_transformer", "deit")}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_frozen_network_is_the_same_in_training_mode_and_in_evaluation_mode(name: str) -> None:
    backbone, pixels = BUILDERS[name](), batch()["pixels"][:2]
    expected = logits(backbone, pixels)
    assert not differs_in_training(backbone.model)
    torch.manual_seed(0)
    assert torch.equal(logits(backbone.train(), pixels), expected)


def test_rotations_would_differ_in_training_mode_where_the_architecture_asks_for_it() -> None:
    backbone, pixels = ALL["Sapiens2"].backbone().train(), batch()["pixels"][:2]
    quiet = logits(backbone, pixels)
    backbone.model.rope.aug_active = True
    assert not torch.allclose(logits(backbone, pixels), quiet)


@pytest.mark.parametrize("name", ["beit", "eva", "hiera", "swin", "vit"])
def test_a_network_of_another_class_is_refused(name: str) -> None:
    family: type[TimmBackbone] = registry.resolve("backbones", name)
    other = ALL["BEiT" if name == "vit" else "class token"]
    with pytest.raises(NotSupported, match=f"of the class {type(other.network()).__name__}, not"):
        family(other.network(), Origin("other", other.architecture))


def shallow(name: str) -> nn.Module:
    """The network of a name with one block, without memory."""
    # Sapiens2 lists its heads of keys block by block
    options = {"num_kv_heads": (4,)} if "sapiens2" in name else {}
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, depth=1, **options)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_a_name_is_accepted_if_its_network_is(name: str) -> None:
    family: type[TimmBackbone] = registry.resolve("backbones", name)
    names = [n for n in list_models() if built_in(n, *MODULES[name])]
    refused = {n for n in names if family.refusal(shallow(n)) is not None}
    assert refused == {n for n in names if not family.accepts(n)}
    assert bool(refused) == (name != "beit")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_every_name_has_all_its_maps_and_outputs(name: str) -> None:
    family: type[TimmBackbone] = registry.resolve("backbones", name)
    for architecture in filter(family.accepts, list_models()):
        backbone = family(shallow(architecture), Origin(architecture, architecture))
        maps = {site.module_name for site in backbone.all_sites()}
        outputs = {output.name for output in backbone.outputs()}
        heads = backbone.heads()
        for path, module in backbone.model.named_modules():
            if module in heads or {"attn_pool"} & set(path.split(".")):
                continue  # behind the last norm
            if isinstance(module, nn.Linear):
                assert path in maps, (architecture, path)
            if getattr(module, "weight", None) is not None:
                assert path in outputs, (architecture, path)
        grid = torch.empty(1, 3, *backbone.image_size, device="meta")
        assert backbone.layout_of(grid).patches.stop == backbone.layout_of(grid).total


@pytest.mark.parametrize("name", ["vit_base_patch16_xp_224", "eva02_enormous_patch14_clip_224"])
def test_a_name_of_other_blocks_is_refused_before_anything_is_fetched(name: str) -> None:
    assert name not in supported_models()
    with pytest.raises(NotSupported, match=name):
        open_backbone(name)
