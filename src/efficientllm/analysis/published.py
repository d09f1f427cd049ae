"""Which of our rows stand beside which size of the paper's Tables 3 and 4.

The paper's own shapes are the presets at its sizes; ours with 16 heads stand beside the
same sizes and say so. Rows come together that differ in the studied part alone: one
preset, one workload, one machine. What else differs from the paper is stated above them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from efficientllm.analysis.beside import Line, line, other_work, same_step
from efficientllm.analysis.table import Row
from efficientllm.catalog.paper import Quantity, Table, paper
from efficientllm.spec.architecture import GroupedQuery, RotaryPosition
from efficientllm.spec.canonical import Spec, digest
from efficientllm.spec.model import Backbone

MEASURES: tuple[tuple[str, Quantity], ...] = (
    ("amu_gib", "amu"),
    ("peak_allocated_gib", "amu"),
    ("al_s", "al"),
    ("tt_tokens_per_param_s", "tt"),
    ("aec_w", "aec"),
    ("perplexity", "ppl"),
)
"""Our metrics and what they stand beside; a peak has no counterpart but the mean."""

_DEFAULTS: dict[str, Spec] = {"attention": GroupedQuery(), "position": RotaryPosition()}
_CONTROLLED = "-h16"
"""What ends the names of our own shapes at the paper's sizes."""


class Published(NamedTuple):
    """Rows of one shape, work and machine beside one size of one table."""

    table: Table
    size: str
    preset: str
    rows: dict[str, Row]
    conditions: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def first(self) -> Row:
        """A row of it; shape, work and machine are those of all."""
        return next(iter(self.rows.values()))


def beside_the_paper(rows: Iterable[Row]) -> list[Published]:
    """Everything that can be put beside a table: two finished variants at least.

    The paper's own shapes and lengths come first, then tables and sizes in its order.
    """
    known = [row for row in rows if row.case.stage == "pretrain"]
    found = [
        _published(table, size, group)
        for table in paper().tables
        for size in table.sizes
        for group in _groups(table, size, known)
    ]
    return sorted(found, key=lambda p: (p.preset != p.size, not same_step(p.first, p.size)))


def _groups(table: Table, size: str, rows: list[Row]) -> list[dict[str, Row]]:
    """Newest rows by variant, of one preset, workload and machine each."""
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        name = _variant(row, table, size)
        if name:
            key = (_preset(row), digest(row.case.workload), row.point, row.record.machine.name)
            group = groups.setdefault(key, {})
            if name not in group or _worth(row) > _worth(group[name]):
                group[name] = row
    ordered = ({k: group[k] for k in table.names if k in group} for group in groups.values())
    return [g for g in ordered if sum(row.status == "ok" for row in g.values()) > 1]


def _worth(row: Row) -> tuple[bool, bool, str]:
    return row.status == "ok", row.ranked, row.record.started_at


def _preset(row: Row) -> str:
    model = row.case.model
    return model.preset if isinstance(model, Backbone) else ""


def _variant(row: Row, table: Table, size: str) -> str:
    """The table's name for a row's studied part; nothing where anything else was changed."""
    model = row.case.model
    if not isinstance(model, Backbone) or model.preset.removesuffix(_CONTROLLED) != size:
        return ""
    part: Spec = getattr(model, table.axis)
    plain = Backbone(preset=model.preset, tokenizer_sha256=model.tokenizer_sha256)
    plain = plain.model_copy(update={table.axis: part})
    kind = str(getattr(part, "kind"))  # noqa: B009 every arm of the unions has one
    same_kind = type(part) is type(_DEFAULTS[table.axis])
    changed = digest(plain) != digest(model) or (same_kind and part != _DEFAULTS[table.axis])
    return kind if kind in table.names and not changed and not row.case.technique else ""


def _published(table: Table, size: str, rows: dict[str, Row]) -> Published:
    first = next(iter(rows.values()))
    lines = tuple(line(table, size, rows, key, quantity) for key, quantity in MEASURES)
    return Published(table, size, _preset(first), rows, tuple(_conditions(rows, size)), lines)


def _conditions(rows: dict[str, Row], size: str) -> list[str]:
    """What differs from the paper and is allowed to, stated above the numbers."""
    first = next(iter(rows.values()))
    machine, cards = first.record.machine, paper().machine
    found = [
        f"machine: {machine.device_count} x {machine.device} here, {cards.count} x {cards.device}"
        " there"
    ]
    if not same_step(first, size):
        found.append(other_work(first, size, "al"))
    if _preset(first) != size:
        found.append(f"shape: {_preset(first)} here, with 16 query heads; {size} of Qwen2.5 there")
    micro = {str(r.record.resolved["micro_batch"]) for r in rows.values() if _is_split(r)}
    if micro:
        found.append(f"micro-batch: {' and '.join(sorted(micro))} sequences here")
    return found


def _is_split(row: Row) -> bool:
    """Whether a step was done in parts."""
    return row.record.resolved.get("micro_batch") not in (None, row.views[0].point.batch)
