"""What of a text was trained on, in a line: kept, left out for which reason, how often read."""

from __future__ import annotations

from typing import Any

from efficientllm.record import Record

_MB = 1e6


def data_line(record: Record) -> str:
    """How much was left out and how often the rest was gone through; empty if nothing is told."""
    told = record.resolved.get("selection")
    parts = [] if not isinstance(told, dict) else [selection_line(told)]
    if "epochs" in record.resolved:
        parts.append(f"epochs: {record.resolved['epochs']}")
    return "; ".join(parts)


def selection_line(told: dict[str, Any]) -> str:
    """Documents and megabytes before and after, and what went for which reason."""
    kept, read = told["kept"], told["read"]
    line = (
        f"{kept['documents']:,} of {read['documents']:,} documents and {kept['bytes'] / _MB:,.1f}"
        f" of {read['bytes'] / _MB:,.1f} MB trained on"
    )
    dropped = (
        f"{reason} {what['documents']:,} ({what['bytes'] / _MB:,.1f} MB)"
        for reason, what in told["dropped"].items()
    )
    return ", left out: ".join(filter(None, (line, ", ".join(dropped))))
