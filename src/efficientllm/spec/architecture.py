"""The parts of the controlled backbone that are studied: its attention and its positions.

One word is enough for each, and a mapping sets its sizes; `null` means the preset's own:

    attention=gqa      attention={kind: gqa, kv_heads: 4}      attention=custom:FILE:CLASS
    position=alibi     position={kind: learned, max_positions: 16384}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from efficientllm.spec.canonical import Spec, local

Size = Annotated[int, Field(ge=1, le=1 << 20)]


class MultiHead(Spec):
    """Every query head has its own key and value head (Vaswani et al. 2017)."""

    kind: Literal["mha"] = "mha"


class GroupedQuery(Spec):
    """Groups of query heads share a key and value head (Ainslie et al. 2023)."""

    kind: Literal["gqa"] = "gqa"
    kv_heads: Size | None = Field(None, description="null: the preset's own number")


class MultiQuery(Spec):
    """All query heads share one key and value head (Shazeer 2019)."""

    kind: Literal["mqa"] = "mqa"


class SlidingWindow(Spec):
    """Grouped heads that see the last `window` tokens only (Beltagy et al. 2020)."""

    kind: Literal["sliding"] = "sliding"
    window: Size = Field(1024, description="tokens that a query sees, itself included")
    kv_heads: Size | None = Field(None, description="null: the preset's own number")


class MultiHeadLatent(Spec):
    """Keys and values from one small latent a token (DeepSeek-V2, arXiv 2405.04434).

    The defaults are that paper's proportions (section 2.1.4): a latent of 4 heads' width,
    half a head rotated, and full-rank queries as in its Lite model.
    """

    kind: Literal["mla"] = "mla"
    kv_rank: Size | None = Field(None, description="null: 4 x head_dim")
    q_rank: Size | None = Field(None, description="null: queries are not compressed")
    qk_nope_dim: Size | None = Field(None, description="null: head_dim")
    qk_rope_dim: Size | None = Field(None, description="null: head_dim / 2")
    v_dim: Size | None = Field(None, description="null: head_dim")


class NativeSparse(Spec):
    """Compressed, selected and sliding branches under learned gates (arXiv 2502.11089)."""

    kind: Literal["nsa"] = "nsa"
    kv_heads: Size | None = Field(None, description="null: one for 16 query heads, as in the paper")
    block: Size = Field(64, description="tokens in a block that is compressed and selected")
    selected: Size = Field(16, description="blocks that a query reads whole")
    window: Size = 512


class CustomAttention(Spec):
    """A user's own module from a file: `custom:FILE:CLASS`.

    The file's content identifies it and is kept in the record.
    """

    kind: Literal["custom"] = "custom"
    file: str = local("", description="a Python file")
    name: str = Field(pattern=r"^[A-Za-z_]\w*$", description="the class in it")
    sha256: str = Field("", pattern="^([0-9a-f]{64})?$")


class RotaryPosition(Spec):
    """Queries and keys turned by an angle for each position (RoPE, Su et al. 2021)."""

    kind: Literal["rope"] = "rope"


class SinusoidalPosition(Spec):
    """Fixed waves added to the embeddings (Vaswani et al. 2017, section 3.5)."""

    kind: Literal["sinusoidal"] = "sinusoidal"


class LearnedPosition(Spec):
    """A learned vector for each position, added to the embeddings (as in GPT-2)."""

    kind: Literal["learned"] = "learned"
    max_positions: Size | None = Field(None, description="null: the preset's own number")


class RelativeBias(Spec):
    """A learned bias for each head and bucket of distances, shared by all layers (T5)."""

    kind: Literal["t5"] = "t5"
    buckets: Annotated[int, Field(ge=4, le=4096)] = 32
    max_distance: Annotated[int, Field(ge=8, le=1 << 20)] = 128

    @model_validator(mode="after")
    def _far_buckets_have_distances(self) -> RelativeBias:
        """Half of the buckets are single distances; the others need some beyond them."""
        if self.max_distance <= self.buckets // 2:
            raise ValueError(
                f"max_distance {self.max_distance} must be above {self.buckets // 2}, half of the"
                " buckets: below that every distance has a bucket of its own"
            )
        return self


class LinearBias(Spec):
    """A fixed penalty that grows with distance, by a slope for each head (ALiBi)."""

    kind: Literal["alibi"] = "alibi"


class NoPosition(Spec):
    """None at all: only the causal order tells positions apart (NoPE)."""

    kind: Literal["none"] = "none"


def _attention_from_name(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    kind, colon, rest = value.partition(":")
    if kind != "custom":
        return {"kind": value}
    file, _, name = rest.rpartition(":")
    if not (colon and file and name):
        raise ValueError(f"custom attention is written custom:FILE:CLASS (got {value!r:.80})")
    return {"kind": kind, "file": file, "name": name}


def _kind_from_name(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Attention = Annotated[
    Annotated[
        MultiHead
        | GroupedQuery
        | MultiQuery
        | SlidingWindow
        | MultiHeadLatent
        | NativeSparse
        | CustomAttention,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_attention_from_name),
]

Position = Annotated[
    Annotated[
        RotaryPosition
        | SinusoidalPosition
        | LearnedPosition
        | RelativeBias
        | LinearBias
        | NoPosition,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_kind_from_name),
]

BIASES = (RelativeBias, LinearBias)
"""Positions that are told to attention as something added to its scores."""
