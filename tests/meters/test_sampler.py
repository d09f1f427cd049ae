"""The sampler as a process beside a card with every fault at once: one sampler for each.

Each watches for two and a half seconds a card whose energy is known in closed form; what
it left is read as `launch` reads it, and judged as a record's readings are judged.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from efficientllm import processes
from efficientllm.analysis.checks import flags
from efficientllm.environment import child_environment
from efficientllm.metrics import Unmeasured, View
from efficientllm.metrics.energy import Energy, window_energy
from efficientllm.readings import read_notes, read_readings
from efficientllm.record import Reading
from tests import samples
from tests.fakes import card_of, lay_out
from tests.fakes.pynvml import UUID
from tests.faults.tree import wait_until
from tests.samples import SECOND

pytestmark = pytest.mark.slow

WINDOW_S = 2.5
SQUARE = {"watts": 100.0, "high_watts": 500.0, "period_s": 0.7}
NO_COUNTER = ["nvmlDeviceGetTotalEnergyConsumption"]
CARDS: dict[str, dict[str, Any]] = {
    "constant": {},
    "square": SQUARE,
    "no counter": {"unsupported": NO_COUNTER},
    "no counter, no power": {"unsupported": [*NO_COUNTER, "nvmlDeviceGetFieldValues"]},
    "no driver": {"missing": True},
    "stuck": {"stuck_after": 1},
    "stuck later": {"stuck_after": 200},
    "backwards": {"backwards_after": 200},
    "lost": {"lost_after": 200},
    "segfault": {"segfault_after": 200},
    "killed": {},
    "no number": {"nan_activity": True},
}


class Watch:
    """One sampler, its card, and the window that it was there for."""

    def __init__(self, folder: Path, scenario: dict[str, Any]) -> None:
        self.out, self.fakes = folder / "out", lay_out(folder / "fakes", card=scenario)
        self.out.mkdir()
        environment = child_environment(UUID) | {"PYTHONPATH": str(self.fakes)}
        self.process: subprocess.Popen[bytes] = processes.start_sampler(
            self.out, os.getpid(), UUID, environment
        )

    def begun(self) -> bool:
        """Whether it has read its meters for a while; the window begins there."""
        memory = self.series("process_memory")
        return memory is not None and len(memory.t_ns) > 4

    def stop(self) -> None:
        memory = self.series("process_memory")
        assert memory is not None
        self.start_ns = memory.t_ns[4]
        self.end_ns = self.start_ns + round(WINDOW_S * SECOND)
        self.stopped_ns = time.monotonic_ns()
        self.alive = processes.stop_sampler(self.process)
        self.readings = tuple(read_readings(self.out))
        self.notes = read_notes(self.out, alive=self.alive)

    def series(self, meter: str) -> Reading | None:
        return next((r for r in read_readings(self.out) if r.meter == meter), None)

    @property
    def view(self) -> View:
        times = {"start_ns": self.start_ns, "end_ns": self.end_ns}
        over = samples.training_window().model_copy(update=times)
        record = samples.record(
            samples.pretrain(), windows=[over], readings=self.readings, notes=self.notes
        )
        return View(record, record.points[0])

    @property
    def energy(self) -> Energy | Unmeasured:
        return window_energy(self.view, self.view.main_window)

    @property
    def flags(self) -> dict[str, str]:
        return {flag.code: flag.level for flag in flags(self.view) if flag.about == "energy"}

    @property
    def truth(self) -> float:
        """Joules of the window by the scenario's closed form."""
        card = card_of(self.fakes)
        return float(card.joules(self.end_ns / 1e9) - card.joules(self.start_ns / 1e9))


@pytest.fixture(scope="module")
def watches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Watch]:
    root = tmp_path_factory.mktemp("samplers")
    made = {}
    for name, scenario in CARDS.items():
        (root / name).mkdir()
        made[name] = Watch(root / name, scenario)
    try:
        wait_until(lambda: all(w.begun() for w in made.values()), 60, "readings of every sampler")
        time.sleep(WINDOW_S / 2)
        made["killed"].process.send_signal(signal.SIGKILL)
        time.sleep(WINDOW_S / 2 + 0.1)
    finally:
        for watch in made.values():
            watch.stop()
    return made


def joules(watch: Watch) -> float:
    assert isinstance(watch.energy, Energy), watch.energy
    return watch.energy.joules


def reason(watch: Watch) -> str:
    assert isinstance(watch.energy, Unmeasured), watch.energy
    return watch.energy.reason


def test_joules_of_constant_power_are_right_within_a_step_at_each_edge(
    watches: dict[str, Watch],
) -> None:
    assert joules(watches["constant"]) == pytest.approx(300.0 * WINDOW_S, abs=2 * 300.0 * 0.1)
    assert watches["constant"].truth == pytest.approx(300.0 * WINDOW_S)
    assert set(watches["constant"].flags) == {"ENERGY_SHORT"}


def test_joules_of_a_square_wave_are_right_within_a_step_at_each_edge(
    watches: dict[str, Watch],
) -> None:
    watch = watches["square"]
    assert joules(watch) == pytest.approx(watch.truth, abs=2 * 500.0 * 0.1)


def test_every_meter_is_there_with_its_scope_and_its_device(watches: dict[str, Watch]) -> None:
    found = {(r.meter, r.device, r.scope) for r in watches["constant"].readings}
    assert found == {
        ("process_memory", "host", "process"),
        ("host_load", "host", "machine"),
        ("energy", "gpu", "board"),
        ("power", "gpu", "board"),
        ("device_memory", "gpu", "device"),
        ("gpm", "gpu", "device"),
        ("clocks", "gpu", "device"),
    }
    assert watches["constant"].notes.keys() <= {"rapl"}


def test_times_are_on_the_monotonic_clock_and_in_order(watches: dict[str, Watch]) -> None:
    for reading in watches["constant"].readings:
        assert list(reading.t_ns) == sorted(reading.t_ns)
        assert watches["constant"].start_ns - 60 * SECOND < reading.t_ns[0]
        assert reading.t_ns[-1] < time.monotonic_ns()


def test_a_step_after_the_end_is_still_seen(watches: dict[str, Watch]) -> None:
    """Else the energy of a window that ends with its trial would be unknown."""
    counter = next(r for r in watches["constant"].readings if r.meter == "energy")
    assert counter.t_ns[-1] > watches["constant"].stopped_ns


def test_without_a_counter_power_is_integrated_and_flagged(watches: dict[str, Watch]) -> None:
    watch = watches["no counter"]
    assert joules(watch) == pytest.approx(300.0 * WINDOW_S, rel=1e-3)
    assert watch.flags["ENERGY_INTEGRATED"] == "warn"
    assert watch.notes["energy"] == "not supported by this card or driver (Not Supported)"


def test_without_counter_and_power_there_is_no_energy(watches: dict[str, Watch]) -> None:
    expected = "not supported by this card or driver (Not Supported)"
    assert reason(watches["no counter, no power"]) == expected


def test_without_a_driver_there_is_no_energy_and_the_host_is_still_read(
    watches: dict[str, Watch],
) -> None:
    watch = watches["no driver"]
    assert reason(watch) == "no NVIDIA driver here (Driver Not Loaded)"
    assert {r.meter for r in watch.readings} == {"process_memory", "host_load"}


@pytest.mark.parametrize(
    ("name", "why", "flag"),
    [
        ("stuck", "the energy counter did not move during the window", "ENERGY_COUNTER"),
        ("stuck later", "the energy counter was not read over the whole window", None),
        ("backwards", "the energy counter went backwards", "ENERGY_COUNTER"),
    ],
)
def test_a_counter_that_lies_gives_no_energy_whatever_else_is_read(
    watches: dict[str, Watch], name: str, why: str, flag: str | None
) -> None:
    assert reason(watches[name]) == why
    assert watches[name].flags == ({flag: "invalid"} if flag else {})
    assert watches[name].alive


def test_a_card_lost_in_the_window_ends_its_meters_and_not_the_sampler(
    watches: dict[str, Watch],
) -> None:
    watch = watches["lost"]
    assert reason(watch) == "GPU is lost"
    assert {watch.notes[m] for m in ("energy", "power", "device_memory", "gpm")} == {"GPU is lost"}
    assert watch.alive
    memory = watch.series("process_memory")
    assert memory is not None
    assert memory.t_ns[-1] > watch.end_ns


@pytest.mark.parametrize("name", ["segfault", "killed"])
def test_a_sampler_that_dies_costs_the_energy_and_says_so(
    watches: dict[str, Watch], name: str
) -> None:
    watch = watches[name]
    assert not watch.alive
    assert watch.process.returncode == (-signal.SIGSEGV if name == "segfault" else -signal.SIGKILL)
    assert reason(watch).startswith("the sampler ended before the trial did")
    assert watch.flags["SAMPLER_DIED"] == "warn"
    assert watch.flags["SAMPLE_GAP"] == "warn"


def test_what_is_not_a_number_is_null(watches: dict[str, Watch]) -> None:
    activity = watches["no number"].series("gpm")
    assert activity is not None
    assert set(activity.columns["sm_active"]) == {None}
    assert "NaN" not in (watches["no number"].out / "readings.jsonl").read_text()
