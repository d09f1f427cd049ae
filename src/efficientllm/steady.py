"""What counts as steady: blocks that agree, and a stretch of units that nothing interrupts."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable

from efficientllm.spec.protocol import Limits

MIN_UNITS = 3
"""Fewer are neither a block nor a window."""

BRIEF_UNITS = 5
"""Units that are enough for a window which only checks others."""

BRIEF_SECONDS = 5.0
"""Or those that take so long together, two at least: what is long scatters little."""

SETTLE_UNITS = 3
"""Units after an interlude that are in no window: it has changed caches and clocks."""


def longest_stretch(done: int, interludes: Iterable[int], total: int) -> tuple[int, int]:
    """The longest range of units still to do without an interlude inside; the first of equals.

    What begins with an interlude leaves out the units in which the device settles again,
    unless fewer than a window's least would remain.
    """
    after = set(interludes)
    edges = [done, *sorted(at for at in after if done < at < total), total]
    found = []
    for start, end in itertools.pairwise(edges):
        settling = min(SETTLE_UNITS, max(0, end - start - MIN_UNITS)) if start in after else 0
        found.append((start + settling, end))
    return max(found, key=lambda stretch: stretch[1] - stretch[0])


def sufficient(limits: Limits, room: float) -> Callable[[int, float], bool]:
    """When a steady window has enough, or no `room` (seconds), by units and seconds so far."""
    wanted = max(limits.min_seconds, limits.energy_seconds)

    def enough(units: int, seconds: float) -> bool:
        if units < MIN_UNITS:
            return False
        return seconds >= room or (units >= limits.min_units and seconds >= wanted)

    return enough


def brief(unit_s: float, seconds_left: float) -> Callable[[int, float], bool]:
    """When a window that only checks others has enough: few units, fewer where they are long."""
    wanted = max(2, min(BRIEF_UNITS, math.ceil(BRIEF_SECONDS / max(unit_s, 1e-6))))
    return lambda units, seconds: units >= wanted or (units > 0 and seconds > seconds_left)


def agree(before: list[float], after: list[float]) -> bool:
    """Whether two blocks of unit times look like one steady state.

    Medians within 2 % and both quartiles within 5 % of each other.
    """
    if min(len(before), len(after)) < MIN_UNITS:
        return False
    old, new = (statistics.quantiles(block, n=4, method="inclusive") for block in (before, after))
    tolerance = (0.05, 0.02, 0.05)
    return all(abs(b - a) <= t * a for a, b, t in zip(old, new, tolerance, strict=True))


def in_vain(before: list[float], units: int, seconds_left: float) -> bool:
    """Whether a block of so many units leaves no time for one that could agree with it.

    Not where the block before it was whole: then it is the one that may agree.
    """
    return len(before) < MIN_UNITS and units * before[-1] > seconds_left
