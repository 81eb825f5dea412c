"""How long `gist --help` takes beside an empty Typer app's, interleaved, medians.

Run: python tests/benchmarks/help_time.py [ROUNDS]. The bar: less than twice.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

EMPTY = (
    "import typer; app = typer.Typer()\n"
    "@app.callback(invoke_without_command=True)\n"
    "def top() -> None: ...\n"
    "app(['--help'])"
)
COMMANDS = {
    "empty Typer app": [sys.executable, "-c", EMPTY],
    "gist --help": [sys.executable, "-m", "gistcli", "--help"],
    "gist finetune --help": [sys.executable, "-m", "gistcli", "finetune", "--help"],
    "gist --version": [sys.executable, "-m", "gistcli", "--version"],
}


def seconds(command: list[str]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main(rounds: int) -> int:
    """Measures, prints a line a command, and returns 1 where the bar is missed."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            taken[name].append(seconds(command))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    floor = medians["empty Typer app"]
    for name, median in medians.items():
        sys.stdout.write(f"{name:<22} {median:.3f} s  {median / floor:.2f} x\n")
    return int(medians["gist --help"] >= 2 * floor)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 11))
