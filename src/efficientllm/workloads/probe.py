"""Known answers: work whose time, rate or energy is known before it is measured.

`doctor` runs these to learn whether this machine can be measured at all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from efficientllm.device import Device
from efficientllm.record import PointResult
from efficientllm.spec.workload import Probe as Spec

SLEEP_S = 0.05
SQUARE_S = 0.5


class Probe:
    """One of: sleep, a matrix product, a copy, nothing at all, a square wave of load."""

    def __init__(self, spec: Spec, device: Device, sleep: Callable[[float], None]) -> None:
        self._check, self._device, self._sleep = spec.check, device, sleep
        self.windows = (spec.check,)
        self.brief: frozenset[str] = frozenset()
        self.settling = 0
        self.budget = None
        self._on = False
        self._size = 512 if device.is_cpu else 8192
        dtype = torch.float32 if device.is_cpu else torch.bfloat16
        if spec.check in ("product", "square"):
            shape = (self._size, self._size)
            self._a, self._b = (torch.randn(shape, device=device.torch, dtype=dtype) for _ in "ab")
            self._out = torch.empty(shape, device=device.torch, dtype=dtype)
        if spec.check == "copy":
            count = 1 << (26 if device.is_cpu else 31)
            self._a = torch.zeros(count, device=device.torch, dtype=torch.uint8)
            self._b = torch.empty_like(self._a)

    def unit(self, window: str) -> None:
        """A nap, a product, a copy; `square` is half a second of load, then as much of none."""
        match self._check:
            case "sleep":
                self._sleep(SLEEP_S)
            case "idle":
                self._sleep(0.1)
            case "product":
                torch.matmul(self._a, self._b, out=self._out)
            case "copy":
                self._b.copy_(self._a)
            case "square" if self._on:
                self._sleep(SQUARE_S)
                self._on = False
            case "square":
                torch.matmul(self._a, self._b, out=self._out)
                self._on = True

    def check(self) -> None:
        """Nothing here can go wrong without raising."""

    def counts(self, window: str, units: int) -> dict[str, float]:
        """FLOPs of products, bytes read and written by copies, seconds asked of sleep."""
        match self._check:
            case "product":
                return {"flops": 2.0 * self._size**3 * units}
            case "copy":
                return {"bytes": 2.0 * self._a.numel() * units}
            case "sleep":
                return {"asked_s": SLEEP_S * units}
            case _:
                return {}

    def compilations(self) -> int:
        return 0

    def holdings(self) -> dict[str, int]:
        return {}

    def result(self, result: PointResult) -> PointResult:
        """Nothing to add to what was measured."""
        return result

    def close(self) -> None:
        """Free the matrices."""
        self.__dict__.pop("_a", None)
        self.__dict__.pop("_b", None)
