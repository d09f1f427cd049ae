"""Power and memory over one trial, as small drawings: what happened when."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from efficientllm.record import Phase, Reading, Record

WIDTH, HEIGHT = 640.0, 90.0
MAX_POINTS = 120
GIB = 2**30


class Drawing(NamedTuple):
    """A titled drawing, or why there is none."""

    title: str
    svg: str
    reason: str = ""


def drawings(record: Record) -> list[Drawing]:
    """Power over time and memory over time."""
    reason = record.notes.get("power") or record.notes.get("nvml") or record.notes.get("rapl")
    memory, column = _first(
        record, ("device_memory", "used_bytes"), ("process_memory", "resident_bytes")
    )
    return [
        _draw(
            "power, W", _find(record, "power"), "power_w", 1.0, record, reason or "no power meter"
        ),
        _draw(
            "memory, GiB"
            if memory is None or memory.meter == "device_memory"
            else "memory of the process, GiB",
            memory,
            column,
            1 / GIB,
            record,
            "memory was not sampled",
        ),
    ]


def _first(record: Record, *wanted: tuple[str, str]) -> tuple[Reading | None, str]:
    for meter, column in wanted:
        found = _find(record, meter)
        if found is not None:
            return found, column
    return None, ""


def _find(record: Record, meter: str) -> Reading | None:
    found = [reading for reading in record.readings if reading.meter == meter and reading.t_ns]
    return max(found, key=lambda reading: len(reading.t_ns), default=None)


def _draw(
    title: str,
    reading: Reading | None,
    column: str,
    factor: float,
    record: Record,
    reason: str,
) -> Drawing:
    if reading is None:
        return Drawing(title, "", reason)
    rows = [
        (t, v * factor)
        for t, v in zip(reading.t_ns, reading.columns[column], strict=True)
        if v is not None
    ]
    if len(rows) < 2 or rows[0][0] == rows[-1][0]:
        return Drawing(title, "", "too few samples")
    rows = _thinned(rows)
    start, end = rows[0][0], rows[-1][0]
    top = max(value for _, value in rows) * 1.1 or 1.0

    def x(t: int) -> float:
        return (t - start) / (end - start) * WIDTH

    points = " ".join(f"{x(t):.1f},{HEIGHT - v / top * HEIGHT:.1f}" for t, v in rows)
    bands = "".join(_band(phase, x, start, end) for phase in record.phases)
    seconds = (end - start) / 1e9
    box = f"0 0 {WIDTH:.0f} {HEIGHT + 16:.0f}"
    return Drawing(
        title,
        f'<svg viewBox="{box}" role="img"><title>{escape(title)}</title>'
        f'{bands}<polyline points="{points}" class="line"/>'
        f'<text x="4" y="11" class="tick">{top / 1.1:.3g}</text>'
        f'<text x="{WIDTH:.0f}" y="{HEIGHT + 13:.0f}" text-anchor="end" class="tick">'
        f"{seconds:.0f} s</text></svg>",
    )


def _band(phase: Phase, x: object, start: int, end: int) -> str:
    """A phase as a labelled stripe behind the line."""
    assert callable(x)
    left, right = max(phase.start_ns, start), min(phase.end_ns, end)
    if right <= left:
        return ""
    a, b = x(left), x(right)
    name = f'<text x="{a + 3:.1f}" y="{HEIGHT + 13:.0f}" class="tick">{escape(phase.name)}</text>'
    return (
        f'<rect x="{a:.1f}" y="0" width="{b - a:.1f}" height="{HEIGHT:.0f}" '
        f'class="band {"steady" if phase.name == "measure" else ""}">'
        f"<title>{escape(phase.name)}</title></rect>{name if b - a > 48 else ''}"
    )


def _thinned(rows: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most MAX_POINTS, keeping the highest of each stretch so that peaks stay visible."""
    if len(rows) <= MAX_POINTS:
        return list(rows)
    size = -(-len(rows) // MAX_POINTS)
    stretches = [rows[i : i + size] for i in range(0, len(rows), size)]
    kept = [max(stretch, key=lambda row: row[1]) for stretch in stretches]
    return [rows[0], *kept[1:-1], rows[-1]]
