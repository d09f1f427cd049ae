"""What a training does between its steps, outside every clock: score held-out text.

`measure` knows only that something is due after so many units. What, stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from efficientllm.device import free_cached
from efficientllm.journal import Journal, Task
from efficientllm.prepare import Assembly, evaluate
from efficientllm.record import CurvePoint
from efficientllm.workloads.train import Train


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

    def due(self) -> dict[int, Callable[[], None]]:
        """What is due after how many steps."""
        quality = self._assembly.case.quality
        count = 0 if quality is None else quality.curve
        return dict.fromkeys(curve_steps(count, self._work.budget or 0), self._score)

    def _score(self) -> None:
        with self._aside():
            scores, reason = evaluate(self._assembly, self._task)
        if scores is None:
            self._log.write("note", key="curve", reason=reason)
            return
        step, tokens = self._work.trained
        nll, size = sum(scores.nll), sum(scores.bytes)
        point = CurvePoint(step=step, tokens=tokens, nll=nll, bytes=size)
        self._log.write_durable("curve", point=point.model_dump())

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Leave the training's memory as it was: no peak of it, and no block kept."""
        with self._unseen():
            yield
            free_cached()


def curve_steps(count: int, steps: int) -> list[int]:
    """The steps after which a curve has its points: equally far apart, the last at the end."""
    return [index * steps // count for index in range(1, count + 1)]
