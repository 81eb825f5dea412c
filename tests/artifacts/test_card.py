"""The model card: front matter that the hub reads, snippets that run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from gistcli.artifacts.card import CardFacts, hub_name, model_card
from gistcli.artifacts.merge import merge_weights
from gistcli.artifacts.output import Receipt
from gistcli.artifacts.peft_export import export_peft

FACTS = CardFacts(
    base_model="timm/vit_tiny_patch16_224.augreg_in21k",
    method="GIFT: W (I + phi psi)",
    classes=["ant", "bee", "çe"],
    data="insects",
    counts={"train": 1200, "val": 50, "test": 200},
    metrics={"val/accuracy": 0.9, "test/accuracy": 0.95},
    intervals={"test/accuracy": (0.91, 0.97)},
    parameters={"method": 24576, "head": 579},
    recipe={"seed": 0, "method": {"name": "gift"}},
    license="apache-2.0",
)


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---")[1])


def test_the_front_matter_is_what_the_hub_reads() -> None:
    card = model_card(FACTS, Receipt(Path("out"), "timm", "float32", verified=True))
    assert front_matter(card) == {
        "base_model": "timm/vit_tiny_patch16_224.augreg_in21k",
        "license": "apache-2.0",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "transformers", "gist", "gift"],
    }


def test_a_local_base_and_an_unknown_licence_are_left_out() -> None:
    facts = replace(FACTS, base_model="gist_vit_nano", license=None)
    front = front_matter(model_card(facts, Receipt(Path("out"), "onnx", "float32")))
    assert front["library_name"] == "onnx"
    assert "base_model" not in front
    assert "license" not in front


@pytest.mark.parametrize(
    ("base", "repository"),
    [
        ("owner/name", "owner/name"),
        ("hf-hub:owner/name", "owner/name"),
        ("vit_base_patch16_224.augreg_in21k", "timm/vit_base_patch16_224.augreg_in21k"),
        ("gist_vit_nano", None),
        ("/models/of/mine", None),
    ],
)
def test_the_base_is_named_as_the_hub_knows_it(base: str, repository: str | None) -> None:
    assert hub_name(base) == repository


def test_figures_come_with_interval_and_count() -> None:
    receipt = Receipt(
        Path("out"), "timm", "float32", verified=True, max_abs_logit_difference=2.4e-7
    )
    card = model_card(FACTS, receipt)
    assert "| test/accuracy | 0.9500 | 0.9100 to 0.9700 | 200 |" in card
    assert "1,200 train, 50 val, 200 test" in card
    assert "ant, bee, çe" in card
    assert "method 24,576" in card
    assert "2.4e-07" in card
    recipe = re.search(r"## Recipe\n\n```yaml\n(.*)```", card, re.DOTALL)
    assert recipe is not None
    assert yaml.safe_load(recipe[1]) == FACTS.recipe


def test_what_was_not_verified_says_so() -> None:
    assert "Not verified" in model_card(FACTS, Receipt(Path("out"), "timm", "bfloat16"))


def snippets(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def test_the_snippets_run_as_they_stand(
    tuned: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    merge_weights(tuned.plan(), tuned.form, tmp_path / "out", card=lambda r: model_card(FACTS, r))
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((60, 40), 90).convert("RGB").save("photo.jpg")
    native, hugging = snippets(tmp_path / "out")
    exec(compile(native, "native", "exec"), {})
    name = capsys.readouterr().out.strip()
    assert name in FACTS.classes
    exec(compile(hugging, "hugging", "exec"), {})
    assert f"'label': '{name}'" in capsys.readouterr().out.partition("}")[0]


def test_the_peft_snippet_runs_as_it_stands(
    base_folder: Path, make_tuned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = make_tuned(None, (24, 48))
    facts = replace(FACTS, base_model=str(base_folder), img_size=(24, 48))
    export_peft(
        tuned.plan(), "b", tuned.form, tmp_path / "out", card=lambda r: model_card(facts, r)
    )
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(snippets(tmp_path / "out")[0], "peft", "exec"), scope)
    assert scope["model"](tuned.pixels).shape == (3, 3)
