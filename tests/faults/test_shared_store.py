"""Eight runs of one suite on one store at once, and a disk that fills up under a store.

Workers are scripted (`tests/fakes/light.py`); processes, leases and files are real.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from efficientllm.launch import Launcher
from efficientllm.plan import Planned, Shelf
from efficientllm.record import Record
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import Protocol
from efficientllm.store import Store, StoreError
from tests.fakes import lay_out, put_on_path

pytestmark = pytest.mark.slow

PROCESSES, CASES = 8, 50


def start(folder: Path, suite: Path, store: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "efficientllm", "run", str(suite), "--no-page"]
    return subprocess.Popen(
        [*command, "--store", str(store)],
        env=os.environ | {"PYTHONPATH": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_eight_processes_run_fifty_cases_once_each(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "fakes", customize="light")
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "suite: shared\nprotocol: smoke\n"
        "base: {name: quick, model: none, workload: {kind: probe, check: sleep}}\n"
        f"grid:\n  - quality.max_bytes: {list(range(1, CASES + 1))}\n"
    )
    runs = [start(folder, suite, tmp_path / "store") for _ in range(PROCESSES)]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        # A trial that was run twice would end in status 3: records are never replaced.
        assert (run.returncode, errors) == (0, b"")
    store = Store(tmp_path / "store")
    records = [entry.record for entry in store.entries()]
    assert sorted(r.trial.name for r in records) == sorted(f"quick-{i + 1}" for i in range(CASES))
    assert {(r.outcome.status, r.trial.round, r.trial.attempt) for r in records} == {("ok", 0, 0)}
    assert store.quarantined() == []
    assert not list(store.root.rglob(".*.json.*"))
    assert not list(store.work.glob("leases/*.json"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Fill a disk up to so many bytes; the file that does it."""
    filler = folder / "filler"
    disk = os.statvfs(folder)
    filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize - leave))
    return filler


def case(number: int) -> Case:
    workload = {"kind": "probe", "check": "sleep"}
    return Case.model_validate(
        {"model": "none", "workload": workload, "name": "quick", "quality": {"max_bytes": number}}
    )


def trial(launcher: Launcher, number: int) -> Record:
    of = case(number)
    shelf = Shelf(launcher.store, [of], launcher.machine, launcher.software)
    planned = Planned(of, 0, shelf.next_attempt(of, 0))
    record = launcher.run(planned, Protocol(profile="smoke"))
    assert record is not None
    return record


def test_a_full_disk_is_an_error_and_damages_nothing(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is left: nothing, enough for the lease, for the trial, all but the record."""
    put_on_path(monkeypatch, lay_out(tmp_path / "fakes", customize="light"))
    store = Store(small_disk / "store")
    with Launcher(store, None, space_bytes=0) as launcher:
        assert trial(launcher, 1).outcome.status == "ok"
        (first,) = store.root.glob("cpu-*/*/*.json")
        content, said = first.read_bytes(), []
        for number in range(2, 12):
            filler = fill(small_disk, leave=4096 * (number - 2))
            said.append(how_it_went(launcher, number))
            filler.unlink()
            assert first.read_bytes() == content
            assert not list(store.root.glob("cpu-*/*/.*")), "a half-written record"
        failed = said[: said.index("ok ")]
        assert all("full" in text or "No space left" in text for text in failed), failed
        assert len(failed) >= 3
        assert set(said[len(failed) :]) == {"ok "}, "more room is never worse"
        assert trial(launcher, 1 + len(failed)).outcome.status == "ok", "the rerun with room"
    assert store.quarantined() == []
    assert [e.path for e in store.of_case(case(1).case_id)] == [first]


def how_it_went(launcher: Launcher, number: int) -> str:
    try:
        outcome = trial(launcher, number).outcome
    except StoreError as error:
        return f"StoreError {error}"
    return f"{outcome.status} {outcome.reason}"


def test_a_disk_without_room_for_a_trial_is_exit_status_three(
    small_disk: Path, tmp_path: Path
) -> None:
    folder = lay_out(tmp_path / "fakes", customize="light")
    suite = tmp_path / "suite.yaml"
    suite.write_text("suite: s\nbase: {model: none, workload: {kind: probe}}\n")
    run = start(folder, suite, small_disk / "store")
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 3
    assert b"1024 MiB needed; make room" in errors
