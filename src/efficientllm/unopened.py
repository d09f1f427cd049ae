"""Imports that ask about the card, answered without opening it.

A process that has opened CUDA cannot fork workers, and some libraries ask on import what
the card can do. torchao's `prototype/mx_formats/kernels.py` does as soon as Triton is
installed: through torch's `has_triton`, which reads the card's properties, and once more
itself. While libraries are imported, these questions are answered from NVML, truthfully and
without a context. Any other attempt to open CUDA raises, and its traceback names the library.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from efficientllm import machine

CUDA_ERROR_NOT_INITIALIZED = 3
MAPS = Path("/proc/self/maps")


@contextmanager
def unopened() -> Iterator[None]:
    """Answer what imports ask of the first visible card; does nothing without one."""
    card = next((gpu for gpu in machine.gpus() if gpu.capability), None)
    if card is None or card.capability is None:
        yield
        return
    import torch

    major, minor = card.capability
    properties = SimpleNamespace(
        name=card.product, major=major, minor=minor, total_memory=card.memory_bytes
    )
    answers: dict[str, Any] = {
        "current_device": 0,
        "get_device_capability": (major, minor),
        "get_device_name": card.product,
        "get_device_properties": properties,
    }
    importing = [True]
    kept = {name: getattr(torch.cuda, name) for name in (*answers, "_lazy_init")}
    for name, answer in answers.items():
        setattr(torch.cuda, name, _answered(kept[name], answer, importing))
    torch.cuda._lazy_init = _refuse
    try:
        yield
    finally:
        importing.clear()
        for name, original in kept.items():
            setattr(torch.cuda, name, original)
        _forget_answers()


def _answered(question: Callable[..., Any], answer: Any, importing: list[bool]) -> Any:
    """The question, answered while imports run; who keeps it gets the real one afterwards."""

    @wraps(question)
    def ask(*arguments: Any, **options: Any) -> Any:
        return answer if importing else question(*arguments, **options)

    return ask


def _refuse() -> None:
    raise RuntimeError("an import tried to open CUDA, and a process with CUDA open cannot fork")


def _forget_answers() -> None:
    """Workers read the whole properties from the card itself."""
    interface = sys.modules.get("torch._dynamo.device_interface")
    if interface is not None:
        interface.caching_worker_device_properties.clear()
        interface.caching_worker_current_devices.clear()


def cuda_is_open() -> bool:
    """Whether this process has initialized the CUDA driver, by the driver's own word.

    Open device files do not tell: NVML opens the same ones.
    """
    if "libcuda.so" not in MAPS.read_text("utf-8", "replace"):
        return False
    count = ctypes.c_int()
    answer: int = ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count))
    return answer != CUDA_ERROR_NOT_INITIALIZED
