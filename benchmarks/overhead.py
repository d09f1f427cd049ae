"""What measuring costs: the harness's step against the same step in a bare loop.

    python benchmarks/overhead.py [model=backbone-1.5B] [rounds=5] [key=value ...]

Both run in this process on the same model, batches and compiled code, interleaved
(A B B A), so that drift meets both alike. A bare loop drains the device, reads the clock,
does N steps, drains, reads the clock. The harness adds marks, pacing and checks. The control
is one bare loop against the next: no claim can be finer than that scatters, and a card at
its power limit changes its clock all the time, so give it rounds. What the sampler costs is
the third line. The target is a ratio within 1 % of one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import measuring
from efficientllm import clock, machine, measure
from efficientllm.measure import Loop
from efficientllm.spec.protocol import PROFILES
from efficientllm.spec.suite import one_line_suite

STEPS = 20


def build(overrides: tuple[str, ...]) -> tuple[Any, torch.device]:
    """A training workload, warmed up and compiled."""
    suite = one_line_suite("pretrain", overrides)
    _, work = measuring.work_of(suite.cases[0], Path(tempfile.mkdtemp()))
    for _ in range(5):
        work.unit("step")
    return work, measuring.device().torch


def bare(work: Any, device: torch.device) -> float:
    """Seconds a step in a loop that does nothing else."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    start = time.perf_counter()
    for _ in range(STEPS):
        work.unit("step")
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return (time.perf_counter() - start) / STEPS


def harness(work: Any, device: torch.device) -> float:
    """Seconds a step as the harness reports it, over as many steps."""
    limits = PROFILES["quick"]
    loop = Loop(work, clock.timeline(device), limits)
    marks, start_ns, end_ns = loop._run("step", lambda units, _: units >= STEPS)
    assert len(marks) == STEPS + 1
    return (end_ns - start_ns) / 1e9 / STEPS


def sampler(folder: str) -> subprocess.Popen[bytes]:
    """The sampler as a trial starts it."""
    cards = machine.gpus()
    command = [sys.executable, "-P", "-m", "efficientllm.meters.sampler", "--pid", str(os.getpid())]
    command += ["--parent", str(os.getpid()), "--out", folder]
    return subprocess.Popen(command + (["--uuid", cards[0].uuid] if cards else []))


def main() -> None:
    """Interleave, print ratios with their spread, and end with one line of JSON."""
    words = sys.argv[1:]
    rounds = next((int(w.split("=")[1]) for w in words if w.startswith("rounds=")), 5)
    overrides = tuple(w for w in words if not w.startswith("rounds="))
    if not any(w.startswith("model=") for w in overrides):
        overrides += ("model=backbone-tiny", "sequence_length=128", "precision.compute=float32")
    work, device = build(overrides)
    harness_ratios, control_ratios, sampler_ratios = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            a1, b1, b2, a2 = (f(work, device) for f in (bare, harness, harness, bare))
            harness_ratios.append((b1 + b2) / (a1 + a2))
            control_ratios.append(a2 / a1)
            process = sampler(folder)
            time.sleep(1.0)
            with_sampler = bare(work, device)
            process.terminate()
            process.wait()
            sampler_ratios.append(2 * with_sampler / (a1 + a2))
    result = {"steps": STEPS, "rounds": rounds, "ahead": measure.AHEAD, "device": str(device)}
    measured = {"harness": harness_ratios, "control": control_ratios, "sampler": sampler_ratios}
    for name, ratios in measured.items():
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"{name:8} / bare loop: {middle:.4f}  [{low:.4f}, {high:.4f}]")
        result[name] = [round(r, 5) for r in ratios]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
