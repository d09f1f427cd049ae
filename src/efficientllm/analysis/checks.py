"""Validity: what may be wrong with a number, found in the record itself.

`invalid` values stay in the store and on the page and are never ranked. `warn` is for the
reader to weigh. `info` says under which condition a number holds. Thresholds that are
judgement rather than physics are named here, once.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from efficientllm.analysis.stats import autocorrelation
from efficientllm.cost import kv_bytes_per_token
from efficientllm.metrics import BY_KEY, Unmeasured, View
from efficientllm.metrics.energy import integral, window_energy
from efficientllm.metrics.view import mean_over
from efficientllm.record import Reading, Window
from efficientllm.spec.protocol import Protocol

Level = Literal["info", "warn", "invalid"]

_HW_SLOWDOWN = 0x08 | 0x40 | 0x80
_SW_THERMAL = 0x20
_POWER_CAP = 0x04


class Flag(NamedTuple):
    """One remark: its code, how bad it is, what it concerns, and why."""

    code: str
    level: Level
    about: Literal["all", "energy", "quality"]
    text: str


def flags(view: View) -> list[Flag]:
    """Everything to be said about a point of a record."""
    return [flag for check in _CHECKS for flag in check(view)]


def _windows(view: View) -> list[Window]:
    return [window for window in view.point.windows if window.units]


def _window_lengths(view: View) -> Iterator[Flag]:
    limits = Protocol.model_validate(view.record.protocol).limits
    for window in _windows(view):
        if window.name == "request":
            continue
        if window.units < limits.min_units or window.seconds < 0.98 * limits.min_seconds:
            yield Flag(
                "WINDOW_SHORT",
                "warn",
                "all",
                f"{window.name}: {window.units} units in {window.seconds:.3g} s; the profile asks"
                f" for {limits.min_units} and {limits.min_seconds:g} s",
            )
    main = view.main_window
    energy = window_energy(view, main)
    if isinstance(main, Window) and not isinstance(energy, Unmeasured):
        wanted = max(10.0, limits.energy_seconds)
        if main.seconds < 0.98 * wanted:
            text = f"{main.seconds:.3g} s; a decision needs {wanted:g} s"
            yield Flag("ENERGY_SHORT", "warn", "energy", text)


def _steadiness(view: View) -> Iterator[Flag]:
    loose = [w.name for w in _windows(view) if not w.converged]
    if loose:
        text = f"{', '.join(loose)}: two blocks never agreed within 2 % before the window began"
        yield Flag("WARMUP_NOT_CONVERGED", "warn", "all", text)
    for window in _windows(view):
        r1 = autocorrelation(window.unit_s)
        if r1 is not None and abs(r1) > 0.3 and window.units >= 30:
            text = f"{window.name}: neighbouring units are alike (r = {r1:.2f}); blocks are used"
            yield Flag("AUTOCORRELATED", "info", "all", text)


def _compilation(view: View) -> Iterator[Flag]:
    again = sum(window.recompiles for window in view.point.windows)
    if again:
        text = f"{again} graphs were compiled inside a steady window"
        yield Flag("RECOMPILE", "invalid", "all", text)
    breaks = view.record.resolved.get("graph_breaks", 0)
    if breaks:
        text = f"{breaks} graph breaks: part of the model ran without compilation"
        yield Flag("COMPILE_PARTIAL", "warn", "all", text)


def _clocks_agree(view: View) -> Iterator[Flag]:
    for window in _windows(view):
        device = sum(window.unit_s)
        if device and abs(window.seconds - device) > 0.05 * window.seconds:
            text = (
                f"{window.name}: {device:.3g} s on the device, {window.seconds:.3g} s on the host"
            )
            yield Flag("HOST_BOUND", "warn", "all", text)


def _requests_add_up(view: View) -> Iterator[Flag]:
    """Medians on both sides: a slow second of the machine is not a mismatch."""
    windows = {window.name: statistics.median(window.unit_s) for window in _windows(view)}
    if not {"request", "prefill", "decode"} <= windows.keys():
        return
    steps = int(view.record.case["workload"]["new_tokens"]) - 1
    total, seen = windows["prefill"] + steps * windows["decode"], windows["request"]
    if abs(seen - total) > 0.05 * seen:
        text = f"a whole request took {seen:.4g} s, its parts add up to {total:.4g} s"
        yield Flag("REQUEST_MISMATCH", "warn", "all", text)


def _impossible(view: View) -> Iterator[Flag]:
    for key in ("mfu", "mbu"):
        value = BY_KEY[key](view)
        if not isinstance(value, Unmeasured) and value > 1.0:
            yield Flag("IMPOSSIBLE", "invalid", "all", f"{key} is {value:.2f}; above 1 is an error")


def _energy_sources(view: View) -> Iterator[Flag]:
    window, power = view.main_window, view.series("power")
    energy = window_energy(view, window)
    if isinstance(window, Unmeasured) or isinstance(energy, Unmeasured):
        if isinstance(energy, Unmeasured) and "backwards" in energy.reason:
            yield Flag("ENERGY_COUNTER", "invalid", "energy", energy.reason)
        return
    if power is not None and energy.source == "energy counter":
        other = integral(power, window.start_ns, window.end_ns)
        if other is not None and energy.joules > 0:
            off = abs(other - energy.joules) / energy.joules
            if off > 0.05:
                level: Level = "invalid" if off > 0.15 else "warn"
                text = f"the counter and the integral of power differ by {off:.0%}"
                yield Flag("ENERGY_DISAGREE", level, "energy", text)
    if energy.source == "integral of instant power":
        yield Flag("ENERGY_INTEGRATED", "warn", "energy", "no counter: power was integrated")


def _power_plausible(view: View) -> Iterator[Flag]:
    watts, limit = BY_KEY["aec_w"](view), view.record.machine.power_limit_w
    if isinstance(watts, Unmeasured):
        return
    if limit and watts > 1.05 * limit:
        level: Level = "invalid" if watts > 1.1 * limit else "warn"
        text = f"{watts:.0f} W on average, above the limit of {limit:.0f} W"
        yield Flag("POWER_RANGE", level, "energy", text)
    idle = view.record.resolved.get("idle_power_w")
    if idle and watts < 0.9 * idle:
        text = f"{watts:.0f} W on average, below the idle power of {idle:.0f} W"
        yield Flag("POWER_RANGE", "invalid", "energy", text)
    yield from _idle_drift(view, idle)


def _idle_drift(view: View, idle: float | None) -> Iterator[Flag]:
    power = view.series("power")
    phase = next((p for p in view.record.phases if p.name == "idle"), None)
    if not idle or power is None or phase is None:
        return
    before = mean_over(power, "power_w", phase.start_ns, phase.end_ns)
    if before is not None and abs(before - idle) > 0.1 * idle:
        level: Level = "invalid" if abs(before - idle) > 0.3 * idle else "warn"
        text = f"idle was {before:.0f} W before this trial, {idle:.0f} W at the start of the run"
        yield Flag("IDLE_DRIFT", level, "energy", text)


def _sampling(view: View) -> Iterator[Flag]:
    if "sampler" in view.record.notes:
        yield Flag("SAMPLER_DIED", "warn", "energy", view.record.notes["sampler"])
    window, power = view.main_window, view.series("power")
    if power is None or isinstance(window, Unmeasured):
        return
    times = [t for t in power.t_ns if window.start_ns <= t <= window.end_ns]
    gaps = [(b - a) / 1e9 for a, b in itertools.pairwise(times)]
    if gaps and max(gaps) > 0.5:
        level: Level = "invalid" if max(gaps) > 3 else "warn"
        text = f"power was not sampled for {max(gaps):.1f} s"
        yield Flag("SAMPLE_GAP", level, "energy", text)


def _throttling(view: View) -> Iterator[Flag]:
    window, clocks = view.main_window, view.series("clocks")
    if clocks is None or isinstance(window, Unmeasured):
        return
    rows = _inside(clocks, window)
    reasons = [int(row["reasons"]) for row in rows if row["reasons"] is not None]
    for mask, code, bad in (
        (_HW_SLOWDOWN, "THROTTLE_HW", 0.01),
        (_SW_THERMAL, "THROTTLE_HEAT", 0.05),
    ):
        share = sum(bool(r & mask) for r in reasons) / len(reasons) if reasons else 0.0
        if share:
            level: Level = "invalid" if share > bad else "warn"
            yield Flag(code, level, "all", f"the card slowed itself down in {share:.0%} of samples")
    capped = sum(bool(r & _POWER_CAP) for r in reasons) / len(reasons) if reasons else 0.0
    if capped > 0.05:
        text = f"clocks were lowered to keep the power limit in {capped:.0%} of samples"
        yield Flag("POWER_CAPPED", "info", "all", text)
    heat = [row["temperature_c"] for row in rows if row["temperature_c"] is not None]
    if heat and max(heat) > 85:
        yield Flag("HOT", "warn", "all", f"{max(heat):.0f} degrees C")
    speeds = [row["sm_mhz"] for row in rows if row["sm_mhz"]]
    if speeds and min(speeds) < 0.75 * max(speeds):
        text = f"SM clock between {min(speeds):.0f} and {max(speeds):.0f} MHz inside the window"
        yield Flag("CLOCK_UNSTEADY", "warn", "all", text)


def _inside(reading: Reading, window: Window) -> list[dict[str, float | None]]:
    return [
        {name: column[i] for name, column in reading.columns.items()}
        for i, t in enumerate(reading.t_ns)
        if window.start_ns <= t <= window.end_ns
    ]


def _sharing(view: View) -> Iterator[Flag]:
    if "shared_device" in view.record.notes:
        yield Flag("SHARED_DEVICE", "warn", "all", view.record.notes["shared_device"])


def _reach(view: View) -> Iterator[Flag]:
    build = view.record.build
    if build is None:
        return
    for reach in build.reach:
        share = reach.parameters / build.total_params
        if reach.technique.startswith("int") and share < 0.5:
            text = f"{reach.technique} reached {share:.0%} of the parameters"
            yield Flag("REACH_LOW", "warn", "all", text)


def _cache_size(view: View) -> Iterator[Flag]:
    measured = BY_KEY["kv_bytes_per_token"](view)
    if view.shape is None or isinstance(measured, Unmeasured):
        return
    element = 4 if view.record.resolved.get("activations") == "float32" else 2
    expected = kv_bytes_per_token(view.shape, element)
    if expected and abs(measured - expected) > 0.05 * expected:
        text = f"{measured:.0f} bytes of cache a token, the formula gives {expected}"
        yield Flag("CACHE_SIZE", "warn", "all", text)


def _conditions(view: View) -> Iterator[Flag]:
    record = view.record
    build = record.build
    if build is not None and build.weights == "random" and view.stage == "generate":
        text = "random weights: cost only, no quality"
        yield Flag("COST_ONLY", "info", "quality", text)
    if record.notes.get("quality", "").startswith("NOT_TRAINED"):
        yield Flag("NOT_TRAINED", "info", "quality", record.notes["quality"])
    if not Protocol.model_validate(record.protocol).ranked:
        yield Flag("SMOKE", "warn", "all", "a smoke run shows that it works, never how fast")
    if record.software.get("commit", "").endswith("-dirty"):
        yield Flag("UNCOMMITTED", "info", "all", "measured with code that is in no commit")
    if record.declared_peak is not None:
        text = f"peaks as declared: {record.declared_peak.get('source', 'no source')}"
        yield Flag("PEAK_DECLARED", "info", "all", text)
    if record.case.get("model", {}).get("allow_code"):
        yield Flag("REMOTE_CODE", "warn", "all", "ran Python code that came with the checkpoint")


_CHECKS: tuple[Callable[[View], Iterator[Flag]], ...] = (
    _impossible,
    _compilation,
    _window_lengths,
    _steadiness,
    _clocks_agree,
    _requests_add_up,
    _energy_sources,
    _power_plausible,
    _sampling,
    _throttling,
    _sharing,
    _reach,
    _cache_size,
    _conditions,
)
