"""Matching: what is equal afterwards, by counting it again."""

from __future__ import annotations

from typing import Any

import pytest

from efficientllm.catalog.backbone import backbone_shape
from efficientllm.cost import attended_pairs, attention_flops, cache_bytes
from efficientllm.matching import matched
from efficientllm.parameters import parameters
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


def test_what_a_decoded_token_reads_is_matched_weights_and_cache_together() -> None:
    found = matched(spec("mha", "cache", match_context=4096)).shape

    def read(shape: Any) -> int:
        return 2 * parameters(shape).total + cache_bytes(shape, 4096)

    assert found.ffn < REFERENCE.ffn
    assert read(found) == pytest.approx(read(REFERENCE), rel=0.005)


def test_an_attention_that_is_too_large_by_itself_is_refused() -> None:
    with pytest.raises(SpecError, match="its attention alone is more than match: cache allows"):
        matched(spec("mha", "cache", match_context=1 << 20))


def test_the_reference_matches_itself() -> None:
    found = matched(spec("gqa", "params"))
    assert (found.shape.ffn, found.residual) == (REFERENCE.ffn, 0.0)
