"""Where one variant overtakes another as the context grows: brackets, never points.

Costs are measured at a few contexts. Between two of them nothing was measured, and a line
through the values would name a crossing that no one saw: attention is not linear in its
context, kernels change with it, caches fall out of memory. So all that is said is between
which measured contexts an order turned round.

An order is decided where two 95 % intervals over trials do not overlap; that is stricter
than a test of their difference at 5 %. It turned round for certain between two contexts
where it is decided both ways. Where only the values change sides, it is undecided.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import NamedTuple

from efficientllm.analysis.stats import Interval

Curve = Mapping[int, Interval]
"""A variant's cost (less is better) at each measured context."""


class Crossing(NamedTuple):
    """From somewhere between `low` and `high` tokens on, `first` costs less than `second`."""

    first: str
    second: str
    low: int
    high: int
    decided: bool
    why: str = ""


def crossings(curves: Mapping[str, Curve]) -> list[Crossing]:
    """Every turn of every pair's order, decided ones first, by context."""
    found = [x for a, b in combinations(curves, 2) for x in _pair(a, b, curves[a], curves[b])]
    return sorted(found, key=lambda x: (not x.decided, x.low, x.high))


def order(a: Interval, b: Interval) -> int:
    """-1 where a surely costs less, 1 where b does, 0 where the intervals cannot say."""
    if a.basis != "trials" or b.basis != "trials":
        return 0
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return 0
    return (a.low > b.high) - (a.high < b.low)


def _pair(a: str, b: str, one: Curve, two: Curve) -> list[Crossing]:
    shared = sorted(one.keys() & two.keys())
    sure = [(c, sign) for c in shared if (sign := order(one[c], two[c]))]
    brackets = [(c, d, sign) for (c, before), (d, sign) in pairwise(sure) if before != sign]
    found = [Crossing(*_named(a, b, sign), c, d, decided=True) for c, d, sign in brackets]
    seen = [(c, sign) for c in shared if (sign := _sign(one[c].value - two[c].value))]
    for (c, before), (d, sign) in pairwise(seen):
        if before != sign and not any(low <= c and d <= high for low, high, _ in brackets):
            open_at = next(x for x in (d, c) if not order(one[x], two[x]))
            why = _why(one[open_at], two[open_at], open_at)
            found.append(Crossing(*_named(a, b, sign), c, d, decided=False, why=why))
    return found


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _named(a: str, b: str, sign: int) -> tuple[str, str]:
    """The one that costs less from there on, and the other."""
    return (a, b) if sign < 0 else (b, a)


def _why(a: Interval, b: Interval, context: int) -> str:
    if a.basis != "trials" or b.basis != "trials":
        return f"fewer than three trials at {context:,} tokens"
    return f"their intervals overlap at {context:,} tokens"
