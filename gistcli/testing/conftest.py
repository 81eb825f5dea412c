"""Options, cases and the closing line of the contract suite."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from gistcli import registry
from gistcli.methods.base import Tuner
from gistcli.testing.cases import NEEDS, Case, all_cases, configurations, refusal
from gistcli.testing.kinds import batch as new_batch


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--gist-method NAME|FILE.py:Class`, repeatable."""
    parser.addoption(
        "--gist-method",
        action="append",
        default=[],
        metavar="NAME|FILE.py:Class",
        help="test this method alone (default: every registered one)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marker that leaves out cases to which a property does not apply."""
    config.addinivalue_line("markers", f"needs(name): of a case, one of {', '.join(NEEDS)}")


def chosen(config: pytest.Config) -> list[str]:
    """Names of the methods that are tested."""
    return config.getoption("--gist-method", default=[]) or registry.names("methods")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case (`case`, `tuner`), refused pair or configuration that it asks for."""
    names = chosen(metafunc.config)
    wanted = set(metafunc.fixturenames)
    if "case" in wanted:
        needs = [NEEDS[m.args[0]] for m in metafunc.definition.iter_markers("needs")]
        cases = [
            case
            for case in all_cases(names)
            if refusal(case) is None and all(need(case) for need in needs)
        ]
        metafunc.parametrize("case", cases, ids=str)
    elif "refused" in wanted:
        metafunc.parametrize("refused", [c for c in all_cases(names) if refusal(c)], ids=str)
    elif "configuration" in wanted:
        found = [c for name in names for c in configurations(name)]
        metafunc.parametrize("configuration", found, ids=str)
    elif "name" in wanted:
        metafunc.parametrize("name", names)


@pytest.fixture
def tuner(case: Case) -> Tuner:
    """The method of a case on a new backbone, both in evaluation mode."""
    return case.attach()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Six labelled images."""
    return new_batch()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many cases ran, and how many pairs are refused."""
    stats = terminalreporter.stats
    reports = [
        report
        for report in [*stats.get("passed", []), *stats.get("failed", [])]
        if "testing/test_" in report.nodeid and "[" in report.nodeid and report.when == "call"
    ]
    refused = sum("test_a_refused_pair" in report.nodeid for report in reports)
    if reports:
        terminalreporter.write_line(
            f"gist contract: {len(reports) - refused:,} cases passed or failed, "
            f"{refused} pairs refused with their reason"
        )
