"""Step time and memory of every method against the floor and against PEFT, in one run.

Run: make bench   (writes tests/benchmarks/results.md)

The floor is what no method can go below that trains from the first block on: forward through the
frozen network, and backward of the activations down to the first block. All contenders take turns
within every round, so that whatever else the machine does meets all of them; medians over the
rounds, as ratios to the floor. Memory is what one step keeps for its backward pass, counted by
storage (the same in every run), in MB.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import peft
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gistcli import registry
from gistcli.backbones.base import Backbone, Origin
from gistcli.backbones.vit import ViT
from gistcli.methods.gift import Gift

MODEL, BATCH, CLASSES, RANK = "vit_small_patch16_224", 8, 100, 16
Step = Callable[[], Tensor]


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(MODEL, num_classes=CLASSES)


def batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"pixels": torch.randn(BATCH, 3, 224, 224), "labels": torch.arange(BATCH)}


def floor() -> Step:
    model, data = fresh().requires_grad_(False), batch()
    model.blocks[0].register_forward_pre_hook(lambda _, args: (args[0].requires_grad_(),))
    return lambda: F.cross_entropy(model(data["pixels"]), data["labels"])


def ours(method: object) -> Step:
    backbone: Backbone = ViT(fresh(), Origin(MODEL, MODEL))
    tuner = method.attach(backbone).train()
    optimiser = torch.optim.AdamW([t.parameter for t in tuner.trainable().values()], fused=True)
    data = batch()

    def step() -> Tensor:
        optimiser.step()
        optimiser.zero_grad()
        return F.cross_entropy(tuner(data).logits, data["labels"])

    return step


def lora(targets: list[str]) -> Step:
    config = peft.LoraConfig(r=RANK, target_modules=targets, modules_to_save=["head"])
    model, data = peft.get_peft_model(fresh(), config).train(), batch()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, fused=True)

    def step() -> Tensor:
        optimiser.step()
        optimiser.zero_grad()
        return F.cross_entropy(model(data["pixels"]), data["labels"])

    return step


def contenders() -> dict[str, Step]:
    found = {"floor": floor()}
    found |= {name: ours(registry.resolve("methods", name)()) for name in registry.names("methods")}
    found["gift, query and value"] = ours(Gift(targets=("query", "value")))
    found["PEFT LoRA r16, attn.proj"] = lora([r"attn.proj"])
    found["PEFT LoRA r16, attn.qkv"] = lora([r"attn.qkv"])
    return found


def kept_bytes(step: Step) -> int:
    """Bytes that one forward pass keeps for its backward pass, parameters left out."""
    held: list[Tensor] = []
    parameters: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        if isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            parameters.add(tensor.untyped_storage().data_ptr())
        held.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = step()
    del loss
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return sum(size for address, size in storages.items() if address not in parameters)


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step().backward()
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(seconds: dict[str, list[float]], kept: dict[str, int]) -> str:
    base = seconds["floor"]
    lines = [
        "# Step time and memory",
        "",
        f"`{MODEL}`, batch {BATCH}, CPU, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__.partition('+')[0]}, peft {peft.__version__}, Python "
        f"{platform.python_version()}; {len(base)} rounds, interleaved. Ratio: median over the "
        "rounds of the time against the floor of the same round, with quartiles.",
        "",
        "| step | ratio to the floor | quartiles | median ms | kept for backward, MB |",
        "|---|---|---|---|---|",
    ]
    for name, times in seconds.items():
        ratios = [t / b for t, b in zip(times, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        lines.append(
            f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} | "
            f"{1000 * statistics.median(times):.0f} | {kept[name] / 1e6:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("results.md"))
    options = parser.parse_args()
    steps = contenders()
    kept = {name: kept_bytes(step) for name, step in steps.items()}
    text = report(measure(steps, options.rounds), kept)
    options.output.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
