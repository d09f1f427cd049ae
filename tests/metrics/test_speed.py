"""Times and rates of the sample records, by hand."""

from __future__ import annotations

import pytest

from efficientllm import record as r
from efficientllm.metrics import BY_KEY, Unmeasured, View
from tests import samples

# The tiny backbone: a table of 2048 x 128 and four layers, each with q and o of 128 x 128,
# k and v of 128 x 64, biases of 128 + 64 + 64, gate, up and down of 128 x 384, two norms.
PARAMETERS = 2048 * 128 + 128 + 4 * (2 * 128**2 + 2 * 128 * 64 + 256 + 3 * 128 * 384 + 256)


def value(key: str, record: r.Record) -> float:
    found = BY_KEY[key](View(record, record.points[0]))
    assert not isinstance(found, Unmeasured), found.reason
    return found


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        # 100 steps of 0.1 s, each of 4 sequences of 1,024 tokens
        ("train_tokens_per_s", 40_960),
        ("samples_per_s", 40),
        ("step_p50_s", 0.1),
        ("al_s", 0.1),
        ("tt_tokens_per_param_s", 40_960 / PARAMETERS),
        ("st_samples_per_param_s", 40 / PARAMETERS),
        # the cold call took 0.5 s, a warm one 0.1 s
        ("compile_s", 0.4),
    ],
)
def test_training(key: str, expected: float) -> None:
    assert PARAMETERS == 1_050_752
    assert value(key, samples.record(samples.pretrain())) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("prefill_tokens_per_s", 8 * 1024 / 0.1),
        ("it_tokens_per_s", 8 / 0.02),
        ("ttft_s", 0.1),
        ("tpot_s", 0.02),
        ("al_s", 0.1 + 127 * 0.02),
        # first calls take five units; the request is 0.1 + 127 x 0.02 s
        ("compile_s", 4 * (0.1 + 0.02 + 2.64)),
    ],
)
def test_generation(key: str, expected: float) -> None:
    case = samples.case(workload={"kind": "generate", "points": {"batch": [8], "context": [1024]}})
    record = samples.record(case, windows=samples.generate_windows(8, 1024, tpot=0.02))
    assert value(key, record) == pytest.approx(expected)


def test_rates_divide_by_the_windows_own_seconds_and_medians_ignore_a_stall() -> None:
    steady = samples.training_window(units=100)
    stalled = steady.model_copy(
        update={
            "unit_s": (*steady.unit_s[:-1], 10.1),
            "end_ns": steady.end_ns + 10 * samples.SECOND,
        }
    )
    record = samples.record(samples.pretrain(), windows=[stalled])
    assert value("step_p50_s", record) == pytest.approx(0.1)
    assert value("train_tokens_per_s", record) == pytest.approx(40_960 / 2)
    assert value("al_s", record) == pytest.approx(0.2)


def test_tokens_of_packed_documents_leave_padding_out() -> None:
    window = samples.training_window(units=100)
    packed = window.model_copy(
        update={"counts": window.counts | {"tokens": 300_000.0, "samples": 2_500.0}}
    )
    record = samples.record(samples.pretrain(), windows=[packed])
    assert value("train_tokens_per_s", record) == pytest.approx(30_000)
    assert value("samples_per_s", record) == pytest.approx(250)


def test_loading_is_its_own_phase() -> None:
    phases = (
        r.Phase(name="open", start_ns=0, end_ns=3 * 10**9),
        r.Phase(name="load", start_ns=3 * 10**9, end_ns=10 * 10**9),
    )
    assert value("load_s", samples.record(phases=phases)) == pytest.approx(7.0)


def test_a_cold_call_faster_than_a_warm_one_compiled_nothing() -> None:
    windows = [
        w.model_copy(update={"first_call_s": w.unit_s[0] / 2}) for w in samples.generate_windows()
    ]
    assert value("compile_s", samples.record(windows=windows)) == 0.0
