"""Memory and time of `gist merge` on a language model in four shards, against copying its files.

Run: python -m tests.benchmarks.merging [--hidden 1024] [--blocks 22] [--rank 16] [--rounds 3]

A Llama of random bfloat16 weights (600 MB with the defaults) gets a GIFT run of one step, which is
merged: `write` is everything up to the last byte of the weights, `read back` the check of every
byte, `answers` the logits of both networks in float32. Copying reads the same files and waits for
the disk, as the merge does. Memory is the peak above that of the same command on a network of 1 MB:
what the process holds itself (anonymous), and with files mapped into it, which the system takes
back when it wants to.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VOCABULARY = 32_000


def save(folder: Path, hidden: int, blocks: int, vocabulary: int = VOCABULARY) -> Path:
    """A Llama in four shards with a tokenizer of words."""
    import torch
    import transformers

    from tests.data.text.tokens import words

    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=11 * hidden // 4,
        num_hidden_layers=blocks, num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    nbytes = sum(p.nbytes for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=nbytes // 4 + hidden * vocabulary)
    words().base.save_pretrained(folder)
    return folder


def tune(model: Path, rank: int, run: Path) -> None:
    from gistcli import run as commands
    from gistcli.recipe import Recipe
    from tests.run.text_models import completions

    tree = {
        "model": {"name": str(model)},
        "data": {"path": str(completions(run.with_suffix(".jsonl"), 20))},
        "method": {"name": "gift", "rank": rank, "targets": ["query", "value"]},
        "train": {"max_steps": 1, "batch_size": 1},
        "optim": {"lr": 0.01},
        "eval": {"every": "none"},
    }
    commands.finetune(Recipe.model_validate(tree), output=run)


def copy(model: Path, to: Path) -> float:
    """Seconds to copy the weights, all of them on the disk."""
    start = time.perf_counter()
    to.mkdir()
    for path in sorted(model.glob("*.safetensors")):
        shutil.copyfile(path, to / path.name)
        with (to / path.name).open("rb") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(to)
    return seconds


@contextmanager
def peaks() -> Iterator[dict[str, int]]:
    """Bytes that the process holds at most while inside: its own, and with mapped files."""
    found = {"own": 0, "with files": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            own, files = _held()
            found["own"] = max(found["own"], own)
            found["with files"] = max(found["with files"], own + files)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def _held() -> tuple[int, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    table = {line.partition(":")[0]: line.split()[1:2] for line in lines}
    return int(table["RssAnon"][0]) * 1024, int(table["RssFile"][0]) * 1024


def merge(run: Path, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds and memory of one merge, and of its parts; in this process."""
    from gistcli import run as commands
    from gistcli.artifacts import merge as merging
    from gistcli.artifacts import verify

    spent = {"write": 0.0, "read back": 0.0}

    def timed(name: str, function: Any) -> Any:
        def inner(*args: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **keywords)
            finally:
                spent[name] += time.perf_counter() - start

        return inner

    merging._write = timed("write", merging._write)  # type: ignore[assignment]
    verify.verify_file = timed("read back", verify.verify_file)
    with peaks() as found:
        start = time.perf_counter()
        commands.merge(run, output, **options)
        spent["all"] = time.perf_counter() - start
    shutil.rmtree(output)
    return {"seconds": spent, "bytes": found}


def measured(run: Path, output: Path, **options: Any) -> dict[str, Any]:
    """`merge` in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.merging",
        "--merge",
        str(run),
        str(output),
        json.dumps(options),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=22)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--merge", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.merge:
        run, output, options = asked.merge
        sys.stdout.write(json.dumps(merge(Path(run), Path(output), json.loads(options))) + "\n")
        return
    with tempfile.TemporaryDirectory() as name:
        report(Path(name), asked)


def report(place: Path, asked: argparse.Namespace) -> None:
    model = save(place / "model", asked.hidden, asked.blocks)
    tune(model, asked.rank, place / "run")
    shards = [path.stat().st_size for path in sorted(model.glob("*.safetensors"))]
    small = save(place / "small", 256, 1, 200)
    tune(small, 2, place / "small-run")
    floor = measured(place / "small-run", place / "out")
    copies, plain, checked = [], [], []
    for _ in range(asked.rounds):
        copies.append(copy(model, place / "copy"))
        plain.append(measured(place / "run", place / "out", verify=False))
        checked.append(measured(place / "run", place / "out"))
    base = statistics.median(copies)
    total, largest = sum(shards) / 1e6, max(shards) / 1e6
    lines = [f"{total:,.0f} MB in {len(shards)} shards of at most {largest:,.0f} MB",
             f"copying: {base:.2f} s"]  # fmt: skip
    for title, rows in (("--no-verify", plain), ("verified", checked)):
        for part in rows[0]["seconds"]:
            seconds = statistics.median(row["seconds"][part] for row in rows)
            lines.append(f"{title}, {part}: {seconds:.2f} s, {seconds / base:.2f} of copying")
        own, files = (
            max(row["bytes"][name] for row in rows) - floor["bytes"][name]
            for name in ("own", "with files")
        )
        lines.append(f"{title}, memory: {own / 1e6:,.0f} MB own, {files / 1e6:,.0f} with files")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
