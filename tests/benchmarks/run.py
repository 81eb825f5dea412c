"""Step time and memory of every method against the floor and against PEFT, in one run.

Run: make bench   (writes tests/benchmarks/results.md)
     python -m tests.benchmarks.run --methods gift,lora --rounds 5   (shows these only)
     python -m tests.benchmarks.run --gist   (shows what the gist token costs; no variants, no PEFT)

The floor is what no method can go below that trains from the first block on: forward through the
frozen network, and backward of the activations down to the first block. All contenders take turns
within every round, so that whatever else the machine does meets all of them; medians over the
rounds, as ratios to the floor, and of a method with the gist token to the same method without,
which has its turn next to it. Multiplications are those of matrix products, convolutions and
attention in one step, counted by torch. Memory is what one step keeps for its backward pass,
counted by storage (the same in every run), in MB. Where all contenders together would take more
than half of the free memory, each is built for its turn only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import psutil

from gistcli import registry
from gistcli.errors import UnknownName
from tests.benchmarks.contenders import contenders
from tests.benchmarks.tables import report
from tests.benchmarks.timing import describe, measure


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
    parser.add_argument("--gist", action="store_true", help="methods and the token only")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("-o", "--output", type=Path, help="default: results.md, for everything")
    options = parser.parse_args()
    builds = contenders(chosen(options.methods, parser), pairs_only=options.gist)
    counted, refused = describe(builds)
    builds = {name: build for name, build in builds.items() if name in counted}
    needed = sum(each.nbytes for each in counted.values())
    together = needed < psutil.virtual_memory().available / 2
    text = report(measure(builds, options.rounds, together), counted, refused)
    output = options.output
    if output is None and options.methods is None and not options.gist:
        output = Path(__file__).with_name("results.md")
    if output is not None:
        output.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
