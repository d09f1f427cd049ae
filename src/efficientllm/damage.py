"""Damage: why a record that loads still cannot be used.

A record keeps its case, its protocol and the shape of its model as plain JSON, so that a
later version can load what an earlier one wrote. Whether *this* version understands them
is asked once, where records are read; formulas may then rely on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError

from efficientllm.catalog.peaks import Peak
from efficientllm.catalog.shape import Shape
from efficientllm.record import Record
from efficientllm.seal import first_problem
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import Protocol

COLUMNS = {
    "energy": {"energy_j"},
    "rapl": {"energy_j"},
    "power": {"power_w"},
    "device_memory": {"used_bytes"},
    "process_memory": {"resident_bytes"},
    "host_load": {"others_cpus"},
    "gpm": {"sm_active", "tensor_active", "dram_active"},
    "clocks": {"sm_mhz", "temperature_c", "reasons", "busy_share"},
}
"""What formulas read of each meter's series."""


def damage(record: Record) -> str:
    """The first reason why a record cannot be used, on one line; empty for a sound one."""
    return next(_damages(record), "")


def _damages(record: Record) -> Iterator[str]:
    shape = record.build.shape if record.build else None
    parts: tuple[tuple[str, type[BaseModel], dict[str, Any] | None], ...] = (
        ("case", Case, record.case),
        ("protocol", Protocol, record.protocol),
        ("shape", Shape, shape),
        ("declared peak", Peak, record.declared_peak),
    )
    for name, kind, value in parts:
        problem = "" if value is None else _problem(kind, json.dumps(value, sort_keys=True))
        if problem:
            yield f"its {name} cannot be read by this version: {problem}"
    idle = record.resolved.get("idle_power_w", 0.0)
    if isinstance(idle, bool) or not isinstance(idle, int | float) or not 0 <= idle < math.inf:
        yield "its idle power is no number of watts"
    for reading in record.readings:
        missing = COLUMNS.get(reading.meter, set()) - reading.columns.keys()
        if reading.t_ns and missing:
            yield f"readings of {reading.meter}: no column {', '.join(sorted(missing))}"


@lru_cache(maxsize=4096)
def _problem(kind: type[BaseModel], text: str) -> str:
    """What is wrong with one part; records of a suite share theirs, so it is remembered."""
    value = json.loads(text)
    try:
        read = kind.model_validate(value)
    except ValidationError as error:
        return first_problem(error)
    if isinstance(read, Case) and not _written_out(value):
        return "it is not written out"
    return "no profile" if isinstance(read, Protocol) and "profile" not in value else ""


def _written_out(case: dict[str, Any]) -> bool:
    """Whether all that is read without a Case stands there, and not in a suite's short form."""
    model, workload = case["model"], case["workload"]
    if not isinstance(model, dict) or not isinstance(workload, dict):
        return False
    if isinstance(workload.get("tokens"), str):  # `20x` is settled before a case runs
        return False
    return "kind" in workload and ("new_tokens" in workload or workload["kind"] != "generate")
