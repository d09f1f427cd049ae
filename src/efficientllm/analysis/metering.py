"""What may be wrong with what the meters saw: energy, power, clocks, heat, other processes.

Thresholds that are judgement rather than physics are named here, once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from efficientllm.analysis.flag import Flag, Level
from efficientllm.metrics import BY_KEY, Unmeasured, View
from efficientllm.metrics.energy import COUNTER_FAULTS, integral, window_energy
from efficientllm.metrics.view import mean_over
from efficientllm.record import Reading, Window

_HW_SLOWDOWN = 0x08 | 0x40 | 0x80
_SW_THERMAL = 0x20
_POWER_CAP = 0x04
_HOT_C = 85.0
_SANE_C = (20.0, 95.0)
_OTHERS = {"cpu": 0.05, "cuda": 0.5}
"""Share of the processors that others may keep busy: beside a GPU the host only gives orders."""


def _energy_sources(view: View) -> Iterator[Flag]:
    window, power = view.main_window, view.series("power")
    energy = window_energy(view, window)
    if isinstance(window, Unmeasured) or isinstance(energy, Unmeasured):
        if isinstance(energy, Unmeasured) and energy.reason in COUNTER_FAULTS:
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
    power, window = view.series("power"), view.main_window
    if limit and power is not None and isinstance(window, Window):
        highest = max((row["power_w"] or 0.0 for row in _inside(power, window)), default=0.0)
        if highest > 1.7 * limit:
            text = f"{highest:.0f} W at one moment; the limit is {limit:.0f} W"
            yield Flag("POWER_RANGE", "invalid", "energy", text)
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
    window, seen = view.main_window, view.series("power") or view.series("energy")
    if seen is None or isinstance(window, Unmeasured):
        return
    times = [t for t in seen.t_ns if window.start_ns <= t <= window.end_ns]
    edges = [window.start_ns, *times, window.end_ns]
    gap = max((b - a) / 1e9 for a, b in itertools.pairwise(edges))
    if gap > 0.5:
        level: Level = "invalid" if gap > 3 else "warn"
        yield Flag("SAMPLE_GAP", level, "energy", f"{seen.meter} was not sampled for {gap:.1f} s")


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
    speeds = [row["sm_mhz"] for row in rows if row["sm_mhz"]]
    if speeds and min(speeds) < 0.75 * max(speeds):
        text = f"SM clock between {min(speeds):.0f} and {max(speeds):.0f} MHz inside the window"
        yield Flag("CLOCK_UNSTEADY", "warn", "all", text)


def _heat(view: View) -> Iterator[Flag]:
    window, clocks = view.main_window, view.series("clocks")
    if clocks is None or isinstance(window, Unmeasured):
        return
    seen = [row["temperature_c"] for row in _inside(clocks, window)]
    degrees = [value for value in seen if value is not None]
    beyond = [value for value in degrees if not _SANE_C[0] <= value <= _SANE_C[1]]
    if degrees and len(beyond) >= 0.05 * len(degrees):
        share = len(beyond) / len(degrees)
        text = f"between {min(degrees):.0f} and {max(degrees):.0f} degrees C, {share:.0%} of it"
        yield Flag("HOT", "invalid", "all", f"{text} outside what a sound card shows")
    elif degrees and max(degrees) > _HOT_C:
        yield Flag("HOT", "warn", "all", f"{max(degrees):.0f} degrees C")


def _inside(reading: Reading, window: Window) -> list[dict[str, float | None]]:
    return [
        {name: column[i] for name, column in reading.columns.items()}
        for i, t in enumerate(reading.t_ns)
        if window.start_ns <= t <= window.end_ns
    ]


def _sharing(view: View) -> Iterator[Flag]:
    """A display beside a measurement is a pity; another job makes it a measurement of both."""
    levels: dict[str, Level] = {"shared_device": "warn", "crowded_device": "invalid"}
    for note, level in levels.items():
        if note in view.record.notes:
            yield Flag("SHARED_DEVICE", level, "all", view.record.notes[note])


def _host_shared(view: View) -> Iterator[Flag]:
    record, window, load = view.record, view.main_window, view.series("host_load")
    if load is None or isinstance(window, Unmeasured):
        return
    others = mean_over(load, "others_cpus", window.start_ns, window.end_ns)
    cores = record.machine.cpu_cores
    limit = _OTHERS.get(record.machine.device_kind, _OTHERS["cuda"])
    if others is not None and others > limit * cores:
        text = f"other processes kept {others:.1f} of {cores} processors busy"
        yield Flag("SHARED_HOST", "warn", "all", text)


CHECKS: tuple[Callable[[View], Iterator[Flag]], ...] = (
    _energy_sources,
    _power_plausible,
    _sampling,
    _throttling,
    _heat,
    _sharing,
    _host_shared,
)
