"""What trainings bought: quality against energy on the way, cache against quality at the end.

Quality differs between seeds, so seeds are drawn, and a ring stands only where seeds decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from efficientllm.analysis.differences import Difference, surely_better
from efficientllm.analysis.pareto import sure_front
from efficientllm.analysis.table import Row
from efficientllm.cost import cache_bytes
from efficientllm.record import CurvePoint
from efficientllm.report.charts import (
    MAX_LINES,
    Chart,
    coloured,
    domain_of,
    dots,
    drawn,
    scale_of,
    sized,
    undrawn,
    without_colour,
)
from efficientllm.report.spent import Spent, seen, spent

MAX_CURVE = 24
MAX_SEEDS = 5


def learning_chart(rows: dict[str, Row], variants: list[str]) -> Chart:
    """Bits per byte against what was spent so far, a line a variant, faint ones its seeds.

    `variants` are all of the study's, which have a colour each; the first few of them.
    """
    return _curves("Quality against what training took", rows, variants, spent)


def token_chart(rows: dict[str, Row], variants: list[str]) -> Chart:
    """The same curves against the tokens that were seen: what is learned, not what it costs."""
    return _curves("Quality against tokens", rows, variants, seen)


def _curves(
    title: str,
    rows: dict[str, Row],
    variants: list[str],
    cost_of: Callable[[dict[str, Row]], Spent],
) -> Chart:
    coloured_ones = {n: row for n, row in rows.items() if n in variants[:MAX_LINES]}
    curved = {n: r for n, r in coloured_ones.items() if any(v.record.curve for v in r.views)}
    if not curved:
        return Chart(title, "", "no training was scored along the way (quality.curve)")
    cost = cost_of(curved)
    values = [value for name, row in cost.rows.items() for value in _learned(name, row, cost)]
    if not values:
        return Chart(title, "", "no step window was measured")
    factor, unit = _scaled(cost.unit, max(v["x"] for v in values))
    values = [v | {"x": v["x"] / factor} for v in values]

    def draw(alt: Any) -> Any:
        heights = [v["y"] for v in values]
        base = undrawn(alt).encode(
            x=alt.X("x:Q", title=unit, scale=scale_of(alt, [v["x"] for v in values])),
            y=alt.Y("y:Q", title="bits per byte", scale=alt.Scale(domain=domain_of(heights))),
            color=alt.Color(
                "row:N",
                scale=coloured(alt, list(cost.rows), variants),
                title=None,
                legend=alt.Legend(symbolOpacity=1, symbolStrokeWidth=3),
            ),
            detail="seed:N",
        )
        if any(v["unsound"] for v in values):
            dash = alt.condition("datum.unsound", alt.value([5, 4]), alt.value([1, 0]))
            base = base.encode(strokeDash=dash)
        seeds = base.mark_line(strokeWidth=1, opacity=0.3).transform_filter("datum.seed !== 'all'")
        means = base.mark_line(strokeWidth=2).transform_filter("datum.seed === 'all'")
        return sized(alt.layer(seeds, means))

    return drawn(title, values, draw, (*_dashed(cost.rows), *cost.notes, *without_colour(variants)))


def _dashed(rows: dict[str, Row]) -> list[str]:
    """Whose lines stand there without being what they are called."""
    return [f"{name} is dashed: {row.unsound}." for name, row in rows.items() if row.unsound]


def _scaled(unit: str, most: float) -> tuple[float, str]:
    """Joules in kJ or MJ, seconds in hours, tokens in millions, where there are many."""
    if unit == "seconds":
        return (3600.0, "hours") if most >= 7200 else (1.0, unit)
    if unit == "tokens":
        return (1e6, "million tokens") if most >= 1e6 else (1.0, unit)
    return next((s for s in ((1e6, "MJ"), (1e3, "kJ")) if most >= s[0]), (1.0, unit))


def _learned(name: str, row: Row, cost: Spent) -> list[dict[str, Any]]:
    """Points of each seed and, at steps that all seeds have, of their mean."""
    by_seed: dict[int, dict[int, tuple[float, float]]] = {}
    for view in row.views:
        rate = cost.per_token(view)
        if points := _thinned([p for p in view.record.curve if p.bytes]):
            by_seed[view.record.trial.seed] = {
                p.step: (p.tokens * rate, p.nll / (math.log(2) * p.bytes)) for p in points
            }
    if not by_seed:
        return []
    shared = set.intersection(*(set(curve) for curve in by_seed.values()))
    n = len(by_seed)
    mean = {
        step: (
            sum(curve[step][0] for curve in by_seed.values()) / n,
            sum(curve[step][1] for curve in by_seed.values()) / n,
        )
        for step in shared
    }
    drawn_seeds = list(by_seed.items())[:MAX_SEEDS] if n > 1 else []
    lines = [*((str(seed), curve) for seed, curve in drawn_seeds), ("all", mean)]
    return [
        {"row": name, "seed": seed, "x": x, "y": y, "unsound": bool(row.unsound)}
        for seed, curve in lines
        for _, (x, y) in sorted(curve.items())
    ]


def _thinned(points: list[CurvePoint]) -> list[CurvePoint]:
    """At most MAX_CURVE points of a curve, its last one among them."""
    step = -(-len(points) // MAX_CURVE) or 1
    return points[::-1][::step][::-1]


def cache_chart(rows: dict[str, Row], found: list[Difference], variants: list[str]) -> Chart:
    """Cache per token against bits per byte; ringed what is surely on the front."""
    title = "Cache per token against quality (ringed: surely on the front)"
    sized = {name: size for name, row in rows.items() if (size := cache_per_token(row)) is not None}
    names = [name for name in rows if name in sized and name in variants[:MAX_LINES]]
    if len(names) < 2:
        return Chart(title, "", "two trained variants with a known cache are needed")
    better = surely_better(found)
    rings = sure_front(
        len(names),
        lambda i, j: sized[names[i]] < sized[names[j]],
        lambda i, j: (names[i], names[j]) in better,
    )
    values = [
        _bar(name, sized[name], rows[name]) | {"front": ring and rows[name].ranked}
        for name, ring in zip(names, rings, strict=True)
    ]
    context = rows[names[0]].views[0].point.context
    seeds = any(value["low"] < value["high"] for value in values)
    note = (
        "Intervals are over seeds; rings pair the seeds."
        if seeds
        else "No intervals: three seeds are needed."
    ) + " A point without a ring is beaten, or nobody can say yet."
    uncounted = (f"{n} is left out: no formula gives its cache." for n in rows if n not in sized)
    axis = f"bytes of bf16 cache per token, {context:,} kept"
    notes = (note, *uncounted, *without_colour(variants))
    return _bars(title, values, variants, axis, notes)


def _bar(name: str, size: float, row: Row) -> dict[str, Any]:
    bits = row.cell("bits_per_byte").interval
    assert bits is not None
    over_seeds = bits.basis == "trials" and bits.low is not None and bits.high is not None
    low, high = (bits.low, bits.high) if over_seeds else (bits.value, bits.value)
    return {"row": name, "x": size, "y": bits.value, "low": low, "high": high}


def _bars(
    title: str, values: list[dict[str, Any]], variants: list[str], axis: str, notes: tuple[str, ...]
) -> Chart:
    """Dots with vertical bars, some of them ringed."""
    ends = [v[key] for v in values for key in ("low", "high")]

    def draw(alt: Any) -> Any:
        height = alt.Scale(zero=False, domain=domain_of(ends))
        y = alt.Y("y:Q", title="bits per byte", scale=height)
        base = undrawn(alt).encode(
            x=alt.X("x:Q", title=axis, scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5)),
            color=alt.Color(
                "row:N", scale=coloured(alt, [v["row"] for v in values], variants), title=None
            ),
        )
        rules = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", scale=height), y2="high:Q")
        rings = base.mark_point(filled=False, size=220).encode(y=y, color=alt.value("currentColor"))
        return sized(
            alt.layer(rules, dots(base, y), rings.transform_filter("datum.front === true"))
        )

    return drawn(title, values, draw, notes)


def cache_per_token(row: Row) -> float | None:
    """Bytes of cache of one sequence / tokens, at the row's length, from the shape built.

    A training keeps no cache, so the size comes from the formula that measured caches are
    held against (`CACHE_SIZE`). None for a user's own attention, which nobody has counted.
    """
    shape, length = row.views[-1].shape, row.views[-1].point.context
    if shape is None or shape.custom:
        return None
    return cache_bytes(shape, length) / length
