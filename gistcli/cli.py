"""The command `gist`: all commands, and the one place where errors become a sentence."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Annotated, Any

import typer

from gistcli import __version__
from gistcli.commands import (
    compare,
    compress,
    demo,
    evaluate,
    finetune,
    hyperpretrain,
    inspect,
    listing,
    merge,
    predict,
    schema,
    sweep,
    visualize,
)
from gistcli.commands.options import examples
from gistcli.signals import redelivered

EXAMPLES = examples(
    "gist finetune recipes/quickstart.yaml -o runs/first",
    "gist merge runs/first -o first-merged",
    "gist finetune --help",
)
_UsageError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""Base of what typer raises for a command line that it does not understand."""

app = typer.Typer(
    name="gist",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=EXAMPLES,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gist {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="GIST_DEBUG", help="Show tracebacks; may stand anywhere."),
    ] = False,
) -> None:
    """Adapt pretrained Transformers with few trained parameters, see what was learnt, and take
    plain weights away."""


def _add(name: str, command: Any, function: Any, panel: str, hidden: bool = False) -> None:
    register = app.command(name, epilog=command.EXAMPLES, rich_help_panel=panel, hidden=hidden)
    register(function)


_add("finetune", finetune, finetune.finetune, "Train")
_add("hyperpretrain", hyperpretrain, hyperpretrain.hyperpretrain, "Train")
_add("sweep", sweep, sweep.sweep, "Train")
_add("demo", demo, demo.demo, "Train")
_add("eval", evaluate, evaluate.evaluate, "Use")
_add("predict", predict, predict.predict, "Use")
_add("compress", compress, compress.compress, "Use")
_add("merge", merge, merge.merge, "Use")
_add("visualize", visualize, visualize.visualize, "Use")
_add("visualize-clusters", visualize, visualize.visualize, "Use", hidden=True)
_add("compare", compare, compare.compare, "Look")
_add("list", listing, listing.listing, "Look")
_add("inspect", inspect, inspect.inspect, "Look")
_add("schema", schema, schema.schema, "Look")


def main() -> None:
    """Entry point of `gist`."""
    arguments = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an odd encoding must not end a run
    if "OMP_WAIT_POLICY" not in os.environ:
        # threads that spin long while they wait take the cores from whatever else runs: 1 % slower
        # on an idle machine, a third faster beside one busy process (ViT-Ti on two cores)
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if not sys.warnoptions and not _wants_debug(arguments):
        warnings.simplefilter("ignore")  # what libraries tell developers
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # so scripts start what runs in the background; training notices all the same, and what
        # comes between two runs of a sweep is to end it just as well
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(invoke(arguments))


def invoke(arguments: Sequence[str]) -> int:
    """Runs one command line, prints its result or its failure, and returns the exit code."""
    debug = _wants_debug(arguments)
    arguments = [a for a in arguments if a != "--debug"]
    as_json = "--json" in arguments
    results, talk = sys.stdout, sys.stderr
    try:
        with redelivered(), redirect_stdout(talk) if as_json else nullcontext():
            outcome = typer.main.get_command(app).main(
                args=arguments, prog_name="gist", standalone_mode=False
            )
        if outcome == 130:
            raise KeyboardInterrupt
        if outcome is None or isinstance(outcome, int):
            return outcome or 0
        return _show(outcome, as_json)
    except BrokenPipeError:
        from gistcli.console import drop_closed

        drop_closed()
        return 1
    except (Exception, KeyboardInterrupt) as error:
        from gistcli.console import show_failure

        failure = _describe(error)
        if failure is None:
            return 2  # the help was printed in place of a missing command
        shown = error if debug and not isinstance(error, _UsageError) else None
        show_failure(failure, as_json=as_json, results=results, talk=talk, error=shown)
        return failure.exit_code


def _wants_debug(arguments: Sequence[str]) -> bool:
    return "--debug" in arguments or os.environ.get("GIST_DEBUG", "0") not in ("", "0", "false")


def _show(result: Any, as_json: bool) -> int:
    from gistcli.console import emit_json, show_result

    if as_json or result.as_json:
        emit_json(result.value, sys.stdout)
    else:
        show_result(result, sys.stdout)
    return int(result.exit_code)


def _describe(error: BaseException) -> Any:
    """The Failure to show; None where typer has printed the help instead of an error."""
    from gistcli.console import Failure, describe

    if not isinstance(error, _UsageError):
        return describe(error)
    if type(error).__name__ == "NoArgsIsHelpError":
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "gist"
    message = error.format_message()  # type: ignore[attr-defined]
    return Failure("UsageError", message, f"`{command} --help` shows what there is.", 2)
