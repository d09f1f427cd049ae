"""Others' share of the processors, from a /proc that is laid out by hand, and from the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from efficientllm import clock
from efficientllm.meters import host
from efficientllm.meters.host import HostLoad

TICKS = host.TICKS_PER_S


class Proc:
    """A machine of four processors; this process may use the first two."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_s = 0.0
        self.set(0, 0, 0, {})

    def set(
        self, cpu0: float, cpu1: float, cpu2: float, processes: dict[int, tuple[int, float]]
    ) -> None:
        """Busy seconds of processors, and {pid: (session, seconds)} of processes."""
        lines = ["cpu 9 9 9 9 9 9 9 9 9 9"]
        for number, busy in enumerate((cpu0, cpu1, cpu2, 0)):
            half = round(busy * TICKS / 2)
            lines.append(f"cpu{number} {half} 0 0 777 888 0 0 {half} 0 0")
        (self.root / "stat").write_text("\n".join([*lines, "intr 5"]))
        for pid, (session, seconds) in processes.items():
            folder = self.root / str(pid)
            folder.mkdir(exist_ok=True)
            half = round(seconds * TICKS / 2)
            fields = ["S", "1", "2", str(session), *["0"] * 7, str(half), str(half), "0", "0"]
            (folder / "stat").write_text(f"{pid} (a (strange) name) {' '.join(fields)}")


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proc:
    made = Proc(tmp_path)
    monkeypatch.setattr(host, "PROC", tmp_path)
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(host.os, "getsid", lambda _: 99)
    monkeypatch.setattr(clock, "now_ns", lambda: round(made.now_s * 1e9))
    return made


def test_what_the_worker_and_its_children_compute_is_not_others_work(proc: Proc) -> None:
    proc.set(0, 0, 0, {7: (7, 0.0), 8: (7, 0.0), 99: (99, 0.0), 5: (5, 0.0)})
    meter = HostLoad(7)
    proc.now_s = 2.0
    # own: 1.0 + 0.5 s and the sampler's 0.1; another process 0.8; stolen time is in `stat` alone
    proc.set(1.6, 1.2, 2.0, {7: (7, 1.0), 8: (7, 0.5), 99: (99, 0.1), 5: (5, 0.8)})
    assert meter.read() == pytest.approx(((2.8 - 1.6) / 2.0,))


def test_a_quiet_machine_reads_zero_and_never_less(proc: Proc) -> None:
    proc.set(0, 0, 0, {7: (7, 0.0)})
    meter = HostLoad(7)
    proc.now_s = 1.0
    proc.set(1.0, 0, 0, {7: (7, 1.04)})
    assert meter.read() == (0.0,)


def test_a_child_that_has_ended_makes_one_reading_unknown(proc: Proc) -> None:
    proc.set(0, 0, 0, {7: (7, 0.0), 8: (7, 5.0)})
    meter = HostLoad(7)
    (proc.root / "8" / "stat").unlink()
    proc.now_s = 1.0
    proc.set(1.0, 0, 0, {7: (7, 0.5)})
    assert meter.read() == (None,)
    proc.now_s = 2.0
    proc.set(2.0, 0, 0, {7: (7, 1.5)})
    assert meter.read() == pytest.approx((0.0,))


def test_a_child_of_another_session_that_is_reaped_makes_one_reading_unknown(proc: Proc) -> None:
    proc.set(0, 0, 0, {7: (7, 0.0)})
    meter = HostLoad(7)
    proc.now_s = 1.0
    proc.set(1.5, 0, 0, {7: (7, 30.0)})
    assert meter.read() == (None,)
    proc.now_s = 2.0
    proc.set(3.0, 0, 0, {7: (7, 31.0)})
    assert meter.read() == pytest.approx((0.5,))


def test_no_time_no_reading(proc: Proc) -> None:
    assert HostLoad(7).read() is None


@pytest.mark.slow
def test_a_busy_neighbour_is_seen_here() -> None:
    """A process of another session that computes; what else ends here may hide it for a second."""
    code = "import time\nend = time.time() + 30\nwhile time.time() < end: pass"
    neighbour = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        clock.sleep(0.5)
        meter = HostLoad(1 << 22)
        seen = False
        for _ in range(10):
            clock.sleep(1.0)
            (others,) = meter.read() or (None,)
            seen = others is not None and others > 0.3
            if seen:
                break
    finally:
        neighbour.kill()
        neighbour.wait()
    assert seen
