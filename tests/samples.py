"""Sample records: made by hand, of a machine that does not exist, with answers known by hand.

`record` gives one finished trial; keyword arguments replace what a test is about. Times lie
on a made-up monotonic clock that starts at one second.
"""

from __future__ import annotations

from typing import Any

from efficientllm import record as r
from efficientllm.catalog.backbone import backbone_shape
from efficientllm.parameters import parameters
from efficientllm.plan import env_id
from efficientllm.spec.case import Case
from efficientllm.spec.model import Backbone

SECOND = 1_000_000_000
START_NS = SECOND

MACHINE = r.Machine(
    name="nvidia-h200-140g-700w-test-cpu-16-cores",
    device="NVIDIA H200",
    device_kind="cuda",
    device_count=1,
    device_memory_bytes=150_000_000_000,
    power_limit_w=700.0,
    cpu="Test CPU",
    cpu_cores=16,
    memory_bytes=128 << 30,
    card="0123456789ab",
)
CPU_MACHINE = MACHINE.model_copy(
    update={
        "name": "cpu-test-cpu-16-cores-128g",
        "device": "Test CPU",
        "device_kind": "cpu",
        "device_memory_bytes": 128 << 30,
        "power_limit_w": None,
    }
)
SOFTWARE = {"python": "3.12.3", "torch": "2.11.0", "driver": "580.1", "efficientllm": "0.1.0"}


def case(**changes: Any) -> Case:
    """A small generate case; keyword arguments replace its parts."""
    value: dict[str, Any] = {
        "name": "generate-bf16",
        "model": "backbone-tiny",
        "technique": "bf16",
        "workload": {"kind": "generate", "points": {"batch": [1], "context": [1024]}},
    }
    return Case.model_validate(value | changes)


def pretrain(**changes: Any) -> Case:
    """A small pretrain case without a budget."""
    value: dict[str, Any] = {
        "name": "pretrain-gqa",
        "model": "backbone-tiny",
        "workload": {"kind": "pretrain", "sequence_length": 1024, "batch": 4},
    }
    return Case.model_validate(value | changes)


def window(
    name: str,
    *,
    units: int = 100,
    unit_s: float = 0.1,
    start_s: float = 10.0,
    counts: dict[str, float] | None = None,
    **changes: Any,
) -> r.Window:
    """A steady window of equal units."""
    start = START_NS + round(start_s * SECOND)
    fields: dict[str, Any] = {
        "name": name,
        "start_ns": start,
        "end_ns": start + round(units * unit_s * SECOND),
        "unit_s": (unit_s,) * units,
        "counts": counts or {"tokens": float(units)},
        "first_call_s": unit_s * 5,
        "warmup_units": 10,
        "warmup_s": unit_s * 10,
        "converged": True,
    }
    return r.Window(**fields | changes)


def generate_windows(batch: int = 1, context: int = 1024, tpot: float = 0.01) -> list[r.Window]:
    """Prefill, decode and request windows of ten seconds that agree with each other."""
    decode_units = round(10 / tpot)
    mean_visible = context + 64
    return [
        window(
            "prefill",
            units=100,
            unit_s=0.1,
            start_s=10,
            counts={"prompt_tokens": 100.0 * batch * context, "tokens": 100.0 * batch},
        ),
        window(
            "decode",
            units=decode_units,
            unit_s=tpot,
            start_s=30,
            counts={
                "tokens": float(decode_units * batch),
                "cache_reads": float(decode_units * batch * mean_visible),
            },
        ),
        window(
            "request",
            units=5,
            unit_s=0.1 + 127 * tpot,
            start_s=50,
            counts={"tokens": 5.0 * 128 * batch, "requests": 5.0 * batch},
        ),
    ]


def training_window(
    batch: int = 4, length: int = 1024, *, unit_s: float = 0.1, units: int = 100
) -> r.Window:
    """A steady window of training steps on whole rows."""
    return window(
        "step",
        units=units,
        unit_s=unit_s,
        counts={
            "tokens": float(units * batch * length),
            "loss_tokens": float(units * batch * length),
            "positions": float(units * batch * length),
            "samples": float(units * batch),
            "pairs": units * batch * length * (length + 1) / 2,
            "square_pairs": float(units * batch * length**2),
        },
    )


def build(weights: str = "trained", **changes: Any) -> r.Build:
    """The facts of a tiny backbone held in bf16."""
    shape = backbone_shape(Backbone(preset="tiny"))
    total = parameters(shape).total
    fields: dict[str, Any] = {
        "total_params": total,
        "trainable_params": 0,
        "active_params": total,
        "bytes_by_kind": {"embedding": 2 * shape.vocab * shape.hidden, "other": 0},
        "dtypes": {"bf16": total},
        "weights": weights,
        "shape": shape.model_dump(exclude={"sources", "note"}),
        "reference_bytes": 2 * total,
    }
    fields["bytes_by_kind"]["other"] = 2 * total - fields["bytes_by_kind"]["embedding"]
    return r.Build(**fields | changes)


def counter(
    watts: float = 500.0, *, period_s: float = 0.1, seconds: float = 80.0, **changes: Any
) -> r.Reading:
    """An energy counter under constant power, noted at each of its steps."""
    steps = round(seconds / period_s)
    times = tuple(START_NS + round(i * period_s * SECOND) for i in range(steps + 1))
    joules = tuple(1e6 + watts * i * period_s for i in range(steps + 1))
    fields: dict[str, Any] = {
        "meter": "energy",
        "device": "gpu",
        "scope": "board",
        "t_ns": times,
        "columns": {"energy_j": joules},
    }
    return r.Reading(**fields | changes)


def power(watts: float = 500.0, *, period_s: float = 0.05, seconds: float = 80.0) -> r.Reading:
    """Instant power, constant."""
    steps = round(seconds / period_s)
    return r.Reading(
        meter="power",
        device="gpu",
        scope="board",
        t_ns=tuple(START_NS + round(i * period_s * SECOND) for i in range(steps + 1)),
        columns={"power_w": (watts,) * (steps + 1)},
    )


def scores(bits_per_byte: float = 1.0, documents: int = 20) -> r.Scores:
    """Held-out documents of 1,000 bytes that each cost the same."""
    import math

    return r.Scores(
        nll=(bits_per_byte * math.log(2) * 1000,) * documents,
        tokens=(250,) * documents,
        bytes=(1000,) * documents,
        text_sha256="a" * 64,
        source="sample text, held out",
    )


def record(
    of: Case | None = None,
    *,
    windows: list[r.Window] | None = None,
    round_: int = 0,
    attempt: int = 0,
    outcome: r.Outcome | None = None,
    machine: r.Machine = MACHINE,
    **changes: Any,
) -> r.Record:
    """One finished trial of a case."""
    of = of or case()
    point = of.points[0]
    if windows is None:
        generating = of.stage == "generate"
        windows = generate_windows(*point) if generating else [training_window(*point)]
    result = r.PointResult(
        point_id=of.point_id(point),
        batch=point.batch,
        context=point.context,
        windows=tuple(windows),
        holdings={"kv_cache": 2 * 4 * 2 * 32 * 1152 * 2} if of.stage == "generate" else {},
        memory={"peak_allocated": 2 << 30, "peak_reserved": 3 << 30, "host_peak_rss": 1 << 30},
    )
    resolved: dict[str, Any] = {"device": "cuda", "activations": "bf16"}
    fields: dict[str, Any] = {
        "trial": r.Trial(
            suite="sample",
            name=of.name,
            case_id=of.case_id,
            round=round_,
            attempt=attempt,
            seed=round_,
        ),
        "case": of.model_dump(mode="json"),
        "protocol": {"profile": "standard", "trials": None},
        "outcome": outcome or r.Outcome(),
        "started_at": f"2026-01-01T00:0{round_}:00+00:00",
        "seconds": 100.0,
        "machine": machine,
        "software": SOFTWARE,
        "resolved": resolved,
        "env_id": env_id(machine, SOFTWARE, resolved),
        "build": build(),
        "points": (result,) if outcome is None or outcome.status == "ok" else (),
        "scores": scores(),
        "phases": (
            r.Phase(name="load", start_ns=START_NS, end_ns=START_NS + 5 * SECOND),
            r.Phase(name="measure", start_ns=START_NS + 5 * SECOND, end_ns=START_NS + 60 * SECOND),
        ),
        "readings": (counter(), power()) if machine.device_kind == "cuda" else (),
    }
    return r.Record(**fields | changes)
