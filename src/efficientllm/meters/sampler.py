"""The sampler: a process of its own that reads meters while the worker works.

    python -m efficientllm.meters.sampler --pid 4711 --parent 4700 --out FOLDER [--uuid GPU-...]

It opens NVML and no CUDA context, stamps every reading with the monotonic clock that the
worker's windows are on, and appends to a file, so it cannot slow the worker, and its death
costs the energy of one trial and nothing else. It ends with SIGTERM, or with its parent.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from efficientllm import clock
from efficientllm.lifeline import die_with_parent
from efficientllm.machine import NoNvml, nvml
from efficientllm.meters import READINGS, Meter, MeterGone
from efficientllm.meters.energy import EnergyCounter, InstantPower, rapl_zones
from efficientllm.meters.host import HostLoad
from efficientllm.meters.memory import DeviceMemory, ProcessMemory
from efficientllm.meters.utilization import Clocks, Gpm

LINGER_S = 0.25
"""How long counters are read on after the end: a window that ends with the trial needs the
counter's next step."""

_NVML_METERS = (EnergyCounter, InstantPower, DeviceMemory, Gpm, Clocks)


class Output:
    """Lines of `[meter, t_ns, value, ...]`, headed by what each meter is."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def head(self, index: int, meter: Meter) -> None:
        self._line(
            {
                "index": index,
                "meter": meter.name,
                "device": meter.device,
                "scope": meter.scope,
                "columns": meter.columns,
            }
        )

    def row(self, index: int, t_ns: int, values: tuple[float | None, ...]) -> None:
        """Note one reading; what a driver answers without being a number is not there."""
        self._line([index, t_ns, *(v if v is None or math.isfinite(v) else None for v in values)])

    def note(self, key: str, reason: str) -> None:
        self._line({"note": key, "reason": reason})

    def _line(self, value: Any) -> None:
        self._file.write(json.dumps(value, allow_nan=False) + "\n")
        self._file.flush()


def open_meters(uuid: str | None, pid: int, stack: ExitStack) -> tuple[list[Meter], dict[str, str]]:
    """Every meter that works here, and why the others do not."""
    meters: list[Meter] = [ProcessMemory(pid), HostLoad(pid)]
    notes: dict[str, str] = {}
    zones, reason = rapl_zones()
    meters += zones
    if reason:
        notes["rapl"] = reason
    if uuid is None:
        return meters, notes
    try:
        n = stack.enter_context(nvml())
    except NoNvml as error:
        return meters, notes | {"nvml": str(error)}
    try:
        handle = n.nvmlDeviceGetHandleByUUID(uuid)
    except n.NVMLError as error:
        return meters, notes | {"nvml": f"NVML does not show this card ({error})"}
    for kind in _NVML_METERS:
        try:
            meters.append(kind(n, handle))
        except (n.NVMLError, MeterGone, AttributeError) as error:
            notes[kind.name] = f"not supported by this card or driver ({error})"
    return meters, notes


def sample(meters: list[Meter], output: Output, stopped: list[bool]) -> None:
    """Read each meter at its own period until told to stop, and counters a little longer."""
    start, end = clock.now_ns(), 0
    linger_ns = round(LINGER_S * 1e9) if any("energy_j" in m.columns for m in meters) else 0
    due = dict.fromkeys(range(len(meters)), start)
    for index, meter in enumerate(meters):
        output.head(index, meter)
    while due:
        if stopped and not end:
            end = clock.now_ns() + linger_ns
        if end and clock.now_ns() >= end:
            return
        index = min(due, key=due.__getitem__)
        wait = (due[index] - clock.now_ns()) / 1e9
        if wait > 0:
            clock.sleep(wait)
        meter = meters[index]
        before = clock.now_ns()
        try:
            row = meter.read()
        except MeterGone as error:
            output.note(meter.name, str(error))
            del due[index]
            continue
        after = clock.now_ns()
        if row is not None:
            output.row(index, (before + after) // 2, row)
        due[index] = max(due[index] + round(meter.period_s * 1e9), after)


def main() -> None:
    """Sample until told to stop; see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pid", type=int, required=True, help="the process whose memory is read")
    parser.add_argument("--out", type=Path, required=True, help="folder for readings.jsonl")
    parser.add_argument("--parent", type=int, required=True, help="end when this process does")
    parser.add_argument("--uuid", help="the GPU to read; none: host meters only")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    stopped: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    with ExitStack() as stack, (arguments.out / READINGS).open("a", encoding="utf-8") as file:
        output = Output(file)
        meters, notes = open_meters(arguments.uuid, arguments.pid, stack)
        for key, reason in notes.items():
            output.note(key, reason)
        sample(meters, output, stopped)
        output.note("sampler", "stopped" if stopped else "nothing left to read")


if __name__ == "__main__":
    main()
