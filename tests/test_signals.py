"""Interruptions that fall where Python drops exceptions."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import weakref
from types import SimpleNamespace

import pytest

from gistcli.cli import invoke
from gistcli.signals import DELAY, redelivered


class Thing:
    """What a weak reference may point at."""


def drop(error: type[BaseException], *, by_signal: bool = False) -> None:
    """Raise inside the callback of a weak reference, as the handler of a signal may."""

    def callback(_: object) -> None:
        if by_signal:
            signal.raise_signal(signal.SIGINT)
        else:
            raise error

    thing = Thing()
    kept = weakref.ref(thing, callback)
    del thing
    assert kept() is None


@pytest.mark.parametrize("by_signal", [False, True])
def test_an_interruption_that_python_drops_comes_again(by_signal: bool) -> None:
    @redelivered()
    def work() -> None:
        drop(KeyboardInterrupt, by_signal=by_signal)
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        work()


def test_a_command_ends_with_130_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(**_: object) -> None:
        drop(KeyboardInterrupt)
        time.sleep(60)

    monkeypatch.setattr("typer.main.get_command", lambda app: SimpleNamespace(main=work))
    assert invoke(["list", "methods", "--json"]) == 130
    assert '"Interrupted"' in capsys.readouterr().out


def test_one_that_was_to_come_again_is_not_lost_at_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), redelivered():
        drop(KeyboardInterrupt)
    time.sleep(2 * DELAY)  # and it comes once


def test_what_else_is_dropped_is_told_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda lost: told.append(lost.exc_type))
    with redelivered():
        drop(ValueError)
    drop(KeyError)
    assert told == [ValueError, KeyError]


@pytest.mark.slow
def test_a_program_that_a_script_starts_in_the_background_can_be_interrupted() -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "import gistcli.cli, os, time\n"
        "gistcli.cli.invoke = lambda _: (os.kill(os.getpid(), signal.SIGINT), time.sleep(60))\n"
        "gistcli.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert b"KeyboardInterrupt" in done.stderr
