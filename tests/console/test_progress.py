"""Phases of work and the reporter that shows them."""

from __future__ import annotations

import contextlib
import io

import pytest

from gistcli.console import ConsoleReporter
from gistcli.console.progress import Phase, duration


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A text stream that says that a person looks at it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (59.96, "1:00 min"), (3599.4, "59:59 min"),
     (3600, "1:00 h"), (7620, "2:07 h")],
)  # fmt: skip
def test_durations_read_as_people_write_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_time_left_is_told_from_the_fifth_unit_after_the_first_on(clock: Clock) -> None:
    phase = Phase("train", 100, clock=clock)
    clock.now += 50  # a slow first step
    phase.advance(1, {})
    for _ in range(4):
        clock.now += 2
        phase.advance(1, {})
    assert phase.seconds_left is None
    clock.now += 2
    phase.advance(1, {})
    assert phase.seconds_left == pytest.approx(94 * 2)


def test_what_a_resumed_run_had_done_does_not_count_as_speed(clock: Clock) -> None:
    phase = Phase("train", 100, clock=clock)
    phase.advance(80, {})
    clock.now += 30
    phase.advance(10, {})
    assert phase.seconds_left == pytest.approx(30)


def plain(clock: Clock) -> tuple[ConsoleReporter, io.StringIO]:
    stream = io.StringIO()
    return ConsoleReporter(stream, clock=clock), stream


def test_without_a_terminal_there_is_a_line_every_thirty_seconds(clock: Clock) -> None:
    reporter, stream = plain(clock)
    reporter.start("train", 100)
    for _ in range(100):
        clock.now += 1
        reporter.advance("train", 1, loss=0.25, val_accuracy=0.5)
    reporter.finish("train")
    assert stream.getvalue().splitlines() == [
        "train: 100 steps",
        "train: 30/100 steps, loss 0.25, val accuracy 50.0%, 1:10 min left",
        "train: 60/100 steps, loss 0.25, val accuracy 50.0%, 40.0 s left",
        "train: 90/100 steps, loss 0.25, val accuracy 50.0%, 10.0 s left",
        "train: 100/100 steps in 1:40 min, loss 0.25, val accuracy 50.0%",
    ]


def test_a_short_phase_that_comes_again_and_again_is_not_told_every_time(clock: Clock) -> None:
    reporter, stream = plain(clock)
    for _ in range(20):
        reporter.start("validate", 10, "examples")
        clock.now += 2
        reporter.advance("validate", 10)
        reporter.finish("validate")
    assert stream.getvalue().splitlines() == [
        "validate: 10 examples",
        "validate: 10/10 examples in 2.0 s",
        "validate: 10/10 examples in 2.0 s",
    ]


def test_a_phase_that_is_over_at_once_has_no_last_line(clock: Clock) -> None:
    reporter, stream = plain(clock)
    reporter.start("decode", 300, "images")
    reporter.advance("decode", 300)
    reporter.finish("decode")
    assert stream.getvalue() == "decode: 300 images\n"


def test_brackets_are_text_and_paths_are_not_wrapped(clock: Clock) -> None:
    reporter, stream = plain(clock)
    path = "/a" * 150 + "[bold]x[/]"
    reporter.say(path)
    reporter.warn("[red] [not a tag]")
    assert stream.getvalue().splitlines() == [path, "warning: [red] [not a tag]"]


def test_a_table_holds_every_cell(clock: Clock) -> None:
    reporter, stream = plain(clock)
    reporter.table("classes", ["class", "train"], [["cat [1]", 1200], ["dog", 7]])
    text = stream.getvalue()
    assert all(part in text for part in ("classes", "cat [1]", "1,200", "dog"))


def test_a_terminal_gets_bars_that_are_taken_away_and_a_last_line(clock: Clock) -> None:
    stream = Terminal()
    with ConsoleReporter(stream, clock=clock) as reporter:
        reporter.start("train", 3)
        for _ in range(3):
            clock.now += 1
            reporter.advance("train", 1, loss=0.5)
            reporter.start("validate", 2, "examples")
            reporter.advance("validate", 2)
            reporter.finish("validate")
        reporter.say("in between")
        reporter.finish("train")
    text = stream.getvalue()
    assert "in between" in text
    assert "train: 3/3 steps in 3.0 s, loss 0.5" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # cursor hidden, shown again


def test_an_exception_leaves_no_bar_behind(clock: Clock) -> None:
    stream = Terminal()
    reporter = ConsoleReporter(stream, clock=clock)
    with contextlib.suppress(ZeroDivisionError), reporter:
        reporter.start("train", 3)
        raise ZeroDivisionError
    assert stream.getvalue().count("\x1b[?25h") == 1


def test_no_color_is_honoured(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, bare = Terminal(), Terminal()
    ConsoleReporter(coloured, clock=clock).warn("look")
    monkeypatch.setenv("NO_COLOR", "1")
    ConsoleReporter(bare, clock=clock).warn("look")
    assert "\x1b[33m" in coloured.getvalue()
    assert bare.getvalue() == "warning: look\n"


class Closed(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_talk_into_a_closed_pipe_does_not_end_the_work(clock: Clock) -> None:
    with ConsoleReporter(Closed(), clock=clock) as reporter:
        reporter.say("nobody reads this")
        reporter.start("train", 2)
        reporter.finish("train")
