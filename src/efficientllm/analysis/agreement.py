"""Do two lists order the same things alike? Kendall's tau, with an exact p for few things.

Absolute numbers of two machines rarely agree; the order of variants may. With so few of
them an approximate p is wrong and a tie makes it worse, so every order is counted: p is the
share of all orders that agree, or disagree, at least as much as the one observed. Four
variants have 24 orders, so that only full agreement or full reversal (p = 2/24) goes below
0.1; three have six, and nothing does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, permutations

MOST = 8
"""Things whose orders are counted one by one: 40,320 of them."""


def kendall(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Tau-b (Kendall 1945, ties divided out) and its exact two-sided p.

    None with fewer than two values, or where one list does not tell any of them apart.
    """
    if len(x) != len(y) or len(x) > MOST:
        raise ValueError(f"needs two lists of one length, of {MOST} at most")
    pairs = list(combinations(range(len(x)), 2))
    told = [sum(values[i] != values[j] for i, j in pairs) for values in (x, y)]
    if not all(told):
        return None
    first = [(i, j, _sign(x[i] - x[j])) for i, j in pairs]

    def score(other: Sequence[float]) -> int:
        return sum(sign * _sign(other[i] - other[j]) for i, j, sign in first)

    observed = score(y)
    orders = list(permutations(y))
    extreme = sum(abs(score(order)) >= abs(observed) for order in orders)
    return observed / math.sqrt(told[0] * told[1]), extreme / len(orders)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
