"""Inside one arm's process: its device, its model or the tool's own work, and how it is timed.

Apart from `arms`, which starts and ends processes and needs no torch for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from arms import Result
from efficientllm import clock
from efficientllm.catalog.peaks import Peak, peak_of
from efficientllm.catalog.shape import Shape
from efficientllm.device import Device, open_device
from efficientllm.models.huggingface import published_config
from efficientllm.spec.case import Case


def work_of(case: Case, cache: Path) -> tuple[Any, Any]:
    """The tool's own assembly and work for a case's first point, by the worker's classes."""
    # Only the arm that needs this shall pay for importing it.
    from efficientllm.journal import Task
    from efficientllm.prepare import assemble, work_for

    place = device()
    task = Task(
        case={},
        protocol={},
        seed=0,
        points=(0,),
        cache_folder=str(cache),
        device="cpu" if place.is_cpu else "accelerator",
        sits_idle=False,
    )
    assembly = assemble(case, task, place)
    return assembly, work_for(assembly, case.points[0], task)


def timed(step: Callable[[], Any], line: clock.Timeline, args: argparse.Namespace) -> Result:
    """Take the first step, --warmup more, then time --steps between two drained edges.

    Seconds to the end of the first step are counted from the start of the process, and from
    now, when everything is built.
    """
    line.drain()
    built = clock.now_ns()
    step()
    line.drain()
    first = clock.now_ns()
    for _ in range(args.warmup):
        step()
    seconds, units = window(step, line, args.steps)
    return {
        "first_step_s": (first - args.started_ns) / 1e9,
        "after_build_s": (first - built) / 1e9,
        "seconds": seconds,
        "unit_s": units,
        "peak_gib": _peak_gib(),
    }


def window(step: Callable[[], Any], line: clock.Timeline, count: int) -> tuple[float, list[float]]:
    """Seconds of `count` steps by the host's clock, and of each on the device's timeline."""
    line.drain()
    start, marks = clock.now_ns(), [line.mark()]
    for _ in range(count):
        step()
        marks.append(line.mark())
    line.drain()
    return clock.seconds_since(start), line.seconds(marks)


def published(shape: Shape, dtype: torch.dtype, place: Device) -> PreTrainedModel:
    """transformers' own model of a dense shape, random weights, as a script would make it."""
    torch.manual_seed(0)
    with place.torch:
        made = AutoModelForCausalLM.from_config(
            published_config(shape), dtype=dtype, attn_implementation="sdpa"
        )
    assert isinstance(made, PreTrainedModel)
    return made


def device() -> Device:
    """The accelerator, or the CPU where there is none."""
    return open_device("accelerator" if torch.accelerator.is_available() else "cpu")


def card() -> tuple[str, Peak | None]:
    """The product's name, and its catalog entry if there is one."""
    if not torch.accelerator.is_available():
        return "cpu", None
    product = torch.get_device_module().get_device_name(0)
    return product, peak_of(product)


def _peak_gib() -> float | None:
    """Largest allocation so far, GiB; None on a CPU, whose allocator keeps no count."""
    there = torch.accelerator.is_available()
    return torch.accelerator.max_memory_allocated() / 2**30 if there else None
