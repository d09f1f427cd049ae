"""One metric of ours beside one quantity of the paper: ratios, and whether variants rank alike.

A ratio needs the same work: seconds of a step and memory are divided only where a step
holds what the paper says of it. The order of variants needs less, equal work among our
own rows, and so it is judged at every length and batch. Values that the paper gives and
that cannot be (its TT) are shown and neither divided nor ranked.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

from efficientllm.analysis.agreement import kendall
from efficientllm.analysis.compare import BAND
from efficientllm.analysis.table import Cell, Row
from efficientllm.catalog.paper import Number, Quantity, Table, Variant, paper
from efficientllm.metrics import BY_KEY, Metric

Ranks = Mapping[Quantity, Number]

_OF_A_STEP: tuple[Quantity, ...] = ("al", "amu")


class Beside(NamedTuple):
    """A variant's value here and there. `reason` says why there is no ratio.

    `figure` is what the authors' figure draws, where it draws it; `rank` the site's;
    `ranked` says whether the value enters the order, which needs less than a ratio.
    """

    row: Row
    ours: Cell
    theirs: Number
    figure: Number | None
    rank: Number | None
    ratio: float | None
    reason: str
    ranked: bool


class Pair(NamedTuple):
    """Two variants that rank one way here and the other way there."""

    smaller_here: str
    larger_here: str
    close: tuple[str, ...]


class Agreement(NamedTuple):
    """Kendall's tau over `n` variants, `estimated` of which rest on an estimate."""

    tau: float
    p: float
    n: int
    estimated: int
    against: tuple[Pair, ...]


class Line(NamedTuple):
    """One metric over the variants; `unranked` says why there is no agreement."""

    metric: Metric
    quantity: Quantity
    cells: dict[str, Beside]
    agreement: Agreement | None
    unranked: str


def line(table: Table, size: str, rows: dict[str, Row], key: str, quantity: Quantity) -> Line:
    """One of our metrics over the variants of a size, beside a quantity of the table."""
    cells = {
        name: _beside(row, key, table.sizes[size][name], size, quantity, table.ranks.get(name, {}))
        for name, row in rows.items()
    }
    agreement, unranked = _agreement(cells, quantity)
    return Line(BY_KEY[key], quantity, cells, agreement, unranked)


def _beside(
    row: Row, key: str, there: Variant, size: str, quantity: Quantity, ranks: Ranks
) -> Beside:
    ours, theirs = row.cell(key), there.numbers[quantity]
    unusable = _unusable(row, ours, theirs, quantity)
    reason = unusable or other_work(row, size, quantity)
    ratio = None
    if not reason and ours.interval is not None and theirs.value is not None:
        ratio = ours.interval.value / theirs.value
    drawn, rank = there.figure.get(quantity), ranks.get(quantity)
    return Beside(row, ours, theirs, drawn, rank, ratio, reason, not unusable)


def _unusable(row: Row, ours: Cell, theirs: Number, quantity: Quantity) -> str:
    """Why a value can stand here and enter nothing; empty where it can."""
    if row.status != "ok":
        return f"{row.status}: {row.reason}".removesuffix(": ")
    if ours.interval is None:
        return ours.reason
    if ours.invalid or not row.ranked:
        return "not to be ranked here: its flags and its protocol say why"
    if theirs.value is None:
        return f"in the paper {theirs.missing}"
    return "the paper's value is impossible" if paper().doubts[quantity].impossible else ""


def _step(size: str) -> tuple[int, int]:
    """Sequences and tokens of each in one step of one card, as the paper is said to have it."""
    setting = paper().setting
    batch, length = setting.micro_batch[size].value, setting.sequence_length.value
    assert batch is not None
    assert length is not None
    return int(batch), int(length)


def same_step(row: Row, size: str) -> bool:
    """Whether a step of ours holds what the paper says of its own."""
    point = row.views[0].point
    return (point.batch, point.context) == _step(size)


def other_work(row: Row, size: str, quantity: Quantity) -> str:
    """Why a quantity of a step may not be divided by the paper's; empty where it may."""
    if quantity not in _OF_A_STEP or same_step(row, size):
        return ""
    point, (batch, length) = row.views[0].point, _step(size)
    return f"a step of {point.batch} x {point.context:,} tokens here, {batch} x {length:,} there"


def _agreement(cells: dict[str, Beside], quantity: Quantity) -> tuple[Agreement | None, str]:
    """How far the order of the usable variants is the paper's, or why nobody can say."""
    if paper().doubts[quantity].impossible:
        return None, "the paper's values are impossible"
    chosen = {name: beside for name, beside in cells.items() if beside.ranked}
    ours = [b.ours.interval.value for b in chosen.values() if b.ours.interval is not None]
    theirs = [b.theirs.value for b in chosen.values() if b.theirs.value is not None]
    if len(chosen) < 2:
        return None, f"{len(chosen)} of the two variants that an order takes"
    found = kendall(ours, theirs)
    if found is None:
        return None, "all are equal on one side"
    values = dict(zip(chosen, zip(ours, theirs, strict=True), strict=True))
    against = [
        _pair(chosen, *((a, b) if values[a][0] < values[b][0] else (b, a)))
        for a, b in combinations(chosen, 2)
        if (values[a][0] - values[b][0]) * (values[a][1] - values[b][1]) < 0
    ]
    estimated = sum(b.theirs.mark == "E" for b in chosen.values())
    return Agreement(*found, len(chosen), estimated, tuple(against)), ""


def _pair(cells: dict[str, Beside], smaller: str, larger: str) -> Pair:
    """A disagreement, and which side may not have told the two apart."""
    a, b = cells[smaller], cells[larger]
    close = (
        [f"ours are within {BAND:.0%}, or their intervals meet"] if _meet(a.ours, b.ours) else []
    )
    close += ["the paper's values lie within their error"] if _within_error(a, b) else []
    return Pair(smaller, larger, tuple(close))


def _meet(a: Cell, b: Cell) -> bool:
    """Whether two values are no different, by the band of comparisons or by their intervals."""
    assert a.interval is not None
    assert b.interval is not None
    x, y = a.interval.value, b.interval.value
    if abs(x - y) <= BAND * max(abs(x), abs(y)):
        return True
    (low_a, high_a), (low_b, high_b) = (
        (i.value if i.low is None else i.low, i.value if i.high is None else i.high)
        for i in (a.interval, b.interval)
    )
    return low_a <= high_b and low_b <= high_a


def _within_error(a: Beside, b: Beside) -> bool:
    """Estimates of one figure share their scale, so the figure's own values decide."""
    x, y = a.theirs, b.theirs
    assert x.value is not None
    assert y.value is not None
    if "E" not in (x.mark, y.mark):
        return False
    marks = paper().marks
    if a.figure is not None and b.figure is not None:
        drawn = abs((a.figure.value or 0.0) - (b.figure.value or 0.0))
        return drawn <= 2 * marks["F"].error + 1e-9
    return abs(x.value - y.value) <= marks["E"].relative_error * max(x.value, y.value)
