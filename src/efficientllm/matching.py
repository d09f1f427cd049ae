"""Fair matching: the feed-forward grows or shrinks until a variant equals its preset.

Attention variants hold and multiply different amounts. Compared as they are, a variant
with fewer weights looks cheap and learns less; so `match` gives what one spends less on
attention back to the feed-forward. Width, depth and heads stay. What is left over,
because a width comes in steps, is the residual, and it is shown; FLOPs and bytes are equal
at one length only, so also at the lengths that the cases work at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, assert_never

from efficientllm.catalog.backbone import backbone_shape
from efficientllm.catalog.shape import Shape
from efficientllm.cost import attended_pairs, attention_flops, cache_read_bytes
from efficientllm.parameters import parameters
from efficientllm.spec.case import Case
from efficientllm.spec.document import SpecError
from efficientllm.spec.model import Backbone, Match
from efficientllm.spec.workload import Generate

STEP = 64
"""Widths are multiples of this, which keeps products on the fast path."""

ELEMENT = 2
"""Bytes of a weight or a cached value when decoding in bf16."""


NEAR = 0.01
"""A residual above this share is told with the row: what is compared there is not equal."""


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
    shape, what, context = backbone_shape(spec), spec.match, spec.match_context
    if what == "none":
        return Matched(shape, what, 0.0)
    target = _amount(_reference(spec), what, context)
    narrow, wide = (_amount(_with(shape, width), what, context) for width in (STEP, 2 * STEP))
    steps = round((target - narrow) / (wide - narrow))
    if steps < 0:
        where = "" if what == "params" else f" at {context} tokens"
        raise SpecError(
            f"model: {_name(spec)}: its attention alone is more than match: {what} allows{where};"
            " leave this variant out (--only), or take another match"
        )
    resized = _with(shape, STEP * (1 + steps))
    return Matched(resized, what, (_amount(resized, what, context) - target) / target)


def residual_at(spec: Backbone, context: int) -> float:
    """How far a resized shape is from its target at another length than it was matched at."""
    target = _amount(_reference(spec), spec.match, context)
    return (_amount(matched_shape(spec), spec.match, context) - target) / target


def residual(case: Case) -> float | None:
    """What is left over where a case works, the worst of its lengths; None for no match."""
    if not isinstance(case.model, Backbone) or case.model.match == "none":
        return None
    spec = case.model
    return max((residual_at(spec, n) for n in _lengths(case) or [spec.match_context]), key=abs)


def _lengths(case: Case) -> list[int]:
    """Lengths at which a case needs what was matched: parameters are the same at any."""
    assert isinstance(case.model, Backbone)
    what, decodes = case.model.match, isinstance(case.workload, Generate)
    if what == "flops" or (what == "cache" and decodes):
        return list(dict.fromkeys(point.context for point in case.points))
    return []


def _reference(spec: Backbone) -> Shape:
    """The shape of the preset with its own attention and positions."""
    sizes = spec.model_dump(exclude={"attention", "position", "match", "match_context"})
    return backbone_shape(Backbone.model_validate(sizes))


def _name(spec: Backbone) -> str:
    return f"{spec.preset} {spec.attention.kind}, {spec.position.kind}"


def _with(shape: Shape, ffn: int) -> Shape:
    return shape.model_copy(update={"ffn": ffn})


def _amount(shape: Shape, what: Match, context: int) -> float:
    """What is to be equal; in each case a linear function of the feed-forward's width."""
    counts = parameters(shape)
    match what:
        case "params" | "none":
            return float(counts.total)
        case "flops":
            attention = attention_flops(shape, attended_pairs(shape, context))
            assert attention is not None
            return 2.0 * context * (counts.products + shape.vocab * shape.hidden) + attention
        case "cache":
            lookup = counts.position + (0 if shape.tied else counts.embedding)
            return ELEMENT * (counts.total - lookup) + cache_read_bytes(shape, context, ELEMENT)
        case never:
            assert_never(never)


def told(cases: Iterable[Case]) -> list[str]:
    """A line for each backbone that was resized: its new width, and what is left over where."""
    backbones: dict[str, tuple[Backbone, set[int]]] = {}
    for case in cases:
        if isinstance(case.model, Backbone) and case.model.match != "none":
            key = case.model.model_dump_json()
            backbones.setdefault(key, (case.model, set()))[1].update(_lengths(case))
    return list(dict.fromkeys(_line(spec, lengths) for spec, lengths in backbones.values()))


def _line(spec: Backbone, lengths: set[int]) -> str:
    """What became of one backbone, at the length it was matched at and where its cases work."""
    found = matched(spec)
    left = [f"{found.residual:+.2%} left over"]
    if spec.match != "params":
        left[0] += f" at {spec.match_context} tokens"
        for length in sorted(lengths - {spec.match_context}):
            there = residual_at(spec, length)
            left.append(f"{there:+.2%} at {length}" + (" (!)" if abs(there) > NEAR else ""))
    return f"match {spec.match}: {_name(spec)}: feed-forward {found.shape.ffn}, {', '.join(left)}"
