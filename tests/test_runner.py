"""What a user writes about a run: how long, and which share of it."""

from __future__ import annotations

import pytest

from efficientllm.plan import Blocked, env_id
from efficientllm.runner import blocked_record, parse_duration, parse_shard
from efficientllm.spec.protocol import Protocol
from efficientllm.spec.suite import Suite
from tests import samples


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3h50m", 13_800.0),
        ("90m", 5_400.0),
        ("90min", 5_400.0),
        ("45s", 45.0),
        ("1h", 3_600.0),
        ("1h1m1s", 3_661.0),
        (" 2m ", 120.0),
        ("0s", 0.0),
    ],
)
def test_durations_are_hours_minutes_and_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "3:50", "50m3h", "-1h", "1.5h", "1d", "h", "1h 1m"])
def test_what_is_no_duration_says_how_one_is_written(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 3h50m, 90m or 45s"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "shard"), [("1/1", (0, 1)), ("3/16", (2, 16)), ("16/16", (15, 16)), (" 1/2 ", (0, 2))]
)
def test_shards_count_from_one(text: str, shard: tuple[int, int]) -> None:
    assert parse_shard(text) == shard


@pytest.mark.parametrize("text", ["", "0/4", "5/4", "1/0", "-1/4", "1", "1/4/2", "a/b", "1.0/2"])
def test_what_is_no_shard_says_how_one_is_written(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 3/16"):
        parse_shard(text)


def test_a_blocked_case_leaves_a_row_with_its_reason() -> None:
    case = samples.case()
    suite = Suite("s", "", Protocol(), (case,))
    item = Blocked(case, "its parent p ended nan")
    record = blocked_record(item, suite, samples.MACHINE, samples.SOFTWARE, 2)
    assert (record.outcome.status, record.outcome.reason) == ("blocked", "its parent p ended nan")
    assert (record.trial.case_id, record.trial.attempt) == (case.case_id, 2)
    assert record.env_id == env_id(samples.MACHINE, samples.SOFTWARE, {})
    assert (record.points, record.build, record.scores) == ((), None, None)
