"""Memory that runs out on the host: the kernel ends a process, and only a count says why.

The control group, its limit and the kill are real; the worker is scripted
(`tests/fakes/light.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from efficientllm.control_group import HOST, kill_count, memory_kills
from efficientllm.launch import Launcher
from efficientllm.plan import Planned
from efficientllm.record import Record
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import Protocol
from efficientllm.store import Store
from tests.fakes import lay_out, put_on_path

pytestmark = pytest.mark.slow

LIMIT = 256 << 20


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 256 MiB, in the first or the second version of that interface."""
    for root, limit in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ):
        group = Path(root) / "efficientllm-test"
        with contextlib.suppress(OSError):
            group.mkdir()
            (group / limit).write_text(str(LIMIT))
            with contextlib.suppress(OSError):
                (group / "memory.swap.max").write_text("0")
            yield group
            group.rmdir()
            return
    pytest.skip("this user may not make a control group")


def measured(case: Case, tmp_path: Path) -> Record:
    with Launcher(Store(tmp_path / "store"), None) as launcher:
        record = launcher.run(Planned(case, 0, 0), Protocol(profile="smoke"))
    assert record is not None
    return record


def hungry(*batches: int) -> Case:
    workload = {"kind": "generate", "points": {"batch": list(batches)}}
    return Case.model_validate({"name": "hungry", "model": "backbone-tiny", "workload": workload})


@pytest.fixture
def scripted(small_group: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(monkeypatch, lay_out(tmp_path / "fakes", customize="light"))
    monkeypatch.setenv("TORCH_STAND_IN_GROUP", str(small_group))


@pytest.mark.usefixtures("scripted")
def test_a_kill_for_memory_costs_its_point_and_the_rest_is_measured(tmp_path: Path) -> None:
    record = measured(hungry(1, 2, 4), tmp_path)
    assert record.outcome.status == "ok"
    statuses = [(point.batch, point.outcome.status) for point in record.points]
    assert statuses == [(1, "ok"), (2, "out_of_memory"), (4, "ok")]
    lost = record.points[1].outcome
    assert lost.phase == "prepare"
    assert lost.reason == "the host ran out of memory: the kernel ended the process"
    assert [phase.name for phase in record.phases] == ["load", "load"], "another process"


EATS = """
import pathlib, sys
(pathlib.Path(sys.argv[1]) / "cgroup.procs").write_text("0")
kept = []
while True:
    kept.append(b"x" * (1 << 20))
"""


def test_a_kill_for_memory_in_another_group_is_not_counted_here(small_group: Path) -> None:
    """A worker that somebody kills meanwhile has crashed, whatever runs out of memory beside it."""
    count, on_host = kill_count(os.getpid()), memory_kills(HOST)
    if count == HOST:
        pytest.skip("this host counts for all groups together")
    before = memory_kills(count)
    eater = subprocess.run([sys.executable, "-S", "-c", EATS, str(small_group)], check=False)
    assert eater.returncode == -signal.SIGKILL
    assert memory_kills(HOST) > on_host
    assert memory_kills(count) == before
