"""A stand-in for nvidia-ml-py: one card whose power is a known function of time.

A process finds it in place of the real package when a folder that holds a copy of this file
is on PYTHONPATH. What the card does, and what goes wrong with it, stands in
`scenario.json` beside the file and is read by `nvmlInit`; so nothing has to be handed to
the processes under test but the folder.

    watts            constant power; or the low level of a square wave
    high_watts       the square wave's high level
    period_s         the square wave's period; high in the second half of each, counted
                     from zero of the monotonic clock
    tick_s           how often the energy counter moves (0.1)
    missing          no driver: nvmlInit fails
    unsupported      names of functions that answer NotSupported
    stuck_after      the counter stops moving after so many reads
    backwards_after  after so many reads the counter starts again from zero
    lost_after       after so many reads of the counter the device is lost
    segfault_after   after so many reads of the counter this process ends with SIGSEGV
    nan_activity     GPM answers with NaN
    sm_mhz, temperature_c, reasons, busy_percent, used_bytes, total_bytes, limit_watts, name

E(t), the energy since zero of the clock, is `joules(t)`: tests compare with it.
"""

from __future__ import annotations

import ctypes
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_SUCCESS = 0
NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NOT_FOUND = 6
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_GPU_IS_LOST = 15
NVML_CLOCK_SM = 1
NVML_TEMPERATURE_GPU = 0
NVML_FI_DEV_POWER_INSTANT = 186
NVML_GPM_METRIC_SM_UTIL = 2
NVML_GPM_METRIC_ANY_TENSOR_UTIL = 5
NVML_GPM_METRIC_DRAM_BW_UTIL = 10
NVML_GPM_METRICS_GET_VERSION = 1
nvmlMemory_v2 = 0x2000028  # noqa: N816

UUID = "GPU-00000000-1111-2222-3333-444444444444"
ACTIVITY = {
    NVML_GPM_METRIC_SM_UTIL: 80.0,
    NVML_GPM_METRIC_ANY_TENSOR_UTIL: 60.0,
    NVML_GPM_METRIC_DRAM_BW_UTIL: 40.0,
}
_TEXTS = {
    NVML_ERROR_NOT_SUPPORTED: "Not Supported",
    NVML_ERROR_NOT_FOUND: "Not Found",
    NVML_ERROR_DRIVER_NOT_LOADED: "Driver Not Loaded",
    NVML_ERROR_GPU_IS_LOST: "GPU is lost",
}

now_ns = time.monotonic_ns
scenario: dict[str, Any] = {}
_reads = _level = 0


class NVMLError(Exception):
    """An error of the driver, by its number."""

    def __init__(self, value: int) -> None:
        super().__init__(_TEXTS.get(value, f"error {value}"))
        self.value = value


class c_nvmlGpmMetricsGet_t:  # noqa: N801
    """The request for GPM metrics; slots as the C structure has them."""

    def __init__(self) -> None:
        self.version = self.numMetrics = 0
        self.sample1: Any = None
        self.sample2: Any = None
        self.metrics = [SimpleNamespace(metricId=0, value=0.0, nvmlReturn=0) for _ in range(8)]


def play(changes: dict[str, Any]) -> None:
    """Take a scenario, in this process."""
    global _reads, _level
    scenario.clear()
    scenario.update(
        {
            "name": "NVIDIA H200",
            "watts": 300.0,
            "tick_s": 0.1,
            "used_bytes": 1 << 30,
            "total_bytes": 150_000_000_000,
            "limit_watts": 700.0,
            "sm_mhz": 1980,
            "temperature_c": 50,
            "reasons": 0,
            "busy_percent": 0,
        }
        | changes
    )
    _reads = _level = 0


def joules(t_s: float) -> float:
    """Energy from zero of the clock to a moment: the closed form that counter and tests share."""
    low = float(scenario["watts"])
    if "high_watts" not in scenario:
        return low * t_s
    period, extra = float(scenario["period_s"]), float(scenario["high_watts"]) - low
    whole, rest = divmod(t_s, period)
    return low * t_s + extra * (whole * period / 2 + max(0.0, rest - period / 2))


def _watts(t_s: float) -> float:
    if "high_watts" in scenario and t_s % scenario["period_s"] >= scenario["period_s"] / 2:
        return float(scenario["high_watts"])
    return float(scenario["watts"])


def _asked(name: str) -> None:
    """What goes wrong whatever is asked: unsupported functions, a lost device."""
    if name in scenario.get("unsupported", ()):
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    if _reads > scenario.get("lost_after", math.inf):
        raise NVMLError(NVML_ERROR_GPU_IS_LOST)


def nvmlInit() -> None:  # noqa: N802
    path = Path(__file__).with_name("scenario.json")
    play(json.loads(path.read_text("utf-8")) if path.exists() else {})
    if scenario.get("missing"):
        raise NVMLError(NVML_ERROR_DRIVER_NOT_LOADED)


def nvmlShutdown() -> None:  # noqa: N802
    pass


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return 1


def nvmlDeviceGetHandleByIndex(index: int) -> str:  # noqa: N802
    return UUID


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:  # noqa: N802
    if uuid != UUID:
        raise NVMLError(NVML_ERROR_NOT_FOUND)
    return UUID


def nvmlDeviceGetUUID(handle: str) -> str:  # noqa: N802
    return handle


def nvmlDeviceGetName(handle: str) -> str:  # noqa: N802
    return str(scenario["name"])


def nvmlSystemGetDriverVersion() -> str:  # noqa: N802
    return "580.00"


def nvmlDeviceGetMigMode(handle: str) -> list[int]:  # noqa: N802
    return [0, 0]


def nvmlDeviceGetCudaComputeCapability(handle: str) -> list[int]:  # noqa: N802
    return [9, 0]


def nvmlDeviceGetEnforcedPowerLimit(handle: str) -> int:  # noqa: N802
    return round(scenario["limit_watts"] * 1e3)


def nvmlDeviceGetUtilizationRates(handle: str) -> Any:  # noqa: N802
    _asked("nvmlDeviceGetUtilizationRates")
    return SimpleNamespace(gpu=scenario["busy_percent"], memory=0)


def nvmlDeviceGetMemoryInfo(handle: str, version: int | None = None) -> Any:  # noqa: N802
    """The first version counts half a GiB that the driver keeps for itself as used."""
    _asked("nvmlDeviceGetMemoryInfo")
    used, total = scenario["used_bytes"], scenario["total_bytes"]
    if version != nvmlMemory_v2:
        used += 1 << 29
    return SimpleNamespace(used=used, total=total, free=total - used)


def nvmlDeviceGetTotalEnergyConsumption(handle: str) -> int:  # noqa: N802
    """Millijoules at the counter's last step."""
    global _reads, _level
    _asked("nvmlDeviceGetTotalEnergyConsumption")
    _reads += 1
    if _reads > scenario.get("segfault_after", math.inf):
        ctypes.string_at(0)
    if _reads > scenario.get("stuck_after", math.inf):
        return _level
    t_s, tick = now_ns() / 1e9, float(scenario["tick_s"])
    _level = round(1e3 * joules(math.floor(t_s / tick) * tick))
    if _reads > scenario.get("backwards_after", math.inf):
        _level %= 1_000_000
    return _level


def nvmlDeviceGetFieldValues(handle: str, fields: list[int]) -> list[Any]:  # noqa: N802
    """As the driver does it: an unsupported field is an error in its value, not of the call."""
    if "nvmlDeviceGetFieldValues" in scenario.get("unsupported", ()):
        return [SimpleNamespace(nvmlReturn=NVML_ERROR_NOT_SUPPORTED, value=None)]
    _asked("nvmlDeviceGetFieldValues")
    watts = SimpleNamespace(uiVal=round(_watts(now_ns() / 1e9) * 1e3))
    return [SimpleNamespace(nvmlReturn=NVML_SUCCESS, value=watts)]


def nvmlGpmQueryDeviceSupport(handle: str) -> Any:  # noqa: N802
    supported = "nvmlGpmQueryDeviceSupport" not in scenario.get("unsupported", ())
    return SimpleNamespace(isSupportedDevice=int(supported))


def nvmlGpmSampleAlloc() -> Any:  # noqa: N802
    return SimpleNamespace()


def nvmlGpmSampleGet(handle: str, sample: Any) -> None:  # noqa: N802
    _asked("nvmlGpmSampleGet")


def nvmlGpmMetricsGet(request: c_nvmlGpmMetricsGet_t) -> None:  # noqa: N802
    for slot in request.metrics[: request.numMetrics]:
        slot.value = float("nan") if scenario.get("nan_activity") else ACTIVITY[slot.metricId]


def nvmlDeviceGetClockInfo(handle: str, kind: int) -> int:  # noqa: N802
    _asked("nvmlDeviceGetClockInfo")
    return int(scenario["sm_mhz"])


def nvmlDeviceGetTemperature(handle: str, sensor: int) -> int:  # noqa: N802
    _asked("nvmlDeviceGetTemperature")
    return int(scenario["temperature_c"])


def nvmlDeviceGetCurrentClocksEventReasons(handle: str) -> int:  # noqa: N802
    _asked("nvmlDeviceGetCurrentClocksEventReasons")
    return int(scenario["reasons"])


play({})
