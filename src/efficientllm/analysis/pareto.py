"""Which rows no other row beats on every count."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (cost, loss), both better when lower, whether it is on the Pareto front.

    A point is off the front when another is at least as good on both and better on one.
    """
    return [
        not any(_beats(other, point) for other in points if other is not point) for point in points
    ]


def _beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and a != b


Decided = Callable[[int, int], bool]
"""Whether the first is surely better than the second; both by their place in a list."""


def sure_front(count: int, cheaper: Decided, better: Decided) -> list[bool]:
    """Of so many points, which are on the front by decided differences alone.

    Another can beat a point only where it is neither dearer nor worse. So a point is surely
    on the front when it is surely cheaper or surely better than every other one; where
    neither is decided, nobody can say.
    """
    return [
        all(cheaper(i, j) or better(i, j) for j in range(count) if j != i) for i in range(count)
    ]
