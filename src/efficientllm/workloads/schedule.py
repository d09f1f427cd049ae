"""The learning rate of a step: warm-up, then a schedule."""

from __future__ import annotations

import math
from typing import assert_never

from efficientllm.spec.workload import AdamW


def learning_rate(spec: AdamW, step: int, budget: int | None) -> float:
    """Linear warm-up, then the schedule down to a tenth; constant without a budget.

    cosine falls over all steps after the warm-up (Loshchilov and Hutter 2017, arXiv
    1608.03983); wsd stays and falls on a line over the last `decay_share` of the budget
    (Hu et al. 2024, MiniCPM, arXiv 2404.06395).
    """
    if budget is None:
        return spec.lr
    warmup = max(1, round(spec.warmup_share * budget))
    if step < warmup:
        return spec.lr * (step + 1) / warmup
    return spec.lr * _fallen(spec, step, warmup, budget)


def _fallen(spec: AdamW, step: int, warmup: int, budget: int) -> float:
    """The share of the full rate that is left at a step after the warm-up."""
    match spec.schedule:
        case "constant":
            return 1.0
        case "cosine":
            progress = (step - warmup) / max(1, budget - warmup)
            return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        case "wsd":
            decay = max(1, round(spec.decay_share * budget))
            progress = (step - (budget - decay)) / decay
            return 1.0 - 0.9 * min(1.0, max(0.0, progress))
        case never:
            assert_never(never)
