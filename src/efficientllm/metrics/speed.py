"""Time and throughput. Window seconds are host seconds between two drained edges."""

from __future__ import annotations

import statistics

from efficientllm.metrics.view import Unmeasured, Value, View
from efficientllm.record import Window


def _rate(window: Window | Unmeasured, count: str) -> Value:
    if isinstance(window, Unmeasured):
        return window
    amount = window.counts.get(count)
    if amount is None or not window.seconds:
        return Unmeasured(f"the {window.name} window counts no {count}")
    return amount / window.seconds


def _seconds_per_unit(window: Window | Unmeasured) -> Value:
    return window if isinstance(window, Unmeasured) else window.seconds / window.units


def _median(window: Window | Unmeasured) -> Value:
    return window if isinstance(window, Unmeasured) else statistics.median(window.unit_s)


def train_tokens_per_s(view: View) -> Value:
    """Training tokens without padding / seconds of the steady window."""
    return _rate(view.window("step"), "tokens")


def samples_per_s(view: View) -> Value:
    """Sequences (documents, when packed) / seconds of the steady window."""
    return _rate(view.window("step"), "samples")


def it_tokens_per_s(view: View) -> Value:
    """Output tokens of the whole batch / seconds of the decode window (the paper's IT)."""
    return _rate(view.window("decode"), "tokens")


def prefill_tokens_per_s(view: View) -> Value:
    """Prompt tokens of the whole batch / seconds of the prefill window."""
    return _rate(view.window("prefill"), "prompt_tokens")


def step_p50_s(view: View) -> Value:
    """Median seconds of an optimizer step on the device's timeline."""
    return _median(view.window("step"))


def ttft_s(view: View) -> Value:
    """Time to first token: median seconds of a prefill, which ends in the first token."""
    return _median(view.window("prefill"))


def tpot_s(view: View) -> Value:
    """Time per output token after the first: median seconds of a decode step."""
    return _median(view.window("decode"))


def al_s(view: View) -> Value:
    """Mean seconds per optimizer step, or per request: prefill + (new_tokens - 1) decode steps."""
    if view.stage != "generate":
        return _seconds_per_unit(view.window("step"))
    prefill, decode = (_seconds_per_unit(view.window(name)) for name in ("prefill", "decode"))
    if isinstance(prefill, Unmeasured):
        return prefill
    if isinstance(decode, Unmeasured):
        return decode
    return prefill + (int(view.record.case["workload"]["new_tokens"]) - 1) * decode


def load_s(view: View) -> Value:
    """Seconds of the load phase: weights on the device, techniques applied."""
    spans = [p.end_ns - p.start_ns for p in view.record.phases if p.name == "load"]
    return spans[0] / 1e9 if spans else Unmeasured("the trial ended before it had loaded")


def compile_s(view: View) -> Value:
    """Cold calls minus what the same calls take when warm, over all windows of the point."""
    windows = [w for w in view.point.windows if w.units]
    if not windows:
        return Unmeasured("nothing was measured")
    return sum(max(0.0, w.first_call_s - statistics.median(w.unit_s)) for w in windows)


def tt_tokens_per_param_s(view: View) -> Value:
    """Training tokens / total parameters / seconds (the paper's TT)."""
    return _per_parameter(view, train_tokens_per_s(view))


def st_samples_per_param_s(view: View) -> Value:
    """Training samples / total parameters / seconds (the paper's ST)."""
    return _per_parameter(view, samples_per_s(view))


def _per_parameter(view: View, rate: Value) -> Value:
    build = view.record.build
    if isinstance(rate, Unmeasured):
        return rate
    return rate / build.total_params if build else Unmeasured("no model was built")
