"""The charts below a table: where memory goes, time against energy, quality against time.

Of a study they show what stands in its matrix, each variant by its name, and memory at one
point, or nobody could read it; of other rows all of the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from efficientllm.analysis.crossover import order
from efficientllm.analysis.differences import differences, surely_better
from efficientllm.analysis.pareto import front, sure_front
from efficientllm.analysis.study import Study, studies, trained
from efficientllm.analysis.sweep import sweeps
from efficientllm.analysis.table import Row
from efficientllm.analysis.work import unequal_work, unlike
from efficientllm.report.charts import (
    MAX_LINES,
    Chart,
    coloured,
    colours,
    domain_of,
    drawn,
    scale_of,
    undrawn,
    without_colour,
)
from efficientllm.report.columns import STAGES, told_apart
from efficientllm.report.matrix import ends, longest, where_of

PARTS = (
    ("weights_gib", "weights"),
    ("gradients_gib", "gradients"),
    ("optimizer_gib", "optimizer"),
    ("activations_gib", "activations"),
    ("kv_cache_gib", "cache"),
)
MAX_MARKS = 60
SMALL_GIB = 0.1

Named = list[tuple[str, Row]]
"""Rows with what charts call them."""


def charts_below(
    stage: str, rows: list[Row], main: list[Row], of_page: Iterable[Study]
) -> list[Chart]:
    """What is drawn below the table of a stage's rows: the page's studies, or else the rows'.

    Of all but the first only what there is to draw; rows of no study have charts of their own.
    """
    own = charted(rows, main)
    mine = [s for s in of_page if stage in s.stages] or studies(own)
    found: list[Chart] = []
    for study in mine:
        found += [x for x in charts_of_study(study, stage) if x.svg or study is mine[0]]
    covered = {id(row) for study in mine for row in study.rows()}
    rest = [row for row in own if id(row) not in covered]
    return found + charts_of_rows(rest) if rest or not mine else found


def charted(rows: list[Row], main: list[Row]) -> list[Row]:
    """Rows that one chart can hold: of one suite on one machine, the main one's if it has any."""
    about = {id(row) for row in main}
    own = [row for row in rows if id(row) in about]
    if own or not rows:
        return own
    newest = rows[-1].record
    place = newest.trial.suite, newest.machine.name
    return [r for r in rows if (r.record.trial.suite, r.record.machine.name) == place]


def lead_chart(rows: list[Row]) -> Chart:
    """What two finished rows of the last stage gain and cost, for a page of no study."""
    for stage in reversed(STAGES):
        chosen = [r for r in rows if r.case.stage == stage and r.status == "ok"]
        if len(chosen) > 1:
            quality, energy = quality_cost(named(chosen)), latency_energy(named(chosen))
            return quality if quality.svg or not energy.svg else energy
    return Chart("Quality against time", "", "two finished rows are needed")


def charts_of_rows(rows: list[Row]) -> list[Chart]:
    """Memory split, latency against energy, quality against cost."""
    good = named([row for row in rows if row.status == "ok"][:MAX_MARKS])
    placed = [(f"{name} {row.point}", row) for name, row in good]
    return [memory_split(placed), latency_energy(good), quality_cost(good)]


def charts_of_study(study: Study, stage: str) -> list[Chart]:
    """The same of what stands in a study: each variant as like the baseline as it has a row.

    Memory is shown at the point of the matrix's column, quality of what was trained for it.
    """
    points = dict.fromkeys(row.point for row in study.rows() if row.case.stage == stage)
    alike = {point: _alike(study, stage, point) for point in points}
    good = [shown for found in alike.values() for shown in found if shown[1].status == "ok"]
    taught = list(trained(study).items()) if stage == "pretrain" else []
    quality = quality_cost(taught or good, study)
    if quality.svg and sweeps(study.rows()):
        quality = quality._replace(notes=(*quality.notes, "Each at its best learning rate."))
    return [_memory_at(study, stage, alike), latency_energy(good, study), quality]


def _memory_at(study: Study, stage: str, alike: dict[str, Named]) -> Chart:
    """Memory of each variant where the matrix asks for it; notes name those that have no bar."""
    asked = longest(study, stage) if stage != "generate" else next(reversed(ends(study)), None)
    if asked is None:
        return memory_split([], _of(study))
    found = alike[asked.point]
    lost = [(name, row) for name, row in found if row.status != "ok"]
    good = [(name, row) for name, row in found if row.status == "ok"]
    notes = tuple(f"{name}: {row.status.replace('_', ' ')}." for name, row in lost)
    return memory_split(good, f"{_of(study)}, {where_of(asked)}")._replace(notes=notes)


def _alike(study: Study, stage: str, point: str) -> Named:
    """Each variant at a point that did the baseline's work, in its precision."""
    base, found = study.beside_baseline(stage, point)
    return [
        (name, row)
        for name, row in found.items()
        if base is None or not (unequal_work(base, row) or unlike(base, row))
    ]


def named(rows: list[Row]) -> Named:
    """Rows of no study, by what tells them from one another."""
    return list(zip(told_apart(rows), rows, strict=True))


def memory_split(rows: Named, where: str = "") -> Chart:
    """Stacked bars of what lies in memory, in the table's order; the title says `where`."""
    title = f"Where the memory goes{where}"
    parts: list[dict[str, Any]] = [
        {"row": text, "part": name, "gib": cell.interval.value, "order": order}
        for text, row in rows
        for order, (key, name) in enumerate(PARTS)
        if (cell := row.cell(key)).interval is not None and cell.interval.value > 0
    ]
    if not parts:
        return Chart(title, "", "no row has a breakdown of its memory")
    small = max(part["gib"] for part in parts) < SMALL_GIB
    unit, factor = ("MiB", 1024.0) if small else ("GiB", 1.0)
    values = [part | {"size": part["gib"] * factor} for part in parts]
    order = list(dict.fromkeys(value["row"] for value in values))

    def draw(alt: Any) -> Any:
        return (
            undrawn(alt)
            .mark_bar(size=14)
            .encode(
                y=alt.Y("row:N", sort=order, title=None, axis=alt.Axis(labelLimit=220)),
                x=alt.X("size:Q", title=unit),
                color=alt.Color(
                    "part:N", sort=[name for _, name in PARTS], title=None, scale=colours(alt)
                ),
                order=alt.Order("order:Q"),
            )
            .properties(width=340, height=alt.Step(22))
        )

    return drawn(title, values, draw)


def _of(study: Study | None) -> str:
    """What a title adds of the study that is drawn."""
    return "" if study is None else f", {study.axis} at {study.size}"


def latency_energy(rows: Named, study: Study | None = None) -> Chart:
    """Seconds per token against joules per token; where joules are valid, seconds are too."""
    title = f"Time against energy, per token{_of(study)}"
    values = []
    for text, row in rows:
        joules, seconds = row.cell("j_per_token"), _seconds_per_token(row)
        if joules.interval is not None and not joules.invalid and seconds is not None:
            values.append(_dot(text, row.point, seconds * 1e3, joules.interval.value))
    if not values:
        reasons = {row.cell("j_per_token").reason for _, row in rows} - {""}
        return Chart(title, "", f"no energy: {min(reasons)}" if reasons else "no row has energy")
    return _scatter(title, values, "milliseconds per token", "joules per token", study)


def quality_cost(rows: Named, study: Study | None = None) -> Chart:
    """Bits per byte against seconds per token, with the Pareto front marked."""
    title = f"Quality against time{_of(study)} (ringed: nothing is better on both)"
    values: list[dict[str, Any]] = []
    alike: dict[tuple[str, str], list[tuple[Row, dict[str, Any]]]] = {}
    for name, row in rows:
        bits, seconds = row.cell("bits_per_byte").interval, _seconds_per_token(row)
        if bits is not None and seconds is not None and row.ranked and not row.cost_only:
            values.append(_dot(name, row.point, seconds * 1e3, bits.value))
            text = row.record.scores.text_sha256 if row.record.scores else ""
            alike.setdefault((text, row.point), []).append((row, values[-1]))
    if not values:
        reasons = {row.cell("bits_per_byte").reason for _, row in rows} - {""}
        return Chart(title, "", f"no quality: {min(reasons)}" if reasons else "no ranked row")
    for group in alike.values():  # one text, one point: what can beat each other
        for (_, value), best in zip(group, _front(group), strict=True):
            value["front"] = best and len(group) > 1
    return _scatter(title, values, "milliseconds per token", "bits per byte", study)


def _front(group: list[tuple[Row, dict[str, Any]]]) -> list[bool]:
    """What nothing beats; of separately trained rows, by what seeds and trials decide."""
    if group[0][0].case.stage == "generate":
        # Quality beyond four digits is noise, and a front drawn through noise says nothing.
        return front([(value["x"], float(f"{value['y']:.4g}")) for _, value in group])
    better = surely_better(differences({str(i): row for i, (row, _) in enumerate(group)}))
    speeds = [row.cell("train_tokens_per_s").interval for row, _ in group]

    def faster(i: int, j: int) -> bool:
        one, two = speeds[i], speeds[j]
        return one is not None and two is not None and order(one, two) > 0

    return sure_front(len(group), faster, lambda i, j: (str(i), str(j)) in better)


def _seconds_per_token(row: Row) -> float | None:
    key = "it_tokens_per_s" if row.case.stage == "generate" else "train_tokens_per_s"
    interval = row.cell(key).interval
    return 1 / interval.value if interval is not None and interval.value > 0 else None


def _dot(name: str, point: str, x: float, y: float) -> dict[str, Any]:
    return {"row": name, "point": point, "x": x, "y": y}


def _scatter(
    title: str, values: list[dict[str, Any]], x: str, y: str, study: Study | None
) -> Chart:
    """Colours are a study's variants, the same in all its charts, or else cases; forms points."""
    names = list(dict.fromkeys(value["row"] for value in values))
    notes: tuple[str, ...] = ()
    variants = [] if study is None else list(study.variants)
    if study is not None:
        names = [name for name in variants[:MAX_LINES] if name in names]
        notes = without_colour(variants)
        values = [value for value in values if value["row"] in names]
        if not values:
            return Chart(title, "", "no colour is left for what was measured", notes)
    elif len(names) > MAX_LINES:
        notes = ("More cases than colours: colours repeat.",)
    heights = [value["y"] for value in values]

    def draw(alt: Any) -> Any:
        base = undrawn(alt).encode(
            x=alt.X("x:Q", title=x, scale=scale_of(alt, [v["x"] for v in values])),
            y=alt.Y("y:Q", title=y, scale=scale_of(alt, heights, domain_of(heights))),
        )
        scale = colours(alt) if study is None else coloured(alt, names, variants)
        order = names if study is None else alt.Undefined
        points = list(dict.fromkeys(value["point"] for value in values))
        forms = alt.Shape("point:N", sort=points, title=None)
        dots = base.mark_point(filled=True, size=80, opacity=1).encode(
            color=alt.Color("row:N", sort=order, scale=scale, title=None),
            **({"shape": forms} if len(points) > 1 else {}),
        )
        rings = base.mark_point(filled=False, size=220, color="currentColor").transform_filter(
            "datum.front === true"
        )
        return alt.layer(dots, rings).properties(width=340, height=240)

    return drawn(title, values, draw, notes)
