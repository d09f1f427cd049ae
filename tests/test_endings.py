"""How a trial ended, from what its processes told and how they died."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from efficientllm.endings import death, left_over, overall, with_lost_point
from efficientllm.journal import Journal, Story, read
from efficientllm.record import Outcome, PointResult
from tests import samples

OK = Outcome()
FULL = Outcome(status="out_of_memory", reason="too big")


def point(outcome: Outcome = OK, name: str = "p") -> PointResult:
    return PointResult(point_id=name, batch=1, context=1, outcome=outcome)


def story(folder: Path, *points: PointResult, phase: str = "", quality: bool = False) -> Story:
    with Journal(folder) as journal:
        if phase:
            journal.write("enter", name=phase, point=None)
        for result in points:
            journal.write_durable("point", result=result.model_dump())
        if quality:
            journal.write("note", key="quality", reason="not asked for")
    return read(folder)


def test_points_after_the_last_one_told_are_left(tmp_path: Path) -> None:
    told = story(tmp_path, point(), point(FULL))
    assert left_over(OK, (2, 3, 5, 7), told) == (5, 7)


def test_quality_alone_may_be_left(tmp_path: Path) -> None:
    assert left_over(OK, (0, 1), story(tmp_path, point(), point(FULL))) == ()


def test_nothing_is_left_once_quality_has_been_told(tmp_path: Path) -> None:
    assert left_over(OK, (0,), story(tmp_path, point(), quality=True)) is None


@pytest.mark.parametrize("status", ["crash", "nan", "timeout", "interrupted", "device_lost"])
def test_after_a_bad_end_nothing_is_tried_in_the_same_trial(tmp_path: Path, status: str) -> None:
    outcome = Outcome.model_validate({"status": status})
    assert left_over(outcome, (0, 1), story(tmp_path, point())) is None


def test_one_good_point_makes_a_trial_good_and_none_the_first_ones_failure() -> None:
    slow = Outcome(status="timeout")
    assert overall(OK, (point(FULL), point())) == OK
    assert overall(OK, (point(FULL), point(slow))) == FULL
    assert overall(slow, (point(), point())) == slow
    assert overall(OK, ()) == OK


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT])
def test_a_death_by_signal_names_it_and_the_phase(tmp_path: Path, sign: signal.Signals) -> None:
    outcome = death(-sign, story(tmp_path, phase="keep"), tmp_path)
    assert outcome == Outcome(status="crash", phase="keep", reason=f"killed by {sign.name}")


def test_a_kill_by_the_kernel_for_memory_is_out_of_memory_and_a_segfault_is_not(
    tmp_path: Path,
) -> None:
    told = story(tmp_path, phase="load")
    killed = death(-signal.SIGKILL, told, tmp_path, out_of_memory=True)
    assert (killed.status, killed.phase) == ("out_of_memory", "load")
    assert "the kernel ended the process" in killed.reason
    assert death(-signal.SIGSEGV, told, tmp_path, out_of_memory=True).status == "crash"


HOST_FULL = Outcome(status="out_of_memory", reason="killed", phase="measure")
THREE = samples.case(workload={"kind": "generate", "points": {"batch": [1, 2, 4], "context": [64]}})


def test_a_kill_for_memory_in_a_point_is_that_points_outcome(tmp_path: Path) -> None:
    told = story(tmp_path, point(), phase="measure")
    outcome, after = with_lost_point(HOST_FULL, THREE, (1, 2), told)
    assert outcome.status == "ok"
    assert [(p.batch, p.outcome) for p in after.points] == [(1, OK), (4, HOST_FULL)]
    assert after.points[1].point_id == THREE.point_id(THREE.points[2])


def test_a_kill_for_memory_in_the_only_point_is_the_trials_outcome(tmp_path: Path) -> None:
    told = story(tmp_path, phase="prepare")
    outcome, after = with_lost_point(HOST_FULL, samples.pretrain(), (0,), told)
    assert outcome == HOST_FULL
    assert [p.outcome for p in after.points] == [HOST_FULL]


@pytest.mark.parametrize("phase", ["load", "quality", "keep"])
def test_a_kill_for_memory_outside_a_point_costs_no_point(tmp_path: Path, phase: str) -> None:
    told = story(tmp_path, point(), phase=phase)
    assert with_lost_point(HOST_FULL, THREE, (0, 1, 2), told) == (HOST_FULL, told)


def test_what_a_worker_has_told_itself_is_not_told_again(tmp_path: Path) -> None:
    told = story(tmp_path, phase="measure")._replace(outcome=FULL)
    assert with_lost_point(FULL, THREE, (0, 1, 2), told) == (FULL, told)


def test_a_death_before_the_first_word_is_in_the_phase_start(tmp_path: Path) -> None:
    assert death(-signal.SIGKILL, read(tmp_path), tmp_path).phase == "start"


def test_an_exit_with_nothing_said_says_so(tmp_path: Path) -> None:
    reason = death(3, read(tmp_path), tmp_path).reason
    assert reason == "exit status 3: it ended itself and said nothing"


def test_an_exit_without_a_word_carries_the_last_line_cut_to_size(tmp_path: Path) -> None:
    (tmp_path / "stderr").write_text("Traceback\n" + "x" * 1000 + "\n")
    reason = death(3, read(tmp_path), tmp_path).reason
    assert reason.startswith("exit status 3: xxx")
    assert len(reason) == 500
