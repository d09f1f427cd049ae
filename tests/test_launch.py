"""One trial in, one record out: how trials end, told by a light fork server's workers.

Everything but the workers' libraries is real here; see `tests/fakes/light.py`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from efficientllm import launch, processes, watch
from efficientllm.environment import child_environment, tuning
from efficientllm.launch import Interrupted, Launcher
from efficientllm.plan import Planned
from efficientllm.processes import CannotStart, FreshInterpreter
from efficientllm.record import Record
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import Protocol
from efficientllm.store import Store, StoreError
from tests.fakes import lay_out, put_on_path
from tests.faults.tree import alive, descendants, wait_until

SMOKE = Protocol(profile="smoke")


def case(name: str) -> Case:
    """A probe, told apart from others by a field that it does not use."""
    quality = {"max_bytes": 1 + zlib.crc32(name.encode())}
    workload = {"kind": "probe", "check": "sleep"}
    return Case.model_validate(
        {"model": "none", "workload": workload, "name": name, "quality": quality}
    )


def trial(launcher: Launcher, name: str, attempt: int = 0) -> Record:
    record = launcher.run(Planned(case(name), 0, attempt), SMOKE, suite="faults")
    assert record is not None
    return record


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    folder = tmp_path_factory.mktemp("light")
    with pytest.MonkeyPatch.context() as patch:
        put_on_path(patch, lay_out(folder / "fakes", customize="light"))
        patch.setattr(processes, "GRACE_S", 0.5)
        patch.setattr(watch, "POLL_S", 0.1)
        with Launcher(Store(folder / "store"), None) as made:
            yield made


@pytest.mark.slow
def test_a_trial_that_ends_well_is_one_record_and_leaves_no_trial_folder(
    launcher: Launcher,
) -> None:
    record = trial(launcher, "nap")
    assert record.outcome.status == "ok"
    assert [phase.name for phase in record.phases] == ["load"]
    assert [entry.record for entry in launcher.store.of_case(case("nap").case_id)] == [record]
    assert not list(launcher.store.work.glob("trial-*"))


@pytest.mark.slow
def test_a_trial_that_another_process_has_finished_is_not_run_again(launcher: Launcher) -> None:
    trial(launcher, "nap-once")
    assert launcher.run(Planned(case("nap-once"), 0, 0), SMOKE) is None


@pytest.mark.slow
def test_a_trial_whose_lease_is_held_is_left_to_its_holder(launcher: Launcher) -> None:
    name = f"{case('nap-held').case_id}-0-{launcher.machine.name}"
    lease = launcher.store.lease(name)
    assert lease is not None
    with lease:
        assert launcher.run(Planned(case("nap-held"), 0, 0), SMOKE) is None
    assert trial(launcher, "nap-held").outcome.status == "ok"


@pytest.mark.slow
def test_a_worker_that_kills_itself_is_a_crash_with_signal_and_phase(launcher: Launcher) -> None:
    outcome = trial(launcher, "killed").outcome
    assert (outcome.status, outcome.phase) == ("crash", "measure")
    assert outcome.reason == "killed by SIGKILL"


@pytest.mark.slow
def test_a_worker_that_exits_without_a_word_leaves_its_last_line(launcher: Launcher) -> None:
    outcome = trial(launcher, "exits").outcome
    assert (outcome.status, outcome.phase) == ("crash", "measure")
    assert outcome.reason == "exit status 7: the last thing it said"


@pytest.mark.slow
def test_a_worker_past_its_own_limit_is_a_timeout(launcher: Launcher) -> None:
    outcome = trial(launcher, "late").outcome
    assert (outcome.status, outcome.phase) == ("timeout", "measure")


@pytest.mark.slow
def test_a_worker_that_never_says_anything_is_a_timeout_too(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "START_LIMIT_S", 0.3)
    outcome = trial(launcher, "mute").outcome
    assert (outcome.status, outcome.phase) == ("timeout", "start")


@pytest.mark.slow
def test_a_worker_that_dies_before_its_first_word_does_not_hang_the_parent(
    launcher: Launcher,
) -> None:
    before = descendants(os.getpid())
    killer = threading.Thread(target=_kill_new_worker, args=(before,))
    killer.start()
    start = time.monotonic()
    outcome = trial(launcher, "mute-killed").outcome
    killer.join()
    assert (outcome.status, outcome.phase) == ("crash", "start")
    assert time.monotonic() - start < 10


def _kill_new_worker(before: set[int]) -> None:
    """Kill the one new process that forked from the fork server."""

    def workers() -> list[int]:
        new = descendants(os.getpid()) - before
        return [pid for pid in new if b"forkserver" in _read(pid, "cmdline")]

    wait_until(workers, 10, "a worker")
    for pid in workers():
        os.kill(pid, signal.SIGKILL)


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


@pytest.mark.slow
def test_what_a_worker_leaves_running_is_ended_with_it(launcher: Launcher) -> None:
    before = descendants(os.getpid())
    assert trial(launcher, "untidy").outcome.status == "ok"
    wait_until(lambda: not alive(_left_running()), 5, "the end of what the worker started")
    assert descendants(os.getpid()) <= before


def _left_running() -> set[int]:
    """What scripted workers of this run have started, wherever it was adopted since."""
    ours = os.environ["PYTHONPATH"].encode()
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return {
        pid
        for pid in pids
        if b"time.sleep(600)" in _read(pid, "cmdline") and ours in _read(pid, "environ")
    }


@pytest.mark.slow
def test_a_stubborn_worker_and_its_children_are_gone_soon_after_they_are_asked(
    launcher: Launcher,
) -> None:
    """SIGTERM is ignored by all three; SIGKILL to their group follows."""
    with Launcher(launcher.store, None) as own:
        trial(own, "nap-first")
        asker = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
        asker.start()
        with pytest.raises(Interrupted) as stop:
            trial(own, "stubborn")
        assert stop.value.sign == signal.SIGTERM
        wait_until(lambda: not alive(_left_running()), 5, "the end of the stubborn ones")
    (entry,) = launcher.store.of_case(case("stubborn").case_id)
    assert entry.record.outcome.status == "interrupted"
    assert entry.record.outcome.reason == "stopped by SIGTERM"
    assert entry.record.outcome.phase == "measure"


@pytest.mark.slow
def test_asked_to_stop_between_trials_it_starts_no_other(launcher: Launcher) -> None:
    """Also when every trial is another process's, which is when it would wait for ever."""
    with Launcher(launcher.store, None) as own:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted, match="SIGINT"):
            own.run(Planned(case("never"), 0, 0), SMOKE)
    assert launcher.store.of_case(case("never").case_id) == []


@pytest.mark.slow
def test_the_death_of_the_fork_server_is_a_crash_and_the_next_trial_has_a_new_one(
    launcher: Launcher,
) -> None:
    outcome = trial(launcher, "serverless").outcome
    assert outcome.status == "crash"
    assert "the fork server has ended" in outcome.reason
    assert trial(launcher, "nap-after").outcome.status == "ok"


@pytest.mark.slow
def test_progress_is_heard_while_a_trial_runs(launcher: Launcher) -> None:
    heard: list[str] = []
    planned = Planned(case("doze"), 0, 0)
    launcher.run(planned, SMOKE, listener=lambda progress: heard.append(progress.phase))
    assert heard[-1] == "measure"


@pytest.mark.slow
def test_a_rebuild_writes_no_record(launcher: Launcher) -> None:
    record = launcher.run(Planned(case("nap-rebuild"), 0, 0, "rebuild"), SMOKE)
    assert record is not None
    assert launcher.store.of_case(case("nap-rebuild").case_id) == []


@pytest.mark.slow
def test_a_preload_that_fails_is_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(monkeypatch, lay_out(tmp_path / "fakes", customize="light"))
    monkeypatch.setenv("TORCH_STAND_IN_BROKEN", "peft")
    with (
        Launcher(Store(tmp_path / "store"), None) as own,
        pytest.raises(CannotStart, match="peft was built for another machine"),
    ):
        trial(own, "nap")
    assert not list((tmp_path / "store").glob("*/*/*.json"))


@pytest.mark.slow
def test_no_trial_starts_on_a_disk_without_room(tmp_path: Path) -> None:
    with (
        Launcher(Store(tmp_path), None, space_bytes=1 << 60) as own,
        pytest.raises(StoreError, match="MiB needed; make room"),
    ):
        own.run(Planned(case("nap"), 0, 0), SMOKE)


def test_a_file_that_cannot_be_written_is_an_error_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the parent fails to write, the user reads which folder and why."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(launch.journal.Task, "write", full)
    with (
        Launcher(Store(tmp_path), None, space_bytes=0) as own,
        pytest.raises(StoreError, match=r"trial-.*No space left on device"),
    ):
        own.run(Planned(case("nap"), 0, 0), SMOKE)


def test_a_server_that_holds_a_device_open_forks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forks could not use the device; trials start in fresh interpreters instead."""
    started: list[str] = []

    class Unclean:
        device_files = ("/dev/nvidia-uvm",)

        def __init__(self, *_: object) -> None:
            started.append("server")

        def close(self) -> None:
            started.append("closed")

    monkeypatch.setattr(processes, "ForkServer", Unclean)
    with Launcher(Store(tmp_path), None) as own:
        starters = [own._starter(SMOKE) for _ in range(3)]
        assert own.device_files() == ["/dev/nvidia-uvm"]
    assert all(isinstance(starter, FreshInterpreter) for starter in starters)
    assert started == ["server", "closed"]


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Launcher(Store(tmp_path), None):
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_secrets_never_reach_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    environment = child_environment(None)
    assert "secret" not in environment.values()
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert child_environment("GPU-1")["CUDA_VISIBLE_DEVICES"] == "GPU-1"


def test_kernels_are_kept_where_every_trial_looks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's own default, unless the user says otherwise; nothing where none can be kept."""
    for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert child_environment(None)["TRITON_CACHE_DIR"] == str(tmp_path / ".triton" / "cache")
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "nowhere"))
    assert "TRITON_CACHE_DIR" not in child_environment(None)
    (tmp_path / "nowhere").mkdir()
    found = child_environment(None)["TRITON_CACHE_DIR"]
    assert found == str(tmp_path / "nowhere" / ".triton" / "cache")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/own")
    assert child_environment(None)["TRITON_CACHE_DIR"] == "/own"


def test_the_record_names_variables_that_change_numbers_and_no_paths() -> None:
    environment = {
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "CUDA_HOME": "/usr/local/cuda",
        "TRITON_CACHE_DIR": "/home/somebody/cache",
        "HOME": "/home/somebody",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    assert tuning(environment) == {
        "OMP_NUM_THREADS": "2",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
