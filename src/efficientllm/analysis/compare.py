"""Is B faster than A? Paired, with an interval, and only where the work was equal.

Trials are paired by round and card: what one round of a machine does to A it does to B.
The verdict rests on the interval of the ratio B / A:

    faster / slower ...   at least three pairs, interval outside the band of +-2 %
    no difference         at least three pairs, interval inside the band
    ambiguous             anything else

Counts (bytes of weights, of the cache, bits per parameter) do not scatter: one trial a
side decides, and any difference is one. Bits per byte of the same trained weights are
compared over held-out documents, with a band of +-0.5 % (`held_out`). Joules of different
scopes (board, package) are not compared at all.

Comparisons of unequal work are refused with the difference named.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from efficientllm.analysis.held_out import QUALITY_BAND, evidence, few_seeds
from efficientllm.analysis.stats import FIXED_ALPHA, LOOKED_ALPHA, MIN_FOR_INTERVAL, t_half_width
from efficientllm.analysis.table import Row
from efficientllm.metrics import BY_KEY, Metric, Unmeasured, View
from efficientllm.metrics.energy import energy_scope
from efficientllm.spec.protocol import Protocol
from efficientllm.spec.workload import Generate, Training

BAND = 0.02
_INVALID = "one side is invalid"

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
        return None if end is None or self.why == _INVALID else self._worse(end)

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
    if len(scopes) > 1:
        keys.remove("j_per_token")
    lines = [line for key in keys if (line := _line(BY_KEY[key], a, b, pairs)) is not None]
    return Comparison(a, b, tuple(lines), same_card, tuple(_conditions(a, b, scopes)))


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


def unequal_work(a: Row, b: Row) -> list[str]:
    """What differs in tokens, lengths or tokens a step; empty when the work is equal."""
    if a.case.stage != b.case.stage:
        return [f"{a.case.stage} against {b.case.stage}"]
    found = []
    one, two = a.views[0].point, b.views[0].point
    for name, x, y in (
        ("batch", one.batch, two.batch),
        ("context", one.context, two.context),
        *_fields(a, b),
    ):
        if x != y:
            found.append(f"{name} {x} against {y}")
    return found


def _fields(a: Row, b: Row) -> list[tuple[str, object, object]]:
    x, y = a.case.workload, b.case.workload
    if isinstance(x, Generate) and isinstance(y, Generate):
        return [("new_tokens", x.new_tokens, y.new_tokens)]
    if isinstance(x, Training) and isinstance(y, Training):
        return [
            ("steps", x.budget_steps, y.budget_steps),
            ("layout", a.record.resolved.get("layout"), b.record.resolved.get("layout")),
            ("text", a.record.resolved.get("text_sha256"), b.record.resolved.get("text_sha256")),
        ]
    return []


def paired(a: Row, b: Row) -> tuple[list[tuple[View, View]], bool]:
    """Trials of the same round, on the same card where there are such; whether they are."""
    by_round = {view.record.trial.round: view for view in b.views}
    pairs = [
        (view, by_round[view.record.trial.round])
        for view in a.views
        if view.record.trial.round in by_round
    ]
    same = [p for p in pairs if p[0].record.machine.card == p[1].record.machine.card]
    if same:
        return same, True
    return pairs, False


def _line(metric: Metric, a: Row, b: Row, pairs: list[tuple[View, View]]) -> Line | None:
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
    low, high = ratio_interval(ratios, looked=_looked(a) or _looked(b))
    ratio = math.exp(float(np.log(ratios).mean()))
    band, basis = BAND, ""
    if metric.kind == "quality":
        against, basis, documents = evidence(a, b)
        if against:
            values = first.value, second.value, ratio
            return Line(metric, *values, None, None, len(ratios), "ambiguous", against)
        if documents is not None:
            (low, high), band = documents, QUALITY_BAND
        elif low is None:  # trials of trainings are seeds
            values = first.value, second.value, ratio
            why = few_seeds(len(ratios))
            return Line(metric, *values, None, None, len(ratios), "ambiguous", why)
    verdict, why = _verdict(metric, low, high, len(ratios), band)
    if invalid:
        verdict, why = "ambiguous", _INVALID
    why = why or basis
    return Line(metric, first.value, second.value, ratio, low, high, len(ratios), verdict, why)


def _exact(metric: Metric, a: float, b: float, pairs: int, *, invalid: bool) -> Line | None:
    """The line of two counts; None where the ratio would divide by nothing."""
    if a <= 0 or b <= 0:
        return None
    ratio, verdict = b / a, _direction(metric, up=b > a) if a != b else "no difference"
    if invalid:
        return Line(metric, a, b, ratio, ratio, ratio, pairs, "ambiguous", _INVALID)
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


def _conditions(a: Row, b: Row, scopes: list[str]) -> list[str]:
    """What differs and is allowed to, stated so that nobody takes it for the technique."""
    found = []
    if len(scopes) > 1:
        found.append(f"energy: {scopes[0]} -> {scopes[1]}, which never compare")
    for name, x, y in (
        ("machine", a.record.machine.name, b.record.machine.name),
        ("micro-batch", a.record.resolved.get("micro_batch"), b.record.resolved.get("micro_batch")),
        ("data selection", _selection(a), _selection(b)),
        ("protocol", a.record.protocol["profile"], b.record.protocol["profile"]),
        (
            "attention kernel",
            a.record.resolved.get("attention"),
            b.record.resolved.get("attention"),
        ),
        ("compile", a.record.resolved.get("compile"), b.record.resolved.get("compile")),
    ):
        if x != y:
            found.append(f"{name}: {x} -> {y}")
    versions = [
        f"{k} {a.record.software.get(k)} -> {b.record.software.get(k)}"
        for k in sorted({*a.record.software, *b.record.software} - {"commit", "source", "kernel"})
        if a.record.software.get(k) != b.record.software.get(k)
    ]
    return found + versions


def _selection(row: Row) -> str:
    """What of the text is trained on, and in which sequence."""
    said = str(getattr(getattr(row.case.workload, "data", None), "said", "none"))
    kept = row.record.resolved.get("selection", {}).get("kept", {}).get("documents")
    return said if kept is None else f"{said} ({kept:,} documents)"
