"""The cases of the contract suite, and what its tests are given."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from torch import Tensor

from gistcli import registry
from gistcli.methods.base import Tuner
from gistcli.testing.cases import NEEDS, Case, all_cases, configurations, facts
from gistcli.testing.kinds import batch as new_batch
from gistcli.testing.plugin import CASE, OPTION, REFUSED

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """The marker that leaves out cases to which a property does not apply."""
    config.addinivalue_line("markers", f"needs(name): of a case, one of {', '.join(NEEDS)}")


def chosen(config: pytest.Config) -> list[str]:
    """Names of the methods that are tested."""
    return config.getoption(OPTION, default=[]) or registry.names("methods")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case (`case`, `tuner`), refused pair or configuration that it asks for."""
    names = chosen(metafunc.config)
    wanted = set(metafunc.fixturenames)
    if "case" in wanted:
        needs = [NEEDS[m.args[0]] for m in metafunc.definition.iter_markers("needs")]
        cases = [
            case
            for case in all_cases(names)
            if facts(case).refusal is None and all(need(case) for need in needs)
        ]
        metafunc.parametrize("case", cases, ids=str)
    elif "refused" in wanted:
        metafunc.parametrize("refused", [c for c in all_cases(names) if facts(c).refusal], ids=str)
    elif "configuration" in wanted:
        found = [c for name in names for c in configurations(name)]
        metafunc.parametrize("configuration", found, ids=str)
    elif "name" in wanted:
        metafunc.parametrize("name", names)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the reports say what was tested, for the closing line."""
    for item in items:
        if isinstance(item, pytest.Function) and HERE in item.path.parents:
            given = item.callspec.params if hasattr(item, "callspec") else {}
            for key, value in given.items():
                item.user_properties.append((REFUSED if key == "refused" else CASE, str(value)))


def pytest_collection_finish() -> None:
    """Thousands of cases and three large packages stay: looking for garbage passes over them."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def tuner(case: Case) -> Tuner:
    """The method of a case on a new backbone, both in evaluation mode."""
    return case.attach()


@pytest.fixture
def batch(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    """Six labelled images or texts, whichever the case reads."""
    given = request.node.callspec.params
    case: Case = given["case"] if "case" in given else given["refused"]
    return new_batch(case.kind)
