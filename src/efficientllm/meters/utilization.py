"""What the chip was busy with.

NVML's GPM counters (Hopper and newer) give shares of cycles between two samples: SMs
active, tensor cores active, memory bandwidth used. They are diagnostics beside MFU and
MBU. `utilization.gpu` of nvidia-smi is the share of time in which *any* kernel ran, one
thread or a million: the paper's PCU is built on it, so it is kept, under its own name.
"""

from __future__ import annotations

from typing import Any, Literal

from efficientllm.meters import MeterGone


class Gpm:
    """SM, tensor and DRAM activity as shares of 0 to 1 since the last read."""

    name = "gpm"
    device: Literal["gpu"] = "gpu"
    scope = "device"
    columns = ("sm_active", "tensor_active", "dram_active")
    period_s = 0.25

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        if not nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
        self._before, self._after = nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()
        nvml.nvmlGpmSampleGet(handle, self._before)

    def read(self) -> tuple[float | None, ...] | None:
        n = self._nvml
        wanted = (
            n.NVML_GPM_METRIC_SM_UTIL,
            n.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
            n.NVML_GPM_METRIC_DRAM_BW_UTIL,
        )
        request = n.c_nvmlGpmMetricsGet_t()
        request.version, request.numMetrics = n.NVML_GPM_METRICS_GET_VERSION, len(wanted)
        try:
            n.nvmlGpmSampleGet(self._handle, self._after)
            request.sample1, request.sample2 = self._before, self._after
            for slot, metric in enumerate(wanted):
                request.metrics[slot].metricId = metric
            n.nvmlGpmMetricsGet(request)
        except n.NVMLError as error:
            raise MeterGone(str(error)) from error
        self._before, self._after = self._after, self._before
        answers = [request.metrics[slot] for slot in range(len(wanted))]
        return tuple(a.value / 100 if a.nvmlReturn == 0 else None for a in answers)


class Clocks:
    """SM clock, temperature, reasons for a lowered clock (a bit mask), any-kernel share."""

    name = "clocks"
    device: Literal["gpu"] = "gpu"
    scope = "device"
    columns = ("sm_mhz", "temperature_c", "reasons", "busy_share")
    period_s = 0.2

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.read()

    def read(self) -> tuple[float | None, ...] | None:
        n, handle = self._nvml, self._handle
        row = (
            self._ask(lambda: n.nvmlDeviceGetClockInfo(handle, n.NVML_CLOCK_SM)),
            self._ask(lambda: n.nvmlDeviceGetTemperature(handle, n.NVML_TEMPERATURE_GPU)),
            self._ask(lambda: n.nvmlDeviceGetCurrentClocksEventReasons(handle)),
            self._ask(lambda: n.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
        )
        if all(value is None for value in row):
            raise MeterGone("the card answers no question about its clocks")
        return row

    def _ask(self, question: Any) -> float | None:
        try:
            return float(question())
        except self._nvml.NVMLError:
            return None
