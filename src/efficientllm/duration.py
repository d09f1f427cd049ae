"""How long a case will take, and what power that may draw: a guess, and shown as one.

Time is the mean of earlier trials of the same case on this machine, else FLOPs at a stated
efficiency.
"""

from __future__ import annotations

import math
from functools import cache

from efficientllm import cost
from efficientllm.catalog.peaks import Peak
from efficientllm.catalog.shape import Shape
from efficientllm.spec.case import Case, Point
from efficientllm.spec.protocol import Protocol
from efficientllm.spec.workload import Training

ASSUMED_EFFICIENCY = 0.35
START_S, COMPILE_S, QUALITY_S = 4.0, 20.0, 4.0


def flops(case: Case, shape: Shape, point: Point) -> float | None:
    """FLOPs of one unit: a training step, or one whole request batch."""
    spec = case.workload
    if isinstance(spec, Training):
        tokens = spec.batch * spec.sequence_length
        pairs = spec.batch * cost.attended_pairs(shape, spec.sequence_length)
        return cost.training_flops(shape, case.technique, tokens, pairs)
    return cost.prefill_flops(shape, point.batch, point.context)


def seconds(
    case: Case, shape: Shape | None, protocol: Protocol, rate: float, *, gpu: bool
) -> float:
    """A guess at a trial's length. `rate` is FLOP/s that the device reaches."""
    limits, spec = protocol.limits, case.workload
    compile_s = COMPILE_S if gpu else 0.0
    scorings = 1 if case.quality is None else 1 + case.quality.curve
    total = START_S + scorings * QUALITY_S
    for point in case.points:
        one = flops(case, shape, point) if shape is not None else None
        unit = one / rate if one else 0.0
        if isinstance(spec, Training):
            steps = spec.budget_steps
            length = steps * unit if steps else max(limits.min_seconds, limits.min_units * unit)
            total += compile_s + 1.3 * length
        else:
            window = max(limits.min_seconds, limits.min_units * unit)
            total += compile_s + min(limits.cap_seconds, 2.6 * window + 3 * unit)
    return total


def most_watts(limit_w: float | None, peak: Peak | None) -> float | None:
    """Power that a card cannot exceed for long: its own limit, else the catalog's; W."""
    return limit_w or (None if peak is None else peak.power_w)


def reached_flops(peak: Peak | None) -> float:
    """FLOP/s to count on: a share of a known peak, else what a small product reaches here."""
    if peak is not None:
        return ASSUMED_EFFICIENCY * (peak.flops("bf16") or peak.flops("fp16") or 1e12)
    return _processor_flops()


@cache
def _processor_flops() -> float:
    """Half of what a small float32 product reaches; one answer for one command.

    The best of several: others that use the processor just now will not all the time.
    """
    import numpy as np

    from efficientllm.clock import now_ns, seconds_since

    a = np.ones((512, 512), dtype=np.float32)
    a @ a
    best = math.inf
    for _ in range(12):
        start = now_ns()
        a @ a
        best = min(best, seconds_since(start))
    return 2 * 512**3 / best * 0.5


def minutes(seconds: float) -> str:
    """A length of time for people, in the unit that fits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:,.0f} days"
