"""Every method through every command: trained, stopped and gone on, evaluated, used, taken away."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

import gistcli
from gistcli import registry, run
from gistcli.artifacts.rundir import RunDirectory
from gistcli.backbones.locating import locate
from gistcli.data import load_images
from gistcli.errors import Interrupted, NotMergeable
from gistcli.recipe import Recipe, load_recipe
from gistcli.run.assembling import assemble
from gistcli.testing.cases import PLAIN, Configuration, configurations, home
from tests.listening import Listener
from tests.run.calling import call

SMOKE = Path(__file__).resolve().parents[2] / "recipes" / "smoke"
VARIANTS = ("variant", "deep", "block")
"""Options that make another method of one."""
CONFIGURATIONS = [
    configuration
    for name in registry.names("methods")
    if home(name) == PLAIN
    for configuration in configurations(name)
    if configuration.option in (None, *VARIANTS)
]
Make = Callable[..., Recipe]
FAR = ["optim.lr=0.03", "optim.schedule=constant", "optim.warmup_ratio=0"]
"""Rates with which two steps lead far away from the start."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the digits as a folder: evaluating on all of them would be most of the time."""
    folder, source = tmp_path_factory.mktemp("digits"), load_digits()
    for label in range(10):
        found = source.images[source.target == label]
        for split, images in {"train": found[:2], "val": found[2:3], "test": found[3:8]}.items():
            for i, image in enumerate(images):
                path = folder / split / str(label) / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((image * 15).astype("uint8")).save(path)
    return folder


@pytest.fixture
def make(digits: Path) -> Make:
    """Two steps of a method's smoke recipe on these digits."""
    return lambda configuration, *sets: recipe_of(configuration, f"data.path={digits}", *sets)


def recipe_of(configuration: Configuration, *sets: str) -> Recipe:
    """Two steps of the method's smoke recipe."""
    if configuration.option is not None:
        value = json.dumps(configuration.value)
        sets = (*sets, f"method.{configuration.option}={value}")
    return load_recipe(
        SMOKE / f"{configuration.name}_digits.yaml",
        sets=["data.shots=2", "train.max_steps=2", "eval.every=none", *FAR, *sets],
    )


def stop_and_go_on(make: Make, configuration: Configuration, folder: Path) -> None:
    """Two steps in two sessions."""
    with pytest.raises(Interrupted, match="max_time"):
        run.finetune(make(configuration, "train.max_time=1e-6"), output=folder)
    assert RunDirectory(folder).last_step() == 1
    run.finetune(make(configuration), output=folder)


def require_moved(folder: Path, picture: Path) -> None:
    """What is used below is not what the run began with."""
    model = gistcli.load(folder)
    pixels = load_images([picture], model.preprocess)[0]
    with torch.no_grad():
        tuned = model(pixels)
        with model.tuner.disabled():
            assert not torch.allclose(model(pixels), tuned, atol=1e-2)


def check_peft(folder: Path, picture: Path, tmp_path: Path) -> None:
    """The LoRA folder gives the tuned logits where PEFT alone loads it."""
    call(f"gist merge {folder} --format peft", "-o", tmp_path / "lora")
    model = gistcli.load(folder)
    pixels = load_images([picture], model.preprocess)[0]
    base = locate("gist_vit_nano").folder
    options = {"num_classes": len(model.classes)}
    plain = timm.create_model(f"local-dir:{base}", pretrained=True, **options)
    loaded = PeftModel.from_pretrained(plain, tmp_path / "lora").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels), model(pixels), atol=1e-4, rtol=1e-4)


def check_export(
    command: str, result: Mapping[str, Any], said: list[str], seen: Mapping[str, Any], picture: Path
) -> None:
    """Plain weights that predict the same, or the reason why there are none."""
    if result["merge"] is None:
        assert "merge: exact" in said
        receipt = call(command)
        assert receipt["verified"]
        assert receipt["max_abs_logit_difference"] < 1e-4
        plain = call(f"gist predict {receipt['output']}", picture)["predictions"][0]
        assert plain["class"] == seen["class"]
        assert plain["probability"] == pytest.approx(seen["probability"], abs=1e-4)
        return
    assert f"merge: no: {result['merge']}" in said
    assert command.endswith("--format onnx")
    output = Path(result["run"]).with_name("plain")
    error = call(f"gist merge {result['run']}", "-o", output, code=2)["error"]
    assert error["type"] == "NotMergeable"
    assert result["merge"] in error["message"]
    assert "--format onnx" in error["hint"]
    assert not output.exists()


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_every_method_goes_through_every_command(
    configuration: Configuration,
    make: Make,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = digits / "test" / "3" / "0.png"
    monkeypatch.chdir(tmp_path)
    folder, listener = tmp_path / "run", Listener()
    result = run.finetune(make(configuration), output=folder, reporter=listener)
    require_moved(folder, picture)

    stop_and_go_on(make, configuration, tmp_path / "again")
    state = (folder / "tuner.safetensors").read_bytes()
    assert (tmp_path / "again" / "tuner.safetensors").read_bytes() == state

    commands = [line.replace("PHOTO", str(picture)) for line in result["next"]]
    names = [shlex.split(line)[1] for line in commands]
    can = configuration.method().capabilities()
    assert names == ["eval", "merge", "predict", *(["visualize"] if can.clusters else [])]
    measured = call(commands[0])["metrics"]
    assert measured["test/accuracy"] == result["metrics"]["test/accuracy"]
    seen = call(commands[2])["predictions"][0]
    assert Path("predictions.csv").read_text().count("\n") == 2
    check_export(commands[1], result, listener.lines, seen, picture)
    if can.clusters:
        assert all(Path(sheet).is_file() for sheet in call(commands[3])["sheets"])
    else:
        error = call(f"gist visualize {folder}", picture, "-o", "maps", code=2)["error"]
        assert "no clusters" in error["message"]
    if can.low_rank:
        check_peft(folder, picture, tmp_path)


def test_a_finished_run_asked_for_again_gives_the_same_next_commands(
    make: Make, tmp_path: Path
) -> None:
    recipe = make(Configuration("convpass"))
    first = run.finetune(recipe, output=tmp_path / "run")
    assert run.finetune(recipe, output=tmp_path / "run")["next"] == first["next"]


@pytest.mark.slow
def test_what_does_not_merge_becomes_onnx_by_the_next_command(
    make: Make, digits: Path, tmp_path: Path
) -> None:
    import onnxruntime

    result = run.finetune(make(Configuration("adapter")), output=tmp_path / "run")
    receipt = call(result["next"][1])
    assert receipt["max_abs_logit_difference"] < 1e-4
    session = onnxruntime.InferenceSession(Path(receipt["output"]) / "model.onnx")
    model = gistcli.load(tmp_path / "run")
    pixels = load_images([digits / "test" / "3" / "0.png"], model.preprocess)[0]
    logits = session.run(None, {"pixels": pixels.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(pixels), atol=1e-4, rtol=1e-4)


# --- methods that merge on some backbones only ---------------------------------------------------


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that has no registers."""
    folder = tmp_path_factory.mktemp("distilled")
    name = "deit_tiny_distilled_patch16_224"
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, **args)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": name, "num_classes": 4, "model_args": args}
    sizes = {"input_size": [3, 32, 32], "fixed_input_size": True}
    (folder / "config.json").write_text(json.dumps({**config, "pretrained_cfg": sizes}))
    return folder


def test_prompts_that_have_no_registers_to_become_are_refused_with_the_words_of_the_start(
    make: Make, distilled: Path, tmp_path: Path
) -> None:
    recipe = make(Configuration("vpt", "deep", False), f"model.name={distilled}")
    listener = Listener()
    result = run.finetune(recipe, output=tmp_path / "run", reporter=listener)
    assert "no register tokens" in result["merge"]
    assert f"merge: no: {result['merge']}" in listener.lines
    assert result["next"][1].endswith("--format onnx")
    with pytest.raises(NotMergeable) as caught:
        run.merge(tmp_path / "run", tmp_path / "plain")
    assert result["merge"] in caught.value.message
    assert run.finetune(recipe, output=tmp_path / "run")["next"] == result["next"]


@pytest.mark.parametrize(
    ("method", "model", "reason"),
    [
        ({"name": "repadapter"}, "vit_small_patch16_dinov3", "has no bias that could hold"),
        ({"name": "repadapter"}, "vit_base_patch16_224", None),
        ({"name": "vpt", "deep": False}, "beit_base_patch16_224", "has no register tokens"),
        ({"name": "vpt", "deep": False}, "vit_base_patch16_224", None),
        ({"name": "vpt"}, "vit_base_patch16_224", "each block replaces its prompts"),
    ],
    ids=lambda value: str(value).replace("/", "-"),
)
def test_the_start_asks_the_network_whether_the_method_merges_on_it(
    method: dict[str, Any], model: str, reason: str | None
) -> None:
    values = {"model": {"name": model}, "data": {"path": "digits"}, "method": method}
    recipe = Recipe.model_validate(values)
    listener = Listener()
    found = run.dry_run(recipe, reporter=listener)
    (line,) = [line for line in listener.lines if line.startswith("merge: ")]
    tuner = assemble(recipe, 10, meta=True).tuner
    assert line == f"merge: {'exact' if reason is None else 'no: ' + found['merge']}"
    if reason is None:
        assert found["merge"] is None
        assert tuner.merge()
        return
    assert reason in line
    with pytest.raises(NotMergeable) as caught:
        tuner.merge()
    assert line.removeprefix("merge: no: ") in caught.value.message
