"""What was kept, and how small it became."""

from __future__ import annotations

import math
from typing import Any

import pytest

from efficientllm import record as r
from efficientllm.metrics import BY_KEY, Unmeasured, View
from tests import samples

TOTAL = 1_050_752
LINEAR = 4 * (2 * 128**2 + 2 * 128 * 64 + 3 * 128 * 384)


def view(record: r.Record, reference: r.Record | None = None) -> View:
    compared = None if reference is None else View(reference, reference.points[0])
    return View(record, record.points[0], reference=compared)


def value(key: str, record: r.Record, reference: r.Record | None = None) -> float:
    found = BY_KEY[key](view(record, reference))
    assert not isinstance(found, Unmeasured), found.reason
    return found


def reason(key: str, record: r.Record, reference: r.Record | None = None) -> str:
    found = BY_KEY[key](view(record, reference))
    assert isinstance(found, Unmeasured)
    return found.reason


def int4() -> r.Build:
    """Linear layers at 4.25 bits, the rest in bf16."""
    rest = 2 * (TOTAL - LINEAR)
    held = {"attention": LINEAR * 17 // 32, "embedding": rest}
    return samples.build(bytes_by_kind=held, disk_bytes=700_000)


def test_one_bit_a_byte_is_a_perplexity_of_two_to_the_bytes_a_token() -> None:
    # documents of 1,000 bytes in 250 tokens: 4 bits a token
    assert value("bits_per_byte", samples.record()) == pytest.approx(1.0)
    assert value("perplexity", samples.record()) == pytest.approx(16.0)


def test_both_weigh_documents_by_their_size() -> None:
    scores = r.Scores(
        nll=(math.log(2) * 100, math.log(2) * 900),
        tokens=(100, 300),
        bytes=(400, 1600),
        text_sha256="b" * 64,
        source="two documents",
    )
    record = samples.record(scores=scores)
    assert value("bits_per_byte", record) == pytest.approx(1000 / 2000)
    assert value("perplexity", record) == pytest.approx(2 ** (1000 / 400))


def test_what_is_retained_is_the_references_bits_over_ones_own() -> None:
    own = samples.record(scores=samples.scores(1.25))
    assert value("quality_retained", own, samples.record()) == pytest.approx(0.8)
    assert value("quality_retained", samples.record(), samples.record()) == 1.0
    assert "no uncompressed row" in reason("quality_retained", own)
    other = samples.scores(1.25).model_copy(update={"text_sha256": "b" * 64})
    told = reason("quality_retained", samples.record(scores=other), samples.record())
    assert told == "beside the uncompressed row scored on different text"
    short = samples.record(samples.case(quality={"sequence_length": 128}))
    assert reason("quality_retained", short, samples.record()).endswith("with different context")
    unscored = samples.record(scores=None)
    assert reason("quality_retained", own, unscored) == (
        "the trial ended before quality was measured"
    )


def test_a_bf16_model_holds_sixteen_bits_a_parameter() -> None:
    assert value("bits_per_param", samples.record()) == 16.0
    assert value("size_ratio", samples.record()) == 1.0


def test_int4_counts_its_scales_and_what_it_left_alone() -> None:
    record = samples.record(samples.case(technique="int4"), build=int4())
    held = LINEAR * 4.25 / 8 + 2 * (TOTAL - LINEAR)
    assert value("size_ratio", record) == pytest.approx(2 * TOTAL / held)
    assert 2 < value("size_ratio", record) < 4  # never the nominal four
    assert value("bits_per_param", record) == pytest.approx(8 * held / TOTAL)
    assert value("weights_gib", record) == pytest.approx(held / 2**30)


def test_the_ratio_on_disk_is_that_of_the_file() -> None:
    assert value("size_ratio_disk", samples.record(build=int4())) == 2 * TOTAL / 700_000
    assert "too large to be serialized" in reason("size_ratio_disk", samples.record())


def test_the_papers_compression_ratio_needs_a_task_score() -> None:
    record = samples.record(build=int4())
    assert reason("mcr", record, samples.record()) == (
        "no task score was measured, and perplexity is not one"
    )


@pytest.mark.parametrize("key", ["size_ratio", "size_ratio_disk", "bits_per_param", "total_params"])
def test_without_a_model_there_is_no_size(key: str) -> None:
    assert reason(key, samples.record(build=None)) == "no model was built"


def test_parameters_are_those_of_the_build() -> None:
    build = samples.build(trainable_params=7, active_params=5)
    training = samples.record(samples.pretrain(), build=build)
    assert value("total_params", training) == TOTAL
    assert value("trainable_params", training) == 7
    assert value("active_params", training) == 5


def trained(losses: tuple[float, ...], **changes: Any) -> r.Record:
    workload = {"kind": "pretrain", "sequence_length": 1024, "batch": 4, "steps": 100} | changes
    return samples.record(samples.pretrain(workload=workload), losses=losses)


def test_the_final_loss_is_the_mean_of_the_last_tenth() -> None:
    assert value("final_loss", trained(tuple(float(i) for i in range(100)))) == 94.5
    assert value("final_loss", trained((5.0, 4.0, 3.0))) == 3.0
    tokens = trained((2.0, 1.0), steps=None, tokens=8192)
    assert value("final_loss", tokens) == 1.0


def test_a_loss_without_declared_work_is_no_result() -> None:
    assert reason("final_loss", trained((2.0, 1.0), steps=None)).startswith("NOT_TRAINED")
    assert reason("final_loss", trained(())) == "no step was trained"


def test_tokens_per_parameter_are_those_of_all_steps_without_padding() -> None:
    whole = 100 * 4 * 1024 / TOTAL
    assert value("tokens_per_param", trained((1.0,))) == pytest.approx(whole)
    half_empty = samples.training_window().model_copy(update={"counts": {"tokens": 204_800.0}})
    packed = trained((1.0,))
    point = packed.points[0].model_copy(update={"windows": (half_empty,)})
    packed = packed.model_copy(update={"points": (point,)})
    assert value("tokens_per_param", packed) == pytest.approx(whole / 2)


def test_tokens_that_nobody_declared_or_that_were_not_trained_are_not_counted() -> None:
    assert reason("tokens_per_param", trained((1.0,), steps=None)).startswith("NOT_TRAINED")
    failed = trained((1.0,))
    outcome = r.Outcome(status="nan", reason="step 3")
    point = failed.points[0].model_copy(update={"windows": (), "outcome": outcome})
    failed = failed.model_copy(update={"points": (point,)})
    assert reason("tokens_per_param", failed) == "nan: step 3"


def test_a_trial_that_was_not_scored_gives_its_own_reason() -> None:
    record = samples.record(scores=None, notes={"quality": "random weights: cost only"})
    for key in ("bits_per_byte", "perplexity", "quality_retained"):
        assert reason(key, record) == "random weights: cost only"
