"""Made-up records of the architecture studies: times from a known formula, noise by round.

Nothing here was measured. A decode step takes a fixed time and reads its cache; a token of
training takes a fixed time and one that grows with the length. So crossings and ratios are
known by hand, and every kind of ending is there: mha runs out of memory, nsa passes gqa.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from efficientllm import record as r
from efficientllm.catalog.backbone import backbone_shape
from efficientllm.cost import cache_bytes
from efficientllm.parameters import parameters
from efficientllm.spec.case import Case, Point
from efficientllm.spec.model import Backbone
from tests import samples

VARIANTS = ("mha", "gqa", "mqa", "sliding", "mla", "nsa")
NOISE = (0.0, 0.002, -0.002)
"""What a round adds to the times of it, as a share; which of them, a variant decides."""

DECODE_S = {"nsa": 0.026, "mla": 0.022}
"""Seconds of a decode step without any cache; 0.020 for the others."""

READ_S = {"mha": 16.0, "gqa": 4.0, "mqa": 1.0, "sliding": 0.2, "mla": 1.6, "nsa": 0.3}
"""Nanoseconds that a cached token of one sequence adds to a decode step."""

TRAIN_NS = {"mha": 1.00, "gqa": 0.97, "mqa": 0.96, "sliding": 0.7, "mla": 1.1, "nsa": 0.55}
"""Nanoseconds that a token of the length adds to each trained token, times 4."""

BITS = {"mha": 1.500, "gqa": 1.505, "mqa": 1.530, "sliding": 1.540, "mla": 1.496, "nsa": 1.515}
SEED_BITS = (0.000, 0.004, -0.003)
"""What a seed does to every variant alike; `_SCATTER` is what it does to one alone."""
_SCATTER = (0.0, 0.0006, -0.0005)

MODEL = "30M-h16"
BIG = 30 << 30
"""Bytes of cache from which the made-up card runs out of memory."""


def noise(attention: str, round_: int) -> float:
    """By how much all times of one trial are too long or too short, as a factor."""
    return 1 + NOISE[(round_ + VARIANTS.index(attention)) % 3]


def model(attention: str = "gqa", position: str = "rope", preset: str = MODEL) -> dict[str, Any]:
    """The backbone with its studied parts, as a case writes it."""
    return {"kind": "backbone", "preset": preset, "attention": attention, "position": position}


def built(of: Case) -> r.Build:
    """The facts of the backbone that a case names, held in bf16."""
    assert isinstance(of.model, Backbone)
    shape = backbone_shape(of.model)
    total = parameters(shape).total
    table = 2 * shape.vocab * shape.hidden
    return samples.build(
        weights="random",
        total_params=total,
        trainable_params=total,
        active_params=total,
        bytes_by_kind={"embedding": table, "other": 2 * total - table},
        dtypes={"bf16": total},
        shape=shape.model_dump(exclude={"sources", "note"}),
        reference_bytes=2 * total,
    )


def tpot(attention: str, batch: int, context: int) -> float:
    """Seconds of a decode step: a fixed part and the cache of all sequences."""
    fixed = DECODE_S.get(attention, 0.020)
    return fixed + READ_S[attention] * 1e-9 * batch * context


def decode_point(of: Case, point: Point, times: float) -> r.PointResult:
    """One point of a generate case, or its end for want of memory."""
    assert isinstance(of.model, Backbone)
    batch, context = point
    held = batch * cache_bytes(backbone_shape(of.model), -(-(context + 128) // 64) * 64)
    fields = {"point_id": of.point_id(point), "batch": batch, "context": context}
    if held > BIG:
        reason = f"the cache takes {held / 2**30:.0f} GiB"
        return r.PointResult(**fields, outcome=r.Outcome(status="out_of_memory", reason=reason))
    step = tpot(of.model.attention.kind, batch, context) * times
    first = 0.05 * times * batch * context / 4096
    units = math.ceil(10.5 / step)
    prefills = max(30, math.ceil(10.5 / first))
    decoded = {
        "tokens": float(units * batch),
        "cache_reads": float(units * batch * (context + 64)),
    }
    prompt = {"prompt_tokens": float(prefills * batch * context), "tokens": float(prefills * batch)}
    windows = (
        samples.window("prefill", units=prefills, unit_s=first, start_s=5, counts=prompt),
        samples.window("decode", units=units, unit_s=step, start_s=30, counts=decoded),
    )
    memory = {"peak_allocated": (4 << 30) + held, "host_peak_rss": 1 << 30}
    return r.PointResult(**fields, windows=windows, holdings={"kv_cache": held}, memory=memory)


def generate(
    attention: str,
    round_: int = 0,
    contexts: tuple[int, ...] = (4096, 16384, 65536),
    **changes: Any,
) -> r.Record:
    """One trial of all points of a variant."""
    points = {"batch": [1, 32], "context": list(contexts)}
    of = samples.case(
        name=f"decode-{attention}",
        model=model(attention),
        workload={"kind": "generate", "points": points},
    )
    results = tuple(decode_point(of, point, noise(attention, round_)) for point in of.points)
    return samples.record(
        of, points=results, round_=round_, build=built(of), scores=None, readings=(), **changes
    )


def pretrain(
    attention: str,
    length: int,
    round_: int = 0,
    preset: str = MODEL,
    compute: str = "bf16",
    position: str = "rope",
    **changes: Any,
) -> r.Record:
    """One trial of a training without a budget: 32,768 tokens a step at every length."""
    batch = 32768 // length
    of = samples.pretrain(
        name=f"train-{length}-{attention}" + (f"-{position}" if position != "rope" else ""),
        model=model(attention, position, preset),
        workload={
            "kind": "pretrain",
            "sequence_length": length,
            "batch": batch,
            "precision": {"compute": compute},
        },
    )
    unit_s = 32768 * 1e-9 * (9000 + TRAIN_NS[attention] * length / 4) * noise(attention, round_)
    window = samples.training_window(batch, length, unit_s=unit_s, units=36)
    quality = {"quality": "NOT_TRAINED: the case declares no steps or tokens"}
    return samples.record(
        of, windows=[window], round_=round_, build=built(of), scores=None, notes=quality, **changes
    )


def scores(bits: float) -> r.Scores:
    return samples.scores(bits)


def trained(
    attention: str = "gqa",
    seed: int = 0,
    *,
    position: str = "rope",
    lr: float = 2e-3,
    bits: float | None = None,
    precision: dict[str, str] | None = None,
    **changes: Any,
) -> r.Record:
    """One seed of a small training with a curve of six scorings."""
    of = samples.pretrain(
        name=f"learn-{attention}-{position}-{lr:g}",
        model=model(attention, position),
        workload={
            "kind": "pretrain",
            "sequence_length": 1024,
            "batch": 64,
            "steps": 192,
            "optimizer": {"lr": lr},
            "precision": precision or {},
        },
        quality={"curve": 6},
    )
    own = _SCATTER[(seed + VARIANTS.index(attention)) % 3]
    end = BITS[attention] + SEED_BITS[seed] + own if bits is None else bits
    unit_s = 65536 * 1e-9 * (9000 + TRAIN_NS[attention] * 1024 / 4)
    fields: dict[str, Any] = {
        "windows": [samples.training_window(64, 1024, unit_s=unit_s, units=36)],
        "scores": scores(end),
        "curve": tuple(curve(end)),
        "build": built(of),
        "readings": (samples.counter(500.0),),
    }
    return samples.record(of, round_=seed, **fields | changes)


def curve(end: float) -> Iterable[r.CurvePoint]:
    """Six scorings of 20,000 bytes that come down to the end's bits."""
    for i in range(1, 7):
        bits = end + 0.6 * (1 / i - 1 / 6)
        yield r.CurvePoint(
            step=32 * i, tokens=32.0 * i * 65536, nll=bits * math.log(2) * 20000, bytes=20000
        )


def attention_suite(rounds: int = 3, variants: tuple[str, ...] = VARIANTS) -> list[r.Record]:
    """Decode and training of every variant, a round after the other."""
    made = [
        record
        for i in range(rounds)
        for name in variants
        for record in (*(pretrain(name, n, i) for n in (4096, 16384)), generate(name, i))
    ]
    return [in_suite(record, "attention", n) for n, record in enumerate(made)]


def learning_suite(seeds: int = 3, variants: tuple[str, ...] = VARIANTS) -> list[r.Record]:
    """Small trainings of every variant from the same seeds."""
    made = [trained(name, i) for i in range(seeds) for name in variants]
    return [in_suite(record, "attention-small", n) for n, record in enumerate(made)]


def in_suite(record: r.Record, suite: str, n: int) -> r.Record:
    """The record as the n-th of a suite's run."""
    moment = f"2026-01-0{2 if suite == 'attention' else 1}T{n // 60:02}:{n % 60:02}:00+00:00"
    trial = record.trial.model_copy(update={"suite": suite})
    return record.model_copy(update={"trial": trial, "started_at": moment})
