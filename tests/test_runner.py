"""Running a suite to its end: time limits, failed parents, and waiting for other processes.

Workers are scripted (`tests/fakes/light.py`); everything else is real.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from efficientllm import machine
from efficientllm.launch import Interrupted
from efficientllm.runner import Events, Options, parse_duration, parse_shard, run_suite
from efficientllm.spec.case import Case
from efficientllm.spec.document import SpecError
from efficientllm.spec.protocol import Protocol
from efficientllm.spec.suite import Suite
from efficientllm.store import Store
from tests.fakes import lay_out, put_on_path

SMOKE = Protocol(profile="smoke")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    put_on_path(monkeypatch, lay_out(tmp_path / "fakes", customize="light"))
    return Store(tmp_path / "store")


def naps(*names: str) -> Suite:
    cases = [
        Case.model_validate(
            {"model": "none", "workload": "probe", "name": n, "quality": {"max_bytes": i + 1}}
        )
        for i, n in enumerate(names)
    ]
    return Suite("runner", "", SMOKE, tuple(cases))


@pytest.mark.slow
def test_each_case_is_told_when_it_starts_and_when_it_ends(store: Store) -> None:
    left = store.work / "trial-1-1"  # by a run that was killed two days ago
    left.mkdir(parents=True)
    os.utime(left, (time.time() - 172_800,) * 2)
    heard: list[tuple[str, str]] = []
    events = Events(
        started=lambda planned: heard.append(("started", planned.case.name)),
        finished=lambda planned, record: heard.append((record.outcome.status, planned.case.name)),
    )
    summary = run_suite(naps("nap-a", "nap-b"), store, Options(), events)
    assert heard == [("started", "nap-a"), ("ok", "nap-a"), ("started", "nap-b"), ("ok", "nap-b")]
    assert [record.trial.suite for record in summary.records] == ["runner", "runner"]
    assert not summary.out_of_time
    assert not left.exists()
    again = run_suite(naps("nap-a", "nap-b"), store, Options(), events)
    assert again.records == ()


@pytest.mark.slow
def test_no_trial_is_started_that_would_not_end_in_time(store: Store) -> None:
    suite = naps("doze-a", "doze-b", "doze-c", "doze-d")
    summary = run_suite(suite, store, Options(until_s=1.2), Events())
    assert summary.out_of_time
    assert 1 <= len(summary.records) < 4


@pytest.mark.slow
def test_a_case_that_fails_three_times_is_given_up_and_its_children_are_blocked_once(
    store: Store,
) -> None:
    workload: dict[str, Any] = {"kind": "pretrain", "steps": 3, "sequence_length": 16}
    parent = Case.model_validate({"name": "exits", "model": "backbone-tiny", "workload": workload})
    model = {"kind": "product", "of": "exits", "parent": parent.case_id}
    child = Case.model_validate({"name": "child", "model": model, "workload": "generate"})
    suite = Suite("lineage", "", SMOKE, (parent, child))
    summary = run_suite(suite, store, Options(), Events())
    statuses = [(r.trial.name, r.trial.attempt, r.outcome.status) for r in summary.records]
    assert statuses == [*(("exits", i, "crash") for i in range(3)), ("child", 0, "blocked")]
    assert [blocked.case.name for blocked in summary.blocked] == ["child"]
    assert summary.records[-1].outcome.reason == "its parent exits failed 3 times (crash)"
    assert run_suite(suite, store, Options(), Events()).records == ()


@pytest.mark.slow
def test_a_trial_that_another_process_holds_is_waited_for(store: Store) -> None:
    suite = naps("nap")
    lease = store.lease(f"{suite.cases[0].case_id}-0-{machine.describe(None).name}")
    assert lease is not None
    threading.Timer(1.0, lease.release).start()
    start = time.monotonic()
    summary = run_suite(suite, store, Options(), Events())
    assert time.monotonic() - start >= 1.0
    assert [record.outcome.status for record in summary.records] == ["ok"]


@pytest.mark.slow
def test_waiting_for_another_process_can_be_interrupted(store: Store) -> None:
    suite = naps("nap")
    lease = store.lease(f"{suite.cases[0].case_id}-0-{machine.describe(None).name}")
    assert lease is not None
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with lease, pytest.raises(Interrupted, match="SIGINT"):
        run_suite(suite, store, Options(), Events())
    assert list(store.entries()) == []


@pytest.mark.slow
def test_text_that_cannot_be_had_stops_a_run_before_anything_is_measured(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that says unsupported would be taken for done when the text is there."""

    def unplugged(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", unplugged)
    data = {"kind": "hub", "source": "org/set", "commit": "0" * 40}
    workload = {"kind": "pretrain", "steps": 3, "data": data}
    case = Case.model_validate({"name": "p", "model": "backbone-tiny", "workload": workload})
    suite = Suite("runner", "", SMOKE, (*naps("nap").cases, case))
    with pytest.raises(SpecError, match="efficientllm fetch pretrain data=hub:org/set"):
        run_suite(suite, store, Options(), Events())
    assert list(store.entries()) == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3h50m", 13_800), ("90m", 5_400), ("90min", 5_400), ("45s", 45), ("1h1m1s", 3_661)],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "3", "h", "3h 50m", "-5m", "1.5h", "50m3h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_shards_are_counted_from_one() -> None:
    assert parse_shard("3/16") == (2, 16)
    assert parse_shard("1/1") == (0, 1)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "1/4/2", "-1/4"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a shard"):
        parse_shard(text)
