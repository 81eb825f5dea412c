"""Runs with a gist token: trained, stopped and gone on, used, merged; and those without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import gistcli
from gistcli import run
from gistcli.artifacts.rundir import RunDirectory
from gistcli.data import load_images
from gistcli.errors import Interrupted, Refused, WeightsError
from gistcli.recipe import Override, Recipe, load_recipe
from tests.listening import Listener
from tests.run.calling import call

Make = Callable[..., Recipe]
METHODS: dict[str, dict[str, Any]] = {
    "gift": {"name": "gift", "rank": 4},
    "linear": {"name": "linear"},
    "full": {"name": "full"},
    "vpt": {"name": "vpt", "deep": False, "length": 2},
    "toast": {"name": "toast"},
    "gift_v1": {"name": "gift_v1", "dim": 16, "clusters": 8},
}
GIST = {"alpha": 0.3, "length": 2}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "digit.png"
    Image.fromarray((load_digits().images[3] * 15).astype("uint8")).save(path)
    return path


@pytest.mark.parametrize("name", METHODS)
def test_a_run_with_it_goes_through_every_command(
    name: str, recipe: Make, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"method": METHODS[name], "gist": GIST, "train__max_steps": 2,
               "train__save_steps": 1, "eval__every": "none"}  # fmt: skip
    result = run.finetune(recipe(**options), output=tmp_path / "run")
    assert result["parameters"]["gist"] == 2 * 64
    assert result["method"].endswith(" + gist")

    with pytest.raises(Interrupted):
        run.finetune(recipe(**options, train__max_time=1e-6), output=tmp_path / "again")
    run.finetune(recipe(**options), output=tmp_path / "again")
    state = (tmp_path / "run" / "tuner.safetensors").read_bytes()
    assert (tmp_path / "again" / "tuner.safetensors").read_bytes() == state

    commands = [line.replace("PHOTO", str(picture)) for line in result["next"]]
    measured = call(commands[0])["metrics"]
    assert measured["test/accuracy"] == result["metrics"]["test/accuracy"]
    seen = call(commands[2])["predictions"][0]
    model = gistcli.load(tmp_path / "run")
    pixels = load_images([picture], model.preprocess)[0]
    with torch.no_grad():
        assert model.classes[int(model(pixels).argmax())] == seen["class"]
    drawn = [call(command) for command in commands[3:]]
    assert [value.get("tokens") for value in drawn] == [
        *([None] if name in ("gift", "gift_v1") else []), ["cls", "gist"]
    ]  # fmt: skip
    assert all(Path(sheet).is_file() for value in drawn for sheet in value["sheets"])
    assert len({value["gallery"] for value in drawn}) == 1
    if result["merge"] is not None:
        assert name == "toast"
        return
    receipt = call(commands[1])
    plain = timm.create_model(f"local-dir:{receipt['output']}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.allclose(plain(pixels), model(pixels), atol=1e-4)
    merged = call(f"gist eval {receipt['output']} --data digits")["metrics"]
    assert merged["test/accuracy"] == measured["test/accuracy"]


def test_every_term_of_the_loss_is_recorded_and_the_options_are_kept(
    recipe: Make, tmp_path: Path
) -> None:
    gist = {"alpha": 0.3, "interaction": {"mse": 1.0, "bkld": 0.5}}
    run.finetune(recipe(gist=gist), output=tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    lines = [json.loads(x) for x in (directory.path / "metrics.jsonl").read_text().splitlines()]
    train = next(line for line in lines if line["kind"] == "train")
    parts = ("classification", "gist", "interaction/mse", "interaction/bkld")
    assert train["train/loss"] == pytest.approx(sum(train[f"train/loss/{p}"] for p in parts))
    info = json.loads((directory.path / "tuner.json").read_text())["method"]
    assert info["name"] == "gift"
    assert "alpha" not in info["options"]
    assert (info["gist"]["alpha"], info["gist"]["lambda"]) == (0.3, 0.75)
    assert info["gist"]["interaction"] == gist["interaction"]
    assert directory.load_recipe().gist == info["gist"]
    assert load_file(directory.path / "tuner.safetensors")["gist.token"].shape == (1, 64)


def test_no_gist_is_bit_for_bit_a_run_that_never_heard_of_it(recipe: Make, tmp_path: Path) -> None:
    plain = recipe()
    file = tmp_path / "r.yaml"
    file.write_text(
        "model: {name: gist_vit_nano}\ndata: {path: digits, shots: 4}\n"
        "method: {name: gift, rank: 4}\ntrain: {max_steps: 4, batch_size: 16}\n"
        "gist: {alpha: 2}\n"
    )
    switched = load_recipe(file, overrides=[Override("gist", None, "--no-gist")])
    states = {}
    for name, each in (("plain", plain), ("off", switched), ("on", load_recipe(file))):
        run.finetune(each, output=tmp_path / name)
        states[name] = (tmp_path / name / "tuner.safetensors").read_bytes()
    assert states["off"] == states["plain"]
    on, off = (load_file(tmp_path / n / "tuner.safetensors") for n in ("on", "off"))
    assert on.keys() - off.keys() == {"gist.token"}
    assert not torch.allclose(on["head.weight"], off["head.weight"], atol=1e-4)
    metrics = (tmp_path / "off" / "metrics.jsonl").read_text()
    assert "gist" not in metrics


def test_another_loss_in_the_same_folder_is_refused(recipe: Make, tmp_path: Path) -> None:
    run.finetune(recipe(gist={}), output=tmp_path / "run")
    with pytest.raises(Refused, match=r"gist\.alpha: 0\.5 there, 0\.1 here"):
        run.finetune(recipe(gist={"alpha": 0.1}), output=tmp_path / "run")
    with pytest.raises(Refused, match=r"gist\.length: 1 there, absent here"):
        run.finetune(recipe(), output=tmp_path / "run")


@pytest.mark.parametrize(
    ("method", "said"), [({"name": "linear"}, 1), ({"name": "lora", "layers": [-1]}, 1),
                         ({"name": "lora"}, 0)],
    ids=["linear", "last layer", "all layers"],
)  # fmt: skip
def test_a_run_says_once_where_the_token_makes_the_backward_pass_longer(
    method: dict, said: int, recipe: Make, tmp_path: Path
) -> None:
    listener = Listener()
    options = {"method": method, "train__max_steps": 1, "eval__every": "none"}
    run.finetune(recipe(**options, gist={}), output=tmp_path / "run", reporter=listener)
    lines = [line for line in listener.lines if "through the whole network" in line]
    assert len(lines) == said
    assert any("computed once" in line for line in lines) == (method["name"] == "linear")
    # kept features would be those of the network without the token
    assert not [line for line in listener.lines if line.startswith("features are computed")]


def test_options_that_this_version_does_not_know_are_damage(recipe: Make, tmp_path: Path) -> None:
    run.finetune(recipe(gist={}, train__max_steps=1), output=tmp_path / "run")
    path = tmp_path / "run" / "tuner.json"
    info = json.loads(path.read_text())
    info["method"]["gist"]["temperature"] = -1
    path.write_text(json.dumps(info))
    with pytest.raises(WeightsError, match="temperature"):
        gistcli.load(tmp_path / "run")
