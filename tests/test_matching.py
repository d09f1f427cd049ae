"""Matching: what is equal afterwards, by counting it again."""

from __future__ import annotations

from typing import Any

import pytest

from efficientllm.catalog.backbone import backbone_shape
from efficientllm.cost import attended_pairs, attention_flops
from efficientllm.matching import matched, residual, residual_at, told
from efficientllm.parameters import parameters
from efficientllm.spec.case import Case
from efficientllm.spec.document import SpecError
from efficientllm.spec.model import Backbone

REFERENCE = backbone_shape(Backbone(preset="0.5B-h16"))


def spec(attention: Any, match: str, **more: Any) -> Backbone:
    return Backbone.model_validate(
        {"preset": "0.5B-h16", "attention": attention, "match": match} | more
    )


@pytest.mark.parametrize("attention", ["mha", "mqa", "mla", "nsa"])
def test_parameters_are_matched_by_the_feed_forward_alone(attention: str) -> None:
    found = matched(spec(attention, "params"))
    total, wanted = (parameters(s).total for s in (found.shape, REFERENCE))
    assert abs(total / wanted - 1) < 0.005
    assert found.residual == pytest.approx(total / wanted - 1)
    plain = backbone_shape(spec(attention, "none"))
    assert found.shape.model_copy(update={"ffn": plain.ffn}) == plain
    assert found.shape.ffn % 64 == 0
    assert found.shape.ffn != plain.ffn


def test_flops_are_matched_at_the_context_that_is_named() -> None:
    found = matched(spec("nsa", "flops", match_context=16384)).shape

    def forward(shape: Any) -> float:
        attention = attention_flops(shape, attended_pairs(shape, 16384))
        assert attention is not None
        return 2 * 16384 * (parameters(shape).products + shape.vocab * shape.hidden) + attention

    assert forward(found) == pytest.approx(forward(REFERENCE), rel=0.005)


@pytest.mark.parametrize(
    ("attention", "context", "tokens"),
    [("mha", 4096, 4096), ("sliding", 16384, 1024), ("nsa", 16384, 1792)],
)
def test_what_a_decoded_token_reads_is_matched_weights_and_cache_together(
    attention: str, context: int, tokens: int
) -> None:
    """Of sparse attention 256 block means, 16 blocks of 64 and a window of 512 are read."""
    found = matched(spec(attention, "cache", match_context=context)).shape

    def read(shape: Any, tokens: int) -> int:
        a_token = 2 * shape.layers * 2 * shape.kv_heads * shape.head_dim
        return 2 * parameters(shape).total + tokens * a_token

    assert (found.ffn < REFERENCE.ffn) == (attention == "mha")
    assert read(found, tokens) == pytest.approx(read(REFERENCE, context), rel=0.005)


def test_an_attention_that_is_too_large_by_itself_is_refused() -> None:
    with pytest.raises(SpecError) as refused:
        matched(spec("mha", "cache", match_context=1 << 20, position="alibi"))
    assert str(refused.value) == (
        "model: 0.5B-h16 mha, alibi: its attention alone is more than match: cache allows at"
        " 1048576 tokens; leave this variant out (--only), or take another match"
    )


def test_the_reference_matches_itself() -> None:
    found = matched(spec("gqa", "params"))
    assert (found.shape.ffn, found.residual) == (REFERENCE.ffn, 0.0)


def case(attention: str, match: str, **workload: Any) -> Case:
    return Case(model=spec(attention, match), workload=workload)  # type: ignore[arg-type]


def test_what_is_left_over_is_told_at_every_length_that_cases_work_at() -> None:
    cases = [
        case("sliding", "flops", kind="pretrain", sequence_length=length)
        for length in (4096, 16384, 16384)
    ]
    (line,) = told(cases)
    long = residual_at(spec("sliding", "flops"), 16384)
    assert long < -0.01, "a window saves more of a long row"
    assert line.startswith("match flops: 0.5B-h16 sliding, rope: feed-forward ")
    assert line.endswith(f" left over at 4096 tokens, {long:+.2%} at 16384 (!)")
    assert [residual(each) for each in cases[:2]] == [
        pytest.approx(matched(spec("sliding", "flops")).residual),
        long,
    ]


def test_parameters_are_left_over_alike_at_every_length() -> None:
    cases = [case("mla", "params", kind="pretrain", sequence_length=n) for n in (128, 4096)]
    (line,) = told(cases)
    assert line.endswith("left over")
    assert residual(cases[0]) == residual(cases[1]) == matched(spec("mla", "params")).residual
    assert residual(case("mla", "none", kind="pretrain")) is None


def test_a_generation_tells_the_worst_of_its_contexts() -> None:
    points = {"context": [4096, 1024, 65536]}
    each = case("mqa", "cache", kind="generate", points=points)
    at = [residual_at(spec("mqa", "cache"), n) for n in points["context"]]
    assert residual(each) == max(at, key=abs) == at[2] < -0.01
    # what is read of a cache is no matter of a training
    trained = case("mqa", "cache", kind="pretrain", sequence_length=65536)
    assert residual(trained) == pytest.approx(at[0])
