"""Is B faster than A? Paired, with an interval, and only where the work was equal.

Trials are paired by round and card: what one round of a machine does to A it does to B.
The verdict rests on the interval of the ratio B / A:

    faster / slower ...   at least three pairs, interval outside the band of +-2 %
    no difference         at least three pairs, interval inside the band
    ambiguous             anything else

Nothing is decided by a row whose attention failed a check (it is not what it is called), by
one that did not end well, or by a smoke run.

Counts (bytes of weights, of the cache, bits per parameter) do not scatter: one trial a
side decides, and any difference is one. Bits per byte of the same trained weights are
compared over held-out documents, with a band of +-0.5 % (`held_out`); those of separately
trained ones over seeds, without a band (`differences`). Joules of different scopes (board,
package) are not compared at all.

Comparisons of unequal work are refused with the difference named.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from efficientllm.analysis.differences import difference
from efficientllm.analysis.held_out import QUALITY_BAND, evidence
from efficientllm.analysis.pairs import CARD, apart, paired
from efficientllm.analysis.stats import FIXED_ALPHA, LOOKED_ALPHA, MIN_FOR_INTERVAL, t_half_width
from efficientllm.analysis.table import Row
from efficientllm.analysis.work import conditions, unequal_work
from efficientllm.metrics import BY_KEY, Metric, Unmeasured, View
from efficientllm.metrics.energy import energy_scope
from efficientllm.spec.protocol import Protocol

BAND = 0.02
INVALID = "one side is invalid"

Verdict = Literal["better", "worse", "no difference", "ambiguous"]

SHOWN: dict[str, tuple[str, ...]] = {
    "pretrain": ("train_tokens_per_s", "step_p50_s"),
    "finetune": ("train_tokens_per_s", "step_p50_s"),
    "generate": ("it_tokens_per_s", "ttft_s", "tpot_s"),
}
COMMON = (
    "peak_allocated_gib",
    "host_peak_rss_gib",
    "weights_gib",
    "j_per_token",
    "bits_per_byte",
)

_WORDS = {
    "token/s": ("faster", "slower"),
    "1/s": ("faster", "slower"),
    "s": ("faster", "slower"),
    "GiB": ("smaller", "larger"),
    "J": ("less energy", "more energy"),
    "W": ("less power", "more power"),
}


class Unequal(ValueError):
    """The two did not do the same work; the text names the differences."""


class Line(NamedTuple):
    """One metric of a comparison: the ratio B / A with its interval and verdict."""

    metric: Metric
    a: float
    b: float
    ratio: float
    low: float | None
    high: float | None
    pairs: int
    verdict: Verdict
    why: str = ""

    @property
    def word(self) -> str:
        """The verdict in the metric's own words."""
        better, worse = _WORDS.get(self.metric.unit, ("better", "worse"))
        return {"better": better, "worse": worse}.get(self.verdict, self.verdict)

    @property
    def change(self) -> float:
        """How much worse B is, as a share: 0.05 is 5 % worse, -0.05 5 % better."""
        return self._worse(self.ratio)

    @property
    def least_change(self) -> float | None:
        """The end of the interval at which B is least worse; None where nothing is decided."""
        end = self.high if self.metric.better == "higher" else self.low
        return None if end is None or self.why == INVALID else self._worse(end)

    def _worse(self, ratio: float) -> float:
        if self.metric.better == "higher":
            return 1 / ratio - 1 if ratio else math.inf
        return ratio - 1


class Comparison(NamedTuple):
    """Two rows side by side. `conditions` differ and are stated above the verdict."""

    a: Row
    b: Row
    lines: tuple[Line, ...]
    same_card: bool
    conditions: tuple[str, ...]


def compare(a: Row, b: Row) -> Comparison:
    """Compare two rows; raises Unequal when their work differs."""
    _refuse_unequal(a, b)
    pairs, same_card = paired(a, b)
    keys = [*SHOWN.get(a.case.stage, ()), *COMMON]
    scopes = _scopes(a, b)
    told = [f"another {what}" for what in apart(a, b) if what != CARD] + conditions(a, b)
    if len(scopes) > 1:
        keys.remove("j_per_token")
        told = [f"energy: {scopes[0]} -> {scopes[1]}, which never compare", *told]
    lines = [line for key in keys if (line := _line(BY_KEY[key], a, b, pairs)) is not None]
    return Comparison(a, b, tuple(lines), same_card, tuple(told))


def ratio(key: str, a: Row, b: Row) -> Line | None:
    """One metric of equal work, B / A; None where a side has no value. Raises Unequal."""
    _refuse_unequal(a, b)
    if key == "j_per_token" and len(_scopes(a, b)) > 1:
        return None
    return _line(BY_KEY[key], a, b, paired(a, b)[0])


def _scopes(a: Row, b: Row) -> list[str]:
    """What the joules of either row cover, where they have any."""
    found = (energy_scope(row.views[-1]) for row in (a, b))
    return list(dict.fromkeys(scope for scope in found if scope))


def _refuse_unequal(a: Row, b: Row) -> None:
    differences = unequal_work(a, b)
    if differences:
        raise Unequal("unequal work: " + "; ".join(differences))


def _line(metric: Metric, a: Row, b: Row, pairs: list[tuple[View, View]]) -> Line | None:
    line, why = _measured(metric, a, b, pairs), barred(a, b)
    if line is None or not why:
        return line
    return line._replace(verdict="ambiguous", low=None, high=None, why=why)


def barred(a: Row, b: Row) -> str:
    """Why these two decide nothing, whatever was measured; empty where they may."""
    for row in (a, b):
        if row.unsound:
            return row.unsound
        if row.status != "ok":
            return f"{row.name} ended with {row.status}"
        if row.of_smoke:
            return f"{row.name} is a smoke run, which is never ranked"
    return ""


def _measured(metric: Metric, a: Row, b: Row, pairs: list[tuple[View, View]]) -> Line | None:
    """The line as it would stand if nothing barred the two."""
    cells = a.cell(metric.key), b.cell(metric.key)
    first, second = (cell.interval for cell in cells)
    if first is None or second is None:
        return None
    invalid = any(cell.invalid for cell in cells)
    if first.basis == second.basis == "exact":
        return _exact(metric, first.value, second.value, len(pairs), invalid=invalid)
    ratios = [
        y / x
        for one, two in pairs
        if not isinstance(x := metric(one), Unmeasured)
        and not isinstance(y := metric(two), Unmeasured)
        and x > 0
        and y > 0
    ]
    if not ratios:
        return None
    ratio = math.exp(float(np.log(ratios).mean()))
    line = Line(metric, first.value, second.value, ratio, None, None, len(ratios), "ambiguous")
    if metric.key == "bits_per_byte":
        line = _bits(line, a, b)
    else:
        low, high = ratio_interval(ratios, looked=_looked(a) or _looked(b))
        line = _decided(line, low, high, BAND)
    return line._replace(verdict="ambiguous", why=INVALID) if invalid else line


def _bits(line: Line, a: Row, b: Row) -> Line:
    """Bits per byte: over documents where the weights are the same, else over seeds."""
    against, basis, documents = evidence(a, b)
    if against:
        return line._replace(why=against)
    if documents is not None:
        found = _decided(line, *documents, QUALITY_BAND)
        return found._replace(why=found.why or basis)
    over = difference(a, b)
    if over.difference is None:
        return line._replace(why=over.why)
    low, high = (None if x is None else 1 + x / line.a for x in (over.low, over.high))
    verdict: Verdict = "ambiguous" if over.verdict == "undecided" else over.verdict
    return line._replace(
        ratio=1 + over.difference / line.a,
        low=low,
        high=high,
        pairs=over.seeds,
        verdict=verdict,
        why=over.why or "paired over seeds",
    )


def _decided(line: Line, low: float | None, high: float | None, band: float) -> Line:
    """The line with its interval and what that decides."""
    verdict, why = _verdict(line.metric, low, high, line.pairs, band)
    return line._replace(low=low, high=high, verdict=verdict, why=why)


def _exact(metric: Metric, a: float, b: float, pairs: int, *, invalid: bool) -> Line | None:
    """The line of two counts; None where the ratio would divide by nothing."""
    if a <= 0 or b <= 0:
        return None
    ratio, verdict = b / a, _direction(metric, up=b > a) if a != b else "no difference"
    if invalid:
        return Line(metric, a, b, ratio, ratio, ratio, pairs, "ambiguous", INVALID)
    return Line(metric, a, b, ratio, ratio, ratio, pairs, verdict, "counted")


def _direction(metric: Metric, *, up: bool) -> Verdict:
    return "better" if up == (metric.better == "higher") else "worse"


def _looked(row: Row) -> bool:
    return Protocol.model_validate(row.record.protocol).trials is None


def ratio_interval(ratios: list[float], *, looked: bool) -> tuple[float | None, float | None]:
    """95 % interval of the geometric mean of paired ratios; None below three pairs."""
    if len(ratios) < MIN_FOR_INTERVAL:
        return None, None
    logs = np.log(ratios)
    half = t_half_width(logs, LOOKED_ALPHA if looked else FIXED_ALPHA)
    mean = float(logs.mean())
    return math.exp(mean - half), math.exp(mean + half)


def _verdict(
    metric: Metric, low: float | None, high: float | None, pairs: int, band: float
) -> tuple[Verdict, str]:
    if low is None or high is None:
        return "ambiguous", f"{pairs} of the three pairs of trials it takes (protocol=standard)"
    if low > 1 + band or high < 1 - band:
        return _direction(metric, up=low > 1), ""
    if low > 1 - band and high < 1 + band:
        return "no difference", ""
    return "ambiguous", f"the interval touches the band of {band * 100:g} %"
