"""Doctor: known answers that hold, and what it says and returns when one does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from efficientllm import clock, doctor
from efficientllm.device import Device
from efficientllm.doctor import examine
from efficientllm.machine import Gpu
from efficientllm.measure import Loop
from efficientllm.plan import Planned
from efficientllm.record import Machine, Outcome, Reading, Record
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import PROFILES, Protocol
from efficientllm.spec.workload import Probe
from efficientllm.store import Store
from efficientllm.workloads.probe import SLEEP_S
from efficientllm.workloads.probe import Probe as ProbeWork
from tests import samples

GPU = Gpu(
    number=3,
    uuid="GPU-1",
    product="NVIDIA H200",
    memory_bytes=150_000_000_000,
    free_bytes=149_000_000_000,
    power_limit_w=700.0,
    busy_share=0.0,
    foreign_bytes=0,
    driver="580",
    mig=False,
)
COUNTS = {
    "sleep": {"asked_s": 5.0},
    "product": {"flops": 7e15},
    "copy": {"bytes": 4.3e13},
}


class Trials:
    """In place of the launcher: records made by hand, of ten seconds each."""

    def __init__(self, machine: Machine, changes: dict[str, Any], held: list[str]) -> None:
        self.machine, self.software = machine, samples.SOFTWARE
        self.changes, self.held = changes, held

    def __call__(self, store: Store, gpu: Gpu | None) -> Trials:
        return self

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def measure_idle(self, protocol: Protocol) -> None:
        pass

    def device_files(self) -> list[str]:
        return self.held

    def run(self, planned: Planned, protocol: Protocol, *, suite: str) -> Record | None:
        assert isinstance(planned.case.workload, Probe)
        check = planned.case.workload.check
        changes = {"outcome": None, "unit_s": 0.1, "counts": COUNTS[check]}
        changes |= self.changes.get(check, {})
        if changes.get("busy"):
            return None
        outcome = changes["outcome"]
        unit_s = SLEEP_S if check == "sleep" else changes["unit_s"]
        units = round(10 / unit_s)
        counts = {"asked_s": SLEEP_S * units} if check == "sleep" else changes["counts"]
        window = samples.window(
            check, units=units, unit_s=changes.get("slept", unit_s), counts=counts
        )
        readings = changes.get("readings", (samples.counter(), samples.power(), gpm()))
        return samples.record(
            planned.case,
            windows=[window],
            outcome=outcome,
            machine=self.machine,
            readings=readings if self.machine.device_kind == "cuda" else (),
            notes=changes.get("notes", {}),
        )


def gpm() -> Reading:
    return Reading(meter="gpm", device="gpu", t_ns=(1,), columns={"sm_active": (0.9,)})


def examined(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    gpu: Gpu | None = GPU,
    held: tuple[str, ...] = (),
    **changes: dict[str, Any],
) -> tuple[int, dict[str, str], str]:
    """Exit status, answers by what was asked, and everything printed."""
    machine = samples.MACHINE if gpu else samples.CPU_MACHINE
    monkeypatch.setattr(doctor, "Launcher", Trials(machine, changes, list(held)))
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    status = examine(console, Store(tmp_path), gpu)
    console.file.close()
    return status, *_answers(console.export_text())


def _answers(text: str) -> tuple[dict[str, str], str]:
    lines = re.findall(r"^(\S.*?) +(yes|no|WRONG)  ", text, re.MULTILINE)
    return dict(lines), text


def test_a_sound_gpu_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status, answers, text = examined(monkeypatch, tmp_path)
    assert status == 0
    assert answers == {
        "time": "yes",
        "memory": "yes",
        "energy": "yes",
        "CPU power": "no",
        "SM/tensor": "yes",
        "peak": "yes",
        "fork server": "yes",
    }
    assert "GPU 3  NVIDIA H200  139.7 GiB (138.8 free)  700 W  idle" in text
    assert "ticks every 100 ms; counter against power +0.0%" in text
    assert "989 TFLOP/s dense, 4.8 TB/s (datasheet); 700 TFLOP/s and 4.3 TB/s measured now" in text
    assert text.rstrip().endswith("Next: efficientllm run quickstart")


@pytest.mark.parametrize(
    ("slept", "answer"), [(0.0509, "yes"), (0.0511, "WRONG"), (0.0489, "WRONG")]
)
def test_a_sleep_may_be_two_percent_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slept: float, answer: str
) -> None:
    status, answers, _ = examined(monkeypatch, tmp_path, sleep={"slept": slept})
    assert answers["time"] == answer
    assert status == (answer == "WRONG")


def test_work_beyond_the_datasheet_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for changes in (
        {"product": {"counts": {"flops": 1e16}}},
        {"copy": {"counts": {"bytes": 5e13}}},
    ):
        status, answers, text = examined(monkeypatch, tmp_path, **changes)
        assert (status, answers["peak"]) == (1, "WRONG")
        assert "Do not measure here before peak is understood." in text


def test_a_counter_that_disagrees_with_power_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for watts, answer in ((524.0, "yes"), (530.0, "WRONG")):
        readings = (samples.counter(500.0), samples.power(watts), gpm())
        status, answers, _ = examined(monkeypatch, tmp_path, product={"readings": readings})
        assert answers["energy"] == answer
        assert status == (answer == "WRONG")


def test_what_cannot_be_measured_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    notes = {"energy": "not supported (Not Supported)", "gpm": "not supported (Not Supported)"}
    product = {"readings": (), "notes": notes}
    status, answers, text = examined(monkeypatch, tmp_path, product=product)
    assert status == 0
    assert (answers["energy"], answers["SM/tensor"]) == ("no", "no")
    assert text.count("not supported (Not Supported)") == 2


def test_a_fork_server_that_holds_a_device_is_told_and_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status, answers, text = examined(monkeypatch, tmp_path, held=("/dev/nvidia0", "/dev/nvidia0"))
    assert (status, answers["fork server"]) == (0, "no")
    assert "an import opened /dev/nvidia0: every trial starts in a fresh interpreter" in text


def test_checks_that_could_not_run_say_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crash = Outcome(status="crash", reason="killed by SIGSEGV")
    status, answers, text = examined(
        monkeypatch, tmp_path, sleep={"busy": True}, product={"outcome": crash}
    )
    assert status == 1, "a check that crashed is a fault, one that was taken is not"
    assert (answers["time"], answers["energy"], answers["peak"]) == ("no", "WRONG", "WRONG")
    assert "another process is measuring here" in text
    assert "crash: killed by SIGSEGV" in text


def test_an_unknown_card_has_no_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    card = GPU._replace(product="Prototype 9")
    status, answers, text = examined(monkeypatch, tmp_path, gpu=card)
    assert (status, answers["peak"]) == (0, "no")
    assert "not in the catalog: use --peaks" in text


class Clock:
    """A clock that sleeping moves, by as much as it was asked to or by a little more."""

    def __init__(self, lie: float) -> None:
        self.ns, self.lie = 1_000_000_000, lie

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * (1 + self.lie) * 1e9)

    def monotonic_ns(self) -> int:
        return self.ns

    perf_counter_ns = monotonic_ns


@pytest.mark.parametrize(("lie", "status", "said"), [(0.0, 0, "0.0%"), (0.1, 1, "+10.0%")])
def test_a_clock_that_lies_is_found_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lie: float, status: int, said: str
) -> None:
    """The real probe and the real loop, on a clock that goes a tenth too fast."""
    monkeypatch.setattr(clock, "time", Clock(lie))
    work = ProbeWork(Probe(check="sleep"), Device(torch.device("cpu"), graphs=False), clock.sleep)
    timeline = clock.timeline(torch.device("cpu"))
    (window,) = Loop(work, timeline, PROFILES["quick"]).measure()
    slept = sum(window.unit_s) / window.units
    found, answers, text = examined(monkeypatch, tmp_path, gpu=None, sleep={"slept": slept})
    assert found == status
    assert re.search(rf"sleep check [+-]?{re.escape(said)}", text)
    assert answers["time"] == ("WRONG" if status else "yes")


@pytest.mark.slow
def test_this_machine_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    console = Console(width=200)
    status = examine(console, Store(tmp_path), None)
    answers, text = _answers(capsys.readouterr().out)
    assert status == 0, text
    assert answers["fork server"] == answers["time"] == answers["memory"] == "yes"
    assert "WRONG" not in answers.values()
    names = {entry.record.trial.name for entry in Store(tmp_path).entries()}
    assert names == {"probe-sleep", "probe-product", "probe-copy"}


def test_probes_are_cases_like_any_other() -> None:
    for check in COUNTS:
        Case.model_validate({"model": "none", "workload": {"kind": "probe", "check": check}})
