"""Idle power: measured once, while the fork server imports; told where it cannot be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficientllm import idle, launch, processes
from efficientllm.journal import Journal, Task, read
from efficientllm.launch import Interrupted, Launcher
from efficientllm.machine import Gpu
from efficientllm.meters import READINGS
from efficientllm.plan import Planned
from efficientllm.record import Outcome
from efficientllm.spec.protocol import Protocol
from efficientllm.store import Store
from tests import samples

CASE = samples.case()
(POINT,) = samples.record(CASE).points
GPU = Gpu(0, "GPU-1", "NVIDIA H200", 140 << 30, 139 << 30, 700.0, 0.0, 0, "580", mig=False)


class Card:
    """A card that draws 90 W, and 300 W as long as nobody sits idle on it; what was done to it.

    Somebody else may make it draw more in the last moment, or hold memory.
    """

    def __init__(self) -> None:
        self.done: list[str] = []
        self.ends: Outcome | None = Outcome()
        self.status = 0
        self.seconds: list[float] = []
        self.pid = 1 << 22  # of nobody
        self.more_watts = 0.0
        self.in_use: dict[str, str] = {}

    def sit(self, folder: Path, seconds: float, environment: dict[str, str]) -> Card:
        self.done.append("idle process")
        self.seconds.append(seconds)
        with Journal(folder) as log:
            if self.ends is not None and self.ends.status == "ok":
                log.write("phase", name="idle", start_ns=100, end_ns=200, point=None)
            if self.ends is not None:
                log.write_durable("end", outcome=self.ends.model_dump())
        (folder / "stderr").write_text("Traceback\nRuntimeError: torch sees no accelerator here\n")
        head = {"index": 0, "meter": "power", "device": "GPU-1", "scope": "board"}
        watts = {100: 90.0, 150: 90.0, 200: 90.0 + self.more_watts}
        rows = [[0, t, watts.get(t, 300.0)] for t in range(0, 400, 50)]
        lines = [head | {"columns": ["power_w"]}, *rows]
        (folder / READINGS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return self

    def wait(self, seconds: float) -> int | None:
        self.done.append("waited")
        return self.status

    def told(self, what: str) -> Callable[..., bool]:
        def tell(*_: object) -> bool:
            self.done.append(what)
            return True

        return tell


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    made = Card()
    monkeypatch.setattr(processes, "start_idle", made.sit)
    monkeypatch.setattr(processes, "start_sampler", made.told("sampler"))
    monkeypatch.setattr(processes, "stop_sampler", made.told("sampler stopped"))
    monkeypatch.setattr(processes, "end_group", made.told("group ended"))
    monkeypatch.setattr(launch, "wait_for_memory", lambda _: made.in_use)
    monkeypatch.setattr(Launcher, "_starter", made.told("fork server"))
    return made


def measured(store: Path, card: Card, profile: str = "quick", times: int = 1) -> Launcher:
    with Launcher(Store(store), GPU) as launcher:
        for _ in range(times):
            launcher.measure_idle(Protocol.model_validate({"profile": profile}))
    return launcher


def test_the_fork_server_imports_while_the_card_sits_idle(tmp_path: Path, card: Card) -> None:
    launcher = measured(tmp_path, card)
    assert card.done == [
        *("idle process", "sampler", "fork server", "waited"),
        *("sampler stopped", "group ended"),
    ]
    assert launcher.idle_power_w == pytest.approx(90.0)
    assert not list(launcher.store.work.glob("trial-*"))


@pytest.mark.parametrize(
    ("profile", "seconds"), [("smoke", 2.0), ("quick", 2.0), ("standard", 10.0), ("publish", 10.0)]
)
def test_a_first_look_is_shorter(profile: str, seconds: float, tmp_path: Path, card: Card) -> None:
    measured(tmp_path, card, profile)
    assert card.seconds == [seconds]


def test_it_is_measured_once_a_run_even_if_it_fails(tmp_path: Path, card: Card) -> None:
    assert measured(tmp_path, card, times=3).idle_power_w is not None
    card.ends, card.status = None, 1
    assert measured(tmp_path, card, times=3).idle_power_w is None
    assert card.done.count("idle process") == 2


@pytest.mark.parametrize(
    ("since", "watts", "in_use", "first"),
    [
        (launch.FRESH_S - 1, 0.0, {}, [False, False]),
        (launch.FRESH_S + 1, 0.0, {}, [True, False]),
        (1.0, 20.0, {}, [True, False]),
        (1.0, 0.0, {"shared_device": "0.30 GiB"}, [True, False]),
    ],
)
def test_trials_sit_idle_once_and_the_first_only_where_the_run_s_look_is_old_or_doubtful(
    since: float,
    watts: float,
    in_use: dict[str, str],
    first: list[bool],
    tmp_path: Path,
    card: Card,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sat: list[bool] = []

    def process(_: Launcher, folder: Path, *__: object) -> tuple[Outcome, bool]:
        """One that measures nothing, then one that measures the point."""
        sat.append(Task.read(folder).sits_idle)
        with Journal(folder) as log:
            if folder.name == "1":
                log.write("point", result=POINT.model_dump(mode="json"))
                log.write("note", key="quality", reason="was not asked for")
        return Outcome(), True

    card.more_watts, card.in_use = watts, in_use
    monkeypatch.setattr(Launcher, "_process", process)
    launcher = measured(tmp_path, card)
    monkeypatch.setattr(launch.clock, "seconds_since", lambda _: since)
    for number in range(2):
        assert launcher.run(Planned(CASE, number, 0), Protocol()) is not None
    assert sat == [*first, True, False]


@pytest.mark.parametrize(
    ("ends", "status", "why"),
    [
        (None, 1, "RuntimeError: torch sees no accelerator here"),
        (None, -9, "SIGKILL"),
        (Outcome(status="timeout", reason="took too long"), 0, "took too long"),
    ],
)
def test_records_say_why_there_is_no_idle_power(
    ends: Outcome | None, status: int, why: str, tmp_path: Path, card: Card
) -> None:
    card.ends, card.status = ends, status
    launcher = measured(tmp_path, card)
    assert launcher.idle_power_w is None
    told = launcher._notes["idle"]
    assert told.startswith("idle power could not be measured: ")
    assert why in told


def test_who_wants_to_stop_meanwhile_is_heard_and_nothing_stays(
    tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Launcher, "_starter", interrupt)
    with pytest.raises(Interrupted):
        measured(tmp_path, card)
    assert card.done[-2:] == ["sampler stopped", "group ended"]


@pytest.mark.parametrize("broken", ["start_sampler", "_starter"])
def test_what_fails_beside_it_leaves_nothing_running(
    broken: str, tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise processes.CannotStart("no")

    monkeypatch.setattr(Launcher if broken == "_starter" else processes, broken, fail)
    with pytest.raises(processes.CannotStart):
        measured(tmp_path, card)
    assert card.done[-1] == "group ended"


class Driver:
    """CUDA's driver as far as it is asked, for a card whose handle is 7; one call may fail."""

    def __init__(self, fails: str = "") -> None:
        self.asked: list[tuple[str, int]] = []
        self._fails = fails

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            """What comes first by reference is an answer."""
            told, *rest = arguments
            if rest:
                told._obj.value = 7 if name == "cuDeviceGet" else 1
            asked = rest[0] if rest else told
            self.asked.append((name, getattr(asked, "value", asked)))
            return 100 if name == self._fails else 0

        return call


def test_the_driver_alone_opens_the_first_visible_card(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(idle.ctypes, "CDLL", lambda name: {"libcuda.so.1": driver}[name])
    assert idle.open_cuda()
    assert driver.asked == [("cuInit", 0), ("cuDeviceGet", 0), ("cuDevicePrimaryCtxRetain", 7)]


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"])
def test_a_card_that_the_driver_cannot_open_is_told(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(fails=call)
    monkeypatch.setattr(idle.ctypes, "CDLL", lambda _: driver)
    with pytest.raises(RuntimeError, match=f"{call} ended with CUDA error 100"):
        idle.open_cuda()
    assert driver.asked[-1][0] == call


def test_without_cudas_driver_torch_opens_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(idle.ctypes, "CDLL", missing)
    assert not idle.open_cuda()


def test_an_idle_process_imports_no_torch_where_it_has_the_driver(tmp_path: Path) -> None:
    """Which takes seconds; nor before it knows that its parent lives."""
    program = (
        "import runpy, sys, types; sys.modules['torch'] = None; import ctypes, os;"
        " real = ctypes.CDLL; driver = types.SimpleNamespace(**{n: lambda *_: 0 for n in"
        " ('cuInit', 'cuDeviceGet', 'cuDevicePrimaryCtxRetain')});"
        " ctypes.CDLL = lambda n, *a, **k: driver if n == 'libcuda.so.1' else real(n, *a, **k);"
        " from efficientllm import clock; clock.sleep = lambda _: None;"
        " runpy.run_module('efficientllm.idle', alter_sys=True, run_name='__main__')"
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(os.getpid()), "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [phase.name for phase in read(tmp_path).phases] == ["open", "idle"]


def test_an_orphan_ends_before_it_imports_torch(tmp_path: Path) -> None:
    """Its parent is this process, not the one that it is told."""
    program = (
        "import runpy, sys; sys.modules['torch'] = None;"
        " runpy.run_module('efficientllm.idle', alter_sys=True, run_name='__main__')"
    )
    command = [sys.executable, "-c", program, str(tmp_path), "1", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the parent has already ended" in done.stderr
