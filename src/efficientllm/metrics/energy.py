"""Energy of a window, from what the sampler saw.

The counter moves in steps. E(t) is drawn through the moments at which it moved, and a
window's energy is E(end) - E(start). Between two steps the power is taken as constant,
so a window is wrong by at most about one step's energy at each edge: the reason why
windows shorter than 2 s or 20 steps have no energy here. Joules carry their scope
(board, module, package); different scopes never compare.
"""

from __future__ import annotations

import itertools
import operator
from bisect import bisect_left, bisect_right
from typing import NamedTuple

from efficientllm.metrics.view import Unmeasured, Value, View
from efficientllm.record import Reading, Window

MIN_SECONDS = 2.0
MIN_TICKS = 20

_BACKWARDS = "the energy counter went backwards"
_STUCK = "the energy counter did not move during the window"
COUNTER_FAULTS = frozenset({_BACKWARDS, _STUCK})
"""Reasons that speak against the counter itself, not against the window."""


class Energy(NamedTuple):
    """Joules of a window, their scope, and where they come from."""

    joules: float
    scope: str
    source: str


def window_energy(view: View, window: Window | Unmeasured) -> Energy | Unmeasured:
    """Energy of a window by the best source that this trial has."""
    if isinstance(window, Unmeasured):
        return window
    if window.seconds < MIN_SECONDS:
        return Unmeasured(f"window of {window.seconds:.3g} s: energy needs {MIN_SECONDS:.0f} s")
    counter = view.series("energy")
    if counter is not None:
        found = _from_counter(counter, window, "energy counter")
        if isinstance(found, Unmeasured) and counter.t_ns[-1] < window.end_ns:
            return view.note("energy", "sampler", default=found.reason)
        return found
    power = view.series("power")
    if power is not None:
        joules = integral(power, window.start_ns, window.end_ns)
        if joules is not None:
            return Energy(joules, power.scope, "integral of instant power")
    if view.record.machine.device_kind != "cpu":  # a CPU's joules never stand for a card's
        return view.note("energy", "nvml", "sampler", default="the card counts no energy")
    packages = _packages(view, window)
    if packages:
        return _from_packages(packages, window)
    return view.note("rapl", default="no energy counter on this machine")


def _from_counter(counter: Reading, window: Window, source: str) -> Energy | Unmeasured:
    # The first reading is the level found, not a step: its moment means nothing.
    times, values = counter.t_ns[1:], counter.columns["energy_j"][1:]
    levels = [value for value in values if value is not None]
    if len(levels) != len(values) or any(map(operator.gt, levels, levels[1:])):
        return Unmeasured(_BACKWARDS)
    inside = bisect_right(times, window.end_ns) - bisect_left(times, window.start_ns)
    if not times or not inside:
        return Unmeasured(_STUCK)
    if times[0] > window.start_ns or times[-1] < window.end_ns:
        return Unmeasured("the energy counter was not read over the whole window")
    if inside < MIN_TICKS:
        return Unmeasured(f"{inside} steps of the energy counter: {MIN_TICKS} are needed")
    start, end = (_at(times, levels, t) for t in (window.start_ns, window.end_ns))
    return Energy(end - start, counter.scope, source)


def _packages(view: View, window: Window) -> list[Reading]:
    """One series for each package; a trial of several processes has one from every process."""
    found: dict[str, Reading] = {}
    for reading in view.record.readings:
        if reading.meter == "rapl" and reading.t_ns:
            covers = reading.t_ns[0] <= window.start_ns <= reading.t_ns[-1]
            if covers or reading.scope not in found:
                found[reading.scope] = reading
    return list(found.values())


def _from_packages(packages: list[Reading], window: Window) -> Energy | Unmeasured:
    total, scopes = 0.0, []
    for package in packages:
        found = _from_counter(package, window, "RAPL")
        if isinstance(found, Unmeasured):
            return found
        total += found.joules
        scopes.append(found.scope)
    return Energy(total, "+".join(sorted(set(scopes))), "RAPL")


def _at(times: tuple[int, ...], values: list[float], moment: int) -> float:
    """The counter's line at a moment between two of its steps."""
    after = min(bisect_left(times, moment), len(times) - 1)
    if after == 0 or times[after] == moment:
        return values[after]
    t0, t1 = times[after - 1], times[after]
    share = (moment - t0) / (t1 - t0)
    return values[after - 1] + share * (values[after] - values[after - 1])


def integral(power: Reading, start_ns: int, end_ns: int) -> float | None:
    """Joules by the trapezoid rule over sampled watts, edges interpolated; None if uncovered."""
    rows = [
        (t, w) for t, w in zip(power.t_ns, power.columns["power_w"], strict=True) if w is not None
    ]
    times, watts = tuple(t for t, _ in rows), [w for _, w in rows]
    if len(times) < 2 or times[0] > start_ns or times[-1] < end_ns:
        return None
    inner = [(t, w) for t, w in rows if start_ns < t < end_ns]
    path = [(start_ns, _at(times, watts, start_ns)), *inner, (end_ns, _at(times, watts, end_ns))]
    return sum((t1 - t0) / 1e9 * (w0 + w1) / 2 for (t0, w0), (t1, w1) in itertools.pairwise(path))


def energy_scope(view: View) -> str | None:
    """What the joules of the main window cover (board, module, package); None without any."""
    energy = window_energy(view, view.main_window)
    return None if isinstance(energy, Unmeasured) else energy.scope


def energy_j(view: View) -> Value:
    """Energy of the steady window (training steps; decode) in joules, gross."""
    energy = window_energy(view, view.main_window)
    return energy if isinstance(energy, Unmeasured) else energy.joules


def aec_w(view: View) -> Value:
    """Mean power over the steady window: energy / seconds (the paper's AEC, which is power)."""
    window, joules = view.main_window, energy_j(view)
    if isinstance(window, Unmeasured) or isinstance(joules, Unmeasured):
        return joules
    return joules / window.seconds


def j_per_token(view: View) -> Value:
    """Gross energy per token: training tokens without padding, or output tokens in decode."""
    return _per(view, "tokens", energy_j(view))


def net_j_per_token(view: View) -> Value:
    """(Energy - idle power x seconds) / tokens; idle with an open context, once a run."""
    idle, window = view.record.resolved.get("idle_power_w"), view.main_window
    joules = energy_j(view)
    if isinstance(joules, Unmeasured) or isinstance(window, Unmeasured):
        return joules
    if idle is None:
        return Unmeasured("idle power was not measured in this run")
    return _per(view, "tokens", joules - float(idle) * window.seconds)


def j_per_step(view: View) -> Value:
    """Gross energy per optimizer step."""
    window, joules = view.main_window, energy_j(view)
    if isinstance(joules, Unmeasured) or isinstance(window, Unmeasured):
        return joules
    return joules / window.units


def j_per_request(view: View) -> Value:
    """One request of the batch: its share of a prefill and of (new_tokens - 1) decode steps."""
    steps = int(view.record.case["workload"]["new_tokens"]) - 1
    parts = []
    for name, repeats in (("prefill", 1), ("decode", steps)):
        window = view.window(name)
        energy = window_energy(view, window)
        if isinstance(window, Unmeasured) or isinstance(energy, Unmeasured):
            missing = energy if isinstance(energy, Unmeasured) else Unmeasured("")
            return Unmeasured(f"{name}: {missing.reason}")
        parts.append(energy.joules / window.units * repeats)
    return sum(parts) / view.point.batch


def _per(view: View, count: str, joules: Value) -> Value:
    window = view.main_window
    if isinstance(joules, Unmeasured) or isinstance(window, Unmeasured):
        return joules
    units = window.counts.get(count, 0.0)
    return joules / units if units else Unmeasured(f"the window holds no {count}")
