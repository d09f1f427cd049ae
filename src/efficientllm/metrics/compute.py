"""How near to the hardware's limits: products for training and prefill, bytes for decode.

Peaks are the datasheet's dense ones, of the type that is multiplied. Weight-only
quantization multiplies in bf16. An unknown card has no MFU.
"""

from __future__ import annotations

from efficientllm.catalog.shape import Shape
from efficientllm.cost import (
    attended_pairs,
    attention_flops,
    cache_read_bytes,
    causal_pairs,
    prefill_flops,
    training_flops,
)
from efficientllm.metrics.view import Unmeasured, Value, View, mean_over
from efficientllm.record import Window
from efficientllm.spec.case import Case
from efficientllm.spec.technique import Cast, Int8Dynamic
from efficientllm.spec.workload import Generate, Training

_NO_FORMULA = "no FLOP formula for this family here"
_UNSTATED = "{} states no cost for this work: give it cost(new, seen); only whole rows count"


def multiplied_dtype(case: Case, tf32: str = "highest", activations: str = "bf16") -> str:
    """The type that the matrix units multiply; a model left as it is stored: its activations'."""
    if any(isinstance(technique, Int8Dynamic) for technique in case.technique):
        return "int8"
    if isinstance(case.workload, Training):
        compute: str = case.workload.precision.compute
    else:
        casts = (t.kind for t in case.technique if isinstance(t, Cast))
        compute = next(casts, activations)
    return "tf32" if compute == "float32" and tf32 != "highest" else compute


def window_flops(view: View, *, full_attention: bool = False) -> tuple[float, Window] | Unmeasured:
    """FLOPs that the algorithm needs in the window they are counted for, and that window."""
    shape, workload = view.shape, view.case.workload
    if shape is None:
        return Unmeasured(_NO_FORMULA)
    if view.case.custom:
        return Unmeasured("nobody has counted what a custom technique changes")
    if not isinstance(workload, Training | Generate):
        return Unmeasured("a probe has no model")
    training = isinstance(workload, Training)
    window = view.window("step" if training else "prefill")
    if isinstance(window, Unmeasured):
        return window
    why = _uncounted(shape, view.point.context, window, full_attention=full_attention)
    if why:
        return Unmeasured(why)
    if not training:
        return _prefill(view, shape, window, full_attention=full_attention)
    tokens = window.counts.get("tokens")
    pairs = _trained_pairs(view, shape, window, full_attention=full_attention)
    if isinstance(pairs, Unmeasured):
        return pairs
    if tokens is None:
        return Unmeasured("the step window counts no tokens")
    stated = window.counts.get("attention_flops")
    flops = training_flops(shape, view.case.technique, tokens, pairs, stated)
    return Unmeasured(_NO_FORMULA) if flops is None else (flops, window)


def _uncounted(shape: Shape, length: int, window: Window, *, full_attention: bool) -> str:
    """Why FLOPs of this attention are not counted in a convention; empty where they are."""
    if full_attention and shape.custom:
        return f"{shape.custom} states its FLOPs in one convention only"
    if full_attention and not _attends_to_all(shape, length):
        return "a window or chosen blocks never attend to all tokens"
    if shape.custom and "attention_flops" not in window.counts:
        return _UNSTATED.format(shape.custom)
    return ""


def _prefill(
    view: View, shape: Shape, window: Window, *, full_attention: bool
) -> tuple[float, Window] | Unmeasured:
    stated = window.counts.get("attention_flops", 0.0) / window.units
    one = prefill_flops(shape, view.point.batch, view.point.context, stated)
    if one is None:
        return Unmeasured(_NO_FORMULA)
    more = _prefill_above_causal(view, window) if full_attention else 0.0
    return one * window.units + more, window


def _trained_pairs(view: View, shape: Shape, window: Window, *, full_attention: bool) -> Value:
    """Pairs of a step window: as counted, or under the attention of a window or of blocks."""
    pairs = window.counts.get("square_pairs" if full_attention else "pairs")
    if pairs is None:
        return Unmeasured("the step window counts no pairs")
    length = view.point.context
    if full_attention or _attends_to_all(shape, length):
        return pairs
    rows = window.counts.get("samples")
    if rows is None or pairs != rows * causal_pairs(length):
        return Unmeasured("pairs inside a window are counted for whole rows only")
    return rows * attended_pairs(shape, length)


def _attends_to_all(shape: Shape, length: int) -> bool:
    """Whether every token of a row attends to all before it."""
    return attended_pairs(shape, length) == causal_pairs(length)


def _prefill_above_causal(view: View, window: Window) -> float:
    shape, (batch, context) = view.shape, (view.point.batch, view.point.context)
    assert shape is not None
    counted = attended_pairs(shape, context)
    return (attention_flops(shape, batch * (context**2 - counted)) or 0.0) * window.units


def _peak_flops(view: View) -> Value:
    if view.record.machine.device_kind == "cpu":
        return Unmeasured("a CPU has no datasheet peak here")
    if view.peak is None:
        return Unmeasured(f"no peak known for {view.record.machine.device}; declare one: --peaks")
    resolved = view.record.resolved
    dtype = multiplied_dtype(
        view.case,
        tf32=str(resolved.get("tf32", "highest")),
        activations=str(resolved.get("activations", "bf16")),
    )
    flops = view.peak.flops(dtype)
    return Unmeasured(f"{view.peak.id} states no {dtype} peak") if flops is None else flops


def _utilization(view: View, *, full_attention: bool) -> Value:
    counted, peak = window_flops(view, full_attention=full_attention), _peak_flops(view)
    if isinstance(counted, Unmeasured):
        return counted
    if isinstance(peak, Unmeasured):
        return peak
    return _reached(counted, peak)


def _reached(counted: tuple[float, Window], limit: float) -> Value:
    """What was counted, per second of its window, as a share of a limit."""
    total, window = counted
    if not window.seconds:
        return Unmeasured(f"the {window.name} window is too short to be seen")
    return total / window.seconds / limit


def mfu(view: View) -> Value:
    """FLOPs the algorithm needs (causal attention at half) / seconds / datasheet peak.

    Training: the step window. Generation: the prefill window.
    """
    return _utilization(view, full_attention=False)


def mfu_fullattn(view: View) -> Value:
    """MFU in the other common convention: attention counted without causality. May exceed 1."""
    return _utilization(view, full_attention=True)


def decode_bytes(view: View) -> tuple[float, Window] | Unmeasured:
    """Bytes that decode has to read: weights once a step, the visible cache of each sequence."""
    window, build, shape = view.window("decode"), view.record.build, view.shape
    if isinstance(window, Unmeasured):
        return window
    if build is None or shape is None:
        return Unmeasured(_NO_FORMULA)
    if shape.experts is not None:
        return Unmeasured("which experts were read is not counted yet")
    held = build.bytes_by_kind
    # An untied embedding is a lookup of a few rows; a tied one is read whole as the head.
    lookups = {"position"} if shape.tied else {"position", "embedding"}
    weights = sum(size for kind, size in held.items() if kind not in lookups)
    element = 4 if view.record.resolved.get("activations") == "float32" else 2
    reads = window.counts.get("cache_reads")
    if reads is None:
        return Unmeasured("the decode window counts no reads of the cache")
    sequences = window.units * view.point.batch
    cache: float | None = sequences * cache_read_bytes(shape, reads / sequences, element)
    if shape.custom:
        cache = window.counts.get("cache_read_bytes")
    if cache is None:
        return Unmeasured(_UNSTATED.format(shape.custom))
    return weights * window.units + cache, window


def mbu(view: View) -> Value:
    """Bytes decode has to read / seconds / datasheet bandwidth."""
    counted = decode_bytes(view)
    if isinstance(counted, Unmeasured):
        return counted
    if view.record.machine.device_kind == "cpu":
        return Unmeasured("a CPU has no datasheet bandwidth here")
    if view.peak is None:
        return Unmeasured(f"no peak known for {view.record.machine.device}; declare one: --peaks")
    return _reached(counted, view.peak.bytes_per_s)


def roofline_share(view: View) -> Value:
    """FLOP/s of training, or byte/s of decode, / what `doctor` reached on this machine.

    Bytes are held against a copy, which writes too: reading alone may pass it slightly.
    """
    if view.stage == "generate":
        counted, ceiling = decode_bytes(view), view.ceiling.bytes_per_s
    else:
        counted, ceiling = window_flops(view), view.ceiling.flops
    if isinstance(counted, Unmeasured):
        return counted
    if ceiling is None:
        return Unmeasured("this machine's ceiling is not known: run efficientllm doctor")
    return _reached(counted, ceiling)


def _activity(view: View, meter: str, column: str) -> Value:
    window, series = view.main_window, view.series(meter)
    if isinstance(window, Unmeasured):
        return window
    if series is None:
        return view.note(meter, "nvml", "sampler", default="no such counter without a GPU")
    mean = mean_over(series, column, window.start_ns, window.end_ns)
    return Unmeasured("no sample fell into the window") if mean is None else mean


def sm_active(view: View) -> Value:
    """Share of cycles in which a multiprocessor had work (NVML GPM), mean over the window."""
    return _activity(view, "gpm", "sm_active")


def tensor_active(view: View) -> Value:
    """Share of cycles in which tensor cores worked (NVML GPM), mean over the window."""
    return _activity(view, "gpm", "tensor_active")


def dram_active(view: View) -> Value:
    """Share of the memory bandwidth in use (NVML GPM), mean over the window."""
    return _activity(view, "gpm", "dram_active")


def pcu_busy_share(view: View) -> Value:
    """Share of time in which any kernel ran: `utilization.gpu` (the paper's PCU)."""
    return _activity(view, "clocks", "busy_share")
