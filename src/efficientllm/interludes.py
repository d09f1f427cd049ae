"""What a training does between its steps, outside every clock: score held-out text, be saved.

`measure` knows only that something is due after so many units. What, stands here. A training
that was saved goes on in the next process that is given the same file: with the same
weights, moments, scaler, random numbers and place in the data it has the losses that it
would have had (on a CPU to the last bit; a GPU's kernels are not all deterministic).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from efficientllm.assembly import Assembly
from efficientllm.device import free_cached, is_lost
from efficientllm.journal import Journal, Task
from efficientllm.record import CurvePoint
from efficientllm.scoring import evaluate
from efficientllm.spec.workload import Training
from efficientllm.workloads.snapshot import Unreadable, load, save
from efficientllm.workloads.train import Train

STALL_LIMIT_S = 3600.0
"""How long declared work may show no progress, in its steps and between them."""

EARLIEST = 1 / 8
"""The part of a training after which the first point of its curve lies."""

LEAST_LEFT = 24
"""Steps that must be left after a checkpoint: what goes on from there is to be measured too."""


class Interludes:
    """The interludes of one training."""

    def __init__(
        self,
        assembly: Assembly,
        work: Train,
        task: Task,
        log: Journal,
        aside: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._assembly, self._work, self._task, self._log = assembly, work, task, log
        self._unseen = aside
        """Keeps what is done inside out of the trial's peaks of memory."""
        self._curve: list[CurvePoint] = []
        case, steps = assembly.case, work.total or 0
        count = 0 if case.quality is None else case.quality.curve
        self._scored = frozenset(curve_steps(count, steps))
        every = case.workload.checkpoint_every if isinstance(case.workload, Training) else None
        saved = range(every, steps - LEAST_LEFT, every) if every and task.checkpoint else ()
        self._saved = frozenset(saved)

    def due(self) -> dict[int, Callable[[], None]]:
        """What is due after how many of the steps that this process takes."""
        first = self._work.first
        return {
            step - first: partial(self._at, step)
            for step in self._scored | self._saved
            if step > first
        }

    def resume(self) -> None:
        """Go on from where an earlier process was saved, if one was in these conditions."""
        if not self._saved:
            return
        with self._unseen(), _cached_blocks_freed():
            self._resume()

    def _resume(self) -> None:
        try:
            snapshot = load(Path(self._task.checkpoint))
        except Unreadable as error:
            self._note("checkpoint", f"{error}; trained from the start")
            return
        if snapshot is None:
            return
        if snapshot.facts["resolved"] != self._conditions():
            self._note("checkpoint", "it was saved in other conditions; trained from the start")
            return
        self._work.restore(snapshot)
        for point in snapshot.facts["curve"]:
            self._tell(CurvePoint.model_validate(point))
        reason = f"from step {self._work.first} of {self._work.total}"
        self._log.write_durable("note", key="resumed", reason=reason)

    def _at(self, step: int) -> None:
        with self._unseen(), _cached_blocks_freed():
            if step in self._scored:
                self._score()
            if step in self._saved:
                self._save()

    def _score(self) -> None:
        alive = self._log.renewed_limit(STALL_LIMIT_S, "scoring held-out text along the way")
        try:
            scores, reason = evaluate(self._assembly, self._task, alive)
        except Exception as error:  # the training goes on, with a point less
            if is_lost(error):
                raise
            scores, reason = None, " ".join(str(error).split())[:300] or type(error).__name__
        if scores is None:
            self._note("curve", reason)
            return
        step, tokens = self._work.trained
        nll, size = sum(scores.nll), sum(scores.bytes)
        self._tell(CurvePoint(step=step, tokens=tokens, nll=nll, bytes=size))

    def _tell(self, point: CurvePoint) -> None:
        self._curve.append(point)
        self._log.write_durable("curve", point=point.model_dump())

    def _save(self) -> None:
        state = self._work.state()
        curve = [point.model_dump() for point in self._curve]
        facts = state.facts | {"curve": curve, "resolved": self._conditions()}
        try:
            save(state._replace(facts=facts), Path(self._task.checkpoint))
        except OSError as error:  # a full disk ends no training; an earlier checkpoint stays
            self._note("checkpoint", f"not saved after step {state.facts['step']}: {error}")

    def _note(self, key: str, reason: str) -> None:
        self._log.write("note", key=key, reason=reason)

    def _conditions(self) -> Any:
        """What `auto` has come to mean, as JSON gives it back."""
        return json.loads(json.dumps(self._assembly.resolved))


@contextmanager
def _cached_blocks_freed() -> Iterator[None]:
    """Give back what the allocator took meanwhile, which `reserved` would show from here on."""
    yield
    free_cached()


def curve_steps(count: int, steps: int) -> list[int]:
    """The steps after which a curve has its points, from an eighth of all to the last.

    Each lies as many times further on than the one before, because learning slows down; and
    the longest stretch without a scoring, which is what is measured, is half of the training
    with four points. No more points than steps.
    """
    count = min(count, steps)
    found = [0]
    for left in reversed(range(count)):
        wanted = round(steps * EARLIEST ** (left / max(1, count - 1)))
        found.append(min(max(found[-1] + 1, wanted), steps - left))
    return found[1:]
