"""Energy and power.

NVIDIA boards since Volta count energy (`nvmlDeviceGetTotalEnergyConsumption`, mJ since
the driver was loaded). The counter moves in steps, every 100 ms on an H200, so a window
is only known to about one step at each edge: over 5 s that is within 2 %, over 10 s 1 %.
It is read often here and noted only when it moves; the energy of a window is
interpolated between those moments afterwards, so the measured process never waits.

`nvmlDeviceGetPowerUsage` is an average over a second on these boards and lags; the
instant field is used instead, and its integral is the counter's cross-check. Neither is
ground truth, both come from the board's sensor. On a module (GH200) the counter covers
CPU and memory too: joules carry their scope, and scopes never compare.

Intel and AMD packages count energy through RAPL in microjoules, wrapping around; reading
it usually needs rights that a container does not give.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from efficientllm.meters import MeterGone

RAPL = Path("/sys/class/powercap")


class EnergyCounter:
    """The board's own energy counter, in joules, noted at the moments it moves."""

    name = "energy"
    device: Literal["gpu"] = "gpu"
    columns = ("energy_j",)
    period_s = 0.005

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.scope = power_scope(nvml, handle)
        self._last: int | None = None
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # raises where it is not supported

    def read(self) -> tuple[float | None, ...] | None:
        millijoules = _lost(
            self._nvml, self._nvml.nvmlDeviceGetTotalEnergyConsumption, self._handle
        )
        if millijoules == self._last:
            return None
        self._last = millijoules
        return (millijoules / 1e3,)


class InstantPower:
    """Power now, in watts, where the driver has the instant field."""

    name = "power"
    device: Literal["gpu"] = "gpu"
    columns = ("power_w",)
    period_s = 0.05

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.scope = power_scope(nvml, handle)
        self._watts()

    def read(self) -> tuple[float | None, ...] | None:
        return (self._watts(),)

    def _watts(self) -> float:
        field = self._nvml.NVML_FI_DEV_POWER_INSTANT
        (value,) = _lost(self._nvml, self._nvml.nvmlDeviceGetFieldValues, self._handle, [field])
        if value.nvmlReturn != 0:
            raise self._nvml.NVMLError(value.nvmlReturn)
        return float(value.value.uiVal / 1e3)


class Rapl:
    """Energy of one CPU package in joules, unwrapped."""

    name = "rapl"
    device: Literal["host"] = "host"
    columns = ("energy_j",)
    period_s = 0.05

    def __init__(self, zone: Path) -> None:
        self._zone = zone
        self.scope = (zone / "name").read_text("ascii").strip()
        self._wrap = int((zone / "max_energy_range_uj").read_text("ascii"))
        self._base, self._last = 0, self._microjoules()

    def read(self) -> tuple[float | None, ...] | None:
        try:
            now = self._microjoules()
        except OSError as error:
            raise MeterGone(f"RAPL: {error.strerror}") from error
        if now < self._last:
            self._base += self._wrap
        self._last = now
        return ((self._base + now) / 1e6,)

    def _microjoules(self) -> int:
        return int((self._zone / "energy_uj").read_text("ascii"))


def rapl_zones() -> tuple[list[Rapl], str]:
    """Readable RAPL packages, and why there are none.

    `psys`, the whole platform, stands beside the packages and contains them.
    """
    readable: list[Rapl] = []
    for zone in sorted(RAPL.glob("intel-rapl:?")) + sorted(RAPL.glob("amd-rapl:?")):
        try:
            package = Rapl(zone)
        except OSError as error:
            return [], f"RAPL is there but cannot be read ({error.strerror})"
        if package.scope.startswith("package"):
            readable.append(package)
    return readable, "" if readable else "this machine shows no RAPL counters"


def power_scope(nvml: Any, handle: Any) -> str:
    """`module` on a superchip whose counters cover the CPU too, else `board`."""
    name = nvml.nvmlDeviceGetName(handle)
    text = name.decode() if isinstance(name, bytes) else name
    return "module" if "GH200" in text or "GB200" in text else "board"


def _lost(nvml: Any, question: Any, *arguments: Any) -> Any:
    """Ask NVML; a lost device becomes MeterGone, which ends this meter and not the run."""
    try:
        return question(*arguments)
    except nvml.NVMLError as error:
        raise MeterGone(str(error)) from error
