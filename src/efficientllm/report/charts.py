"""Charts, drawn once when the page is built: Vega-Lite to SVG, no script in the page.

A chart that has no data gives way to the reason. Text takes the page's own colour, so the
same picture serves light and dark. Nothing in a chart is a link or carries markup of its
own: every name is data to the renderer and escaped by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

PALETTE = [
    *("#3b7dd8", "#e07b39", "#3f9c6d", "#b5519d", "#c9a227"),
    *("#5bb0c9", "#d1495b", "#7a6ff0", "#8a8f98", "#6b8e23"),
]
FONT = "Arial, Helvetica, sans-serif"
_VALUES = "values"
"""What charts call the data that they are drawn with."""

WIDE = 20.0
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""

MAX_LINES = len(PALETTE)
"""More lines in a chart than colours cannot be told apart."""


class Chart(NamedTuple):
    """A titled chart: SVG, or the reason why there is none; `notes` stand below it."""

    title: str
    svg: str
    reason: str = ""
    notes: tuple[str, ...] = ()


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
