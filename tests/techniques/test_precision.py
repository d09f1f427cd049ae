"""Casting holds weights in one type and leaves what needs float32 alone."""

from __future__ import annotations

import pytest
import torch

from efficientllm.spec.technique import Cast
from efficientllm.techniques import apply
from efficientllm.techniques.build import dtypes_of
from tests import tiny

TOTAL = sum(p.numel() for p in tiny.decoder().parameters())


@pytest.mark.parametrize(
    ("kind", "bytes_each"), [("bf16", 2), ("fp16", 2), ("float32", 4)], ids=str
)
def test_every_weight_is_held_in_the_type(kind: str, bytes_each: int) -> None:
    build = tiny.build()
    reach = apply(build, Cast(kind=kind))
    assert dtypes_of(build.model) == {kind: TOTAL}
    assert reach.bytes_before == 4 * TOTAL
    assert reach.bytes_after == bytes_each * TOTAL
    assert reach.parameters == (0 if kind == "float32" else TOTAL)


def test_rotary_frequencies_stay_in_float32() -> None:
    build = tiny.build()
    before = build.model.model.position.frequencies.clone()
    apply(build, Cast(kind="bf16"))
    after = build.model.model.position.frequencies
    assert after.dtype == torch.float32
    assert torch.equal(after, before)


def test_a_tied_table_stays_tied() -> None:
    build = tiny.build()
    apply(build, Cast(kind="bf16"))
    assert build.model.lm_head.weight is build.model.model.embed_tokens.weight


def test_bf16_moves_logits_by_its_rounding_and_not_more() -> None:
    build = tiny.build()
    tokens = tiny.tokens(2, 12)
    with torch.inference_mode():
        before = build.model(tokens).logits
        apply(build, Cast(kind="bf16"))
        after = build.model(tokens).logits
    assert after.dtype == torch.bfloat16
    error = (after.float() - before).pow(2).mean() / before.pow(2).mean()
    assert 0 < error < 1e-3
