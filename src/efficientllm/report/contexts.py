"""Cost against context: a panel for each kind of work, with the crossings in words below.

A line joins what was measured so that the eye can follow one variant; between its dots
nothing is known, and no crossing is read off it (`analysis/crossover`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from efficientllm.analysis.crossover import Crossing, crossings
from efficientllm.analysis.stats import Interval
from efficientllm.analysis.study import Study
from efficientllm.analysis.table import Row
from efficientllm.analysis.work import unlike
from efficientllm.metrics import BY_KEY
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

MAX_NOTES = 6


class Family(NamedTuple):
    """One panel: a cost of every variant against the context, under one condition.

    `left_out` says of whom and why: a row in another precision than the baseline's is no point
    of this panel.
    """

    what: str
    where: str
    axis: str
    curves: dict[str, dict[int, Interval]]
    left_out: tuple[str, ...] = ()


def cost_charts(study: Study) -> list[Chart]:
    """A panel for each batch of decode and of prefill, and for training at equal work."""
    variants = list(study.variants)
    coloured_ones = set(variants[:MAX_LINES])
    found = [
        f for f in families(study) if len(_contexts(f)) > 1 and coloured_ones & f.curves.keys()
    ]
    if found:
        return [_cost_chart(family, variants) for family in found]
    if "generate" not in study.stages:
        return []
    reason = "every batch was measured at one context only"
    return [Chart("Cost against context", "", reason)]


def families(study: Study) -> list[Family]:
    """Costs in seconds per token, less is better."""
    points: dict[tuple[str, int], dict[int, str]] = {}
    for row in study.rows():
        point = row.views[0].point
        load = point.batch if row.case.stage == "generate" else point.batch * point.context
        points.setdefault((row.case.stage, load), {})[point.context] = row.point
    asked = [
        (what, axis, key, at, where.format(load))
        for what, stage, axis, key, where in _ASKED
        for (found, load), at in sorted(points.items())
        if found == stage
    ]
    made = (
        Family(what, where, axis, *_curves(study, key, at)) for what, axis, key, at, where in asked
    )
    return [family for family in made if len(family.curves) > 1]


_ASKED = (
    ("Decode", "generate", "ms per token of a sequence", "tpot_s", "batch {}"),
    ("Prefill", "generate", "ms per prompt token", "prefill_tokens_per_s", "batch {}"),
    ("Training", "pretrain", "ms per token", "train_tokens_per_s", "{:,} tokens a step"),
)
"""Panels: their name, stage, axis and metric, and the work at which contexts compare."""


def _curves(
    study: Study, key: str, points: dict[int, str]
) -> tuple[dict[str, dict[int, Interval]], tuple[str, ...]]:
    """Each variant's seconds at every context, and whom that leaves out."""
    stage = "pretrain" if key.startswith("train") else "generate"
    there = {at: study.beside_baseline(stage, point) for at, point in points.items()}
    curves: dict[str, dict[int, Interval]] = {}
    left_out: list[str] = []
    for name in study.variants:
        found = {}
        for context, (base, rows) in there.items():
            row = rows.get(name)
            others = unlike(base, row) if base is not None and row is not None else []
            if others:
                where = f"{name} is left out at {context:,} tokens"
                left_out.append(f"{where}: {'; '.join(others)}.")
            elif row is not None and (seconds := _seconds(row, key)) is not None:
                found[context] = seconds
        curves[name] = found
    return {name: curve for name, curve in curves.items() if curve}, tuple(left_out)


def _seconds(row: Row, key: str) -> Interval | None:
    """A cell in seconds per token; without bounds where the row is never ranked."""
    cell = row.cell(key)
    if cell.interval is None or cell.invalid or row.status != "ok" or not cell.interval.value:
        return None
    found = cell.interval
    if BY_KEY[key].better == "higher":
        low, high = (None if x is None else 1 / x for x in (found.high, found.low))
        found = found._replace(value=1 / found.value, low=low, high=high)
    return found if row.ranked else found._replace(low=None, high=None, basis="none")


def _contexts(family: Family) -> list[int]:
    return sorted({context for curve in family.curves.values() for context in curve})


def _cost_chart(family: Family, variants: list[str]) -> Chart:
    names = [name for name in variants[:MAX_LINES] if name in family.curves]
    values: list[dict[str, Any]] = [
        {
            "row": name,
            "x": context,
            "y": cost.value * 1e3,
            "low": (cost.low or cost.value) * 1e3,
            "high": (cost.high or cost.value) * 1e3,
        }
        for name in names
        for context, cost in sorted(family.curves[name].items())
    ]
    contexts = _contexts(family)
    ends = [contexts[0] / 1.2, contexts[-1] * 1.2]
    heights = [cost["y"] for cost in values]

    def draw(alt: Any) -> Any:
        base = undrawn(alt).encode(
            x=alt.X(
                "x:Q",
                title="tokens of context" if family.what != "Training" else "sequence length",
                scale=alt.Scale(type="log", base=2, domain=ends, nice=False),
                axis=alt.Axis(values=contexts, format=","),
            ),
            color=alt.Color("row:N", scale=coloured(alt, names, variants), title=None),
        )
        height = scale_of(alt, heights, domain_of(heights))
        y = alt.Y("y:Q", title=family.axis, scale=height)
        bars = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", scale=height), y2="high:Q")
        return sized(alt.layer(base.mark_line(strokeWidth=1.5).encode(y=y), bars, dots(base, y)))

    found = crossings({n: c for n, c in family.curves.items() if n in names})
    drawn_ones = [cost for n in names for cost in family.curves[n].values()]
    one_run = any(cost.basis == "within-run" for cost in drawn_ones)
    bars = ("Bars of fewer than three trials are within one run.",) if one_run else ()
    notes = (*_told(found, family), *family.left_out, *without_colour(variants), *bars)
    return drawn(f"{family.what}, {family.where}", values, draw, notes)


def _told(found: list[Crossing], family: Family) -> tuple[str, ...]:
    """Crossings in words, the decided ones first."""
    if not found:
        return ("No two variants change places between the contexts measured.",)
    where = f"({family.what.lower()}, {family.where})"
    alike: dict[tuple[bool, int, int, str], list[str]] = {}
    for x in found:
        passes = f"{x.first} passes {x.second}"
        alike.setdefault((x.decided, x.low, x.high, x.why), []).append(passes)
    lines = [
        f"{_listed(passes)} between {low:,} and {high:,} tokens {where}."
        if decided
        else f"Undecided between {low:,} and {high:,} tokens whether {_listed(passes)}: {why}."
        for (decided, low, high, why), passes in alike.items()
    ]
    more = sum(len(passes) for passes in list(alike.values())[MAX_NOTES:])
    return (*lines[:MAX_NOTES], *([f"{more} more are not listed."] if more else []))


def _listed(words: list[str]) -> str:
    """As a person lists things: a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
