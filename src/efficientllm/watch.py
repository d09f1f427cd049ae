"""What the parent does while a worker runs: sleep, and look up once a second.

A worker ends by itself, is later than it announced, or has to stop because the user or
the batch system wants that. Each of these is an outcome; none of them can hang the parent.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from efficientllm import clock, journal, processes
from efficientllm.control_group import kill_count, memory_kills
from efficientllm.endings import death
from efficientllm.processes import CannotStart, Worker
from efficientllm.record import Outcome

POLL_S = 1.0


class Progress(NamedTuple):
    """What a running trial is doing."""

    phase: str
    window: str
    done: int
    total: int


Listener = Callable[[Progress], None]


def watch(
    worker: Worker, folder: Path, listener: Listener, asked_to_stop: Sequence[int]
) -> Outcome:
    """Sleep until the worker has ended, is late, or is to be stopped; how that went.

    `asked_to_stop` holds the signals that this process has got; it may grow meanwhile.
    """
    count = kill_count(worker.pid)
    kills_before = memory_kills(count)
    try:
        status = _wait(worker, folder, listener, asked_to_stop)
    except CannotStart as error:  # the fork server has died, and its workers with it
        reason = " ".join(str(error).split())[:500]
        return Outcome(status="crash", phase=journal.read(folder).phase_now, reason=reason)
    if isinstance(status, Outcome):
        return status
    story = journal.read(folder)
    if story.outcome is not None:
        return story.outcome
    return death(status, story, folder, out_of_memory=memory_kills(count) > kills_before)


def _wait(
    worker: Worker, folder: Path, listener: Listener, asked_to_stop: Sequence[int]
) -> int | Outcome:
    """A worker's exit status, or why it was ended."""
    told, story = -1, journal.read(folder)
    deadline = clock.now_ns() + round(processes.START_LIMIT_S * 1e9)
    while (status := worker.wait(POLL_S)) is None:
        if asked_to_stop:
            processes.end(worker)
            sign = signal.Signals(asked_to_stop[0]).name
            return Outcome(status="interrupted", phase=story.phase_now, reason=f"stopped by {sign}")
        size = _size(folder / journal.JOURNAL)
        if size != told:
            told, story = size, journal.read(folder)
            listener(_progress(story))
            deadline = story.deadline_ns or deadline
        if clock.now_ns() > deadline:
            processes.end(worker)
            return Outcome(status="timeout", phase=story.phase_now, reason="took too long")
    return status


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _progress(story: journal.Story) -> Progress:
    now = story.progress
    return Progress(story.phase_now, now.get("window", ""), now.get("done", 0), now.get("total", 0))
