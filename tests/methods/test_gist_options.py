"""Options of the gist token, and the method that it makes of another one."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from gistcli.errors import Refused
from gistcli.methods.gift import Gift
from gistcli.methods.gist import Gist
from gistcli.methods.lora import Lora
from gistcli.methods.toast import Toast
from gistcli.methods.vpt import Vpt
from gistcli.testing.kinds import CLASSES, KINDS


def test_t_squared_multiplies_divergences_alone() -> None:
    both = {"bkld": 1.0, "mse": 1.0}
    assert Gist(interaction=both, lambda_=2).weights(5) == {"bkld": 2, "mse": 2}
    scaled = Gist(interaction=both, lambda_=2, scale_t2=True, temperature=4)
    assert scaled.weights(5) == {"bkld": 32, "mse": 2}
    assert Gist(interaction="none").weights(5) == {}


def test_a_softmax_over_one_output_is_refused_and_auto_compares_the_outputs(
    batch: dict[str, Tensor],
) -> None:
    backbone = KINDS["class token"].backbone()
    assert Gist().weights(CLASSES) == {"bkld": 0.75}
    backbone.reset_head(1)
    with pytest.raises(Refused, match="bkld is 0 for a head with one output"):
        Gist(interaction={"bkld": 1, "mse": 1}).wrap(Lora()).attach(backbone)
    tuner = Gist(lambda_=1).wrap(Lora()).attach(backbone)
    features = tuner(batch)
    g = backbone.read_out(features, "gist")
    found = tuner.auxiliary(features, batch, lambda z: z.sum(), 1.0)
    assert found["interaction"].item() == pytest.approx(F.mse_loss(g, features.logits).item())


@pytest.mark.parametrize(
    "options",
    [
        {"length": 0},
        {"temperature": 0},
        {"temperature": float("inf")},
        {"alpha": -1},
        {"lambda": -0.1},
        {"dropout": 1},
        {"interaction": "kl"},
        {"interaction": {}},
        {"interaction": {"bkld": 0}},
        {"interaction": {"auto": 1}},
        {"source": "patches"},
        {"detach": "both"},
        {"lamda": 1},
        {"source": "prompts", "length": 2},
        {"source": "prompts", "dropout": 0.2},
    ],
    ids=str,
)
def test_options_without_meaning_are_refused(options: dict) -> None:
    with pytest.raises(ValidationError):
        Gist.model_validate(options)


def test_the_defaults_are_the_published_ones_under_their_names() -> None:
    plain = Gist().model_dump(mode="json")
    assert Gist.model_validate(plain) == Gist()
    assert {k: plain[k] for k in ("length", "alpha", "lambda", "temperature", "dropout")} == {
        "length": 1, "alpha": 0.5, "lambda": 0.75, "temperature": 3.0, "dropout": 0.1,
    }  # fmt: skip
    assert all(field.description for field in Gist.model_fields.values())


def test_wrapping_keeps_the_method_and_what_it_says_of_itself() -> None:
    inner = Lora(rank=3)
    method = Gist(alpha=1).wrap(inner)
    assert (method.inner, method.gist.alpha) == (inner, 1)
    assert method.model_dump()["inner"]["rank"] == 3
    assert (method.label(), method.name) == ("lora + gist", "lora + gist")
    assert Gist().wrap(Toast()).label() == "toast (no pre-tuning) + gist"
    assert method.summary.startswith(Lora.summary)
    assert method.recommended == Lora.recommended
    assert not method.starts_as_base()
    able = method.capabilities()
    assert able.merge is None
    assert able.tokens
    assert not any((able.low_rank, able.gateable, able.frozen_features))
    assert Gist().wrap(Gift()).capabilities().clusters
    assert "replaces its prompts" in (Gist().wrap(Vpt()).capabilities().merge or "")
