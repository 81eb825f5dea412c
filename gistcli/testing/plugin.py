"""What pytest knows of the contract suite in every session: an option and a closing line.

A plugin of the installed package (`pytest11` in pyproject.toml): pytest reads its options before it
looks into `--pyargs`, and the controller of pytest-xdist, which prints the summary, collects
nothing and so never sees `conftest.py`. Every session of the environment loads this file, so it
imports nothing heavy.
"""

from __future__ import annotations

from typing import Any

import pytest

from gistcli import registry
from gistcli.errors import GistError

OPTION = "--gist-method"
CASE, REFUSED = "gist_case", "gist_refused"
"""Properties of a test's report: the name of its case, or of the refused pair."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--gist-method NAME|FILE.py:Class`, repeatable."""
    parser.getgroup("gistcli.testing").addoption(
        OPTION,
        action="append",
        default=[],
        metavar="NAME|FILE.py:Class",
        help="method that the contract suite tests (default: every registered one)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse, with one line and before anything is collected, a method that cannot be tested."""
    try:
        for name in config.getoption(OPTION):
            registry.resolve("methods", name)
    except GistError as error:
        raise pytest.UsageError(f"{OPTION}: {error.message} {error.hint}") from error


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many cases ran, and how many pairs are refused."""
    properties: list[tuple[str, str]] = []
    failed = 0
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            own = [
                (k, v) for k, v in getattr(report, "user_properties", ()) if k in (CASE, REFUSED)
            ]
            if own and report.when != "teardown":
                properties += own
                failed += outcome != "passed"
    if properties:
        pairs = {value for key, value in properties if key == REFUSED}
        terminalreporter.write_line(
            f"gist contract: {len(properties):,} cases ran, {failed:,} failed; "
            f"{len(pairs)} pairs are refused with their reason"
        )
