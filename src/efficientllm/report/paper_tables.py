"""The page's section that puts our rows beside the paper's Tables 3 and 4.

Every published number keeps its mark, and what follows from an estimate is marked too: a
ratio to an estimate is itself one. Where there is no ratio the cell says why.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from efficientllm.analysis.beside import Agreement, Beside, Line
from efficientllm.analysis.published import Published, beside_the_paper
from efficientllm.analysis.table import Row
from efficientllm.catalog.paper import Number, Table, paper
from efficientllm.report.columns import number, with_half_width

MAX_TABLES = 12


class Cell(NamedTuple):
    """A variant's value here and there as the template shows it.

    `source` is `drawn` where the paper's number is missing and its figure's stands for it.
    """

    anchor: str
    ours: str
    source: str
    theirs: str
    ratio: str
    estimated: bool
    why: str
    title: str


class Shown(NamedTuple):
    """One metric: its name, its cells, and how far the orders agree."""

    head: str
    cells: tuple[Cell, ...]
    order: str
    against: tuple[str, ...]
    doubt: str


class Part(NamedTuple):
    """One table: a size of the paper beside rows of one shape, work and machine."""

    title: str
    heads: tuple[tuple[str, str], ...]
    conditions: tuple[str, ...]
    lines: tuple[Shown, ...]


def paper_tables(rows: list[Row], machine: str, anchor: Callable[[Row], str]) -> Markup:
    """The section as HTML; nothing where no two finished variants stand in one table.

    Tables of the page's own machine come first. `anchor` names a row's details on the page.
    """
    found = beside_the_paper(rows)
    found.sort(key=lambda p: p.first.record.machine.name != machine)
    if not found:
        return Markup("")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = (resources.files("efficientllm") / "report" / "paper_tables.html").read_text("utf-8")
    html = environment.from_string(text).render(
        parts=[_part(published, anchor) for published in found[:MAX_TABLES]],
        left_out=len(found) - MAX_TABLES,
        paper=paper(),
    )
    return Markup(html)  # autoescaped above


def _part(published: Published, anchor: Callable[[Row], str]) -> Part:
    table, first = published.table, published.first
    title = (
        f"Table {table.table}, {table.axis}, {published.size}: {first.point},"
        f" {first.record.machine.device}"
    )
    heads = tuple((_head(name, table), table.notes.get(name, "")) for name in published.rows)
    lines = tuple(_shown(line, table, anchor) for line in published.lines)
    return Part(title, heads, published.conditions, lines)


def _head(name: str, table: Table) -> str:
    """`mla`, with the paper's own word where it is another."""
    theirs = table.names[name]
    return name if theirs.lower() == name else f"{name} ({theirs})"


def _shown(line: Line, table: Table, anchor: Callable[[Row], str]) -> Shown:
    quantity = paper().quantities[line.quantity]
    unit = f", {line.metric.unit}" if line.metric.unit else ""
    theirs = f"{quantity.symbol}, {quantity.unit}" if quantity.unit else quantity.symbol
    return Shown(
        f"{line.metric.label}{unit} beside {theirs}",
        tuple(_cell(beside, anchor) for beside in line.cells.values()),
        _order(line.agreement) if line.agreement else f"not ranked: {line.unranked}",
        _against(line, table),
        paper().doubts[line.quantity].text,
    )


def _cell(beside: Beside, anchor: Callable[[Row], str]) -> Cell:
    row, theirs = beside.row, beside.theirs
    ours = with_half_width(beside.ours) if row.status == "ok" else row.status
    mark = theirs.mark or ""
    drawn = theirs.value is None and beside.figure is not None
    return Cell(
        anchor(row),
        ours,
        "drawn" if drawn else "paper",
        str(beside.figure if drawn else theirs),
        _ratio(beside),
        mark == "E",
        beside.reason,
        _title(theirs, beside.rank),
    )


def _ratio(beside: Beside) -> str:
    """`x1.17 A`; to an estimate two digits, which is all that it carries."""
    if beside.ratio is None:
        return ""
    estimated = beside.theirs.mark == "E"
    return (
        f"x{beside.ratio:#.2g} E".replace(". ", " ")
        if estimated
        else f"x{number(beside.ratio)} {beside.theirs.mark}"
    )


def _title(theirs: Number, rank: Number | None) -> str:
    """What a mark means, what is missing, and the site's rank."""
    mark = theirs.mark
    told = f"{mark}: {paper().marks[mark].meaning}" if mark else theirs.missing
    site = f"rank on the paper's site {rank}" if rank is not None else ""
    return "; ".join(filter(None, (told, theirs.note, site)))


def _order(agreement: Agreement) -> str:
    """`tau 0.67, p 0.33, n 4 (3 E)`."""
    estimated = f" ({agreement.estimated} E)" if agreement.estimated else ""
    return f"tau {agreement.tau:+.2f}, p {agreement.p:.2f}, n {agreement.n}{estimated}"


def _against(line: Line, table: Table) -> tuple[str, ...]:
    """Each disagreement, as it is here; marked where it rests on an estimate."""
    if line.agreement is None:
        return ()
    texts = []
    for pair in line.agreement.against:
        names = (pair.smaller_here, pair.larger_here)
        estimated = " E" if any(line.cells[name].theirs.mark == "E" for name in names) else ""
        close = f"; {' and '.join(pair.close)}" if pair.close else ""
        here = " < ".join(_head(name, table) for name in names)
        texts.append(f"{here} here, > there{estimated}{close}")
    return tuple(texts)
