"""`micro_batch: fit`: the largest micro-batch that every variant of a study can take.

Variants compared at different micro-batches are compared at different work for the
hardware. So cases of a suite that differ only in what is studied (same size, length, batch
and precision) get one micro-batch: the largest divisor of the batch with which the
hungriest of them is predicted to fit.
"""

from __future__ import annotations

from typing import Any

from efficientllm import predict
from efficientllm.spec.case import Case
from efficientllm.spec.suite import Suite
from efficientllm.spec.workload import Training


def micro_batches(suite: Suite, memory_bytes: float) -> dict[str, int]:
    """The micro-batch of each case that leaves it to `fit`, by case id.

    One that is predicted to fit nowhere gets 1, and its row says how that ended.
    """
    groups: dict[Any, list[Case]] = {}
    for case in suite.cases:
        if isinstance(case.workload, Training) and case.workload.micro_batch == "fit":
            groups.setdefault(_shared(case), []).append(case)
    return {
        case.case_id: size
        for group in groups.values()
        for size in [_largest(group, suite, memory_bytes)]
        for case in group
    }


def _shared(case: Case) -> tuple[Any, ...]:
    """What cases have in common whose micro-batch must be equal."""
    spec = case.workload
    assert isinstance(spec, Training)
    size = getattr(case.model, "preset", None) or getattr(case.model, "name", None)
    return size, spec.kind, spec.sequence_length, spec.batch, spec.precision


def _largest(group: list[Case], suite: Suite, memory_bytes: float) -> int:
    spec = group[0].workload
    assert isinstance(spec, Training)
    for size in predict.divisors(spec.batch):
        if all(_fits(case, size, suite, memory_bytes) for case in group):
            return size
    return 1


def _fits(case: Case, size: int, suite: Suite, memory_bytes: float) -> bool:
    shape = predict.shape_of(case, suite)
    if shape is None:
        return True
    needed = predict.memory(predict.with_micro_batch(case, size), shape, case.points[0]).total
    return predict.fit(needed, memory_bytes) == "fits"
