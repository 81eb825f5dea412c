"""`gist compare`: finished runs as one table; without an argument, what lies in `runs/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gistcli.commands.options import AsJson, Device, examples

EXAMPLES = examples(
    "gist compare",
    "gist compare runs/gift-1 runs/lora-1",
    "gist compare runs/boolq --baseline --merged boolq-merged",
    "gist compare sweeps/vtab --reference linear -o sweeps/vtab/comparison",
)


def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN|DIR",
            help="Runs, folders that hold some, sweeps. Without any: what lies in runs/.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="The row that the others are compared with; without, the first.",
            metavar="ROW",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="SPLIT/NAME of the runs' figures; without, what they are measured by, on test "
            "where all have that.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline",
            help="Also the untuned language model under the runs, measured where it was not yet.",
        ),
    ] = False,
    merged: Annotated[
        Path | None,
        typer.Option(
            help="Also the folder that was merged from the one run, measured on the run's data.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="No tables by task where there are many tasks.")
    ] = False,
    published: Annotated[
        bool,
        typer.Option("--published/--no-published", help="Figures of papers beside ours, in grey."),
    ] = True,
    best_test: Annotated[
        bool,
        typer.Option(
            "--best-test",
            help="Also the best on test of all evaluations, which is selected on test.",
        ),
    ] = False,
    paired: Annotated[
        bool,
        typer.Option(
            "--differences/--no-differences",
            help="Paired differences; they need the same examples in all runs.",
        ),
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output-dir",
            help="Folder for Markdown, CSV, LaTeX, JSON and plots.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> object:
    """Compare finished runs: means, deviations, paired differences with intervals."""  # fmt: skip
    given = {"-o": output is not None, "--baseline": baseline, "--merged": merged is not None}
    for option in [name for name, used in given.items() if used and not runs]:
        raise typer.BadParameter(f"{option} needs runs to compare.")
    from gistcli import console

    with console.working("compare") as reporter:
        from gistcli import run

        if not runs:
            return console.Result("runs", {"runs": run.overview()})
        value = run.compare(
            runs,
            metric=metric,
            reference=reference,
            published=published,
            best_test=best_test,
            paired=paired,
            beside=run.Beside(baseline, merged, device) if baseline or merged else None,
            output=output,
            reporter=reporter,
        )
        return console.Result("summary" if summary else "comparison", value)
