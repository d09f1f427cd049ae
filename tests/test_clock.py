"""One clock for every process, another one for people, and marks in the order of the work."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime

import pytest
import torch

from efficientllm import clock


def test_every_process_reads_the_same_clock() -> None:
    code = "from efficientllm import clock; print(clock.now_ns())"
    before = clock.now_ns()
    there = int(subprocess.check_output([sys.executable, "-c", code]))
    assert before < there < clock.now_ns()


def test_seconds_since_a_moment_are_seconds() -> None:
    start = clock.now_ns()
    clock.sleep(0.02)
    passed = clock.seconds_since(start)
    assert passed >= 0.02
    assert passed == pytest.approx((clock.now_ns() - start) / 1e9, abs=5)


def test_the_time_of_day_is_utc_to_the_second() -> None:
    moment = datetime.fromisoformat(clock.wall())
    assert moment.utcoffset() is not None
    assert moment.utcoffset().total_seconds() == 0
    assert moment.microsecond == 0
    assert abs(moment.timestamp() - clock.wall_unix()) < 60


def test_a_cpu_timeline_gives_the_seconds_between_marks() -> None:
    line = clock.timeline(torch.device("cpu"))
    assert isinstance(line, clock.HostTimeline)
    assert line.seconds([1_000_000_000, 1_250_000_000, 3_250_000_000]) == [0.25, 2.0]
    first = line.mark()
    line.drain()
    line.reach(first)
    assert line.mark() >= first


def test_an_accelerators_timeline_is_made_of_its_own_events() -> None:
    assert isinstance(clock.timeline(torch.device("cuda", 0)), clock.DeviceTimeline)
