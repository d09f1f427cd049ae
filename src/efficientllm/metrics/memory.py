"""Memory, each view under its own name (see `meters/memory.py`)."""

from __future__ import annotations

from efficientllm.metrics.view import Unmeasured, Value, View, mean_over

GIB = 2**30
_CPU = "a CPU's allocator keeps no peak; host_peak_rss_gib covers the whole process"


def _gib(value: float | None, reason: str) -> Value:
    return Unmeasured(reason) if value is None else value / GIB


def _peak(view: View, key: str) -> Value:
    reason = _CPU if view.record.machine.device_kind == "cpu" else "the trial ended before it"
    return _gib(view.point.memory.get(key), reason)


def peak_allocated_gib(view: View) -> Value:
    """Most bytes of live tensors at once, by the device allocator's own counter."""
    return _peak(view, "peak_allocated")


def peak_reserved_gib(view: View) -> Value:
    """Most bytes that the device allocator had taken from the device."""
    return _peak(view, "peak_reserved")


def device_used_gib(view: View) -> Value:
    """Most bytes in use on the card during the steady window, all processes (NVML v2)."""
    window, series = view.main_window, view.series("device_memory")
    if isinstance(window, Unmeasured):
        return window
    if series is None:
        return view.note("device_memory", "nvml", default="no card, so no device memory")
    used = [
        b
        for t, b in zip(series.t_ns, series.columns["used_bytes"], strict=True)
        if window.start_ns <= t <= window.end_ns and b is not None
    ]
    return _gib(max(used), "") if used else Unmeasured("no sample fell into the window")


def host_peak_rss_gib(view: View) -> Value:
    """Most resident memory of the worker process since the point began."""
    return _gib(view.point.memory.get("host_peak_rss"), "the trial ended before it")


def _held(view: View, key: str) -> Value:
    return _gib(view.point.holdings.get(key), "the trial ended before it")


def weights_gib(view: View) -> Value:
    """Bytes of all parameters as they are held, scales and zero points included."""
    build = view.record.build
    return _gib(sum(build.bytes_by_kind.values()) if build else None, "no model was built")


def gradients_gib(view: View) -> Value:
    """Bytes of gradients at their peak: one for each trained parameter."""
    return _held(view, "gradients")


def optimizer_gib(view: View) -> Value:
    """Bytes of the optimizer's states."""
    return _held(view, "optimizer")


def kv_cache_gib(view: View) -> Value:
    """Bytes of the cache as allocated."""
    return _held(view, "kv_cache")


def kv_bytes_per_token(view: View) -> Value:
    """Cache bytes as allocated / (sequences x slots)."""
    held = view.point.holdings.get("kv_cache")
    if held is None:
        return Unmeasured("the trial ended before it")
    return held / (view.point.batch * cache_slots(view))


def cache_slots(view: View) -> int:
    """Tokens that a point's cache is made for: its context and what is generated, in 64s."""
    return -(-(view.point.context + int(view.record.case["workload"]["new_tokens"])) // 64) * 64


def activations_gib(view: View) -> Value:
    """Peak allocated minus what stays: weights, gradients, optimizer states, cache."""
    peak, weights = peak_allocated_gib(view), weights_gib(view)
    if isinstance(peak, Unmeasured) or isinstance(weights, Unmeasured):
        return peak if isinstance(peak, Unmeasured) else weights
    kept = sum(view.point.holdings.get(k, 0) for k in ("gradients", "optimizer", "kv_cache"))
    return max(0.0, peak - weights - kept / GIB)


def amu_gib(view: View) -> Value:
    """Time-weighted mean of memory in use over the steady window (the paper's AMU).

    Device memory on a GPU; resident memory of the process on a CPU.
    """
    window = view.main_window
    if isinstance(window, Unmeasured):
        return window
    meter, column = ("device_memory", "used_bytes")
    if view.record.machine.device_kind == "cpu":
        meter, column = ("process_memory", "resident_bytes")
    series = view.series(meter)
    if series is None:
        return view.note(meter, "nvml", "sampler", default="memory was not sampled")
    mean = mean_over(series, column, window.start_ns, window.end_ns)
    return _gib(mean, "no sample fell into the window")


def amu_share(view: View) -> Value:
    """AMU / the memory of the device (of the machine, on a CPU)."""
    mean = amu_gib(view)
    if isinstance(mean, Unmeasured):
        return mean
    size = view.record.machine.device_memory_bytes
    return mean * GIB / size if size else Unmeasured("the size of the memory is not known")
