"""The journal: what was told before a kill is kept, what was half told is not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from efficientllm import clock, journal
from efficientllm.journal import JOURNAL, Journal, Task
from efficientllm.record import Outcome, PointResult
from tests import samples


def result(batch: int) -> PointResult:
    window = samples.window("decode", units=2)
    return PointResult(point_id="p" * 64, batch=batch, context=8, windows=(window,))


def tell(folder: Path) -> None:
    """A whole trial of two points."""
    with Journal(folder) as told:
        tell_all(told)


def tell_all(told: Journal) -> None:
    with told.phase("load"):
        told.write("resolved", values={"device": "cpu"})
    told.write("resolved", values={"compile": "none"})
    told.write("note", key="energy", reason="no meter here")
    told.limit(60.0, "warm-up")
    told.write("progress", window="decode", done=3, total=10)
    for index in range(2):
        with told.phase("steady", index):
            told.write_durable("point", result=result(index + 1).model_dump(mode="json"))
    told.write("losses", values=[2.0, 1.0])
    told.write("scores", scores=samples.scores(documents=2).model_dump(mode="json"))
    told.write("end", outcome=Outcome(status="ok").model_dump(mode="json"))


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Journal]:
    """The worker's side of a journal in this test's folder."""
    with Journal(tmp_path) as open_journal:
        yield open_journal


def test_a_task_survives_its_file(tmp_path: Path) -> None:
    case = samples.case()
    task = Task(
        case=case.model_dump(mode="json"),
        protocol={"profile": "quick"},
        seed=3,
        points=(0, 2),
        cache_folder="cache",
        device="cpu",
        sits_idle=False,
    )
    task.write(tmp_path)
    assert Task.read(tmp_path) == task


def test_everything_told_is_read(tmp_path: Path) -> None:
    tell(tmp_path)
    story = journal.read(tmp_path)
    assert [p.batch for p in story.points] == [1, 2]
    assert [(p.name, p.point) for p in story.phases] == [
        ("load", None),
        ("steady", 0),
        ("steady", 1),
    ]
    assert story.resolved == {"device": "cpu", "compile": "none"}
    assert story.notes == {"energy": "no meter here"}
    assert story.losses == (2.0, 1.0)
    assert story.scores == samples.scores(documents=2)
    assert story.outcome == Outcome()
    assert story.progress["done"] == 3
    assert story.phase_now == "steady"


def test_before_the_first_word_there_is_nothing(tmp_path: Path) -> None:
    story = journal.read(tmp_path)
    assert (story.points, story.outcome, story.phase_now) == ((), None, "start")
    assert story.deadline_ns is None


def test_a_journal_cut_at_any_byte_gives_what_was_whole(tmp_path: Path) -> None:
    tell(tmp_path)
    whole = (tmp_path / JOURNAL).read_bytes()
    story = journal.read(tmp_path)
    lines = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(0, len(whole), 7):
        (tmp_path / JOURNAL).write_bytes(whole[:length])
        part = journal.read(tmp_path)
        assert part.points == story.points[: len(part.points)]
        assert part.phases == story.phases[: len(part.phases)]
        assert (part.outcome is None) == (length < lines[-1])


def test_noise_between_the_lines_is_left_out(tmp_path: Path) -> None:
    tell(tmp_path)
    path = tmp_path / JOURNAL
    noisy = path.read_bytes().replace(b"\n", b'\n\xff\x00\n{"half\n[1]\n"word"\n{"other": 1}\n\n')
    story = journal.read(tmp_path)
    path.write_bytes(noisy)
    assert journal.read(tmp_path) == story


def test_a_finished_point_is_on_the_disk_before_work_goes_on(
    tmp_path: Path, told: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    fsync = os.fsync

    def recording(descriptor: int) -> None:
        seen.append((tmp_path / JOURNAL).read_bytes().count(b'"point"'))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    told.write("progress", done=1)
    assert seen == []
    told.write_durable("point", result=result(1).model_dump(mode="json"))
    assert seen == [1]


def test_every_event_is_one_line_whatever_it_holds(tmp_path: Path, told: Journal) -> None:
    told.write("note", key="a\nb", reason="c\r\n\u2028d")
    assert (tmp_path / JOURNAL).read_bytes().count(b"\n") == 1
    assert journal.read(tmp_path).notes == {"a\nb": "c\r\n\u2028d"}


def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path, told: Journal) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        told.write("losses", values=[float("nan")])
    assert (tmp_path / JOURNAL).read_bytes() == b""


def test_an_error_inside_a_phase_knows_the_innermost_and_ends_it(
    tmp_path: Path, told: Journal
) -> None:
    with pytest.raises(RuntimeError) as caught, told.phase("steady"), told.phase("inner"):
        raise RuntimeError
    assert caught.value.__dict__["efficientllm_phase"] == "inner"
    assert [p.name for p in journal.read(tmp_path).phases] == ["inner", "steady"]


def test_phases_nest_in_time(tmp_path: Path, told: Journal) -> None:
    with told.phase("outer"), told.phase("inner"):
        pass
    inner, outer = journal.read(tmp_path).phases
    assert outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns


def test_the_last_limit_counts(tmp_path: Path, told: Journal) -> None:
    told.limit(1000.0, "load")
    told.limit(1.0, "stop")
    deadline = journal.read(tmp_path).deadline_ns
    assert deadline is not None
    assert deadline < clock.now_ns() + 500e9


def test_a_limit_is_renewed_while_it_is_called_but_not_at_every_call(
    tmp_path: Path, told: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0]
    monkeypatch.setattr(clock.time, "monotonic_ns", lambda: now[0])
    alive = told.renewed_limit(1000.0, "scoring")
    until = []
    for second in (0, 50, 101, 150, 205):
        now[0] = second * 10**9
        alive()
        until.append(journal.read(tmp_path).deadline_ns)
    assert until == [s * 10**9 for s in (1000, 1000, 1101, 1101, 1205)]


def test_two_processes_never_share_a_line(tmp_path: Path) -> None:
    for number in range(2):
        with Journal(tmp_path) as told:
            told.write("note", key=str(number), reason="r")
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["0", "1"]
