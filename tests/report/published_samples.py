"""Trials of the paper's shapes with answers known by hand."""

from __future__ import annotations

from typing import Any

from efficientllm import record as r
from tests import samples

GIB = 2**30


def trial(
    attention: str | dict[str, Any] = "gqa",
    position: str = "rope",
    *,
    preset: str = "1.5B",
    step: tuple[int, int] = (2, 8192),
    seconds: float = 0.1,
    gib: float = 40.0,
    watts: float = 500.0,
    workload: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    technique: str | None = None,
    **changes: Any,
) -> r.Record:
    """One trial of a variant: so many seconds a step, GiB in use and watts, all constant."""
    batch, length = step
    case = samples.pretrain(
        name=f"pretrain-{preset}-{attention if isinstance(attention, str) else 'set'}-{position}",
        model={
            "kind": "backbone",
            "preset": preset,
            "attention": attention,
            "position": position,
            **(model or {}),
        },
        workload={
            "kind": "pretrain",
            "sequence_length": length,
            "batch": batch,
            **(workload or {}),
        },
        technique=technique,
    )
    window = samples.training_window(batch, length, unit_s=seconds)
    fields: dict[str, Any] = {
        "windows": [window],
        "scores": None,
        "notes": {"quality": "NOT_TRAINED: no budget"},
        "readings": (memory(gib), samples.counter(watts), samples.power(watts)),
    }
    return samples.record(case, **fields | changes)


def memory(gib: float) -> r.Reading:
    """Device memory in use, constant."""
    times = tuple(samples.START_NS + round(i * 0.5 * samples.SECOND) for i in range(161))
    return r.Reading(
        meter="device_memory",
        device="gpu",
        scope="board",
        t_ns=times,
        columns={"used_bytes": (gib * GIB,) * len(times)},
    )


def attention(seconds: tuple[float, float, float, float], **changes: Any) -> list[r.Record]:
    """The four variants of Table 3 in its order: MQA, GQA, MLA, NSA."""
    kinds = ("mqa", "gqa", "mla", "nsa")
    return [trial(k, seconds=s, **changes) for k, s in zip(kinds, seconds, strict=True)]
