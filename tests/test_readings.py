"""What the sampler left in a trial's folder, whole or cut short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efficientllm.readings import mean_power, read_notes, read_readings
from efficientllm.record import Reading
from tests import samples
from tests.samples import SECOND

LINES = [
    {"note": "rapl", "reason": "this machine shows no RAPL counters"},
    {"index": 0, "meter": "power", "device": "gpu", "scope": "board", "columns": ["power_w"]},
    {"index": 1, "meter": "gpm", "device": "gpu", "scope": "device", "columns": ["a", "b"]},
    [0, 10, 300.0],
    [1, 11, 0.5, None],
    [0, 20, 310.0],
    {"note": "gpm", "reason": "GPU is lost"},
    {"note": "sampler", "reason": "stopped"},
]
TEXT = "".join(json.dumps(line) + "\n" for line in LINES).encode()
POWER = Reading(
    meter="power", device="gpu", scope="board", t_ns=(10, 20), columns={"power_w": (300.0, 310.0)}
)
GPM = Reading(
    meter="gpm", device="gpu", scope="device", t_ns=(11,), columns={"a": (0.5,), "b": (None,)}
)


def test_lines_become_one_series_for_each_meter(tmp_path: Path) -> None:
    (tmp_path / "readings.jsonl").write_bytes(TEXT)
    assert read_readings(tmp_path) == [POWER, GPM]


def test_notes_say_why_meters_are_missing_and_not_that_all_went_well(tmp_path: Path) -> None:
    (tmp_path / "readings.jsonl").write_bytes(TEXT)
    assert read_notes(tmp_path, alive=True) == {
        "rapl": "this machine shows no RAPL counters",
        "gpm": "GPU is lost",
    }


def test_a_dead_sampler_leaves_its_last_line_as_the_reason(tmp_path: Path) -> None:
    (tmp_path / "sampler.stderr").write_text("Traceback ...\nSegmentation fault\n")
    notes = read_notes(tmp_path, alive=False)
    assert notes == {"sampler": "the sampler ended before the trial did (Segmentation fault)"}


def test_a_file_cut_short_anywhere_still_reads_as_far_as_it_goes(tmp_path: Path) -> None:
    for length in range(len(TEXT) + 1):
        (tmp_path / "readings.jsonl").write_bytes(TEXT[:length])
        for found, whole in zip(read_readings(tmp_path), (POWER, GPM), strict=False):
            assert found.meter == whole.meter
            assert found.t_ns == whole.t_ns[: len(found.t_ns)]
            for name, column in found.columns.items():
                assert column == whole.columns[name][: len(column)]
                assert len(column) == len(found.t_ns)


def test_no_file_is_no_readings(tmp_path: Path) -> None:
    assert read_readings(tmp_path) == []
    assert read_notes(tmp_path, alive=True) == {}


def test_mean_power_is_taken_between_two_moments_alone() -> None:
    """100 W inside, 900 W before and after; a sample that failed counts for nothing."""
    window = samples.training_window()
    power = samples.power()
    inside = [window.start_ns <= t <= window.end_ns for t in power.t_ns]
    watts: list[float | None] = [100.0 if x else 900.0 for x in inside]
    watts[inside.index(True)] = None
    reading = power.model_copy(update={"columns": {"power_w": tuple(watts)}})
    assert mean_power((reading,), window.start_ns, window.end_ns) == pytest.approx(100.0)


def test_mean_power_is_unknown_without_samples() -> None:
    assert mean_power((), 0, 10 * SECOND) is None
    late = samples.power(seconds=5)
    after = late.t_ns[-1] + 1
    assert mean_power((late,), after, after + SECOND) is None
