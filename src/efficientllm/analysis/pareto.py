"""Which rows no other row beats on every count."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (cost, loss), both better when lower, whether it is on the Pareto front.

    A point is off the front when another is at least as good on both and better on one.
    """
    return [
        not any(_beats(other, point) for other in points if other is not point) for point in points
    ]


def _beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and a != b
