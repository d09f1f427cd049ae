"""Which metrics are shown first, and how a number is written.

Plain metrics come first (tokens/s, J/token, peak GiB, quality); the paper's symbols stand
below them, all the rest after that.
"""

from __future__ import annotations

import math

from efficientllm.analysis.table import Cell, Row
from efficientllm.metrics import METRICS, Metric

FIRST: dict[str, tuple[str, ...]] = {
    "pretrain": (
        "train_tokens_per_s",
        "step_p50_s",
        "mfu",
        "j_per_token",
        "memory",
        "bits_per_byte",
    ),
    "finetune": (
        "train_tokens_per_s",
        "step_p50_s",
        "j_per_token",
        "memory",
        "trainable_params",
        "bits_per_byte",
    ),
    "generate": (
        "it_tokens_per_s",
        "ttft_s",
        "tpot_s",
        "j_per_token",
        "memory",
        "weights_gib",
        "bits_per_byte",
    ),
}
PAPER: dict[str, tuple[str, ...]] = {
    "pretrain": (
        "amu_gib",
        "pcu_busy_share",
        "al_s",
        "tt_tokens_per_param_s",
        "aec_w",
        "perplexity",
    ),
    "finetune": (
        "amu_gib",
        "pcu_busy_share",
        "al_s",
        "st_samples_per_param_s",
        "aec_w",
        "final_loss",
    ),
    "generate": ("amu_gib", "pcu_busy_share", "al_s", "it_tokens_per_s", "aec_w", "mcr"),
}
STAGES = ("pretrain", "finetune", "generate")
STAGE_TITLES = {
    "pretrain": "Architecture pretraining",
    "finetune": "Fine-tuning",
    "generate": "Quantized inference",
}


def memory_key(row: Row) -> str:
    """The memory that is shown first: the allocator's peak, or the process on a CPU."""
    return "host_peak_rss_gib" if row.record.machine.device_kind == "cpu" else "peak_allocated_gib"


def first_keys(stage: str, rows: list[Row]) -> list[str]:
    """The first metrics of a stage that at least one row has, `memory` made concrete."""
    keys = []
    for key in FIRST[stage]:
        concrete = (
            list(dict.fromkeys(memory_key(row) for row in rows)) if key == "memory" else [key]
        )
        keys += [k for k in concrete if any(row.cell(k).interval is not None for row in rows)]
    return keys


def all_metrics(stage: str) -> list[Metric]:
    """Every metric of a stage: first ones, then the paper's, then the rest."""
    head = [key for key in FIRST[stage] if key != "memory"]
    order = {key: i for i, key in enumerate([*head, *PAPER[stage]])}
    known = [metric for metric in METRICS if stage in metric.stages]
    return sorted(known, key=lambda m: order.get(m.key, len(order)))


def number(value: float) -> str:
    """Three or four digits that matter, thousands divided, no exponent where avoidable."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude >= 3:
        return f"{value:,.0f}"
    if magnitude >= -3:
        return f"{value:.{max(0, 3 - magnitude - 1)}f}"
    return f"{value:.2e}"


def with_half_width(cell: Cell) -> str:
    """`203 ±1`; the value alone where there is no interval; a dash where nothing is."""
    interval = cell.interval
    if interval is None:
        return "-"
    if interval.low is None or interval.high is None:
        return number(interval.value)
    half = (interval.high - interval.low) / 2
    decimals = _decimals(half)
    return f"{interval.value:,.{decimals}f} ±{half:,.{decimals}f}"


def _decimals(half_width: float) -> int:
    """Decimals at which an interval's half-width shows one or two digits."""
    if half_width <= 0:
        return 2
    return max(0, 1 - math.floor(math.log10(half_width)))


def label(row: Row) -> str:
    """The row's case name without its stage."""
    return row.name.removeprefix(f"{row.case.stage}-") or row.name


def unit(metric: Metric) -> str:
    """The unit in parentheses, or nothing for a bare number."""
    return f" ({metric.unit})" if metric.unit and metric.unit != "share" else ""
