"""Doing the runs of a sweep: each once, by whichever process takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gistcli.artifacts.ledger import Ledger, PlannedRun
from gistcli.errors import FoundBad, GistError, Interrupted, StorageError
from gistcli.recipe.points import Point
from gistcli.reporting import Reporter
from gistcli.run.finetuning import finetune
from gistcli.run.shelf import Shelf
from gistcli.run.sweep_choice import Choice, choose, open_candidates
from gistcli.run.sweep_plan import Cell, SweepPlan
from gistcli.run.sweep_talk import RunReporter, outcome, why_left

PHASE = "sweep"


class Work:
    """One process' work on a ledger.

    Args:
        plan: of the sweep.
        ledger: of the same plan.
        shelf: what runs share.
        reporter: gets all talk.
        retry: whether runs that failed before are tried again, once.
    """

    def __init__(
        self, plan: SweepPlan, ledger: Ledger, shelf: Shelf, reporter: Reporter, retry: bool
    ) -> None:
        self.plan = plan
        self.ledger = ledger
        self.shelf = shelf
        self.reporter = reporter
        self.retry = retry
        self._tried: set[str] = set()
        self._counted: set[str] = set()
        self._warned: set[str] = set()
        self._choices: dict[str, Choice] = {}

    def do(self, asked: Sequence[PlannedRun]) -> None:
        """All runs that can be done, until nothing is left or the rest is in other hands.

        A final run waits for candidates that others may have, so the list is gone through again
        as long as that helps.

        Raises:
            Interrupted: stopped on request.
            StorageError: the disk is full or may not be written.
        """
        self._begin(asked)
        try:
            while sum(map(self._step, asked)):
                pass
        finally:
            self.reporter.finish(PHASE)
        if self.plan.axes:
            self.ledger.update_chosen(lambda: [c.as_dict() for c in self.choices()])
        self._say_rest(asked)

    def choices(self) -> list[Choice]:
        """Of all cells whose candidates are complete.

        Raises:
            WeightsError: a result that cannot be read.
        """
        cells = self.plan.cells if self.plan.axes else ()
        return [choice for cell in cells if (choice := self._choice(cell)) is not None]

    def _begin(self, asked: Sequence[PlannedRun]) -> None:
        before = {run.id for run in asked if self._settled(run)}
        self.reporter.say(
            f"{self.ledger.path}: {len(asked)} runs, {len(before)} of them done before"
        )
        self.reporter.start(PHASE, len(asked), "runs")
        self._counted = before
        if before:
            self.reporter.advance(PHASE, len(before))
        for run in asked:
            self.ledger.reduce(run)  # a kill may have come between its result and its reduction

    def _say_rest(self, asked: Sequence[PlannedRun]) -> None:
        left = [run for run in asked if not self._settled(run)]
        waiting = [run for run in left if not self._ready(run)]
        cells = {self.plan.cell_of[run.id].name: self.plan.cell_of[run.id] for run in waiting}
        missing = sum(len(open_candidates(self.plan, self.ledger, cell)) for cell in cells.values())
        for line in why_left(len(waiting), missing, len(left) - len(waiting)):
            self.reporter.say(line)
        if self.plan.axes and not self.plan.request.refit and not left:
            self.reporter.say(
                "Test was not read. The same command with --refit trains what was chosen on train "
                "and val, and reads test once a run."
            )
        closed = [r for r in asked if self.ledger.failure(r) is not None and self._closed(r)]
        if self.retry and closed:
            self.reporter.warn(
                f"{len(closed)} failed candidates were not tried again: final runs have begun with "
                "what was chosen without them."
            )

    # --- one run -------------------------------------------------------------------------------

    def _settled(self, run: PlannedRun) -> bool:
        """Whether nothing is left to do: it is done, or failed and is not tried again."""
        if self.ledger.done(run):
            return True
        if self.ledger.failure(run) is None:
            return False
        return not self.retry or run.id in self._tried or self._closed(run)

    def _closed(self, run: PlannedRun) -> bool:
        """Whether a final run has begun with what was chosen without this candidate."""
        finals = self.plan.finals(self.plan.cell_of[run.id]) if run.role == "candidate" else ()
        return any(self.ledger.directory(r).state != "absent" for r in finals)

    def _ready(self, run: PlannedRun) -> bool:
        """Whether it can be trained: a final run of a grid needs all candidates."""
        if run.role == "candidate" or not self.plan.axes:
            return True
        return not open_candidates(self.plan, self.ledger, self.plan.cell_of[run.id])

    def _step(self, run: PlannedRun) -> bool:
        """Does a run if it can be done now and nobody else has it; whether it was done."""
        worked = False
        if not self._settled(run) and self._ready(run):
            with self.ledger.claim(run) as mine:
                worked = mine and not self._settled(run)  # another process may have been faster
                if worked:
                    self._attempt(run)
        if run.id not in self._counted and self._settled(run):
            self._counted.add(run.id)
            self.reporter.advance(PHASE)
        return worked

    def _attempt(self, run: PlannedRun) -> None:
        self._tried.add(run.id)
        self.ledger.forget_failure(run)
        try:
            result = self._train(run)
        except (Interrupted, StorageError):
            raise  # of no run alone: the others would meet it, too
        except GistError as error:
            self.ledger.record_failure(run, error)
            self.reporter.warn(f"{run.id} failed: {error.message}")
        else:
            metric = self.plan.cell_of[run.id].recipe.eval.metric or result["figure"]
            self.reporter.say(outcome(run, result, metric))
            self.ledger.reduce(run)

    def _train(self, run: PlannedRun) -> Mapping[str, Any]:
        chosen = self._chosen(run) if run.role == "final" and self.plan.axes else None
        try:
            return finetune(
                self.plan.recipe(run, chosen),
                output=self.ledger.directory(run).path,
                reporter=RunReporter(self.reporter, run.id, self._warned),
                shelf=self.shelf,
            )
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise FoundBad(
                "The memory does not suffice.", "Use --set train.micro_batch_size=N."
            ) from error

    def _chosen(self, run: PlannedRun) -> Point:
        choice = self._choice(self.plan.cell_of[run.id])
        assert choice is not None, run.id
        if choice.point is None:
            raise FoundBad(
                f"None of the {choice.tried} configurations could be trained.",
                "Correct what made them fail, and try again with --retry-failed.",
            )
        return choice.point

    def _choice(self, cell: Cell) -> Choice | None:
        if cell.name not in self._choices:
            choice = choose(self.plan, self.ledger, cell)
            if choice is None:
                return None
            self._choices[cell.name] = choice
        return self._choices[cell.name]
