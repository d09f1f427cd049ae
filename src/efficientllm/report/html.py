"""The page: one self-contained file that works offline.

No request leaves it: a strict content security policy allows one style sheet and one
script, both by their hash, and nothing else. Every name from a record is escaped. The
page is capped at two megabytes. Where its rows would take more, first drawings of what
happened in a trial are left out but for the newest rows, then rows that nothing else on the
page leads to, the oldest first, then the other drawings, and at last rows that something leads
to, whose links then go: no link leads nowhere. It says how many rows are left out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from efficientllm.analysis.table import Cell, Row
from efficientllm.record import Record
from efficientllm.report.answer import study_headline
from efficientllm.report.columns import (
    PAPER,
    STAGE_TITLES,
    STAGES,
    Column,
    all_metrics,
    column,
    device,
    first_columns,
    small_print,
    words_of,
)
from efficientllm.report.details import anchor, detail
from efficientllm.report.differing import p_value, signed, verdict
from efficientllm.report.downloads import downloads
from efficientllm.report.headline import Headline, headline
from efficientllm.report.paper_tables import paper_tables
from efficientllm.report.section import Studies, rows_of_suite, studies_of
from efficientllm.report.table_charts import charts_below, lead_chart
from efficientllm.spec.suite import builtin_names, load_suite

if TYPE_CHECKING:
    from efficientllm.results import Results

MAX_ROWS = 200
MAX_BYTES = 2_000_000
DRAWN = 12
"""Rows that keep their drawings where room is short."""

_LINK = re.compile(r'<a href="#(r-[^"]*)"')


class Shown(NamedTuple):
    """A column of the page's table; all but the `first` ones appear on demand."""

    column: Column
    first: bool
    symbol: str


class Line(NamedTuple):
    """A row as the template sees it."""

    row: Row
    anchor: str
    words: tuple[str, ...]
    cells: tuple[tuple[Shown, Cell], ...]
    mine: bool


class Stage(NamedTuple):
    """One table with its charts."""

    key: str
    title: str
    columns: tuple[Shown, ...]
    lines: tuple[Line, ...]
    words: tuple[str, ...]
    points: tuple[str, ...]
    machines: tuple[str, ...]

    def rows(self) -> list[Row]:
        """The rows of the table."""
        return [line.row for line in self.lines]


def page(results: Results, beside: Results | None = None, suite: str = "") -> str:
    """The page about every record of the results, as text.

    `beside` are published records: their rows stand in the tables too, but the first screen
    speaks of the results, as long as they hold more than probes. It speaks of the suite that
    is named, or of the one that ran last. Raises SpecError where there is nothing to say.
    """
    whole = results.beside(beside) if beside is not None else results
    newest = (results if results.cases(suite) else whole).newest(suite)
    rows = whole.rows()  # oldest first: the order in which a suite runs
    own = {id(record) for record in results.records}
    main = rows_of_suite(rows, whole.records, newest)
    first = {id(row) for row in main}
    # Stable: what is left out is not what the page is about, and not the user's.
    rows.sort(key=lambda row: (id(row) in first, id(row.record) in own))
    known = rows[-MAX_ROWS:]
    found = studies_of(main[-MAX_ROWS:], rows)
    fixed, linked = _fixed_parts(results, known, main[-MAX_ROWS:], newest, found)
    by_worth = sorted(rows, key=lambda row: anchor(row) in linked)
    detailed = _details()

    def text(shown: int, drawn: int) -> str:
        left_out = {id(row) for row in by_worth[: len(rows) - shown]}
        mine = sum(id(row.record) in own and id(row) in left_out for row in rows)
        counts = {"left_out": mine, "published_left_out": len(left_out) - mine}
        kept = [row for row in rows if id(row) not in left_out]
        return _render(kept, drawn, newest, fixed | counts, detailed)

    led_to = sum(anchor(row) in linked for row in rows)
    return _fitting(text, len(known), min(led_to, len(known)))


def _fitting(text: Callable[[int, int], str], rows: int, led_to: int) -> str:
    """The page of so many rows, or of as many, and with as many drawings, as there is room for.

    The last `led_to` rows are those that something on the page leads to.
    """
    shown, found = rows, text(rows, DRAWN)
    if _over(found) <= 0 and rows > DRAWN:
        whole = text(rows, rows)
        return found if _over(whole) > 0 else whole
    for drawn, fewest in ((DRAWN, max(1, led_to)), (0, 1)):
        if not drawn:
            found = text(shown, drawn)
        if shown > fewest and _over(found) > 0:
            for_each = max(1, (_over(found) - _over(text(1, drawn))) // shown)
            while shown > fewest and (over := _over(found)) > 0:
                shown = max(fewest, shown - 1 - over // for_each)
                found = text(shown, drawn)
        if _over(found) <= 0:
            break
    return found


def _over(text: str) -> int:
    return len(text.encode()) - MAX_BYTES


def _fixed_parts(
    results: Results,
    shown: list[Row],
    main: list[Row],
    newest: Record,
    found: Studies | None,
) -> tuple[dict[str, Any], set[str]]:
    """What does not change when rows are left out to keep the page small, and what it leads to."""
    style, script = _asset("page.css"), _asset("page.js")
    linked: set[str] = set()

    def leading_to(row: Row) -> str:
        linked.add(anchor(row))
        return anchor(row)

    of_page = [section.matrix.study for section in found.sections] if found else []
    for section in found.sections if found else ():
        for _, cells in section.matrix.lines:
            linked.update(anchor(cell.row) for cell in cells if cell.row is not None)
    return {
        "style": Markup(style),  # our own file, allowed by its hash
        "script": Markup(script),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "head": _head(main, _question(newest.trial.suite), found),
        "studies": found.sections if found else (),
        "lead_chart": None if found else lead_chart(main),
        "charts": {key: charts_below(key, _of(key, shown), main, of_page) for key in STAGES},
        "quarantined": results.quarantined,
        "suite": newest.trial.suite,
        "command": _command(newest.trial.suite),
        "data": _json(downloads(main, found, newest)),
        "paper_tables": paper_tables(shown, newest.machine.name, leading_to),
        "svg": Markup,
    }, linked


def _head(rows: list[Row], question: str, found: Studies | None) -> Headline:
    """The first screen's words: about a study of models, else about two rows."""
    if found is None:
        return headline(rows, question)
    return study_headline(rows, question, found.sections[0].matrix, found.quality)


def _details() -> Callable[[Row, bool], Markup]:
    """A row's details as text, with or without drawings: made once for all tries at a size."""
    made: dict[tuple[int, bool], Markup] = {}

    def text(row: Row, drawn: bool) -> Markup:
        key = id(row), drawn
        if key not in made:
            shown = _template("detail.html").render(detail=detail(row, drawn=drawn), svg=Markup)
            made[key] = Markup(shown)
        return made[key]

    return text


def _render(
    shown: list[Row],
    drawn: int,
    newest: Record,
    fixed: dict[str, Any],
    detailed: Callable[[Row, bool], Markup],
) -> str:
    here = newest.machine.name
    stages = [_stage(key, _of(key, shown), here) for key in STAGES if _of(key, shown)]
    with_drawings = {id(row) for row in shown[max(0, len(shown) - drawn) :]}
    details = [detailed(row, id(row) in with_drawings) for stage in stages for row in stage.rows()]
    text = _template("page.html").render(stages=stages, details=details, **fixed)
    there = {anchor(row) for row in shown}
    return _LINK.sub(lambda link: link[0] if link[1] in there else "<a", text)


@cache
def _template(name: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"device": device, "anchor": anchor}
    told = (signed, p_value, verdict, small_print)
    environment.globals |= {function.__name__: function for function in told}
    return environment.from_string(_asset(name))


def _of(stage: str, rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.case.stage == stage]


def _asset(name: str) -> str:
    return (resources.files("efficientllm") / "report" / name).read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value: Any) -> Markup:
    """JSON inside a script element: no character there may end the element."""
    text = json.dumps(value, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _question(suite: str) -> str:
    """The suite's own question, where it is one of ours."""
    return load_suite(suite).question if suite in builtin_names() else ""


def _command(suite: str) -> str:
    """What runs the suite again, where its name alone says it; nothing for a user's own."""
    return f"efficientllm run {suite}" if suite in builtin_names() else ""


def _stage(key: str, rows: list[Row], here: str) -> Stage:
    columns, words = _columns(key, rows), words_of(rows)
    lines = [
        Line(
            row,
            anchor(row),
            tuple(word.of(row) for word in words),
            tuple((shown, row.cell(shown.column.metric.key)) for shown in columns),
            row.record.machine.name == here,
        )
        for row in sorted(rows, key=lambda row: row.record.machine.name != here)
    ]
    return Stage(
        key,
        STAGE_TITLES[key],
        columns,
        tuple(lines),
        tuple(word.heading for word in words),
        tuple(dict.fromkeys(row.point for row in rows)),
        tuple(dict.fromkeys(row.record.machine.device for row in rows)),
    )


def _columns(stage: str, rows: list[Row]) -> tuple[Shown, ...]:
    """First metrics, then the paper's, then every other one that some row has."""
    first = [column.metric.key for column in first_columns(stage, rows)]
    found = []
    for metric in all_metrics(stage):
        if any(row.cell(metric.key).interval is not None for row in rows):
            symbol = metric.symbol if metric.key in PAPER[stage] else ""
            found.append(Shown(column(metric.key, rows), metric.key in first, symbol))
    return tuple(sorted(found, key=lambda shown: (not shown.first, not shown.symbol)))
