"""What the page's buttons give: tables of what it is about, and the newest raw record."""

from __future__ import annotations

from efficientllm.analysis.table import Row
from efficientllm.record import Record
from efficientllm.report.export import exports
from efficientllm.report.public import public_record
from efficientllm.report.section import Studies

MAX_ROWS = 60
MAX_RAW_BYTES = 600_000


def downloads(main: list[Row], found: Studies | None, newest: Record) -> dict[str, str]:
    """Texts by form: csv, md, latex and raw (without samples where they would be too many)."""
    rows = _chosen(main, found)
    forms = exports(rows, ("csv", "md", "latex")) if rows else {}
    texts = {form: text.decode() for form, text in forms.items()}
    raw = public_record(newest).model_dump_json()
    if len(raw) > MAX_RAW_BYTES:
        readings = [r.model_copy(update={"t_ns": (), "columns": {}}) for r in newest.readings]
        bare = newest.model_copy(update={"readings": tuple(readings)})
        raw = public_record(bare).model_dump_json()
    return texts | {"raw": raw}


def _chosen(main: list[Row], found: Studies | None) -> list[Row]:
    """As many rows as fit, in their order: the study of the first screen, then the newest."""
    first = found.sections[0].matrix.study.rows() if found else []
    told = {id(row) for row in first}
    kept = {id(row) for row in sorted(main, key=lambda row: id(row) in told)[-MAX_ROWS:]}
    return [row for row in main if id(row) in kept]
