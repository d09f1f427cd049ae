"""Memory, in several views that must not be confused.

* allocated: live tensors, by the allocator's own exact peak (read in the worker);
* reserved: what the allocator took from the device, always at least that;
* device used: everything on the card, by NVML's second memory interface (the first one
  counts the driver's own reserve as used): context, libraries, other processes too;
* process: resident memory of the worker on the host, from /proc.

`utilization.memory` of nvidia-smi is none of these: it is memory traffic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from efficientllm.machine import memory_v2
from efficientllm.meters import MeterGone

if TYPE_CHECKING:
    import torch


class DeviceMemory:
    """Bytes in use on the card, all processes."""

    name = "device_memory"
    device: Literal["gpu"] = "gpu"
    scope = "device"
    columns = ("used_bytes",)
    period_s = 0.1

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        memory_v2(nvml, handle)

    def read(self) -> tuple[float | None, ...] | None:
        try:
            return (float(memory_v2(self._nvml, self._handle).used),)
        except self._nvml.NVMLError as error:
            raise MeterGone(str(error)) from error


class ProcessMemory:
    """Resident bytes of one process."""

    name = "process_memory"
    device: Literal["host"] = "host"
    scope = "process"
    columns = ("resident_bytes",)
    period_s = 0.1

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/status")
        self.read()

    def read(self) -> tuple[float | None, ...] | None:
        try:
            value = _status_bytes(self._path, "VmRSS:")
        except OSError:
            return None  # it has ended; the sampler is about to be stopped
        return None if value is None else (float(value),)


class AllocatorMemory:
    """Exact peaks inside the worker: of the device's allocator, and of the process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._earlier: dict[str, int | None] = {}

    def restart(self) -> None:
        """Begin a new peak."""
        self._earlier = {}
        self._reset()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Keep what is done inside out of the peaks (of the host's only where they restart)."""
        self._earlier = self.peaks()
        try:
            yield
        finally:
            self._reset()

    def _reset(self) -> None:
        import torch

        if self._device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(self._device)
            torch.accelerator.reset_accumulated_memory_stats(self._device)
        try:
            Path("/proc/self/clear_refs").write_text("5", "ascii")
        except OSError:
            pass  # the peak then covers the whole process, which `peaks` cannot undercount

    def now(self) -> int | None:
        """Bytes of live tensors, or None on a CPU, whose allocator keeps no count."""
        import torch

        if self._device.type == "cpu":
            return None
        return int(torch.accelerator.memory_allocated(self._device))

    def peaks(self) -> dict[str, int | None]:
        """Peaks since `restart`; None where there is no counter."""
        found = self._peaks()
        for key, before in self._earlier.items():
            now = found[key]
            if before is not None and now is not None:
                found[key] = before + now if key == "alloc_retries" else max(before, now)
        return found

    def _peaks(self) -> dict[str, int | None]:
        import torch

        host = _status_bytes(Path("/proc/self/status"), "VmHWM:")
        if self._device.type == "cpu":
            return {"peak_allocated": None, "peak_reserved": None, "host_peak_rss": host}
        retries = torch.accelerator.memory_stats(self._device).get("num_alloc_retries", 0)
        return {
            "peak_allocated": int(torch.accelerator.max_memory_allocated(self._device)),
            "peak_reserved": int(torch.accelerator.max_memory_reserved(self._device)),
            "host_peak_rss": host,
            "alloc_retries": int(retries),
        }


def _status_bytes(path: Path, key: str) -> int | None:
    for line in path.read_text("ascii", "replace").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return None
