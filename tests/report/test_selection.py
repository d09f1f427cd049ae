"""The line about what was trained on."""

from __future__ import annotations

from efficientllm.report.selection import data_line
from tests import samples


def test_kept_and_left_out_and_epochs_stand_in_one_line() -> None:
    told = {
        "read": {"documents": 2000, "bytes": 12_340_000},
        "kept": {"documents": 1500, "bytes": 10_000_000},
        "dropped": {
            "min_chars": {"documents": 300, "bytes": 40_000},
            "near_duplicate": {"documents": 200, "bytes": 2_300_000},
        },
    }
    record = samples.record(samples.pretrain(), resolved={"selection": told, "epochs": 3.2})
    assert data_line(record) == (
        "1,500 of 2,000 documents and 10.0 of 12.3 MB trained on, left out: min_chars 300"
        " (0.0 MB), near_duplicate 200 (2.3 MB); epochs: 3.2"
    )


def test_where_nothing_was_told_there_is_no_line() -> None:
    assert data_line(samples.record(samples.pretrain(), resolved={})) == ""
    record = samples.record(samples.pretrain(), resolved={"epochs": "less than one"})
    assert data_line(record) == "epochs: less than one"
