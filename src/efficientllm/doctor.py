"""What this machine can measure, checked against answers that are known before.

A sleep lasts what was asked of it; a matrix product and a copy stay below the datasheet; an
energy counter ticks, and agrees with the power that the card reports; the fork server
holds no device open. The products and copies are kept: they are this machine's own
ceilings, which `roofline_share` divides by.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from efficientllm.catalog.peaks import peak_of
from efficientllm.launch import Launcher
from efficientllm.machine import Gpu
from efficientllm.metrics import Unmeasured, View
from efficientllm.metrics.energy import integral, window_energy
from efficientllm.plan import Planned, Shelf
from efficientllm.record import Reading, Record, Window
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import Protocol
from efficientllm.store import Store

SLEEP_TOLERANCE = 0.02
ENERGY_TOLERANCE = 0.05


class Line(NamedTuple):
    """One thing that can or cannot be measured."""

    what: str
    answer: str
    detail: str


def examine(console: Console, store: Store, gpu: Gpu | None) -> int:
    """Run the checks and print what came out; 1 when a known answer is missed."""
    with Launcher(store, gpu) as launcher:
        launcher.measure_idle(Protocol(profile="standard"))
        records = {check: _probe(launcher, store, check) for check in ("sleep", "product", "copy")}
        held = launcher.device_files()
    _headline(console, launcher, gpu)
    lines = [
        _time(records["sleep"]),
        _memory(gpu),
        *_energy(records["product"]),
        _activity(records["product"]),
        _peaks(records, gpu),
        _clean(held),
    ]
    table = Table(box=None, pad_edge=False, show_header=False)
    colours = {"yes": "green", "no": "yellow", "WRONG": "red"}
    for line in lines:
        colour = colours.get(line.answer, "default")
        table.add_row(line.what, f"[{colour}]{line.answer}[/{colour}]", escape(line.detail))
    console.print(table)
    wrong = [line.what for line in lines if line.answer == "WRONG"]
    if wrong:
        console.print(f"[red]Do not measure here before {', '.join(wrong)} is understood.[/red]")
        return 1
    console.print("Next: efficientllm run quickstart")
    return 0


def _probe(launcher: Launcher, store: Store, check: str) -> Record | None:
    workload = {"kind": "probe", "check": check}
    case = Case.model_validate({"model": "none", "workload": workload, "name": f"probe-{check}"})
    shelf = Shelf(store, [case], launcher.machine, launcher.software)
    planned = Planned(case, 0, shelf.next_attempt(case, 0))
    return launcher.run(planned, Protocol(profile="quick"), suite="doctor")


def _headline(console: Console, launcher: Launcher, gpu: Gpu | None) -> None:
    here = launcher.machine
    if gpu is None:
        gib = here.memory_bytes / 2**30
        console.print(f"CPU  {escape(here.cpu)}  {here.cpu_cores} cores  {gib:.1f} GiB  no GPU")
        return
    total, free = gpu.memory_bytes / 2**30, gpu.free_bytes / 2**30
    watts = f"  {gpu.power_limit_w:.0f} W" if gpu.power_limit_w else ""
    state = "idle" if gpu.idle else "BUSY"
    console.print(
        f"GPU {gpu.number}  {escape(gpu.product)}  {total:.1f} GiB"
        f" ({free:.1f} free){watts}  {state}"
    )


def _window(record: Record | None) -> Window | None:
    if record is None or not record.points or not record.points[0].windows:
        return None
    return record.points[0].windows[0]


def _unanswered(what: str, record: Record | None) -> Line:
    """A check that gave nothing: taken by another process, or failed, which is a fault."""
    if record is None:
        return Line(what, "no", "another process is measuring here")
    return Line(what, "WRONG", f"{record.outcome.status}: {record.outcome.reason}")


def _time(record: Record | None) -> Line:
    window = _window(record)
    if window is None:
        return _unanswered("time", record)
    asked = window.counts["asked_s"] / window.units
    off = statistics.median(window.unit_s) / asked - 1
    answer = "yes" if abs(off) <= SLEEP_TOLERANCE else "WRONG"
    return Line("time", answer, f"sleep check {off:+.1%}")


def _memory(gpu: Gpu | None) -> Line:
    if gpu is None:
        return Line("memory", "yes", "of the process (resident); a CPU's allocator keeps no peak")
    return Line("memory", "yes", "allocator peaks; device used by NVML; process")


def _energy(record: Record | None) -> list[Line]:
    if record is None or not record.points:
        return [_unanswered("energy", record)]
    view = View(record, record.points[0])
    window = view.main_window
    energy = window_energy(view, window)
    if isinstance(energy, Unmeasured) or isinstance(window, Unmeasured):
        reason = energy.reason if isinstance(energy, Unmeasured) else "nothing was measured"
        return [Line("energy", "no", reason), _cpu_power(record)]
    parts = [energy.scope, energy.source]
    counter, power = view.series("energy"), view.series("power")
    if counter is not None:
        parts.append(f"ticks every {_period_ms(counter):.0f} ms")
    answer = "yes"
    other = integral(power, window.start_ns, window.end_ns) if power else None
    if other is not None and counter is not None:
        off = other / energy.joules - 1
        parts.append(f"counter against power {off:+.1%}")
        answer = "yes" if abs(off) <= ENERGY_TOLERANCE else "WRONG"
    return [Line("energy", answer, "; ".join(parts)), _cpu_power(record)]


def _period_ms(counter: Reading) -> float:
    steps = [b - a for a, b in zip(counter.t_ns[1:], counter.t_ns[2:], strict=False)]
    return statistics.median(steps) / 1e6 if steps else float("nan")


def _cpu_power(record: Record) -> Line:
    if any(reading.meter == "rapl" for reading in record.readings):
        return Line("CPU power", "yes", "RAPL packages")
    reason = record.notes.get("rapl", "no RAPL")
    return Line("CPU power", "no", f"{reason}: no energy of the CPU")


def _activity(record: Record | None) -> Line:
    if record is not None and any(reading.meter == "gpm" for reading in record.readings):
        return Line("SM/tensor", "yes", "GPM")
    reason = record.notes.get("gpm", "no GPU with GPM counters") if record else "not asked"
    return Line("SM/tensor", "no", reason)


def _peaks(records: dict[str, Record | None], gpu: Gpu | None) -> Line:
    product, copy = _window(records["product"]), _window(records["copy"])
    if product is None or copy is None:
        return _unanswered("peak", records["product"] if product is None else records["copy"])
    flops = product.counts["flops"] / product.seconds / 1e12
    moved = copy.counts["bytes"] / copy.seconds / 1e12
    now = f"{flops:.3g} TFLOP/s and {moved:.3g} TB/s measured now"
    peak = peak_of(gpu.product) if gpu else None
    if peak is None:
        why = (
            "a CPU has no datasheet peak here" if gpu is None else "not in the catalog: use --peaks"
        )
        return Line("peak", "no", f"{now}; {why}")
    stated = peak.peak["bf16"] if "bf16" in peak.peak else peak.peak["fp16"]
    possible = flops <= stated and moved <= peak.bandwidth_tb_s
    detail = f"{stated:g} TFLOP/s dense, {peak.bandwidth_tb_s:g} TB/s (datasheet); {now}"
    return Line("peak", "yes" if possible else "WRONG", detail)


def _clean(held: list[str]) -> Line:
    if held:
        opened = ", ".join(dict.fromkeys(held))
        return Line(
            "fork server",
            "no",
            f"an import opened {opened}: every trial starts in a fresh interpreter",
        )
    return Line("fork server", "yes", "holds no device open")
