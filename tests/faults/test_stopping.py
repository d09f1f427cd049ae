"""Stopping a run from outside, at any moment: nothing is orphaned, and the rest is resumed.

The command line, launcher, fork server and sampler are real; the workers are scripted
(`tests/fakes/light.py`), so that a run lasts seconds.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from efficientllm.launch import Interrupted
from efficientllm.runner import Events, Options, run_suite
from efficientllm.spec.suite import Suite, load_suite
from efficientllm.store import Store
from tests.fakes import lay_out, put_on_path
from tests.faults.tree import alive, descendants, wait_until

pytestmark = pytest.mark.slow

SUITE = """\
suite: stopping
protocol: smoke
base:
  name: {behaviour}
  model: none
  workload: {{kind: probe, check: sleep}}
grid:
  - quality.max_bytes: {values}
"""


class Run:
    """The command line at work on a suite of scripted trials."""

    def __init__(self, folder: Path, behaviour: str, count: int = 3) -> None:
        self.folder, self.store = folder, Store(folder / "store")
        self.suite = folder / f"{behaviour}.yaml"
        values = [i + 1 for i in range(count)]
        self.suite.write_text(SUITE.format(behaviour=behaviour, values=values), "utf-8")
        lay_out(folder / "fakes", customize="light")

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "efficientllm", "run", str(self.suite), "--no-page"]
        environment = os.environ | {"PYTHONPATH": str(self.folder / "fakes")}
        return subprocess.Popen(
            [*command, "--store", str(self.store.root)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def finish(self) -> int:
        process = self.start()
        _, errors = process.communicate(timeout=60)
        assert b"Traceback" not in errors, errors.decode()
        return process.returncode

    def files(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.store.root.glob("cpu-*/*/*.json")}

    def measuring(self) -> bool:
        """Whether a worker is in the middle of a trial."""
        journals = [p.read_bytes() for p in self.store.work.glob("trial-*/0/journal.jsonl")]
        return any(b'"measure"' in text and b'"end"' not in text for text in journals)


def stop(process: subprocess.Popen[bytes], sign: signal.Signals) -> tuple[int, str]:
    process.send_signal(sign)
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors.decode()


def test_killing_the_parent_orphans_nothing_and_costs_one_trial(tmp_path: Path) -> None:
    run = Run(tmp_path, "doze")
    process = run.start()
    wait_until(
        lambda: run.files() and run.measuring() and len(descendants(process.pid)) == 3,
        60,
        "a second trial under way, with fork server, worker and sampler",
    )
    tree = descendants(process.pid)
    stop(process, signal.SIGKILL)
    wait_until(lambda: not alive(tree), 30, "the end of every process of its tree")
    before = run.files()
    assert run.finish() == 0
    after = run.files()
    assert {path: after[path] for path in before} == before
    records = [entry.record for entry in run.store.entries()]
    assert sorted(record.trial.name for record in records) == [f"doze-{i}" for i in range(1, 4)]
    assert {record.outcome.status for record in records} == {"ok"}
    assert run.store.quarantined() == []


def test_killing_the_parent_ends_what_a_worker_has_started_too(tmp_path: Path) -> None:
    run = Run(tmp_path, "stubborn", count=1)
    process = run.start()
    wait_until(lambda: len(descendants(process.pid)) == 5, 60, "a worker with two children")
    tree = descendants(process.pid)
    stop(process, signal.SIGKILL)
    wait_until(lambda: not alive(tree), 30, "the end of every process of its tree")


def test_a_signal_is_put_on_record_and_is_the_exit_status(tmp_path: Path) -> None:
    run = Run(tmp_path, "long", count=1)
    for attempt, sign in enumerate((signal.SIGINT, signal.SIGTERM)):
        process = run.start()
        wait_until(run.measuring, 60, "a trial under way")
        status, errors = stop(process, sign)
        assert status == 128 + sign
        assert errors == (
            f"efficientllm: stopped by {sign.name}; finished trials are kept, run again to go on\n"
        )
        found = {e.record.trial.attempt: e.record.outcome for e in run.store.entries()}
        assert len(found) == attempt + 1
        assert found[attempt].status == "interrupted"
        assert found[attempt].reason == f"stopped by {sign.name}"
    assert run.finish() == 0
    statuses = [(e.record.trial.attempt, e.record.outcome.status) for e in run.store.entries()]
    assert sorted(statuses) == [(0, "interrupted"), (1, "interrupted"), (2, "ok")]


def test_interrupts_at_random_moments_leave_a_store_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run finishes a trial first, so that none is interrupted three times and given up."""
    run = Run(tmp_path, "nap", count=24)
    put_on_path(monkeypatch, tmp_path / "fakes")
    suite = load_suite(str(run.suite))
    moments, interrupted = random.Random(7), 0
    while interrupted < 8 and _interrupted(suite, run.store, moments.uniform(0, 0.4)):
        interrupted += 1
        entries = list(run.store.entries())
        assert run.store.quarantined() == []
        assert {e.record.outcome.status for e in entries} <= {"ok", "interrupted"}
        assert not list(run.store.work.glob("leases/*.json"))
    assert interrupted > 2, "a busy machine is late with a signal, but not with every one"
    run_suite(suite, run.store, Options(), Events())
    done = [e.record for e in run.store.entries() if e.record.outcome.status == "ok"]
    assert sorted(r.trial.name for r in done) == sorted(case.name for case in suite.cases)


def _interrupted(suite: Suite, store: Store, seconds: float) -> bool:
    """Run until one more trial is finished and so much time has passed, then Ctrl-C; was it?"""
    sent = threading.Event()

    def send() -> None:
        sent.set()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(seconds, send)
    events = Events(finished=lambda *_: None if timer.ident else timer.start())
    try:
        run_suite(suite, store, Options(), events)
    except Interrupted as told:
        return "SIGINT" in str(told)
    else:
        assert not sent.is_set(), "a Ctrl-C that nobody heard"
        return False
    finally:
        timer.cancel()
