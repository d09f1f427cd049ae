"""Which differences in quality between separately trained models are real.

Two trainings from two seeds differ even where nothing else does. So a difference counts
only against the scatter over seeds: variants are trained from the same seeds, their bits
per byte are paired by seed, and Student's t over the pairs gives an interval. One seed has
no scatter and decides nothing, however much text it was scored on.

Among many pairs some differ by luck. Holm's step-down procedure (1979, Scandinavian
Journal of Statistics 6) keeps the chance of even one false verdict in a table at 5 %: the
smallest of m p-values must be below 5 % / m, the next below 5 % / (m - 1), until one is not.
The intervals are each pair's own, not widened by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from efficientllm.analysis.held_out import evidence, few_seeds
from efficientllm.analysis.stats import FIXED_ALPHA, MIN_FOR_INTERVAL, t_half_width
from efficientllm.analysis.table import Row
from efficientllm.analysis.work import other_recipes, unequal_work
from efficientllm.metrics import BY_KEY, Unmeasured

Verdict = Literal["better", "worse", "undecided"]

ROUNDING = 1e-12
"""Bits per byte by which equal sums differ when they are added in another order."""


class Difference(NamedTuple):
    """Bits per byte of `b` minus those of `a`, over seeds; `p` is Holm's, within its table."""

    a: str
    b: str
    seeds: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    verdict: Verdict
    why: str = ""


class Trainings(NamedTuple):
    """Comparable trainings by variant, of one size, and what was decided about their quality."""

    size: str
    rows: dict[str, Row]
    differences: tuple[Difference, ...]
    tried: Mapping[str, int] = MappingProxyType({})
    """Of how many learning rates each row is the best."""
    elsewhere: str = ""
    """The device they were trained on, where it is not that of what they are lent to."""

    @property
    def told(self) -> str:
        """Their size and how little the least trained one was: `30M, 0.4 tokens a parameter`."""
        cells = (row.cell("tokens_per_param").interval for row in self.rows.values())
        least = min((interval.value for interval in cells if interval is not None), default=None)
        few = f"{least:.2g} tokens a parameter" if least is not None else ""
        fewest, most = (f(self.tried.values(), default=1) for f in (min, max))
        several = f"{most}" if fewest == most else f"{fewest} to {most}"
        best = f"best of {several} learning rates" if most > 1 else ""
        return ", ".join(filter(None, (self.size, few, best, self.elsewhere)))

    def against(self, baseline: str, name: str) -> Difference | None:
        """A variant's difference from the baseline, whichever way round it was taken."""
        for found in self.differences:
            if (found.a, found.b) == (baseline, name):
                return found
            if (found.b, found.a) == (baseline, name):
                return _turned(found)
        return None


def _turned(found: Difference) -> Difference:
    """The same difference seen from its other side."""
    verdicts: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}
    low, high = (None if x is None else -x for x in (found.high, found.low))
    return found._replace(
        a=found.b,
        b=found.a,
        difference=None if found.difference is None else -found.difference,
        low=low,
        high=high,
        verdict=verdicts.get(found.verdict, found.verdict),
    )


def differences(rows: Mapping[str, Row]) -> list[Difference]:
    """Every pair of trained rows by name; b is better where it takes fewer bits."""
    return with_verdicts([_pair(a, b, rows[a], rows[b]) for a, b in combinations(rows, 2)])


def difference(one: Row, two: Row) -> Difference:
    """The second beside the first, as a pair alone: nothing to correct for."""
    return with_verdicts([_pair("a", "b", one, two)])[0]


def _pair(a: str, b: str, one: Row, two: Row) -> Difference:
    """The difference with its own p-value, and no verdict yet."""
    found = paired_bits(one, two)
    n = len(found)
    mean = float(np.mean(found)) if found else None
    none = Difference(a, b, n, mean, None, None, None, "undecided")
    against = _against(one, two)
    if against:
        return none._replace(difference=None, why=against)
    if n < MIN_FOR_INTERVAL or mean is None:
        return none._replace(why=few_seeds(n))
    half = t_half_width(np.asarray(found), FIXED_ALPHA)
    return none._replace(low=mean - half, high=mean + half, p=t_test(found))


def surely_better(found: list[Difference]) -> set[tuple[str, str]]:
    """(better, worse) of every decided pair."""
    sides = {"better": lambda x: (x.b, x.a), "worse": lambda x: (x.a, x.b)}
    return {sides[x.verdict](x) for x in found if x.verdict in sides}


def paired_bits(one: Row, two: Row) -> list[float]:
    """Bits per byte of the second minus those of the first, seed by seed."""
    a, b = seed_bits(one), seed_bits(two)
    return [b[seed] - a[seed] for seed in sorted(a.keys() & b.keys())]


def seed_bits(row: Row) -> dict[int, float]:
    """Bits per byte of each seed that was trained to its end."""
    bits = BY_KEY["bits_per_byte"]
    found = ((view.record.trial.seed, bits(view)) for view in row.views)
    return {seed: value for seed, value in found if not isinstance(value, Unmeasured)}


def _against(one: Row, two: Row) -> str:
    """A reason for which two trainings cannot be compared at all."""
    unequal = unequal_work(one, two)
    if unequal:
        return "unequal work: " + "; ".join(unequal)
    if one.cell("bits_per_byte").invalid or two.cell("bits_per_byte").invalid:
        return "one side is invalid"
    if not (one.ranked and two.ranked):
        return "one side is never ranked (smoke, own code, or it did not end well)"
    return evidence(one, two).against or other_recipes(one, two)


def t_test(values: list[float]) -> float:
    """Two-sided p-value of a mean of zero, by Student's t; without any scatter 0 or 1."""
    from scipy.special import stdtr  # slow to import, and only three seeds need it

    sample = np.asarray(values)
    mean, error = float(sample.mean()), float(sample.std(ddof=1)) / math.sqrt(len(values))
    if abs(mean) < ROUNDING:
        return 1.0
    if error < ROUNDING * abs(mean):
        return 0.0
    return float(2 * stdtr(len(values) - 1, -abs(mean) / error))


def holm(values: list[float]) -> list[float]:
    """p-values corrected for being so many, in the order given."""
    ranked = sorted(range(len(values)), key=values.__getitem__)
    corrected, least = [0.0] * len(values), 0.0
    for rank, index in enumerate(ranked):
        least = max(least, min(1.0, values[index] * (len(values) - rank)))
        corrected[index] = least
    return corrected


def with_verdicts(found: list[Difference]) -> list[Difference]:
    """The same pairs with Holm's p-values and what they decide."""
    tested = [(x, x.p) for x in found if x.p is not None]
    corrected = iter(holm([p for _, p in tested]))
    return [x if x.p is None else _judged(x, next(corrected), len(tested)) for x in found]


def _judged(found: Difference, p: float, pairs: int) -> Difference:
    assert found.difference is not None
    if p < FIXED_ALPHA:
        verdict: Verdict = "better" if found.difference < 0 else "worse"
        return found._replace(p=p, verdict=verdict)
    alone = found.p is not None and found.p < FIXED_ALPHA
    why = f"not after correcting for {pairs} pairs" if alone else "the interval holds 0"
    return found._replace(p=p, why=why)
