"""Charts, drawn once when the page is built: Vega-Lite to SVG, no script in the page.

A chart that has no data gives way to the reason. Text takes the page's own colour, so the
same picture serves light and dark. Nothing in a chart is a link or carries markup of its
own: every name is data to the renderer and escaped by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from efficientllm.analysis.crossover import order
from efficientllm.analysis.differences import differences, surely_better
from efficientllm.analysis.pareto import front, sure_front
from efficientllm.analysis.table import Row
from efficientllm.report.columns import told_apart

PALETTE = [
    *("#3b7dd8", "#e07b39", "#3f9c6d", "#b5519d", "#c9a227"),
    *("#5bb0c9", "#d1495b", "#7a6ff0", "#8a8f98", "#6b8e23"),
]
FONT = "Arial, Helvetica, sans-serif"
_VALUES = "values"
"""What charts call the data that they are drawn with."""

WIDE = 20.0
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""

PARTS = (
    ("weights_gib", "weights"),
    ("gradients_gib", "gradients"),
    ("optimizer_gib", "optimizer"),
    ("activations_gib", "activations"),
    ("kv_cache_gib", "cache"),
)
MAX_MARKS = 60
MAX_LINES = len(PALETTE)
"""More lines in a chart than colours cannot be told apart."""
SMALL_GIB = 0.1


class Chart(NamedTuple):
    """A titled chart: SVG, or the reason why there is none; `notes` stand below it."""

    title: str
    svg: str
    reason: str = ""
    notes: tuple[str, ...] = ()


def stage_charts(rows: list[Row]) -> list[Chart]:
    """Memory split, latency against energy, quality against cost."""
    good = [row for row in rows if row.status == "ok"][:MAX_MARKS]
    return [memory_split(good), latency_energy(good), quality_cost(good)]


def memory_split(rows: list[Row]) -> Chart:
    """Stacked bars of what lies in memory, in the table's order."""
    title = "Where the memory goes"
    parts: list[dict[str, Any]] = [
        {"row": f"{text} {row.point}", "part": name, "gib": cell.interval.value, "order": order}
        for text, row in zip(told_apart(rows), rows, strict=True)
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


def latency_energy(rows: list[Row]) -> Chart:
    """Seconds per token against joules per token; where joules are valid, seconds are too."""
    title = "Time against energy, per token"
    values = []
    for text, row in zip(told_apart(rows), rows, strict=True):
        joules, seconds = row.cell("j_per_token"), _seconds_per_token(row)
        if joules.interval is not None and not joules.invalid and seconds is not None:
            values.append(_dot(text, row.point, seconds * 1e3, joules.interval.value))
    if not values:
        reasons = {row.cell("j_per_token").reason for row in rows} - {""}
        return Chart(title, "", f"no energy: {min(reasons)}" if reasons else "no row has energy")
    return _scatter(title, values, "milliseconds per token", "joules per token")


def quality_cost(rows: list[Row]) -> Chart:
    """Bits per byte against seconds per token, with the Pareto front marked."""
    title = "Quality against time (ringed: nothing is better on both)"
    values: list[dict[str, Any]] = []
    alike: dict[tuple[str, str], list[tuple[Row, dict[str, Any]]]] = {}
    for name, row in zip(told_apart(rows), rows, strict=True):
        bits, seconds = row.cell("bits_per_byte").interval, _seconds_per_token(row)
        if bits is not None and seconds is not None and row.ranked and not row.cost_only:
            values.append(_dot(name, row.point, seconds * 1e3, bits.value))
            text = row.record.scores.text_sha256 if row.record.scores else ""
            alike.setdefault((text, row.point), []).append((row, values[-1]))
    if not values:
        reasons = {row.cell("bits_per_byte").reason for row in rows} - {""}
        return Chart(title, "", f"no quality: {min(reasons)}" if reasons else "no ranked row")
    for group in alike.values():  # one text, one point: what can beat each other
        for (_, value), best in zip(group, _front(group), strict=True):
            value["front"] = best and len(group) > 1
    return _scatter(title, values, "milliseconds per token", "bits per byte")


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


def _scatter(title: str, values: list[dict[str, Any]], x: str, y: str) -> Chart:
    """Colours are cases, forms are points."""
    heights = [value["y"] for value in values]

    def draw(alt: Any) -> Any:
        base = undrawn(alt).encode(
            x=alt.X("x:Q", title=x, scale=scale_of(alt, [v["x"] for v in values])),
            y=alt.Y("y:Q", title=y, scale=scale_of(alt, heights, domain_of(heights))),
        )
        names, points = (list(dict.fromkeys(v[key] for v in values)) for key in ("row", "point"))
        forms = alt.Shape("point:N", sort=points, title=None)
        dots = base.mark_point(filled=True, size=80, opacity=1).encode(
            color=alt.Color("row:N", sort=names, scale=colours(alt), title=None),
            **({"shape": forms} if len(points) > 1 else {}),
        )
        rings = base.mark_point(filled=False, size=220, color="currentColor").transform_filter(
            "datum.front === true"
        )
        return alt.layer(dots, rings).properties(width=340, height=240)

    many = len({value["row"] for value in values}) > MAX_LINES
    return drawn(title, values, draw, ("More cases than colours: colours repeat.",) if many else ())


def scale_of(alt: Any, values: list[float], domain: list[float] | None = None) -> Any:
    """Logarithmic where values lie far apart, else fitted to them."""
    if min(values) > 0 and max(values) / min(values) > WIDE:
        return alt.Scale(type="log", domain=[min(values) / 1.5, max(values) * 1.5], nice=False)
    if domain is not None:
        return alt.Scale(zero=False, domain=domain)
    return alt.Scale(zero=False, padding=18)


def domain_of(values: list[float]) -> list[float]:
    """At least 2 % of the value from bottom to top, so that noise does not look like a gap."""
    low, high = min(values), max(values)
    margin = max(0.08 * (high - low), (0.02 * high - (high - low)) / 2, 1e-9)
    return [low - margin, high + margin]


def drawn(
    title: str,
    values: list[dict[str, Any]],
    draw: Callable[[Any], Any],
    notes: tuple[str, ...] = (),
) -> Chart:
    """A chart of values as the page holds it, described by a function of altair from `undrawn`."""
    try:
        import altair as alt
        import vl_convert
    except ImportError as error:
        return Chart(title, "", f"charts need the package {error.name}")
    # Checking against the grammar takes half as long as drawing; a test does it for all kinds.
    with alt.utils.schemapi.debug_mode(False):
        described = _styled(draw(alt)).to_dict(validate=False)
    svg = vl_convert.vegalite_to_svg(described | {"datasets": {_VALUES: values}})
    return Chart(title, _inline(svg), notes=notes)


def undrawn(alt: Any) -> Any:
    """A chart of the values that `drawn` is given: altair copies what it holds at every step."""
    return alt.Chart(alt.NamedData(_VALUES))


def colours(alt: Any) -> Any:
    """The palette that every chart takes its colours from, in the order of its rows."""
    return alt.Scale(range=PALETTE)


def coloured(alt: Any, names: list[str], variants: list[str]) -> Any:
    """Colours by a name's place among all, so that each keeps its own in every chart of a study."""
    places = {name: PALETTE[i] for i, name in enumerate(variants[:MAX_LINES])}
    shown = [name for name in names if name in places]
    return alt.Scale(domain=shown, range=[places[name] for name in shown])


def without_colour(variants: list[str]) -> tuple[str, ...]:
    """Who is left out of a study's charts because there are more than can be told apart."""
    return tuple(f"{name} is left out: no colour is left for it." for name in variants[MAX_LINES:])


def dots(base: Any, y: Any) -> Any:
    """Filled points, over whatever else a layer has."""
    return base.mark_point(filled=True, size=45, opacity=1).encode(y=y)


def sized(chart: Any) -> Any:
    """The size of a small multiple."""
    return chart.properties(width=300, height=210)


def _styled(chart: Any) -> Any:
    ink = "currentColor"
    return (
        chart.properties(background="transparent")
        .configure(font=FONT, padding=12)
        .configure_axis(
            labelColor=ink,
            titleColor=ink,
            tickColor=ink,
            domainColor=ink,
            gridColor=ink,
            gridOpacity=0.12,
            titlePadding=12,
            domainOpacity=0.4,
            labelSeparation=8,
            titleFontWeight="normal",
        )
        .configure_legend(
            labelColor=ink,
            titleColor=ink,
            symbolFillColor=ink,
            orient="bottom",
            columns=3,
            labelLimit=160,
        )
        .configure_view(stroke=None)
    )


_SIZE = re.compile(r' width="[\d.]+" height="[\d.]+"', re.ASCII)
_FONT = f' font-family="{FONT}"'
_TAG = re.compile(r"<[a-z][^<>]*>")
_UNSEEN = re.compile(r'<path class="(?:back|fore)ground"[^<>]* d="(?:M0,0h0v0h0Z)?"[^<>]*/>')
_AS_BY_DEFAULT = re.compile(
    r' (?:opacity="1"|font-weight="normal"|pointer-events="none"|stroke-width="1")|' + _FONT
)
_PLACE = re.compile(r' (?:d|transform|[xy]2?)="[^"]*"')
_LONG = re.compile(r"\d+\.\d{3,}")


def _inline(svg: str) -> str:
    """SVG for the page: scaled by its view box, known to screen readers by its title.

    What every element repeats and thousandths of a pixel are left out: a quarter of its length.
    """
    svg = _SIZE.sub(' role="img"' + _FONT, svg, count=1).replace(
        ' xmlns:xlink="http://www.w3.org/1999/xlink"', ""
    )
    head, rest = svg[: (end := svg.index(">") + 1)], svg[end:]
    return head + _TAG.sub(_short, _UNSEEN.sub("", rest))


def _short(tag: re.Match[str]) -> str:
    return _PLACE.sub(_to_hundredths, _AS_BY_DEFAULT.sub("", tag[0]))


def _to_hundredths(attribute: re.Match[str]) -> str:
    return _LONG.sub(lambda number: f"{float(number[0]):.2f}", attribute[0])
