"""Joules of the harness against the counter's own difference around a 30 s load.

    python benchmarks/energy.py [seconds=30]

The load is a matrix product in this process. Beside it runs the sampler; around it this
script reads the counter itself, at both ends. The two share the counter and nothing else.
A sleep and a square wave of load follow: they must give idle power, and the mean of the
two levels. Needs an NVIDIA GPU with an energy counter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pynvml
import torch

from efficientllm import clock, machine
from efficientllm.metrics.energy import Energy, _from_counter, integral
from efficientllm.readings import read_readings
from efficientllm.record import Window


def load(seconds: float) -> None:
    """Products as fast as they go."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(a)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(20):
            torch.matmul(a, a, out=out)
        torch.cuda.synchronize()


def square(seconds: float) -> None:
    """Half a second of load, half a second of none."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        load(0.5)
        time.sleep(0.5)


def window(start_ns: int, end_ns: int) -> Window:
    """A window that only has edges."""
    return Window(
        name="load",
        start_ns=start_ns,
        end_ns=end_ns,
        unit_s=((end_ns - start_ns) / 1e9,),
        counts={},
        first_call_s=0.0,
        warmup_units=0,
        warmup_s=0.0,
        converged=True,
    )


def main() -> None:
    """Measure three kinds of load both ways and print the ratios."""
    seconds = next((float(w.split("=")[1]) for w in sys.argv[1:] if "=" in w), 30.0)
    card = machine.gpus()[0]
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(card.uuid)
    load(2.0)
    loads: dict[str, Callable[[float], None]] = {
        "product": load,
        "square": square,
        "sleep": time.sleep,
    }
    spans = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-m", "efficientllm.meters.sampler", "--uuid", card.uuid]
        command += ["--pid", str(os.getpid()), "--parent", str(os.getpid()), "--out", folder]
        sampler = subprocess.Popen(command)
        time.sleep(2)
        for name, work in loads.items():
            before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            start_ns = clock.now_ns()
            work(seconds)
            end_ns = clock.now_ns()
            after = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            spans[name] = (start_ns, end_ns, (after - before) / 1e3)
            time.sleep(1)
        sampler.terminate()
        sampler.wait()
        readings = {r.meter: r for r in read_readings(Path(folder))}
    result: dict[str, object] = {"card": card.product, "seconds": seconds}
    for name, (start_ns, end_ns, outside) in spans.items():
        inside = _from_counter(readings["energy"], window(start_ns, end_ns), "counter")
        assert isinstance(inside, Energy), inside
        other = integral(readings["power"], start_ns, end_ns)
        watts = inside.joules / ((end_ns - start_ns) / 1e9)
        print(
            f"{name:8} {watts:6.1f} W   harness / outside {inside.joules / outside:.4f}"
            f"   power / counter {other / inside.joules if other else float('nan'):.4f}"
        )
        result[name] = {"harness_j": inside.joules, "outside_j": outside, "integral_j": other}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
