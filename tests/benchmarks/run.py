"""Step time and memory of every method against the floor and against PEFT, in one run.

Run: make bench   (writes tests/benchmarks/results.md)
     python tests/benchmarks/run.py --methods gift,lora --rounds 5   (shows these only)

The floor is what no method can go below that trains from the first block on: forward through the
frozen network, and backward of the activations down to the first block. All contenders take turns
within every round, so that whatever else the machine does meets all of them; medians over the
rounds, as ratios to the floor. Multiplications are those of matrix products, convolutions and
attention in one step, counted by torch. Memory is what one step keeps for its backward pass,
counted by storage (the same in every run), in MB. Where all contenders together would take more
than half of the free memory, each is built for its turn only.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peft
import psutil
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gistcli import registry
from gistcli.backbones.base import Origin
from gistcli.backbones.vit import ViT
from gistcli.errors import GistError, UnknownName
from gistcli.evaluate.classify import evaluation_mode
from gistcli.methods.base import Method, Tuner
from gistcli.objectives import Classification

MODEL, BATCH, CLASSES, RANK = "vit_small_patch16_224", 8, 100, 16
EXPLAINED = 0.15
"""A step may take so much longer than its multiplications say before it is marked."""
COUNTABLE = 0.05
"""Below this share of the floor's multiplications, time is made of other things."""
COLUMNS = (
    *("step", "trained, head apart", "ratio to the floor", "quartiles", "median ms"),
    *("kept for backward, MB", "multiplications to the floor's", "time beyond them"),
)
Batch = dict[str, Tensor]


@dataclass
class Contender:
    """One training step: loss, what surrounds it, and what is updated.

    Attributes:
        loss: forward pass.
        trained: parameters for the optimiser, none for the floor.
        method: how many of their numbers are not the head's.
        size: bytes of the network.
        around: surrounds forward and backward.
    """

    loss: Callable[[], Tensor]
    trained: list[nn.Parameter]
    method: int
    size: int
    around: Callable[[], AbstractContextManager[None]] = nullcontext

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW(self.trained, fused=True) if self.trained else None

    def step(self) -> None:
        """Forward, backward, update."""
        if self.optimiser is not None:
            self.optimiser.zero_grad()
        with self.around():
            self.loss().backward()
        if self.optimiser is not None:
            self.optimiser.step()

    @property
    def nbytes(self) -> int:
        """Memory between steps: the network, and gradient and two moments of what is trained."""
        return self.size + 3 * sum(p.numel() * p.element_size() for p in self.trained)


Build = Callable[[], Contender]


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(MODEL, num_classes=CLASSES)


def size_of(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def batch() -> Batch:
    torch.manual_seed(1)
    labels = torch.arange(BATCH)
    return {"pixels": torch.randn(BATCH, 3, 224, 224), "labels": labels, "index": labels}


def floor() -> Contender:
    model, data = fresh().requires_grad_(False), batch()
    model.blocks[0].register_forward_pre_hook(lambda _, args: (args[0].requires_grad_(),))

    def loss() -> Tensor:
        return F.cross_entropy(model(data["pixels"]), data["labels"])

    return Contender(loss, [], 0, size_of(model))


def ours(
    name: str, prepare: Callable[[Tuner, Batch], Batch] | None = None, **options: Any
) -> Build:
    """A registered method with these options; `prepare` makes its batch of the common one."""

    def build() -> Contender:
        torch.manual_seed(0)
        method: Method = registry.resolve("methods", name)(**options)
        tuner = method.attach(ViT(fresh(), Origin(MODEL, MODEL)))
        objective = Classification(tuner).train()
        data = batch() if prepare is None else prepare(tuner, batch())
        trained = tuner.trainable().values()
        count = sum(t.parameter.numel() for t in trained if t.group != "head")
        size = size_of(tuner.backbone) + size_of(tuner)

        def loss() -> Tensor:
            return objective(data, BATCH).total

        return Contender(loss, [t.parameter for t in trained], count, size, tuner.step)

    return build


def pooled(tuner: Tuner, data: Batch) -> Batch:
    """The batch with features in place of pixels, as `linear` trains on them."""
    with evaluation_mode(tuner, tuner.backbone), torch.no_grad():
        return {
            "pooled": tuner(data).pooled.clone(),
            "labels": data["labels"],
            "index": data["index"],
        }


def lora(target: str) -> Contender:
    """PEFT's LoRA."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=RANK, target_modules=[target], modules_to_save=["head"])
    model, data = peft.get_peft_model(fresh(), config).train(), batch()
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    count = sum(p.numel() for n, p in named.items() if "lora_" in n)

    def loss() -> Tensor:
        return F.cross_entropy(model(data["pixels"]), data["labels"])

    return Contender(loss, list(named.values()), count, size_of(model))


VARIANTS: dict[str, dict[str, Build]] = {
    "gift": {"gift, query and value": ours("gift", targets=("query", "value"))},
    "linear": {"linear, features kept": ours("linear", pooled)},
    "lora": {
        "lora r16, attn.proj": ours("lora", rank=RANK, targets=("attn.proj",)),
        "PEFT LoRA r16, attn.proj": partial(lora, "attn.proj"),
        "lora r16, attn.qkv": ours("lora", rank=RANK, targets=("attn.qkv",)),
        "PEFT LoRA r16, attn.qkv": partial(lora, "attn.qkv"),
    },
}
"""Further rows behind a method's own."""


def contenders(names: list[str]) -> dict[str, Build]:
    """The floor, then every method with its defaults and its variants."""
    found: dict[str, Build] = {"floor": floor}
    for name in names:
        found[name] = ours(name)
        found |= VARIANTS.get(name, {})
    return found


# --- measuring ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """What does not depend on the clock: parameters, bytes kept, floating-point operations."""

    method: int
    kept: int
    flops: int
    nbytes: int


def count(contender: Contender) -> Counted:
    kept = kept_bytes(contender)
    with FlopCounterMode(display=False) as counter:
        contender.step()
    return Counted(contender.method, kept, counter.get_total_flops(), contender.nbytes)


def kept_bytes(contender: Contender) -> int:
    """Bytes that one forward pass keeps for its backward pass, parameters left out."""
    held: list[Tensor] = []
    parameters: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        if isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            parameters.add(tensor.untyped_storage().data_ptr())
        held.append(tensor)  # so that no address is used twice
        return tensor

    with ExitStack() as stack:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            stack.enter_context(contender.around())  # a method may compute with gradients here
            loss = contender.loss()
        loss.backward()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return sum(size for address, size in storages.items() if address not in parameters)


def describe(builds: dict[str, Build]) -> tuple[dict[str, Counted], dict[str, str]]:
    """Counts by contender, and why some cannot take part."""
    found, refused = {}, {}
    for name, build in builds.items():
        try:
            found[name] = count(build())
        except GistError as error:
            refused[name] = error.message
    return found, refused


@contextmanager
def turns(builds: dict[str, Build], together: bool) -> Iterator[Callable[[str], Contender]]:
    """Gives contenders ready for a measured step, all kept, or each built and warmed for it."""
    kept = {name: build() for name, build in builds.items()} if together else {}

    def ready(name: str) -> Contender:
        if name in kept:
            return kept[name]
        contender = builds[name]()
        contender.step()
        return contender

    for contender in kept.values():
        contender.step()
        contender.step()
    yield ready


def measure(builds: dict[str, Build], rounds: int, together: bool) -> dict[str, list[float]]:
    """Seconds of each round, by contender."""
    seconds: dict[str, list[float]] = {name: [] for name in builds}
    with turns(builds, together) as ready:
        for _ in range(rounds):
            for name, times in seconds.items():
                contender = ready(name)
                start = time.perf_counter()
                contender.step()
                times.append(time.perf_counter() - start)
    return seconds


# --- the table ------------------------------------------------------------------------------


def report(
    seconds: dict[str, list[float]], counted: dict[str, Counted], refused: dict[str, str]
) -> str:
    base = seconds["floor"]
    lines = [
        "# Step time and memory",
        "",
        f"`{MODEL}`, batch {BATCH}, CPU, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__.partition('+')[0]}, peft {peft.__version__}, Python "
        f"{platform.python_version()}; {len(base)} rounds, interleaved. Ratio: median over the "
        "rounds of the time against the floor of the same round, with quartiles. Time beyond "
        "multiplications: that ratio over the ratio of the multiplications, less 1; **bold** "
        f"above {EXPLAINED:.0%}, a dash where multiplications are under {COUNTABLE:.0%} of the "
        "floor's.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    lines += [row(name, times, base, counted) for name, times in seconds.items()]
    if refused:
        lines += ["", *(f"- {name}: {reason}" for name, reason in refused.items())]
    return "\n".join(lines) + "\n"


def row(name: str, times: list[float], base: list[float], counted: dict[str, Counted]) -> str:
    ratios = [t / b for t, b in zip(times, base, strict=True)]
    several = ratios if len(ratios) > 1 else ratios * 2
    low, middle, high = statistics.quantiles(several, n=4)
    here, multiplications = counted[name], counted[name].flops / counted["floor"].flops
    beyond = "-"
    if multiplications >= COUNTABLE:
        excess = middle / multiplications - 1
        beyond = f"**{excess:+.0%}**" if excess > EXPLAINED else f"{excess:+.0%}"
    cells = (
        *(name, f"{here.method:,}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}"),
        *(f"{1000 * statistics.median(times):.0f}", f"{here.kept / 1e6:.1f}"),
        *(f"{multiplications:.3f}", beyond),
    )
    return f"| {' | '.join(cells)} |"


def chosen(names: str | None, parser: argparse.ArgumentParser) -> list[str]:
    known = registry.names("methods")
    if names is None:
        return known
    try:
        for name in names.split(","):
            registry.resolve("methods", name)
    except UnknownName as error:
        parser.error(f"{error.message} {error.hint}")
    return names.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", help="names divided by commas; default: all that there are")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("-o", "--output", type=Path, help="default: results.md, for all methods")
    options = parser.parse_args()
    names = chosen(options.methods, parser)
    builds = contenders(names)
    counted, refused = describe(builds)
    builds = {name: build for name, build in builds.items() if name in counted}
    needed = sum(each.nbytes for each in counted.values())
    together = needed < psutil.virtual_memory().available / 2
    text = report(measure(builds, options.rounds, together), counted, refused)
    output = options.output
    if output is None and options.methods is None:
        output = Path(__file__).with_name("results.md")
    if output is not None:
        output.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
