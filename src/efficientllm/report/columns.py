"""Which metrics are shown first, in which unit, and how a number is written.

Plain metrics come first (tokens/s, J/token, peak GiB, quality); the paper's symbols stand
below them, all the rest after that. Inside, values are in base units; a column of small
ones is shown in milliseconds, MiB or mJ, one of large counts in millions, and says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from efficientllm.analysis.replicates import shared
from efficientllm.analysis.stats import Interval
from efficientllm.analysis.study import size, variant
from efficientllm.analysis.table import Cell, Row
from efficientllm.analysis.work import training_precision
from efficientllm.metrics import BY_KEY, METRICS, Metric

_MEMORY = ("peak_allocated_gib", "host_peak_rss_gib")
FIRST: dict[str, tuple[str, ...]] = {
    "pretrain": (
        "train_tokens_per_s",
        "step_p50_s",
        "mfu",
        "j_per_token",
        *_MEMORY,
        "total_params",
        "bits_per_byte",
        "tokens_per_param",
    ),
    "finetune": (
        "train_tokens_per_s",
        "step_p50_s",
        "mfu",
        "j_per_token",
        *_MEMORY,
        "trainable_params",
        "bits_per_byte",
    ),
    "generate": (
        "it_tokens_per_s",
        "tpot_s",
        "ttft_s",
        "mbu",
        "j_per_token",
        *_MEMORY,
        "weights_gib",
        "total_params",
        "bits_per_byte",
    ),
}
_PAPER = ("amu_gib", "pcu_busy_share", "al_s", "aec_w")
PAPER: dict[str, tuple[str, ...]] = {
    "pretrain": (*_PAPER, "tt_tokens_per_param_s", "perplexity"),
    "finetune": (*_PAPER, "st_samples_per_param_s", "final_loss"),
    "generate": (*_PAPER, "it_tokens_per_s", "mcr"),
}
STAGES = ("pretrain", "finetune", "generate")
STAGE_TITLES = {
    "pretrain": "Architecture pretraining",
    "finetune": "Fine-tuning",
    "generate": "Quantized inference",
}
_SMALLER = {"s": (1e3, "ms"), "GiB": (1024.0, "MiB"), "J": (1e3, "mJ")}
_SMALL = 0.1
_MANY = 1e7
_WIDE = 0.2
"""Half-widths above this share are shown as both ends: they lie unequally far from the value."""
DAGGER = "†"
DAGGER_TOLD = f"{DAGGER} invalid, and never ranked: the row's flags say why."
EXACT = 1e-9
"""Relative half-widths below this are rounding, not scatter."""


class Column(NamedTuple):
    """A metric as it is shown for some rows: values times `factor`, in `unit`."""

    metric: Metric
    factor: float
    unit: str

    @property
    def heading(self) -> str:
        """`time per output token (ms)`; a label that says its unit says it once."""
        told = not self.unit or "/s" in self.metric.label
        return self.metric.label if told else f"{self.metric.label} ({self.unit})"

    def text(self, row: Row) -> str:
        """The row's value with its half-width, or a dash."""
        return with_half_width(row.cell(self.metric.key), self.factor)

    def marked(self, row: Row) -> str:
        """The same with a dagger where it is invalid, for what can strike nothing through."""
        return self.text(row) + (DAGGER if row.cell(self.metric.key).invalid else "")


class Words(NamedTuple):
    """A column of words about what a row is."""

    heading: str
    of: Callable[[Row], str]


def words_of(rows: list[Row]) -> list[Words]:
    """The models' size and variant and the precision of training, each where rows differ in it."""
    known = (
        Words("size", lambda row: size(row.case)),
        Words("variant", lambda row: variant(row.case)),
        Words("precision", training_precision),
    )
    return [words for words in known if len({words.of(row) for row in rows}) > 1]


def unnamed(rows: list[Row]) -> list[Words]:
    """Of these columns the ones that say more than the names of the cases do."""
    return [words for words in words_of(rows) if not all(_named(row, words) for row in rows)]


def _named(row: Row, words: Words) -> bool:
    return set(_PART.findall(words.of(row))) <= set(_PART.findall(row.name))


_PART = re.compile(r"[\w.]+")


def memory_key(row: Row) -> str:
    """The memory that is shown first: the allocator's peak, or the process on a CPU."""
    return _MEMORY[row.record.machine.device_kind == "cpu"]


def column(key: str, rows: list[Row]) -> Column:
    """A metric's column, in a unit that suits the rows."""
    metric = BY_KEY[key]
    values = [abs(c.interval.value) for row in rows if (c := row.cell(key)).interval is not None]
    shown = "" if metric.unit == "share" else metric.unit
    if metric.unit in _SMALLER and values and max(values) < _SMALL:
        return Column(metric, *_SMALLER[metric.unit])
    if metric.kind == "exact" and not metric.unit and values and max(values) >= _MANY:
        return Column(metric, 1e-6, "M")
    return Column(metric, 1.0, shown)


def first_columns(stage: str, rows: list[Row]) -> list[Column]:
    """The first metrics of a stage that at least one row has."""
    keys = [key for key in FIRST[stage] if _is_shown(key, stage, rows)]
    return [column(k, rows) for k in keys if any(r.cell(k).interval is not None for r in rows)]


def _is_shown(key: str, stage: str, rows: list[Row]) -> bool:
    """Memory as the device counts it; outside pretraining parameters only where they differ."""
    if key in _MEMORY:
        return any(memory_key(row) == key for row in rows)
    if key == "total_params" and stage != "pretrain":
        return len({i.value for row in rows if (i := row.cell(key).interval) is not None}) > 1
    return True


def all_metrics(stage: str) -> list[Metric]:
    """Every metric of a stage: first ones, then the paper's, then the rest."""
    order = {key: i for i, key in enumerate([*FIRST[stage], *PAPER[stage]])}
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
        return f"{value:.{max(0, 2 - magnitude)}f}"
    return f"{value:.2e}"


_BASES = {
    "none": "",
    "exact": "counted",
    "trials": "{} trials",
    "within-run": "{} blocks of one run",
    "text": "{} held-out documents",
}


def basis(interval: Interval) -> str:
    """What an interval is taken over: n counts trials, blocks or documents."""
    return _BASES[interval.basis].format(interval.n)


def small_print(interval: Interval, shown: Column) -> str:
    """Both ends in the column's unit and what they are over: `95 %: 27 to 29 ms over 3 trials`."""
    if interval.basis == "exact":
        return "counted, not sampled"
    if interval.low is None or interval.high is None:
        return f"no interval; {interval.n} trial{'s' if interval.n > 1 else ''}"
    share = shown.metric.unit == "share"
    factor, unit = (100.0, "%") if share else (shown.factor, shown.unit)
    low, high = (number(x * factor) for x in (interval.low, interval.high))
    return f"95 %: {' '.join(filter(None, (low, 'to', high, unit)))} over {basis(interval)}"


def with_half_width(cell: Cell, factor: float = 1.0) -> str:
    """`203 ±1`, or both ends where they are far apart; without an interval the value alone.

    A dash where nothing was measured.
    """
    interval = cell.interval
    if interval is None:
        return "-"
    value = interval.value * factor
    if interval.low is None or interval.high is None:
        return number(value)
    half = (interval.high - interval.low) / 2 * factor
    if half <= abs(value) * EXACT:
        return number(value)
    if half > abs(value) * _WIDE:
        return (
            f"{number(value)} [{number(interval.low * factor)}, {number(interval.high * factor)}]"
        )
    decimals = min(_decimals(half), _carried(value))
    least = 10.0**-decimals
    width = f"<{least:.{decimals}f}" if half < least / 2 else f"{half:,.{decimals}f}"
    return f"{value:,.{decimals}f} ±{width}"


def _carried(value: float) -> int:
    """Decimals of a value's fourth digit: a steady run does not make the fifth one true."""
    return max(0, 3 - math.floor(math.log10(abs(value)))) if value else 2


def _decimals(half_width: float) -> int:
    """Decimals at which an interval's half-width shows one or two digits."""
    if half_width <= 0:
        return 2
    magnitude = math.floor(math.log10(half_width))
    leading = half_width / 10**magnitude
    return max(0, (1 if leading < 2 else 0) - magnitude)


def device(name: str) -> str:
    """A device's product name without its maker and its kind of memory."""
    return " ".join(w for w in name.split() if w not in ("NVIDIA", "AMD") and "HBM" not in w)


def told_apart(rows: list[Row]) -> list[str]:
    """A label for each row that rows of no other case, machine or software have.

    Longer only where it has to be: by the model's size, then the device, then the digests.
    """
    more: tuple[Callable[[Row], str], ...] = (
        lambda row: size(row.case),
        lambda row: row.record.machine.device,
        lambda row: f"{row.record.trial.case_id[:6]}-{row.record.env_id[:6]}",
    )
    labels = [row.label for row in rows]
    for word in more:
        owners: dict[str, set[tuple[str, str]]] = {}
        for text, row in zip(labels, rows, strict=True):
            owners.setdefault(text, set()).add(shared(row.record))
        labels = [
            f"{text} {word(row)}".rstrip() if len(owners[text]) > 1 else text
            for text, row in zip(labels, rows, strict=True)
        ]
    return labels
