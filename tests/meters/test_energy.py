"""What is read of energy and power, from a card and from a CPU's package counters."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from efficientllm.machine import NoNvml, nvml
from efficientllm.meters import MeterGone, energy
from efficientllm.meters.energy import EnergyCounter, InstantPower, Rapl, rapl_zones
from efficientllm.meters.sampler import open_meters
from tests.fakes import card_of, lay_out

SECOND = 1_000_000_000


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A card in this process, whose clock stands still at a thousand seconds."""
    module = card_of(lay_out(tmp_path, card={}))
    monkeypatch.setitem(sys.modules, "pynvml", module)
    module.now_ns = lambda: 1000 * SECOND
    return module


def at(card: Any, seconds: float) -> None:
    card.now_ns = lambda: round(seconds * SECOND)


def test_the_counter_is_noted_when_it_moves_and_only_then(card: Any) -> None:
    meter = EnergyCounter(card, card.UUID)
    assert meter.read() == (300_000.0,)
    assert meter.read() is None
    at(card, 1000.099)
    assert meter.read() is None
    at(card, 1000.101)
    assert meter.read() == (300_030.0,)
    at(card, 1000.55)
    assert meter.read() == (300_150.0,)


def test_the_counter_of_a_square_wave_is_its_integral(card: Any) -> None:
    """100 W and 500 W by turns of half a second: 300 J a second, 50 J by the half of one."""
    card.play({"watts": 100.0, "high_watts": 500.0, "period_s": 1.0})
    meter = EnergyCounter(card, card.UUID)
    assert meter.read() == (300_000.0,)
    at(card, 1000.5)
    assert meter.read() == (300_050.0,)
    at(card, 1001)
    assert meter.read() == (300_300.0,)
    at(card, 1000.2)
    assert InstantPower(card, card.UUID).read() == (100.0,)
    at(card, 1000.7)
    assert InstantPower(card, card.UUID).read() == (500.0,)


def test_a_lost_card_ends_its_meters_with_the_reason(card: Any) -> None:
    card.play({"lost_after": 3})
    counter, power = EnergyCounter(card, card.UUID), InstantPower(card, card.UUID)
    counter.read()
    counter.read()
    assert power.read() == (300.0,)
    counter.read()
    for meter in (counter, power):
        with pytest.raises(MeterGone, match="GPU is lost"):
            meter.read()


@pytest.mark.parametrize(
    ("name", "scope"),
    [("NVIDIA H200", "board"), ("NVIDIA GH200 480GB", "module"), ("NVIDIA GB200", "module")],
)
def test_the_joules_of_a_superchip_are_those_of_the_module(
    card: Any, name: str, scope: str
) -> None:
    card.play({"name": name})
    assert EnergyCounter(card, card.UUID).scope == scope
    assert InstantPower(card, card.UUID).scope == scope


def opened(uuid: str) -> tuple[set[str], dict[str, str]]:
    with ExitStack() as stack:
        meters, notes = open_meters(uuid, 1, stack)
    return {meter.name for meter in meters}, notes


ALL = {"process_memory", "host_load", "energy", "power", "device_memory", "gpm", "clocks"}


def test_every_meter_of_a_sound_card_opens(card: Any) -> None:
    assert opened(card.UUID)[0] == ALL


@pytest.mark.parametrize(
    ("function", "meter"),
    [
        ("nvmlDeviceGetTotalEnergyConsumption", "energy"),
        ("nvmlDeviceGetFieldValues", "power"),
        ("nvmlGpmQueryDeviceSupport", "gpm"),
        ("nvmlDeviceGetMemoryInfo", "device_memory"),
    ],
)
def test_what_a_card_does_not_support_is_missing_with_the_reason(
    card: Any, tmp_path: Path, function: str, meter: str
) -> None:
    (tmp_path / "scenario.json").write_text(f'{{"unsupported": ["{function}"]}}')
    names, notes = opened(card.UUID)
    assert names == ALL - {meter}
    assert notes[meter] == "not supported by this card or driver (Not Supported)"


def test_a_card_that_the_driver_does_not_know_leaves_the_host_meters(card: Any) -> None:
    names, notes = opened("GPU-another")
    assert names == {"process_memory", "host_load"}
    assert notes["nvml"] == "NVML does not show this card (Not Found)"


def test_a_machine_without_a_driver_says_so(card: Any, tmp_path: Path) -> None:
    (tmp_path / "scenario.json").write_text('{"missing": true}')
    names, notes = opened(card.UUID)
    assert names == {"process_memory", "host_load"}
    assert notes["nvml"] == "no NVIDIA driver here (Driver Not Loaded)"


def test_a_machine_without_the_python_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoNvml, match="nvidia-ml-py is not installed"), nvml():
        pass


class Zone:
    """A powercap zone made of files."""

    def __init__(self, root: Path, number: int, name: str, *, wrap: int = 1_000_000) -> None:
        self.folder = root / f"intel-rapl:{number}"
        self.folder.mkdir(parents=True)
        (self.folder / "name").write_text(f"{name}\n")
        (self.folder / "max_energy_range_uj").write_text(f"{wrap}\n")
        self.set(0)

    def set(self, microjoules: int) -> None:
        (self.folder / "energy_uj").write_text(f"{microjoules}\n")


def joules(meter: Rapl) -> float:
    row = meter.read()
    assert row is not None
    assert row[0] is not None
    return row[0]


def test_a_package_counter_is_unwrapped(tmp_path: Path) -> None:
    """Of a range of one joule: 0.9, 0.1 after a wrap, 0.05 after another."""
    zone = Zone(tmp_path, 0, "package-0")
    zone.set(900_000)
    meter = Rapl(zone.folder)
    assert joules(meter) == pytest.approx(0.9)
    zone.set(100_000)
    assert joules(meter) == pytest.approx(1.1)
    zone.set(950_000)
    assert joules(meter) == pytest.approx(1.95)
    zone.set(50_000)
    assert joules(meter) == pytest.approx(2.05)
    assert (meter.scope, meter.device) == ("package-0", "host")


def test_packages_are_read_and_what_contains_them_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The platform (psys) and a package would count the same joules twice."""
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    for number, name in enumerate(("package-0", "psys", "package-1")):
        Zone(tmp_path, number, name)
    zones, reason = rapl_zones()
    assert [zone.scope for zone in zones] == ["package-0", "package-1"]
    assert reason == ""


def test_counters_that_cannot_be_read_are_missing_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    assert rapl_zones() == ([], "this machine shows no RAPL counters")
    counter = Zone(tmp_path, 0, "package-0").folder / "energy_uj"
    counter.unlink()
    counter.mkdir()
    assert rapl_zones() == ([], "RAPL is there but cannot be read (Is a directory)")


def test_a_counter_that_stops_being_readable_ends_that_meter(tmp_path: Path) -> None:
    zone = Zone(tmp_path, 0, "package-0")
    meter = Rapl(zone.folder)
    (zone.folder / "energy_uj").unlink()
    with pytest.raises(MeterGone, match="RAPL: No such file"):
        meter.read()
