"""The only place that prints: talk and progress on stderr, results on stdout."""

from gistcli.console.failures import Failure, describe, show_failure
from gistcli.console.reporter import ConsoleReporter, working
from gistcli.console.results import Result, emit_json, show_result
from gistcli.console.streams import Unbreakable, drop_closed

__all__ = [
    "ConsoleReporter",
    "Failure",
    "Result",
    "Unbreakable",
    "describe",
    "drop_closed",
    "emit_json",
    "show_failure",
    "show_result",
    "working",
]
