"""Prefixes: what they save against examples in the prompt, and what a step of training costs.

Run: make bench   (writes tests/benchmarks/prefixes.md)
     python -m tests.benchmarks.prefixes --rounds 5 -o FILE

One thread, and the time of the processor, so that other programs do not count. The network has the
shape of SmolLM2-135M and random weights, on which latency and bytes do not depend; no file is
needed.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor

from gistcli.backbones.prefix import Prefix, cache_name, given_cache, prefix_of
from gistcli.hyper.gisting import CONTEXT, GIST
from tests.benchmarks.gated import BAR, RANK, SMOL, Network, gated, gated_rows
from tests.benchmarks.tables import header, spread
from tests.benchmarks.timing import BuildTimed, measure

NETWORK = replace(SMOL, name="SmolLM2-135M", layers=30)
EXAMPLES, EXAMPLE_TOKENS, PROMPT, GISTS = 32, 27, 24, 16
"""An example is as long as a sentence of SST-2 with its label in the template of episodes (25 to 30
tokens), a prompt the same without its label."""
FOLLOWING = 8
"""Tokens written behind the first one."""
NOTHING, OWN, KEPT, ANEW = (
    "nothing",
    f"a prefix of {GISTS} gists",
    f"{EXAMPLES} examples, kept",
    f"{EXAMPLES} examples, read anew",
)
COMPRESS, READ = "compress", "read"
COLUMNS = (
    *("in front", "tokens", "first token, ms", "to the prefix", "quartiles"),
    *("following tokens a second", "keys and values, bytes"),
)


@dataclass(frozen=True)
class Done:
    """Something that takes turns, without gradients."""

    do: Callable[[], object]

    def step(self) -> None:
        """Do it once."""
        with torch.no_grad():
            self.do()


class Uses:
    """One question to a plain network of transformers, with what may stand in front of it.

    Attributes:
        model: of transformers, without hooks.
        fronts: what is ready in front, by name; nothing for NOTHING and ANEW.
        reads: the tokens that are read for the first answer, by name.
    """

    def __init__(self, network: Network, examples: int) -> None:
        torch.manual_seed(2)
        self.network, self.model = network, network.fresh()
        self.examples = torch.randint(3, network.words, (1, examples))
        prompt = torch.randint(3, network.words, (1, PROMPT))
        self.tuner = gated(network, GISTS).eval()
        self.fronts: dict[str, Prefix | None] = {
            NOTHING: None, OWN: self.compressed(), KEPT: self.read(), ANEW: None,
        }  # fmt: skip
        self.reads = dict.fromkeys(self.fronts, prompt)
        self.reads[ANEW] = torch.cat([self.examples, prompt], dim=1)

    def compressed(self) -> Prefix:
        """What the hypernetwork makes of the examples."""
        spans = torch.full((1, self.examples.shape[1] + GISTS), CONTEXT)
        spans[:, -GISTS:] = GIST
        ids = torch.cat([self.examples, self.examples[:, :GISTS]], dim=1)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "spans": spans}
        return self.tuner.compress(batch)

    def read(self) -> Prefix:
        """Keys and values of the examples themselves."""
        with torch.no_grad():
            return prefix_of(self.model, {"input_ids": self.examples})

    def first(self, name: str) -> Any:
        """What the network says behind the prompt, for its last token, and its cache."""
        front = self.fronts[name]
        cache = None if front is None else front.cache(self.model.config, 1)
        return self._next(self.reads[name], cache)

    def _next(self, ids: Tensor, cache: Any) -> Any:
        given = {} if cache is None else {cache_name(self.model): cache}
        return self.model(ids, **given, use_cache=True, logits_to_keep=1)

    def following(self, name: str) -> Callable[[], None]:
        """Writes some tokens behind the first one, and forgets them."""
        with torch.no_grad():
            found = self.first(name)
        cache, start = given_cache(found), found.logits[:, -1].argmax(-1, keepdim=True)

        def write() -> None:
            token = start
            for _ in range(FOLLOWING):
                token = self._next(token, cache).logits[:, -1].argmax(-1, keepdim=True)
            cache.crop(-FOLLOWING)

        return write

    def nbytes(self, name: str) -> int:
        """Bytes of keys and values that are kept in front of the prompt, by their shape."""
        front = self.fronts[name]
        if name == ANEW:
            front = self.fronts[KEPT]
        return 0 if front is None else front.keys.nbytes + front.values.nbytes


def turns_of(uses: Uses) -> Mapping[str, BuildTimed]:
    """First tokens, following ones, and what is done once, by name."""
    found: dict[str, Callable[[], object]] = {
        name: partial(uses.first, name) for name in uses.fronts
    }
    found |= {following(name): uses.following(name) for name in (NOTHING, OWN, KEPT)}
    found |= {COMPRESS: uses.compressed, READ: uses.read}
    return {name: partial(Done, do) for name, do in found.items()}


def following(name: str) -> str:
    """The turn of following tokens, which cost the same behind examples read anew or kept."""
    return f"{KEPT if name == ANEW else name}, following"


def latency_rows(uses: Uses, seconds: Mapping[str, list[float]]) -> list[str]:
    """A Markdown table, a row for whatever may stand in front."""
    lines = list(header(COLUMNS))
    for name in uses.fronts:
        low, middle, high = spread(seconds[name], seconds[OWN])
        front = uses.fronts[KEPT if name == ANEW else name]
        cells = [name, str(front.length if front else 0), f"{1000 * median(seconds[name]):.0f}"]
        cells += [f"{middle:.2f}", f"{low:.2f} to {high:.2f}"]
        cells += [f"{FOLLOWING / median(seconds[following(name)]):.1f}", f"{uses.nbytes(name):,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def break_even(once: float, each: float, other_once: float, other_each: float) -> int | None:
    """The first number of queries at which the first way costs less; None where it never does."""
    more, less = once - other_once, other_each - each
    if less <= 0:
        return None
    return max(1, math.floor(more / less) + 1)


def about_compressing(seconds: Mapping[str, list[float]]) -> str:
    """What is done once, and when it has paid."""
    middle = {name: median(times) for name, times in seconds.items()}
    found = {
        "examples that are read anew": (0.0, middle[ANEW]),
        "examples that are kept": (middle[READ], middle[KEPT]),
    }
    said = []
    for name, other in found.items():
        number = break_even(middle[COMPRESS], middle[OWN], *other)
        said.append(f"against {name} {'never' if number is None else f'from query {number} on'}")
    return (
        f"Compressing the examples takes {1000 * middle[COMPRESS]:.0f} ms once, reading them to "
        f"keep them {1000 * middle[READ]:.0f} ms: up to the first tokens of all answers, a prefix "
        f"has paid {', and '.join(said)}."
    )


def report(rounds: int) -> str:
    uses = Uses(NETWORK, 1 + EXAMPLES * EXAMPLE_TOKENS)
    seconds = measure(turns_of(uses), rounds, together=True, clock=time.process_time)
    ratio = uses.nbytes(KEPT) / uses.nbytes(OWN)
    lines = ["# Prefixes: latency, memory, and the gated step", ""]
    lines += [
        f"A network of the shape of {NETWORK.name} in float32, with random weights, on which "
        f"neither time nor bytes depend. CPU, {torch.get_num_threads()} thread, processor time, "
        f"torch {torch.__version__.partition('+')[0]}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}; {rounds} rounds, interleaved; medians, and of ratios "
        "within a round with quartiles.",
        "",
        "## A prefix against the examples themselves",
        "",
        f"Up to the first token behind a prompt of {PROMPT} tokens, in plain transformers: behind "
        f"a prefix that is ready; behind {EXAMPLES} examples of {EXAMPLE_TOKENS} tokens whose keys "
        "and values are ready; and with the examples read along with the prompt. What answers are "
        "worth behind either is another question, which `recipes/hyper/README.md` answers for "
        "trained networks.",
        "",
        *latency_rows(uses, seconds),
        "",
        f"The examples take {ratio:.0f} times the bytes of the prefix. "
        + about_compressing(seconds),
    ]
    del uses
    lines += [
        "",
        "## The gated training step",
        "",
        f"A step of a hypernetwork (LoRA of rank {RANK} on every linear map, acting on context "
        "and gists) over a causal step with the same LoRA on every token: forward, backward and "
        "update, on the same tokens and labels. One pass, with the mask of gists, is what training "
        f"takes; **bold** above {BAR}. Two passes compute the same, and cannot recompute "
        "activations.",
        "",
        *gated_rows(rounds),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    output = Path(__file__).with_name("prefixes.md")
    parser.add_argument("-o", "--output", type=Path, default=output)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = report(options.rounds)
    options.output.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
