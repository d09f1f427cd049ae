"""The metrics: one row each, formulas over records.

Keys are the same in records' exports, CSV, JSON and on the page. Base units inside
(seconds, bytes, joules, watts), units in the name at every boundary. A formula's
docstring is its definition in METHODOLOGY.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from efficientllm.metrics import compute, energy, memory, quality, speed
from efficientllm.metrics.view import Ceiling, Unmeasured, Value, View

__all__ = ["METRICS", "BY_KEY", "Ceiling", "Metric", "Unmeasured", "Value", "View"]  # noqa: RUF022

Better = Literal["higher", "lower", ""]
Kind = Literal["time", "energy", "sampled", "fixed", "exact", "quality"]
"""What scatters: times, joules and samples do; `exact` is counted, and one trial knows it."""

LARGEST = 1e60
"""No quantity here comes near; sums and products of smaller ones stay finite."""

TRAIN = ("pretrain", "finetune")
GENERATE = ("generate",)
ALL = (*TRAIN, *GENERATE)


@dataclass(frozen=True)
class Metric:
    """One metric. `symbol` is the paper's; `kind` says what an interval may be made of."""

    key: str
    label: str
    unit: str
    better: Better
    stages: tuple[str, ...]
    formula: Callable[[View], Value]
    symbol: str = ""
    kind: Kind = "fixed"

    @property
    def definition(self) -> str:
        """The formula's docstring, as one paragraph."""
        return " ".join((self.formula.__doc__ or "").split())

    def __call__(self, view: View) -> Value:
        """The value at a view; Unmeasured, with the reason, where there is none."""
        if view.stage not in self.stages:
            return Unmeasured(f"not a metric of {view.stage}")
        value = self.formula(view)
        if not isinstance(value, Unmeasured) and not abs(value) < LARGEST:
            return Unmeasured(f"{value:.3g} is beyond anything that can be measured")
        return value


def _row(
    formula: Callable[[View], Value],
    label: str,
    unit: str,
    better: Better,
    stages: tuple[str, ...],
    kind: Kind = "fixed",
    symbol: str = "",
) -> Metric:
    return Metric(formula.__name__, label, unit, better, stages, formula, symbol, kind)


METRICS: tuple[Metric, ...] = (
    _row(speed.train_tokens_per_s, "training tokens/s", "token/s", "higher", TRAIN, "time"),
    _row(speed.samples_per_s, "samples/s", "1/s", "higher", TRAIN, "time"),
    _row(speed.it_tokens_per_s, "tokens/s in all", "token/s", "higher", GENERATE, "time", "IT"),
    _row(speed.prefill_tokens_per_s, "prefill tokens/s", "token/s", "higher", GENERATE, "time"),
    _row(speed.step_p50_s, "median step", "s", "lower", TRAIN, "time"),
    _row(speed.ttft_s, "time to first token", "s", "lower", GENERATE, "time"),
    _row(speed.tpot_s, "time per output token", "s", "lower", GENERATE, "time"),
    _row(speed.load_s, "load", "s", "lower", ALL),
    _row(speed.compile_s, "cold calls above warm", "s", "lower", ALL),
    _row(memory.peak_allocated_gib, "peak allocated", "GiB", "lower", ALL),
    _row(memory.peak_reserved_gib, "peak reserved", "GiB", "lower", ALL),
    _row(memory.device_used_gib, "device used", "GiB", "lower", ALL, "sampled"),
    _row(memory.host_peak_rss_gib, "host peak", "GiB", "lower", ALL),
    _row(memory.weights_gib, "weights", "GiB", "lower", ALL, "exact"),
    _row(memory.gradients_gib, "gradients", "GiB", "lower", TRAIN, "exact"),
    _row(memory.optimizer_gib, "optimizer", "GiB", "lower", TRAIN, "exact"),
    _row(memory.activations_gib, "activations", "GiB", "lower", ALL),
    _row(memory.kv_cache_gib, "cache", "GiB", "lower", GENERATE, "exact"),
    _row(memory.kv_bytes_per_token, "cache per token", "B", "lower", GENERATE, "exact"),
    _row(energy.energy_j, "energy of the window", "J", "", ALL, "sampled"),
    _row(energy.j_per_token, "energy per token", "J", "lower", ALL, "energy"),
    _row(energy.net_j_per_token, "energy per token above idle", "J", "lower", ALL, "energy"),
    _row(energy.j_per_step, "energy per step", "J", "lower", TRAIN, "energy"),
    _row(energy.j_per_request, "energy per request", "J", "lower", GENERATE, "energy"),
    _row(energy.aec_w, "mean power", "W", "lower", ALL, "energy", "AEC"),
    _row(compute.mfu, "MFU", "share", "higher", ALL, "time"),
    _row(compute.mfu_fullattn, "MFU, full attention", "share", "higher", ALL, "time"),
    _row(compute.mbu, "MBU", "share", "higher", GENERATE, "time"),
    _row(compute.roofline_share, "share of own ceiling", "share", "higher", ALL, "time"),
    _row(compute.sm_active, "SM active", "share", "", ALL, "sampled"),
    _row(compute.tensor_active, "tensor cores active", "share", "", ALL, "sampled"),
    _row(compute.dram_active, "DRAM active", "share", "", ALL, "sampled"),
    _row(quality.perplexity, "perplexity", "", "lower", ALL, "quality", "PPL"),
    _row(quality.bits_per_byte, "bits per byte", "bit/B", "lower", ALL, "quality"),
    _row(quality.final_loss, "final training loss", "nat", "lower", TRAIN, "quality"),
    _row(quality.tokens_per_param, "tokens per parameter", "", "", TRAIN),
    _row(quality.quality_retained, "quality retained", "share", "higher", GENERATE, "quality"),
    _row(quality.size_ratio, "size ratio", "", "higher", GENERATE, "exact"),
    _row(quality.size_ratio_disk, "size ratio on disk", "", "higher", GENERATE, "exact"),
    _row(quality.bits_per_param, "bits per parameter", "bit", "lower", ALL, "exact"),
    _row(quality.mcr, "compression ratio with quality", "", "higher", GENERATE, "quality", "MCR"),
    _row(quality.total_params, "parameters", "", "", ALL, "exact"),
    _row(quality.trainable_params, "trained parameters", "", "", TRAIN, "exact"),
    _row(quality.active_params, "active parameters", "", "", ALL, "exact"),
    _row(memory.amu_gib, "mean memory in use", "GiB", "lower", ALL, "sampled", "AMU"),
    _row(memory.amu_share, "mean memory in use, share", "share", "lower", ALL, "sampled", "AMU"),
    _row(compute.pcu_busy_share, "busy share", "share", "", ALL, "sampled", "PCU"),
    _row(speed.al_s, "mean seconds per step or request", "s", "lower", ALL, "time", "AL"),
    _row(
        speed.tt_tokens_per_param_s,
        "tokens per parameter and second",
        "1/s",
        "higher",
        TRAIN,
        "time",
        "TT",
    ),
    _row(
        speed.st_samples_per_param_s,
        "samples per parameter and second",
        "1/s",
        "higher",
        TRAIN,
        "time",
        "ST",
    ),
)

BY_KEY: dict[str, Metric] = {metric.key: metric for metric in METRICS}
