"""What stands behind every number of a row: all metrics, and what its trials settled and saw."""

from __future__ import annotations

from typing import NamedTuple

from efficientllm.analysis.table import Cell, Row
from efficientllm.metrics.energy import energy_scope
from efficientllm.record import Record
from efficientllm.report import timeline
from efficientllm.report.columns import Column, all_metrics, column
from efficientllm.report.selection import data_line
from efficientllm.report.text import unit_percentiles


def anchor(row: Row) -> str:
    """The name of a row's details on the page; letters, digits and dashes only."""
    point = row.views[0].point
    parts = (row.record.trial.case_id[:12], row.record.env_id[:6], point.batch, point.context)
    return "r-" + "-".join(str(part) for part in parts)


class Detail(NamedTuple):
    """Everything about a row, opened from any of its numbers."""

    row: Row
    anchor: str
    metrics: tuple[tuple[Column, Cell], ...]
    drawings: tuple[timeline.Drawing, ...]
    facts: tuple[tuple[str, str], ...]


def detail(row: Row, *, drawn: bool) -> Detail:
    """A row's details, with or without drawings of what happened in its newest trial."""
    record = row.record
    metrics = tuple(
        (column(metric.key, [row]), row.cell(metric.key)) for metric in all_metrics(row.case.stage)
    )
    captured = row.views[-1].point.captured  # older records told it of steps alone, in `graph`
    facts = [
        ("case", record.trial.case_id),
        ("environment", record.env_id),
        ("machine", record.machine.name),
        ("started", record.started_at),
        ("energy of", energy_scope(row.views[-1]) or "nothing that could be read"),
        *(("units", line) for line in unit_percentiles(row)),
        ("trials", ", ".join(_trial(view.record) for view in row.views)),
        *((("in one CUDA graph", ", ".join(captured)),) if captured else ()),
        *sorted((k, str(v)) for k, v in record.resolved.items() if k != "selection"),
        *(("data", line) for line in (data_line(record),) if line),
        ("versions", ", ".join(f"{k} {v}" for k, v in sorted(record.software.items()))),
        *sorted((f"note on {k}", v) for k, v in record.notes.items()),
    ]
    if (build := record.build) is not None:
        for reach in build.reach:
            share = reach.parameters / build.total_params
            facts.append((f"reach of {reach.technique}", f"{share:.1%} of the parameters"))
    drawings = tuple(timeline.drawings(record)) if record.phases and drawn else ()
    return Detail(row, anchor(row), metrics, drawings, tuple(facts))


def _trial(record: Record) -> str:
    return f"{record.key} {record.outcome.status} {record.seconds:.0f} s"
