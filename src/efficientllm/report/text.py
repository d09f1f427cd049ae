"""Reports for a terminal. `print` lives here and in `cli` only."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from efficientllm.analysis.compare import Comparison
from efficientllm.analysis.table import Row
from efficientllm.report.columns import (
    PAPER,
    STAGE_TITLES,
    STAGES,
    all_metrics,
    column,
    first_columns,
    label,
)


def print_rows(console: Console, rows: list[Row]) -> None:
    """One table a stage: plain metrics, then what is to be said about them."""
    for stage in STAGES:
        chosen = [row for row in rows if row.case.stage == stage]
        if chosen:
            _print_stage(console, stage, chosen)


def _print_stage(console: Console, stage: str, rows: list[Row]) -> None:
    columns = first_columns(stage, rows)
    several = len({row.point for row in rows}) > 1
    table = Table(title=STAGE_TITLES[stage], title_justify="left", box=None, pad_edge=False)
    table.add_column("case", overflow="fold")
    if several:
        table.add_column("point")
    for shown in columns:
        table.add_column(shown.heading, justify="right")
    table.add_column("flags", overflow="fold")
    for row in rows:
        name = escape(label(row)) + (" [dim](cost only)[/dim]" if row.cost_only else "")
        cells = [name, *([row.point] if several else [])]
        if row.status != "ok":
            cells += [
                f"[red]{row.status}[/red]",
                *[""] * (len(columns) - 1),
                escape(row.reason[:80]),
            ]
        else:
            cells += [shown.text(row) for shown in columns]
            cells.append(" ".join(f.code for f in row.flags if f.level != "info"))
        table.add_row(*cells)
    console.print(table)
    console.print()


def print_doubts(console: Console, rows: list[Row]) -> None:
    """What a reader must know before believing the table, once each."""
    bases = {
        cell.interval.basis
        for row in rows
        if row.status == "ok"
        for shown in first_columns(row.case.stage, [row])
        if (cell := row.cell(shown.metric.key)).interval is not None
    }
    if "within-run" in bases:
        console.print(
            "[yellow]![/yellow] ± is within one run; protocol=standard (3 to 10 trials) decides"
        )
    if "text" in bases:
        console.print("[yellow]![/yellow] ± of bits per byte is over the held-out text, not seeds")
    seen: dict[str, str] = {}
    for row in rows:
        for flag in row.flags:
            if flag.level != "info":
                seen.setdefault(flag.code, f"{label(row)} {row.point}: {flag.text}")
    for code, text in seen.items():
        console.print(f"[yellow]![/yellow] {code}  {escape(text)}")


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
    console.print(f"protocol {record.protocol['profile']}, {weights}")
    paper = PAPER[row.case.stage]
    table = Table(box=None, pad_edge=False)
    for name in ("metric", "value", "n", "interval from", "symbol"):
        table.add_column(name)
    for metric in all_metrics(row.case.stage):
        cell = row.cell(metric.key)
        symbol = metric.symbol if metric.key in paper else ""
        if cell.interval is None:
            table.add_row(metric.key, f"[dim]null: {escape(cell.reason)}[/dim]", "", "", symbol)
            continue
        shown = column(metric.key, [row])
        value = f"{shown.text(row)} {shown.unit}".strip()
        basis = "" if cell.interval.basis == "none" else cell.interval.basis
        table.add_row(metric.key, value, str(cell.interval.n), basis, symbol)
    console.print(table)
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
        interval = "" if line.low is None else f"[{line.low:.3f}, {line.high:.3f}]"
        if line.metric.kind == "quality":
            amount = f"{line.b - line.a:+.4f}"
        else:
            amount = f"x{line.ratio:.3f}"
        why = f"[dim]{escape(line.why)}[/dim]" if line.why else ""
        table.add_row(line.metric.label, amount, escape(interval), line.word, why)
    console.print(table)
    if found.a.case.stage == "generate":
        console.print("No task accuracy measured: do not call this lossless.")


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Plain lines, with nothing in them taken for markup."""
    for line in lines:
        console.print(escape(line))
