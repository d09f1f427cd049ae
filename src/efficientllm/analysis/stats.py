"""Intervals that mean what they say.

The unit of statistics is the trial: units inside one process share its memory layout, its
compiled code and its minute, so they are no independent repeats. With three trials or
more an interval is Student's t on the logarithm of the trials' values (times and rates are
positive and scatter in proportion). With fewer there is only a *within-run* interval,
from the means of blocks of one window, and it is marked so: it says how steady one run
was, not what another run would give.

A protocol that stops as soon as an interval is narrow looks several times and stops on a
lucky look. The price is a wider interval at every look: 97.5 % for each gives at least
95 % when it ends (simulated over noise of 0.2 % to 8 %, `tests/analysis/test_stats.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

FIXED_ALPHA = 0.05
LOOKED_ALPHA = 0.025
BLOCKS = 10
MIN_FOR_INTERVAL = 3
WIDEST = 50.0
"""Half-width of a logarithm: an interval over forty powers of ten says nothing."""

PERCENTILE_NEEDS = {50: 1, 90: 64, 95: 130, 99: 662}
"""Samples that a percentile needs: so many that the true one is exceeded with 99 %
confidence (MLPerf LoadGen's early-stopping counts for one sample above)."""

Basis = Literal["trials", "within-run", "text", "exact", "none"]


class Interval(NamedTuple):
    """A value with its 95 % interval; `low` and `high` are None where there is none."""

    value: float
    low: float | None
    high: float | None
    n: int
    basis: Basis

    @property
    def half_width(self) -> float | None:
        """Half the interval, relative to the value."""
        if self.low is None or self.high is None or not self.value:
            return None
        return (self.high - self.low) / 2 / abs(self.value)


def counted(values: Sequence[float]) -> Interval | None:
    """A count that every trial agrees on; None where they do not, for then it was no count."""
    if any(value != values[0] for value in values):
        return None
    return Interval(values[0], None, None, len(values), "exact")


def over_trials(values: Sequence[float], *, looked: bool) -> Interval:
    """The geometric mean of trials and its interval; values must be positive to have one."""
    n = len(values)
    if any(value <= 0 for value in values):
        return Interval(sum(values) / n, None, None, n, "none")
    logs = np.log(np.asarray(values, dtype=float))
    mean = float(logs.mean())
    if n < MIN_FOR_INTERVAL:
        return Interval(math.exp(mean), None, None, n, "none")
    half = t_half_width(logs, LOOKED_ALPHA if looked else FIXED_ALPHA)
    if half > WIDEST:
        return Interval(math.exp(mean), None, None, n, "none")
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half), n, "trials")


def within_run(value: float, blocks: Sequence[float]) -> Interval:
    """A single trial's value with the interval that its blocks give."""
    n = len(blocks)
    if n < MIN_FOR_INTERVAL or value <= 0 or any(block <= 0 for block in blocks):
        return Interval(value, None, None, n, "none")
    half = t_half_width(np.log(np.asarray(blocks, dtype=float)), FIXED_ALPHA)
    if half > WIDEST:
        return Interval(value, None, None, n, "none")
    return Interval(value, value * math.exp(-half), value * math.exp(half), n, "within-run")


def t_half_width(values: np.ndarray, alpha: float) -> float:
    """Half-width of Student's t interval of a mean."""
    from scipy.special import stdtrit  # slow to import, and only intervals need it

    n = len(values)
    return float(stdtrit(n - 1, 1 - alpha / 2) * values.std(ddof=1) / math.sqrt(n))


def over_documents(
    nll: Sequence[float], sizes: Sequence[int], *, draws: int = 2000
) -> tuple[float, float] | None:
    """Bootstrap interval of sum(nll) / sum(sizes) over documents.

    It says how much the number hangs on which text was held out, and nothing else: a
    model trained again from another seed may lie outside. None below 8 documents.
    """
    if len(nll) < 8:
        return None
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(nll), size=(draws, len(nll)))
    drawn = np.asarray(sizes, dtype=float)[chosen].sum(axis=1)
    if not drawn.all():
        return None  # so few documents have any size that a draw may hold none of them
    low, high = np.quantile(np.asarray(nll)[chosen].sum(axis=1) / drawn, (0.025, 0.975))
    return float(low), float(high)


def autocorrelation(samples: Sequence[float]) -> float | None:
    """Lag-1 autocorrelation; None below 10 samples or without any scatter."""
    values = np.asarray(samples, dtype=float)
    if len(values) < 10:
        return None
    centred = values - values.mean()
    variance = float((centred**2).sum())
    if variance <= (1e-9 * float(values.mean())) ** 2 * len(values):
        return None  # equal but for rounding
    return float((centred[1:] * centred[:-1]).sum()) / variance


def percentile(samples: Sequence[float], q: int) -> float | None:
    """The nearest-rank percentile, or None where the sample cannot carry it."""
    if len(samples) < PERCENTILE_NEEDS[q]:
        return None
    ordered = sorted(samples)
    return ordered[math.ceil(q / 100 * len(ordered)) - 1]
