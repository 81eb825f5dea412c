"""Measures training steps: what can be counted once, and the clock, all taking turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gistcli.errors import GistError
from tests.benchmarks.contenders import Build, Contender, carried_back


class Timed(Protocol):
    """What takes turns: a training step, or anything else that can be done again and again."""

    def step(self) -> None:
        """Do it once."""


BuildTimed = Callable[[], Timed]


@dataclass(frozen=True)
class Counted:
    """What does not depend on the clock.

    Attributes:
        method: trained parameters that are not the head's.
        kept: bytes that one forward pass keeps for its backward pass.
        flops: floating-point operations of one step.
        nbytes: bytes between steps.
        lengthened: only a gist token makes the backward pass go through the whole network.
    """

    method: int
    kept: int
    flops: int
    nbytes: int
    lengthened: bool = False


def count(contender: Contender) -> Counted:
    kept = kept_bytes(contender)
    with FlopCounterMode(display=False) as counter:
        contender.step()
    flops = counter.get_total_flops()
    return Counted(contender.method, kept, flops, contender.nbytes, contender.lengthened)


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
    """Counts by contender, and why some cannot take part.

    A method whose backward pass goes through the first block anyway is not carried back once more.
    """
    found, refused = {}, {}
    for name, build in builds.items():
        try:
            found[name] = count(build())
        except GistError as error:
            refused[name] = error.message
    for name, counts in list(found.items()):
        if found.get(carried_back(name)) == counts:
            del found[carried_back(name)]
    return found, refused


@contextmanager
def turns(builds: Mapping[str, BuildTimed], together: bool) -> Iterator[Callable[[str], Timed]]:
    """Gives contenders ready for a measured step, all kept, or each built and warmed for it."""
    kept = {name: build() for name, build in builds.items()} if together else {}

    def ready(name: str) -> Timed:
        if name in kept:
            return kept[name]
        contender = builds[name]()
        contender.step()
        return contender

    for contender in kept.values():
        contender.step()
        contender.step()
    yield ready


def measure(
    builds: Mapping[str, BuildTimed],
    rounds: int,
    together: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each round, by contender; every other round goes backwards through them.

    So a machine that becomes slower within a round slows neither of two neighbours more.

    Args:
        builds: the contenders.
        rounds: turns of each.
        together: keep all of them; else each is built and warmed for its turn.
        clock: in seconds; `time.process_time` leaves out what other programs do meanwhile.
    """
    seconds: dict[str, list[float]] = {name: [] for name in builds}
    with turns(builds, together) as ready:
        for turn in range(rounds):
            for name in builds if turn % 2 == 0 else reversed(list(builds)):
                contender = ready(name)
                start = clock()
                contender.step()
                seconds[name].append(clock() - start)
    return seconds
