"""`gist eval`: metrics of a run or of a merged folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gistcli.commands.options import AsJson, Backbone, Device, RunOrFolder, examples

EXAMPLES = examples(
    "gist eval runs/flowers",
    "gist eval runs/flowers --data other-flowers/ --split test",
    "gist eval flowers-merged --data flowers/ --json",
    "gist eval runs/boolq --protocol commonsense --data boolq/test.json -o answers.jsonl",
    "gist eval runs/boolq --baseline",
    "gist eval runs/chats --lm-eval piqa,arc_easy --lm-eval-args num_fewshot=0",
)


def evaluate(
    target: RunOrFolder,
    data: Annotated[
        str | None,
        typer.Option(help="Other data than the run's.", metavar="PATH", show_default=False),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, val or test; without one test, else val.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="How a language model is measured: perplexity, commonsense, gsm8k, math, rank or "
            "rouge. Without, by the run's recipe.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Answer the first so many examples only.", min=1, show_default=False),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="Of a written answer; without, those of the protocol.", min=1, show_default=False
        ),
    ] = None,
    baseline: Annotated[
        bool,
        typer.Option("--baseline", help="Measure the untuned language model under the run."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Outputs of every example: CSV, of answers JSON lines.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            help="Tasks of the lm-evaluation-harness instead (extra `lm-eval`), divided by commas.",
            metavar="TASKS",
            show_default=False,
        ),
    ] = None,
    lm_eval_args: Annotated[
        list[str] | None,
        typer.Option(
            help="Arguments of the harness by its own names, such as num_fewshot=5,limit=100 or "
            "include_path=DIR; may be repeated.",
            metavar="KEY=VALUE",
            show_default=False,
        ),
    ] = None,
    model: Backbone = None,
    device: Device = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(help="Examples per forward pass.", min=1, show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> object:
    """Measure a run, or a merged folder, on labelled data."""  # fmt: skip
    if lm_eval_args and lm_eval is None:
        raise typer.BadParameter("--lm-eval-args are for --lm-eval.")
    own = {"--data": data, "--split": split, "--protocol": protocol, "--limit": limit,
           "--max-new-tokens": max_new_tokens, "--output": output}  # fmt: skip
    given = [option for option, value in own.items() if value is not None]
    if lm_eval is not None and given:
        raise typer.BadParameter(f"{', '.join(given)}: the tasks of --lm-eval have their own.")
    from gistcli import console

    with console.working("eval") as reporter:
        from gistcli import run

        if lm_eval is not None:
            tasks = [name.strip() for name in lm_eval.split(",") if name.strip()]
            harness = run.Harness(tasks, lm_eval_args or ())
            value = run.evaluate_by_harness(
                target,
                harness,
                untuned=baseline,
                model=model,
                device=device,
                batch_size=batch_size,
                reporter=reporter,
            )
            return console.Result("harness", value)
        value = run.evaluate(
            target,
            data=data,
            split=split,
            model=model,
            device=device,
            batch_size=batch_size,
            protocol=protocol,
            limit=limit,
            max_new_tokens=max_new_tokens,
            untuned=baseline,
            output=output,
            reporter=reporter,
        )
        return console.Result("eval", value)
