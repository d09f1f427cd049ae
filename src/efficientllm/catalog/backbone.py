"""The controlled backbone of a case: a preset's sizes with the studied parts put in.

Width, depth, head count and head size stay; attention and positions change only what they
are made of. No torch here.
"""

from __future__ import annotations

from typing import Any, assert_never

from efficientllm.catalog.shape import Latent, Relative, Shape, Sparse, presets
from efficientllm.spec.architecture import (
    Attention,
    CustomAttention,
    GroupedQuery,
    LearnedPosition,
    MultiHead,
    MultiHeadLatent,
    MultiQuery,
    NativeSparse,
    Position,
    RelativeBias,
    SlidingWindow,
)
from efficientllm.spec.document import SpecError
from efficientllm.spec.model import Backbone
from efficientllm.spec.problems import nearest


def backbone_shape(spec: Backbone) -> Shape:
    """The controlled backbone's sizes with the parts and the replacements of a case.

    Its feed-forward is as the case or the preset says; `matching.py` resizes it.
    """
    known = presets()
    if spec.preset not in known:
        raise SpecError(f"model: no backbone preset {spec.preset!r}{nearest(spec.preset, known)}")
    given = ("layers", "hidden", "heads", "head_dim", "ffn", "vocab")
    sizes = {k: getattr(spec, k) for k in given if getattr(spec, k) is not None}
    shape = known[spec.preset].model_copy(update=sizes)
    shape = shape.model_copy(update=_attention_parts(spec.attention, shape))
    shape = shape.model_copy(update=_position_parts(spec.position, shape))
    if shape.heads % shape.kv_heads:
        raise SpecError(
            f"model: {shape.heads} query heads do not divide into {shape.kv_heads} groups"
        )
    name, rotated = "head_dim", shape.head_dim
    if shape.latent is not None:
        name, rotated = "qk_rope_dim", shape.latent.qk_rope_dim
    if shape.position == "rope" and rotated % 2:
        raise SpecError(f"model: {name} {rotated} must be even for rotary positions")
    return shape


def _attention_parts(attention: Attention, shape: Shape) -> dict[str, Any]:
    """The fields of a shape that an attention decides."""
    match attention:
        case MultiHead():
            return {"kv_heads": shape.heads}
        case MultiQuery():
            return {"kv_heads": 1}
        case GroupedQuery(kv_heads=kv):
            return {"kv_heads": kv or shape.kv_heads}
        case SlidingWindow(kv_heads=kv, window=window):
            return {"kv_heads": kv or shape.kv_heads, "sliding_window": window}
        case MultiHeadLatent():
            return {"kv_heads": shape.heads, "latent": _latent(attention, shape.head_dim)}
        case NativeSparse(kv_heads=kv):
            sizes = attention.model_dump(include={"block", "selected", "window"})
            return {"kv_heads": kv or max(1, shape.heads // 16), "sparse": Sparse(**sizes)}
        case CustomAttention(name=name):
            return {"custom": name}
        case never:
            assert_never(never)


def _latent(attention: MultiHeadLatent, head_dim: int) -> Latent:
    return Latent(
        q_rank=attention.q_rank or 0,
        kv_rank=attention.kv_rank or 4 * head_dim,
        qk_nope_dim=attention.qk_nope_dim or head_dim,
        qk_rope_dim=attention.qk_rope_dim or head_dim // 2,
        v_dim=attention.v_dim or head_dim,
    )


def _position_parts(position: Position, shape: Shape) -> dict[str, Any]:
    """The fields of a shape that an encoding of positions decides."""
    match position:
        case LearnedPosition(max_positions=most):
            return {"position": "learned", "max_positions": most or shape.max_positions}
        case RelativeBias(buckets=buckets, max_distance=distance):
            relative = Relative(buckets=buckets, max_distance=distance)
            return {"position": "t5", "relative": relative}
        case _:
            return {"position": position.kind}
