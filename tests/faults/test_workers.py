"""Real workers that are killed, run out of memory or diverge: one trial is lost, no other.

One fork server serves the whole file; trials are of the smallest size there is.
"""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from efficientllm.analysis.precision import precise
from efficientllm.launch import Launcher
from efficientllm.plan import Planned, Shelf, next_round
from efficientllm.record import Record
from efficientllm.spec.case import Case
from efficientllm.spec.protocol import Protocol
from efficientllm.spec.suite import Suite
from efficientllm.store import Store
from tests.faults.tree import forks, servers, wait_until

pytestmark = pytest.mark.slow

SMOKE = Protocol(profile="smoke")
TRAINING = {
    "kind": "pretrain",
    "steps": 6,
    "sequence_length": 32,
    "batch": 2,
    "precision": {"compute": "float32"},
}
MODEL = {"kind": "backbone", "preset": "tiny"}
PHASES = {"start", "open", "load", "describe", "prepare", "measure", "quality"}


def probe(number: int) -> Case:
    value = {
        "model": "none",
        "workload": {"kind": "probe", "check": "sleep"},
        "quality": {"max_bytes": number + 1},
        "name": f"sleep-{number}",
    }
    return Case.model_validate(value)


def training(name: str, **changes: Any) -> Case:
    workload = TRAINING | changes
    quality = {"max_bytes": 2048}
    return Case.model_validate(
        {"name": name, "model": MODEL, "workload": workload, "quality": quality}
    )


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # two threads on a busy machine wait for each other
        with Launcher(Store(tmp_path_factory.mktemp("store")), None) as made:
            run(made, probe(1000))  # starts the fork server
            yield made


def run(launcher: Launcher, case: Case) -> Record:
    """The next attempt at a case's first round."""
    shelf = Shelf(launcher.store, [case], launcher.machine, launcher.software)
    record = launcher.run(Planned(case, 0, shelf.next_attempt(case, 0)), SMOKE, suite="faults")
    assert record is not None
    return record


def workers() -> set[int]:
    return forks(os.getpid())


def server() -> int:
    (found,) = servers(os.getpid())
    return found


def run_and_kill(launcher: Launcher, case: Case, ready: Callable[[], object]) -> Record:
    """Run a trial and SIGKILL its worker as soon as something holds."""

    def kill() -> None:
        wait_until(workers, 60, "a worker")
        (pid,) = workers()
        try:
            while not ready():
                os.kill(pid, 0)
                time.sleep(0.0002)
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it has ended first

    killer = threading.Thread(target=kill)
    killer.start()
    record = run(launcher, case)
    killer.join()
    return record


def after(seconds: float) -> Callable[[], bool]:
    """So long after it is first asked."""
    end = 0.0

    def passed() -> bool:
        nonlocal end
        end = end or time.monotonic() + seconds
        return time.monotonic() >= end

    return passed


def files(store: Store) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store.root.glob("cpu-*/*/*.json")}


def test_a_worker_killed_at_twenty_random_moments_costs_that_trial_each_time(
    launcher: Launcher,
) -> None:
    moments = random.Random(20)
    cases = tuple(probe(number) for number in range(10))
    for number in range(20):
        before = files(launcher.store)
        record = run_and_kill(launcher, cases[number % 10], after(moments.uniform(0, 0.6)))
        assert (record.outcome.status, record.outcome.reason) == ("crash", "killed by SIGKILL")
        assert record.outcome.phase in PHASES
        assert record.trial.attempt == number // 10
        now = files(launcher.store)
        assert len(now) == len(before) + 1
        assert {path: now[path] for path in before} == before
    suite = Suite("faults", "", SMOKE, cases)
    shelf = Shelf(launcher.store, cases, launcher.machine, launcher.software)
    due = next_round(suite, shelf, launcher.store, precise)
    assert {(p.case.name, p.attempt) for p in due.trials} == {(c.name, 2) for c in cases}
    for planned in due.trials[:2]:
        assert run(launcher, planned.case).outcome.status == "ok"
    assert launcher.store.quarantined() == []


def test_a_training_trial_killed_at_random_is_repeated_as_if_nothing_had_been(
    launcher: Launcher,
) -> None:
    moments = random.Random(3)
    undisturbed = run(launcher, training("undisturbed"))
    assert undisturbed.outcome.status == "ok"
    case = training("disturbed", micro_batch=2)
    for _ in range(2):
        record = run_and_kill(launcher, case, after(moments.uniform(0.05, 0.9)))
        assert (record.outcome.status, record.scores) == ("crash", None)
        assert record.outcome.phase in PHASES
    repeated = run(launcher, case)
    assert repeated.outcome.status == "ok"
    assert repeated.losses == undisturbed.losses
    assert repeated.scores == undisturbed.scores


def test_a_kill_while_the_weights_are_saved_leaves_none_rather_than_half(
    launcher: Launcher,
) -> None:
    """The window is some milliseconds; a kill that came too late is tried again."""
    for steps in range(7, 15):
        case = training("saved", steps=steps)
        product = launcher.store.artifact(case.case_id, 0)
        record = run_and_kill(launcher, case, _keeping(launcher.store, product))
        if record.outcome.status == "crash":
            break
    assert (record.outcome.status, record.outcome.phase) == ("crash", "keep")
    assert not product.exists()
    assert record.scores is not None, "what was told before is kept"
    assert run(launcher, case).outcome.status == "ok"
    with safe_open(product / "model.safetensors", "pt") as weights:
        assert "model.norm.weight" in weights.keys()  # noqa: SIM118
    assert [path.name for path in product.parent.iterdir()] == ["0"]


def _keeping(store: Store, product: Path) -> Callable[[], bool]:
    """Whether the weights are being written: the folder is there under its other name."""
    return lambda: product.exists() or any(product.parent.glob(".*.part/*"))


@contextmanager
def little_memory(extra_bytes: int) -> Iterator[None]:
    """Workers that start now may map only so much more than the fork server has."""
    pid = server()
    mapped = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (mapped + extra_bytes, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))


def test_out_of_memory_in_one_trial_leaves_the_next_ones_numbers_alone(
    launcher: Launcher,
) -> None:
    """2^18 rows of logits over 2,048 tokens would be 2 GiB."""
    before = run(launcher, training("before"))
    with little_memory(1 << 30):
        record = run(launcher, training("too large", batch=1 << 13))
        after_it = run(launcher, training("after", micro_batch=2))
    assert record.outcome.status == "out_of_memory"
    assert record.outcome.phase in ("prepare", "measure")
    assert "allocate" in record.outcome.reason
    assert record.points[0].outcome == record.outcome
    assert after_it.outcome.status == "ok"
    assert (after_it.losses, after_it.scores) == (before.losses, before.scores)


def generation(*batches: int) -> Case:
    workload = {
        "kind": "generate",
        "points": {"batch": list(batches), "context": [32]},
        "new_tokens": 4,
    }
    return Case.model_validate(
        {"name": "points", "model": MODEL, "technique": "float32", "workload": workload}
    )


def test_out_of_memory_in_one_point_leaves_the_others_and_continues_in_a_new_process(
    launcher: Launcher,
) -> None:
    """A cache for 2^18 sequences is over 4 GiB a layer."""
    with little_memory(2 << 30):
        record = run(launcher, generation(1, 1 << 18, 2))
    assert record.outcome.status == "ok"
    statuses = [(point.batch, point.outcome.status) for point in record.points]
    assert statuses == [(1, "ok"), (1 << 18, "out_of_memory"), (2, "ok")]
    assert "allocate" in record.points[1].outcome.reason
    assert not record.points[1].windows
    for point in (record.points[0], record.points[2]):
        assert {window.name for window in point.windows} == {"prefill", "decode", "request"}
    assert [phase.name for phase in record.phases].count("load") == 2
    assert record.notes["quality"] == "random weights: cost only"


def test_a_loss_that_is_not_a_number_stops_training_and_is_labelled(launcher: Launcher) -> None:
    """Weight decay of 10 at a rate of 10 multiplies every weight by -99 at every step."""
    optimizer = {"lr": 10, "weight_decay": 10, "schedule": "constant", "warmup_share": 0}
    case = training("diverges", steps=40, optimizer=optimizer)
    record = run(launcher, case)
    assert (record.outcome.status, record.outcome.phase) == ("nan", "measure")
    told = re.match(r"the loss of step (\d+) is not finite", record.outcome.reason)
    assert told, record.outcome.reason
    # Where exactly it overflows is the processor's own way of adding up.
    assert 2 <= int(told[1]) <= 20
    assert len(record.losses) == int(told[1]) - 1
    (path,) = launcher.store.root.glob(f"cpu-*/{case.case_id}/*.json")
    assert b"NaN" not in path.read_bytes()
    assert b"Infinity" not in path.read_bytes()
    assert not launcher.store.artifact(case.case_id, 0).exists(), "no weights to go on from"
    shelf = Shelf(launcher.store, [case], launcher.machine, launcher.software)
    assert list(shelf.finished(case, SMOKE)) == [0], "a rerun would only repeat it"


def test_the_server_that_forked_all_of_these_holds_no_device(launcher: Launcher) -> None:
    assert launcher.device_files() == []
    held = [str(link.readlink()) for link in Path(f"/proc/{server()}/fd").iterdir()]
    assert not [target for target in held if target.startswith(("/dev/nvidia", "/dev/dri"))]
