"""How a trial ended, from what its processes told and how they died."""

from __future__ import annotations

import signal
from pathlib import Path

from efficientllm.journal import Story
from efficientllm.readings import last_line
from efficientllm.record import Outcome, PointResult
from efficientllm.spec.case import Case


def left_over(outcome: Outcome, points: tuple[int, ...], story: Story) -> tuple[int, ...] | None:
    """Points for another process: None when nothing is left, () for quality alone."""
    if outcome.status != "ok":
        return None
    left = points[len(story.points) :]
    if left or (story.scores is None and "quality" not in story.notes):
        return left
    return None


def with_lost_point(
    outcome: Outcome, case: Case, points: tuple[int, ...], story: Story
) -> tuple[Outcome, Story]:
    """Charge a kill for memory in the middle of a point to that point, if there are others.

    The worker could not tell it any more; what it would have done is end, so that the rest
    is measured in another process.
    """
    told = len(story.points)
    at_a_point = story.phase_now in ("prepare", "measure") and told < len(points)
    if outcome.status != "out_of_memory" or story.outcome is not None or not at_a_point:
        return outcome, story
    point = case.points[points[told]]
    lost = PointResult(
        point_id=case.point_id(point), batch=point.batch, context=point.context, outcome=outcome
    )
    story = story._replace(points=(*story.points, lost))
    return (Outcome() if len(case.points) > 1 else outcome), story


def overall(outcome: Outcome, points: tuple[PointResult, ...]) -> Outcome:
    """A trial whose points all failed has failed; one good point makes it ok."""
    if outcome.status != "ok" or not points or any(p.outcome.status == "ok" for p in points):
        return outcome
    return points[0].outcome


def death(status: int, story: Story, folder: Path, *, out_of_memory: bool = False) -> Outcome:
    """A worker that ended without a word: by which signal, and its last line.

    `out_of_memory`: the kernel has ended a process of its control group for memory meanwhile.
    """
    if status == -signal.SIGKILL and out_of_memory:
        reason = "the host ran out of memory: the kernel ended the process"
        return Outcome(status="out_of_memory", phase=story.phase_now, reason=reason)
    if status < 0:
        name = signal.Signals(-status).name
        return Outcome(status="crash", phase=story.phase_now, reason=f"killed by {name}")
    said = last_line(folder / "stderr") or "it ended itself and said nothing"
    reason = f"exit status {status}: {said}"[:500]
    return Outcome(status="crash", phase=story.phase_now, reason=reason)
