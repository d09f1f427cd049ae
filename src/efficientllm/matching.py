"""Fair matching: the feed-forward grows or shrinks until a variant equals its preset.

Attention variants hold and multiply different amounts. Compared as they are, a variant
with fewer weights looks cheap and learns less; so `match` gives what one spends less on
attention back to the feed-forward. Width, depth and heads stay. What is left over,
because a width comes in steps, is the residual, and it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, assert_never

from efficientllm.catalog.backbone import backbone_shape
from efficientllm.catalog.shape import Shape
from efficientllm.cost import attended_pairs, attention_flops, cache_bytes
from efficientllm.parameters import parameters
from efficientllm.spec.case import Case
from efficientllm.spec.document import SpecError
from efficientllm.spec.model import Backbone, Match

STEP = 64
"""Widths are multiples of this, which keeps products on the fast path."""

ELEMENT = 2
"""Bytes of a weight or a cached value when decoding in bf16."""


class Matched(NamedTuple):
    """A shape whose feed-forward was resized, and how far it is from its target."""

    shape: Shape
    what: Match
    residual: float
    """(what the shape has - what it should have) / what it should have."""


def matched_shape(spec: Backbone) -> Shape:
    """The shape of a backbone, its feed-forward resized where the case asks for it."""
    return matched(spec).shape


def matched(spec: Backbone) -> Matched:
    """Resize the feed-forward; raises SpecError where no width would do."""
    shape = backbone_shape(spec)
    if spec.match == "none":
        return Matched(shape, "none", 0.0)
    sizes = spec.model_dump(exclude={"attention", "position", "match", "match_context"})
    target = _amount(backbone_shape(Backbone.model_validate(sizes)), spec)
    narrow, wide = (_amount(_with(shape, width), spec) for width in (STEP, 2 * STEP))
    steps = round((target - narrow) / (wide - narrow))
    if steps < 0:
        raise SpecError(
            f"model: {shape.name}: its attention alone is more than match: {spec.match} allows"
        )
    resized = _with(shape, STEP * (1 + steps))
    return Matched(resized, spec.match, (_amount(resized, spec) - target) / target)


def _with(shape: Shape, ffn: int) -> Shape:
    return shape.model_copy(update={"ffn": ffn})


def _amount(shape: Shape, spec: Backbone) -> float:
    """What is to be equal; in each case a linear function of the feed-forward's width."""
    counts, context = parameters(shape), spec.match_context
    match spec.match:
        case "params" | "none":
            return float(counts.total)
        case "flops":
            attention = attention_flops(shape, attended_pairs(shape, context))
            assert attention is not None
            return 2.0 * context * (counts.products + shape.vocab * shape.hidden) + attention
        case "cache":
            lookup = counts.position + (0 if shape.tied else counts.embedding)
            return ELEMENT * (counts.total - lookup) + cache_bytes(shape, context, ELEMENT)
        case never:
            assert_never(never)


def told(cases: Iterable[Case]) -> list[str]:
    """A line for each backbone that was resized: its new width, and what is left over."""
    backbones = [case.model for case in cases if isinstance(case.model, Backbone)]
    lines = []
    for spec in backbones:
        if spec.match != "none":
            found = matched(spec)
            lines.append(
                f"match {spec.match}: {spec.preset} {spec.attention.kind}, {spec.position.kind}:"
                f" feed-forward {found.shape.ffn}, {found.residual:+.2%} left over"
            )
    return list(dict.fromkeys(lines))
