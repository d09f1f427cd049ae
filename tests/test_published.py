"""What is published stays readable, names nobody, and agrees with what `plan` predicts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from efficientllm import predict
from efficientllm.analysis.table import Row
from efficientllm.metrics import BY_KEY
from efficientllm.record import DONE
from efficientllm.results import Results, load
from efficientllm.spec.case import Point

FILES = sorted((Path(__file__).parents[1] / "results").glob("*.jsonl"))

TUNED = {("h100-80gb-attention-nsa-decode", "one-nsa", "b1 c4096")}
"""Peaks while Triton tuned, and held what it clears between two runs: no work's own."""


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture(scope="module")
def results(path: Path) -> Results:
    """Read once for all tests of a file."""
    return load(path)


@pytest.fixture(scope="module")
def rows(results: Results) -> list[Row]:
    return results.rows()


def test_published_records_load_and_give_rows(results: Results, rows: list[Row]) -> None:
    assert not results.quarantined
    assert rows
    for row in rows:
        assert row.case.case_id == row.record.trial.case_id, "a released default has changed"
        assert row.flags is not None
    ended = {record.outcome.status for record in results.records}
    assert ended <= DONE


def test_a_published_file_brings_the_ceilings_of_its_machine(rows: list[Row]) -> None:
    good = [row for row in rows if row.status == "ok"]
    shares = [row.cell("roofline_share").interval for row in good]
    # A ceiling of bytes is a copy's: reading alone may pass it by a little, never by much.
    assert all(share is not None and 0.05 < share.value <= 1.02 for share in shares)


def test_published_records_name_no_path_host_or_serial_number(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(r"GPU-[0-9a-f]{8}-|/home/|/tmp/|/root|\"\./|\.carry", text)
    assert path.stat().st_size < 1 << 20


def test_predicted_memory_is_within_a_tenth_of_what_was_measured(
    path: Path, rows: list[Row]
) -> None:
    far = {}
    for row in rows:
        measured = row.views[0].point
        peak = measured.memory.get("peak_allocated")
        if row.status != "ok" or not peak or (path.stem, row.name, row.point) in TUNED:
            continue
        case = predict.with_micro_batch(row.case, row.record.resolved.get("micro_batch"))
        shape = predict.shape_of(case)
        assert shape is not None
        needed = predict.memory(case, shape, Point(measured.batch, measured.context)).total
        predicted = needed - predict.CONTEXT_BYTES
        if predicted != pytest.approx(peak, rel=0.1):
            far[row.name, row.point] = (predicted, peak)
    assert not far


def test_every_null_of_a_published_row_has_a_reason(rows: list[Row]) -> None:
    for row in rows:
        for key in BY_KEY:
            cell = row.cell(key)
            assert cell.interval is not None or cell.reason, (row.name, key)
