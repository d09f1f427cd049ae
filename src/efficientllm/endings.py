"""How a trial ended, from what its processes told and how they died."""

from __future__ import annotations

import signal
from pathlib import Path

from efficientllm.journal import Story
from efficientllm.readings import last_line
from efficientllm.record import Outcome, PointResult


def left_over(outcome: Outcome, points: tuple[int, ...], story: Story) -> tuple[int, ...] | None:
    """Points for another process: None when nothing is left, () for quality alone."""
    if outcome.status != "ok":
        return None
    left = points[len(story.points) :]
    if left or (story.scores is None and "quality" not in story.notes):
        return left
    return None


def overall(outcome: Outcome, points: tuple[PointResult, ...]) -> Outcome:
    """A trial whose points all failed has failed; one good point makes it ok."""
    if outcome.status != "ok" or not points or any(p.outcome.status == "ok" for p in points):
        return outcome
    return points[0].outcome


def death(status: int, story: Story, folder: Path) -> Outcome:
    """A worker that ended without a word: by which signal, and its last line."""
    if status < 0:
        name = signal.Signals(-status).name
        killer = " (the kernel ends a process so when memory runs out)" if status == -9 else ""
        return Outcome(status="crash", phase=story.phase_now, reason=f"killed by {name}{killer}")
    lines = last_line(folder / "stderr")
    return Outcome(
        status="crash", phase=story.phase_now, reason=f"exit status {status}: {lines}"[:500]
    )
