"""An accelerator that is not there: its tensors live on the CPU, its events on the host clock.

A `sitecustomize`: it waits until torch, and then the package's own `device`, have been
imported in a fork server, and changes them there. torch accepts a device as a string, so the
device is a string that calls itself another type; what asks `device.type` sees an
accelerator, what allocates gets host memory. `torch.device` itself takes no unknown type
and no subclass, which is why `open_device` is replaced rather than asked.

What it cannot stand in for: kernels, graphs, compilation (switched off), asynchrony.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

ALLOCATED, PEAK_ALLOCATED, PEAK_RESERVED, RETRIES = 1 << 28, 1 << 30, 3 << 29, 0
IDLE_SECONDS = 0.5


class FakeDevice(str):
    """`cpu` for those who allocate, an accelerator for those who ask what it is."""

    type = "fake"
    index = 0


class FakeEvent:
    """A moment on the host clock; work is done when the call returns."""

    def __init__(self, device: object = None, *, enable_timing: bool = False) -> None:
        assert enable_timing, "an event without timing measures nothing"
        self.ns = 0

    def record(self) -> None:
        self.ns = time.perf_counter_ns()

    def synchronize(self) -> None:
        assert self.ns, "an event that was never recorded"

    def elapsed_time(self, end: FakeEvent) -> float:
        return (end.ns - self.ns) / 1e6


def change_torch(torch: Any) -> None:
    """Give torch an accelerator with memory statistics, and pinned memory that is not."""
    accelerator, zeros = torch.accelerator, torch.zeros
    accelerator.is_available = lambda: True
    accelerator.current_accelerator = lambda *_, **__: FakeDevice("cpu")
    accelerator.synchronize = accelerator.empty_cache = lambda *_: None
    accelerator.reset_peak_memory_stats = lambda *_: None
    accelerator.reset_accumulated_memory_stats = lambda *_: None
    accelerator.memory_allocated = lambda *_: ALLOCATED
    accelerator.max_memory_allocated = lambda *_: PEAK_ALLOCATED
    accelerator.max_memory_reserved = lambda *_: PEAK_RESERVED
    accelerator.memory_stats = lambda *_: {"num_alloc_retries": RETRIES}
    torch.Event = FakeEvent
    torch.Tensor.pin_memory = lambda tensor, *_: tensor
    torch.zeros = lambda *a, pin_memory=False, **k: zeros(*a, **k)


def change_device(module: Any) -> None:
    """Open the accelerator that is not there; the CPU stays what it is."""
    real = module.open_device
    module.open_device = lambda kind: (
        real(kind) if kind == "cpu" else module.Device(FakeDevice("cpu"), graphs=False)
    )


def change_worker(module: Any) -> None:
    """Sit idle for one period of the card's square wave instead of two seconds."""
    module.IDLE_SECONDS = IDLE_SECONDS


class After(importlib.abc.MetaPathFinder):
    """Calls a function with a module that has just been imported."""

    def __init__(self, changes: dict[str, Callable[[Any], None]]) -> None:
        self._changes = changes

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        change = self._changes.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def then_change(module: ModuleType) -> None:
            execute(module)
            change(module)

        loader.exec_module = then_change
        return spec


if __name__ == "sitecustomize":  # and not where a test only looks up what stands above
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    os.environ["TORCH_WARM_POOL"] = "0"  # nothing is compiled, so nothing need wait to do it
    changes = {
        "torch": change_torch,
        "efficientllm.device": change_device,
        "efficientllm.worker": change_worker,
    }
    sys.meta_path.insert(0, After(changes))
