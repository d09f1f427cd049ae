"""Exports: the same rows as JSON lines, CSV, Parquet, Markdown and LaTeX.

Keys are the metric keys. Tables for papers carry value ± half-width, n, flags as
footnotes and a sentence on the method. Nothing exported names a host, a user, a path or a
serial number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable
from typing import Any

from efficientllm.analysis.study import size, studies, trainings, variant
from efficientllm.analysis.table import Row
from efficientllm.analysis.work import training_precision
from efficientllm.metrics import BY_KEY, METRICS
from efficientllm.metrics.energy import energy_scope
from efficientllm.record import Record
from efficientllm.report.columns import (
    DAGGER,
    DAGGER_TOLD,
    STAGE_TITLES,
    STAGES,
    first_columns,
    unnamed,
)
from efficientllm.report.differing import told
from efficientllm.report.public import public_record as public_record
from efficientllm.report.public import public_rows

FORMATS = ("jsonl", "csv", "parquet", "md", "latex")


def flat(row: Row) -> dict[str, Any]:
    """One row as plain values: identity, conditions, metrics with bounds and reasons."""
    record = row.record
    values: dict[str, Any] = {
        "suite": record.trial.suite,
        "case": row.name,
        "stage": row.case.stage,
        "technique": row.case.technique_label,
        "size": size(row.case),
        "variant": variant(row.case),
        "precision": training_precision(row),
        "batch": row.views[0].point.batch,
        "context": row.views[0].point.context,
        "status": row.status,
        "reason": row.reason,
        "trials": len(row.views),
        "protocol": record.protocol["profile"],
        "weights": ("random" if row.cost_only else "trained") if record.build else None,
        "machine": record.machine.name,
        "case_id": record.trial.case_id,
        "env_id": record.env_id,
        "energy_scope": energy_scope(row.views[-1]),
        "flags": " ".join(flag.code for flag in row.flags),
        "invalid": " ".join(key for key in BY_KEY if row.cell(key).invalid),
        "ranked": row.ranked,
    }
    for metric in METRICS:
        cell = row.cell(metric.key)
        interval = cell.interval
        values[metric.key] = interval.value if interval else None
        values[f"{metric.key}_low"] = interval.low if interval else None
        values[f"{metric.key}_high"] = interval.high if interval else None
        values[f"{metric.key}_basis"] = interval.basis if interval else None
        values[f"{metric.key}_why_null"] = None if interval else cell.reason
    return values


def export(rows: list[Row], form: str, along: Collection[Record] = ()) -> bytes:
    """The rows in a format; ValueError for one that does not exist, or without rows.

    Whole records take others `along`: what `doctor` measured, because the rows' `roofline_share`
    is divided by it, and what a suite had measured before another did so again.
    """
    return exports(rows, (form,), along)[form]


def exports(
    rows: list[Row], forms: Iterable[str], along: Collection[Record] = ()
) -> dict[str, bytes]:
    """The rows in several formats, as `export` gives each."""
    if not rows:
        raise ValueError("there are no records to export")
    public = public_rows(rows)
    return {form: _written(public, form, along) for form in forms}


def _written(rows: list[Row], form: str, along: Collection[Record]) -> bytes:
    match form:
        case "jsonl":
            return _jsonl(rows, along)
        case "csv":
            return _csv(rows)
        case "parquet":
            return _parquet(rows)
        case "md":
            return markdown(rows).encode()
        case "latex":
            return latex(rows).encode()
        case _:
            raise ValueError(f"no format is called {form!r}; there is {', '.join(FORMATS)}")


def _jsonl(rows: list[Row], along: Iterable[Record]) -> bytes:
    """Whole public records, one a line: with raw samples; what goes along, of the same machines."""
    machines = {row.record.machine.name for row in rows}
    records = {id(r): public_record(r) for r in along if r.machine.name in machines}
    records |= {id(view.record): view.record for row in rows for view in row.views}
    return b"".join(record.model_dump_json().encode() + b"\n" for record in records.values())


def _csv(rows: list[Row]) -> bytes:
    table = [flat(row) for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _harmless(v) for k, v in row.items()} for row in table)
    return out.getvalue().encode()


def _harmless(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula is quoted."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value


def _parquet(rows: list[Row]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([flat(row) for row in rows]), out)
    return out.getvalue()


def methods_sentence(rows: list[Row]) -> str:
    """How the numbers were made, for a paper's caption."""
    machines = sorted({row.record.machine.device for row in rows})
    profiles = sorted({str(row.record.protocol["profile"]) for row in rows})
    low, high = (f(len(row.views) for row in rows) for f in (min, max))
    trials = f"{low}" if low == high else f"{low} to {high}"
    versions = rows[0].record.software
    return (
        f"Measured with EfficientLLM {versions.get('efficientllm', '?')} on {', '.join(machines)}"
        f" (torch {versions.get('torch', '?')}), protocol {'/'.join(profiles)}, {trials} trial(s) a"
        " row, each in a process of its own; ± is half of a 95 % interval (within the run where"
        " there are fewer than three trials; there over held-out documents for bits per byte)."
    )


class _Footnotes:
    """Numbers each distinct flag once."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def marks(self, row: Row) -> list[int]:
        found = []
        for flag in row.flags:
            text = f"{flag.code}: {flag.text}"
            if text not in self.texts:
                self.texts.append(text)
            found.append(self.texts.index(text) + 1)
        return sorted(found)


def markdown(rows: list[Row]) -> str:
    """Tables by stage, footnotes, the methods sentence."""
    notes, parts = _Footnotes(), []
    for stage in STAGES:
        chosen = [row for row in rows if row.case.stage == stage]
        if not chosen:
            continue
        words, columns = unnamed(chosen), first_columns(stage, chosen)
        said = ["case", *(word.heading for word in words), "point"]
        numbers = ["n", *(column.heading for column in columns)]
        lines = [f"### {STAGE_TITLES[stage]}", "", _md_row([*said, *numbers])]
        lines.append(_md_row([*["---"] * len(said), *["---:"] * len(numbers)]))
        for row in chosen:
            marks = "".join(f"<sup>{n}</sup>" for n in notes.marks(row))
            name = _md_text(row.label) + (" (random weights, cost only)" if row.cost_only else "")
            if row.status != "ok":
                name += f" ({row.status})"
            cells = [column.marked(row) if row.status == "ok" else "-" for column in columns]
            told = [_md_text(word.of(row)) for word in words]
            lines.append(_md_row([name + marks, *told, row.point, str(len(row.views)), *cells]))
        parts.append("\n".join(lines))
    parts += _differences(rows)
    foot = [f"{i}. {_md_text(text)}" for i, text in enumerate(notes.texts, 1)]
    told = [DAGGER_TOLD] if any(DAGGER in part for part in parts) else []
    foots = ["\n".join(foot)] if foot else []
    return "\n\n".join([*parts, *foots, *told, methods_sentence(rows)]) + "\n"


def _differences(rows: list[Row]) -> list[str]:
    """Which differences in quality between trained variants are real, a table a study."""
    parts, several = [], len({row.record.machine.name for row in rows}) > 1
    for study in studies(rows):
        found = trainings(study).differences
        where = f", {_md_text(study.machine.device)}" if several else ""
        if found:
            heads = ["variant", "against", "seeds", "bits per byte", "p (Holm)", "verdict"]
            lines = [
                f"### Differences in quality: {study.axis} at {_md_text(study.size)}{where}",
                "",
                _md_row(heads),
                _md_row(["---", "---", *["---:"] * 3, "---"]),
                *(_md_row([_md_text(text) for text in told(x)]) for x in found),
            ]
            parts.append("\n".join(lines))
    return parts


def _md_row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _md_text(text: str) -> str:
    for character in "\\`*_{}[]<>|#!":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    DAGGER: r"$^\dagger$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in " ".join(text.split()))


def latex(rows: list[Row]) -> str:
    """One `table` environment a stage, booktabs style."""
    parts = []
    for stage in STAGES:
        chosen = [row for row in rows if row.case.stage == stage]
        if chosen:
            parts.append(_latex_stage(stage, chosen))
    return "\n".join(parts)


def _latex_stage(stage: str, rows: list[Row]) -> str:
    notes, words, columns = _Footnotes(), unnamed(rows), first_columns(stage, rows)
    said = ["case", *(word.heading for word in words), "point"]
    numbers = ["$n$", *(_tex(column.heading) for column in columns)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{{'l' * len(said)}{'r' * len(numbers)}}}",
        r"\toprule",
        " & ".join([*said, *numbers]) + r" \\",
        r"\midrule",
    ]
    for row in rows:
        marks = ",".join(str(n) for n in notes.marks(row))
        ended = "" if row.status == "ok" else f" ({row.status})"
        name = _tex(row.label + ended) + (rf"\textsuperscript{{{marks}}}" if marks else "")
        cells = [_tex(c.marked(row)) if row.status == "ok" else "--" for c in columns]
        told = [_tex(word.of(row)) for word in words]
        lines.append(" & ".join([name, *told, row.point, str(len(row.views)), *cells]) + r" \\")
    caption = f"{STAGE_TITLES[stage]}. {_tex(methods_sentence(rows))}"
    foot = " ".join(rf"\textsuperscript{{{i}}}{_tex(t)}." for i, t in enumerate(notes.texts, 1))
    if any(r"\dagger" in line for line in lines):
        foot += f" {_tex(DAGGER_TOLD)}"
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{caption} {foot}}}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)
