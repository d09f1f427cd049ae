"""Real trainings that are killed and go on from their checkpoints, as if nothing had been."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from efficientllm.analysis.checks import flags
from efficientllm.launch import Launcher
from efficientllm.metrics import View
from efficientllm.plan import Planned, Shelf
from efficientllm.record import Record
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import Protocol
from efficientllm.store import Store
from tests.faults.tree import alive, forks, wait_until

pytestmark = pytest.mark.slow

SMOKE = Protocol(profile="smoke")
STEPS = 100


def training(**changes: Any) -> Case:
    workload = {
        "kind": "pretrain",
        "steps": STEPS,
        "sequence_length": 32,
        "batch": 2,
        "precision": {"compute": "float32"},
    }
    quality = {"max_bytes": 1024, "curve": 4}
    model = {"kind": "backbone", "preset": "tiny"}
    return Case.model_validate(
        {"name": "train", "model": model, "workload": workload | changes, "quality": quality}
    )


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with Launcher(Store(tmp_path_factory.mktemp("store")), None) as made:
            yield made


@pytest.fixture(scope="module")
def undisturbed(launcher: Launcher) -> Record:
    record = run(launcher, training())
    assert record.outcome.status == "ok"
    assert len(record.losses) == STEPS
    return record


def run(launcher: Launcher, case: Case) -> Record:
    """The next attempt at a case's first round."""
    shelf = Shelf(launcher.store, [case], launcher.machine, launcher.software)
    record = launcher.run(Planned(case, 0, shelf.next_attempt(case, 0)), SMOKE, suite="faults")
    assert record is not None
    return record


def saved(launcher: Launcher) -> list[Path]:
    return sorted(launcher.store.work.glob("checkpoints/*/*.safetensors"))


def worker() -> int | None:
    """The fork of the fork server that still runs."""
    return next(iter(alive(forks(os.getpid()))), None)


def killed(launcher: Launcher, case: Case, ready: Callable[[], object]) -> Record:
    """Run a trial whose worker gets a SIGKILL as soon as something holds."""

    def kill() -> None:
        wait_until(worker, 60, "a worker")
        pid = worker()
        assert pid is not None
        while not ready():
            os.kill(pid, 0)
            time.sleep(0.0002)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    record = run(launcher, case)
    killer.join()
    assert (record.outcome.status, record.outcome.reason) == ("crash", "killed by SIGKILL")
    return record


def codes(record: Record) -> set[str]:
    return {flag.code for flag in flags(View(record, record.points[0]))}


def test_a_killed_training_goes_on_as_if_nothing_had_been(
    launcher: Launcher, undisturbed: Record
) -> None:
    """Killed twice, so that what has gone on once goes on again."""
    case = training(checkpoint_every=20)
    assert case.case_id == undisturbed.trial.case_id
    killed(launcher, case, lambda: saved(launcher))
    (path,) = saved(launcher)
    first = path.stat().st_ino
    killed(launcher, case, lambda: path.stat().st_ino != first)
    record = run(launcher, case)
    assert record.outcome.status == "ok"
    step = int(record.notes["resumed"].split()[2])
    assert record.notes["resumed"] == f"from step {step} of {STEPS}"
    assert step in range(40, STEPS, 20)
    assert record.losses == undisturbed.losses, "to the last digit"
    assert record.curve == undisturbed.curve
    assert record.scores == undisturbed.scores
    assert "RESUMED" in codes(record)
    assert "RESUMED" not in codes(undisturbed)
    (window,) = record.points[0].windows
    assert 10 <= window.units <= 40, "what is left after the last checkpoint is measured"
    assert not list(launcher.store.work.glob("checkpoints/*"))


def test_a_training_that_is_not_disturbed_is_the_same_with_checkpoints(
    launcher: Launcher, undisturbed: Record
) -> None:
    record = run(launcher, training(checkpoint_every=23))
    assert record.outcome.status == "ok"
    assert record.losses == undisturbed.losses
    assert record.scores == undisturbed.scores
    assert "resumed" not in record.notes
    assert not list(launcher.store.work.glob("checkpoints/*"))


def test_a_checkpoint_that_is_none_or_of_other_conditions_is_not_gone_on_from(
    launcher: Launcher, undisturbed: Record
) -> None:
    case = training(checkpoint_every=20)
    killed(launcher, case, lambda: saved(launcher))
    (path,) = saved(launcher)
    content = path.read_bytes()
    assert content.count(b'\\"threads\\": 1') == 1
    for other, reason in (
        (content.replace(b'\\"threads\\": 1', b'\\"threads\\": 7'), "it was saved in other cond"),
        (content[:-1], "no checkpoint of a training"),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(other)
        record = run(launcher, case)
        assert record.outcome.status == "ok"
        assert reason in record.notes["checkpoint"]
        assert record.notes["checkpoint"].endswith("trained from the start")
        assert "resumed" not in record.notes
        assert record.losses == undisturbed.losses
