"""Reports for a terminal. `print` lives here and in `cli` only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from efficientllm.analysis.compare import Comparison
from efficientllm.analysis.flag import Flag
from efficientllm.analysis.stats import PERCENTILE_NEEDS, percentile
from efficientllm.analysis.table import Row
from efficientllm.metrics.energy import energy_scope
from efficientllm.report.columns import (
    DAGGER_TOLD,
    PAPER,
    STAGE_TITLES,
    STAGES,
    Words,
    all_metrics,
    basis,
    column,
    first_columns,
    number,
    unnamed,
)
from efficientllm.report.selection import data_line


def unit_percentiles(row: Row) -> list[str]:
    """Percentiles of the units of each window over all trials, as far as they carry them."""
    lines = []
    for name in dict.fromkeys(w.name for view in row.views for w in view.point.windows):
        windows = (view.point.window(name) for view in row.views)
        units = [s for window in windows if window is not None for s in window.unit_s]
        found = [(q, percentile(units, q)) for q in PERCENTILE_NEEDS]
        shown = ", ".join(f"p{q} {number(v * 1e3)} ms" for q, v in found if v is not None)
        if shown:
            lines.append(f"{name} unit  {shown}  ({len(units)} units)")
    return lines


def print_rows(console: Console, rows: list[Row]) -> None:
    """One table a stage: plain metrics, and the numbers of the notes that `print_doubts` gives."""
    notes = _numbered(rows)
    for stage in STAGES:
        chosen = [row for row in rows if row.case.stage == stage]
        if chosen:
            _print_stage(console, stage, chosen, notes)


def _numbered(rows: list[Row]) -> dict[str, int]:
    """Codes of what is to be weighed, numbered in the order in which rows show them."""
    codes = (flag.code for row in rows for flag in row.flags if flag.level != "info")
    return {code: number for number, code in enumerate(dict.fromkeys(codes), 1)}


def _print_stage(console: Console, stage: str, rows: list[Row], notes: dict[str, int]) -> None:
    columns = first_columns(stage, rows)
    words, points = unnamed(rows), _points(rows)
    names = _names(rows, words)
    all_cost = all(row.cost_only for row in rows)
    noted = any(flag.code in notes for row in rows for flag in row.flags)
    table = Table(
        title=_title(stage, rows, all_cost), title_justify="left", box=None, pad_edge=False
    )
    table.add_column("case", overflow="fold")
    for word in words:
        table.add_column(word.heading, overflow="fold")
    if points:
        table.add_column("point")
    for shown in columns:
        table.add_column(shown.heading, justify="right", overflow="fold")
    if noted:
        table.add_column("notes", justify="right")
    for index, row in enumerate(rows):
        told = [escape(word.of(row)) for word in words]
        alone = " [dim](cost only)[/dim]" if row.cost_only and not all_cost else ""
        ended = "" if row.status == "ok" else f" [red]{row.status}[/red]"
        cells = [escape(names[index]) + alone + ended, *told, *points[index : index + 1]]
        cells += [shown.marked(row) if row.status == "ok" else "" for shown in columns]
        if noted:
            cells.append(" ".join(str(notes[f.code]) for f in row.flags if f.code in notes))
        table.add_row(*cells)
    console.print(table)
    for row in rows:
        if row.status != "ok":
            text = f"{row.label} {row.point}: {row.status}: {row.reason}"
            console.print(f"[red]![/red] {escape(text)}")
    console.print()


def _one_context(rows: list[Row]) -> bool:
    return len({row.views[0].point.context for row in rows}) == 1


def _points(rows: list[Row]) -> list[str]:
    """Each row's point, without a context that all share; nothing where all are one point."""
    if len({row.point for row in rows}) == 1:
        return []
    short = _one_context(rows)
    return [f"b{row.views[0].point.batch}" if short else row.point for row in rows]


def _title(stage: str, rows: list[Row], all_cost: bool) -> str:
    context = f", context {rows[0].views[0].point.context:,}" if _one_context(rows) else ""
    return STAGE_TITLES[stage] + context + (" (random weights: cost only)" if all_cost else "")


def _names(rows: list[Row], words: Sequence[Words]) -> list[str]:
    """Labels, with what `show` and `compare` accept where nothing else in the table differs."""
    seen = [(row.label, row.point, *(word.of(row) for word in words)) for row in rows]
    return [
        f"{row.label} {row.key}" if seen.count(told) > 1 else row.label
        for row, told in zip(rows, seen, strict=True)
    ]


def print_doubts(console: Console, rows: list[Row]) -> None:
    """What a reader must know before believing the table: the notes, each with an example."""
    cells = [
        row.cell(shown.metric.key)
        for row in rows
        if row.status == "ok"
        for shown in first_columns(row.case.stage, [row])
    ]
    bases = {cell.interval.basis for cell in cells if cell.interval is not None}
    if "within-run" in bases:
        console.print(
            "[yellow]![/yellow] ± is within one run; protocol=standard (3 to 10 trials) decides"
        )
    if "text" in bases:
        console.print("[yellow]![/yellow] ± of bits per byte is over the held-out text, not seeds")
    if any(cell.invalid for cell in cells):
        console.print(f"[yellow]![/yellow] {DAGGER_TOLD}")
    notes, told = _numbered(rows), dict[str, tuple[Row, Flag]]()
    for each in rows:
        for flag in (f for f in each.flags if f.code in notes):
            told.setdefault(flag.subject, (each, flag))
    for row, flag in sorted(told.values(), key=lambda pair: notes[pair[1].code]):
        text = f"{flag.code}  {row.label} {row.point}: {flag.text}"
        console.print(f"[yellow]{notes[flag.code]}[/yellow] {escape(text)}")


def print_record(console: Console, row: Row) -> None:
    """Everything about one row: every metric with its interval or its reason."""
    record = row.record
    console.print(
        f"[bold]{escape(row.name)}[/bold]  {row.point}  {row.status} {escape(row.reason)}"
    )
    console.print(f"case {record.trial.case_id}")
    console.print(f"trials {len(row.views)}, newest {record.key} from {record.started_at}")
    console.print(f"machine {escape(record.machine.name)}")
    weights = "random weights: cost only" if row.cost_only else "trained weights"
    scope = energy_scope(row.views[-1])
    covered = f", energy of the {scope}" if scope else ""
    console.print(f"protocol {record.protocol['profile']}, {weights}{covered}")
    if data := data_line(record):
        console.print(f"data {escape(data)}")
    paper = PAPER[row.case.stage]
    table = Table(box=None, pad_edge=False)
    for name in ("metric", "value", "interval from", "symbol"):
        table.add_column(name)
    for metric in all_metrics(row.case.stage):
        cell = row.cell(metric.key)
        symbol = metric.symbol if metric.key in paper else ""
        if cell.interval is None:
            table.add_row(metric.key, f"[dim]null: {escape(cell.reason)}[/dim]", "", symbol)
            continue
        shown = column(metric.key, [row])
        told = " (invalid)" if cell.invalid else ""
        value = f"{shown.text(row)} {shown.unit}".strip() + told
        table.add_row(metric.key, value, basis(cell.interval), symbol)
    console.print(table)
    for line in unit_percentiles(row):
        console.print(line)
    for flag in row.flags:
        console.print(f"{flag.level:8}{flag.code}  {escape(flag.text)}")


def print_comparison(console: Console, found: Comparison) -> None:
    """Ratios with intervals and verdicts; conditions stand above them."""
    protocols = {found.a.record.protocol["profile"], found.b.record.protocol["profile"]}
    pairs = max((line.pairs for line in found.lines), default=0)
    card = "yes" if found.same_card else "no"
    console.print(
        f"{escape(found.a.name)} -> {escape(found.b.name)}   {found.a.point}   "
        f"{'/'.join(sorted(protocols))}   equal work: yes   same card: {card}   {pairs} pairs"
    )
    for condition in found.conditions:
        console.print(f"[yellow]differs[/yellow]  {escape(condition)}")
    table = Table(box=None, pad_edge=False, show_header=False)
    for line in found.lines:
        if line.metric.kind == "quality":
            amount = f"{(line.ratio - 1) * line.a:+.4f}"
            bounds = [(x - 1) * line.a for x in (line.low, line.high) if x is not None]
            interval = f"[{bounds[0]:+.4f}, {bounds[1]:+.4f}]" if bounds else ""
        else:
            amount = f"x{line.ratio:.3f}"
            interval = "" if line.low is None else f"[{line.low:.3f}, {line.high:.3f}]"
        why = f"[dim]{escape(line.why)}[/dim]" if line.why else ""
        table.add_row(line.metric.label, amount, escape(interval), line.word, why)
    console.print(table)
    if found.a.case.stage == "generate":
        console.print("No task accuracy measured: do not call this lossless.")


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Plain lines, with nothing in them taken for markup."""
    for line in lines:
        console.print(escape(line))
