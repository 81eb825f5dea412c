"""What every method reaches with its defaults on two small sets, through the command line.

Run: python tests/benchmarks/defaults.py -o RUNS [--methods lora,ssf] [--seeds 0,1]

Every run is a `gist finetune` of its own (20 epochs, batch 32, the method's recommended rates), so
that seconds and peak memory are those of a user; a run that is there is read, not repeated. The
table goes to stdout as Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from sets import MODEL, SETS

from gistcli import registry

VARIANTS = {
    "adapter": [{"variant": v} for v in ("houlsby", "parallel", "adaptformer", "adapter_plus")],
    "fact": [{"variant": "tk", "rank": 32}],
    "toast": [{"variant": "lite"}],
    "vpt": [{"deep": "false", "length": 50}],
}
"""What is shown beside the defaults."""


def rows(names: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Method and options of every line of the table."""
    return [(name, options) for name in names for options in [{}, *VARIANTS.get(name, [])]]


def result(name: str, options: dict[str, Any], where: str, seed: int, runs: Path) -> dict[str, Any]:
    """The JSON of a run, which is made where it is missing."""
    title = "-".join([name, *(f"{k}={v}" for k, v in options.items()), where, str(seed)])
    settings = [part for k, v in options.items() for part in ("--set", f"method.{k}={v}")]
    data, shots, size = SETS[where]
    command = [
        sys.executable, "-m", "gistcli", "finetune", "--method", name, *settings,
        "--model", str(MODEL), "--data", data, "--img-size", str(size),
        "--set", f"data.shots={shots}", "--set", "eval.every=none",
        "--seed", str(seed), "-o", str(runs / title), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{title}: {done.stdout or done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    sys.stderr.write(f"{title}: {found['metrics']['test/accuracy']:.4f}\n")
    return found


def cell(results: list[dict[str, Any]]) -> list[str]:
    """Test accuracy in percent, seconds and peak memory in MB; means over the seeds."""
    accuracy = [100 * r["metrics"]["test/accuracy"] for r in results]
    spread = f" ± {statistics.stdev(accuracy):.1f}" if len(accuracy) > 1 else ""
    seconds = statistics.mean(r["seconds"] for r in results)
    memory = statistics.mean(r["peak_memory_bytes"] for r in results) / 1e6
    return [f"{statistics.mean(accuracy):.1f}{spread}", f"{seconds:.0f}", f"{memory:,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=",".join(registry.names("methods")))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("-o", "--output", type=Path, required=True)
    asked = parser.parse_args()
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    heads = [f"{where}, %|s|MB" for where in SETS]
    lines = [f"| method | parameters |{'|'.join(heads)}|", "|---" * (2 + 3 * len(SETS)) + "|"]
    for name, options in rows(asked.methods.split(",")):
        found = {w: [result(name, options, w, s, asked.output) for s in seeds] for w in SETS}
        count = next(iter(found.values()))[0]["parameters"]["method"]
        title = " ".join([f"`{name}`", *(f"{k}={v}" for k, v in options.items())])
        cells = [part for results in found.values() for part in cell(results)]
        lines.append(f"| {title} | {count:,} | {' | '.join(cells)} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
