"""What the sampler left in a trial's folder, as series and notes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from efficientllm.meters import READINGS
from efficientllm.record import Reading


def read_readings(folder: Path) -> list[Reading]:
    """The sampler's file as series; a last line cut short is left out."""
    heads: dict[int, dict[str, Any]] = {}
    rows: dict[int, list[list[Any]]] = {}
    for value in _lines(folder / READINGS):
        if isinstance(value, dict) and "index" in value:
            heads[value["index"]] = value
            rows[value["index"]] = []
        elif isinstance(value, list) and value and value[0] in rows:
            rows[value[0]].append(value[1:])
    series = []
    for index, head in heads.items():
        width = 1 + len(head["columns"])
        whole = [row for row in rows[index] if len(row) == width]
        columns = {
            name: tuple(row[i] for row in whole) for i, name in enumerate(head["columns"], 1)
        }
        series.append(
            Reading(
                meter=head["meter"],
                device=head["device"],
                scope=head["scope"],
                t_ns=tuple(row[0] for row in whole),
                columns=columns,
            )
        )
    return series


def read_notes(folder: Path, *, alive: bool) -> dict[str, str]:
    """Why meters are missing; `alive` says whether the sampler lived until it was stopped."""
    notes = {
        value["note"]: value["reason"]
        for value in _lines(folder / READINGS)
        if isinstance(value, dict) and "note" in value and value["note"] != "sampler"
    }
    if not alive:
        notes["sampler"] = (
            f"the sampler ended before the trial did ({last_line(folder / 'sampler.stderr')})"
        )
    return notes


def _lines(path: Path) -> Iterator[Any]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for line in content.split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue


def last_line(path: Path) -> str:
    """The last line of a text file, or nothing."""
    try:
        lines = path.read_text("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def is_steady(readings: list[Reading], start_ns: int, end_ns: int) -> bool:
    """Whether a board drew as much in both halves, within 5 %; False where it was not sampled."""
    middle = (start_ns + end_ns) // 2
    first = mean_power(readings, start_ns, middle)
    second = mean_power(readings, middle, end_ns)
    if first is None or second is None:
        return False
    return abs(first - second) <= 0.05 * max(first, second)


def mean_power(readings: Iterable[Reading], start_ns: int, end_ns: int) -> float | None:
    """Mean of the instant power (W) between two moments; None where it was not sampled."""
    watts = [
        w
        for series in readings
        if series.meter == "power"
        for t, w in zip(series.t_ns, series.columns["power_w"], strict=True)
        if start_ns <= t <= end_ns and w is not None
    ]
    return sum(watts) / len(watts) if watts else None
