"""Which model: our controlled backbone, a known shape, a checkpoint, or an earlier product.

On the command line and in a suite one string is enough:

    backbone-1.5B                 the controlled backbone at a preset size
    Llama-3.1-8B                  a shape of the catalog, random weights, "cost only"
    meta-llama/Llama-3.1-8B       a checkpoint on the hub (`name@revision` pins it)
    ./checkpoint                  a checkpoint in a local folder
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from efficientllm.spec.architecture import (
    BIASES,
    Attention,
    CustomAttention,
    GroupedQuery,
    MultiHeadLatent,
    NativeSparse,
    Position,
    RotaryPosition,
    Size,
)
from efficientllm.spec.canonical import Spec, local

Implementation = Literal["auto", "decoder", "transformers"]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Match = Literal["none", "params", "flops", "cache"]


class Backbone(Spec):
    """The controlled backbone: Qwen2.5-style, everything but the studied part held fixed.

    A preset gives every size; the fields below replace single ones. `vocab` is the
    number of embedding rows; the tokenizer may know fewer. `match` resizes the
    feed-forward until something equals that of the preset with its own attention:
    parameters, FLOPs of a forward pass for each token of a row, or the bytes that one
    decoded token has to read (weights and cache); the last two at `match_context` tokens.
    """

    kind: Literal["backbone"] = "backbone"
    preset: Name = "0.5B"
    attention: Attention = GroupedQuery()
    position: Position = RotaryPosition()
    match: Match = "none"
    match_context: Annotated[int, Field(ge=2, le=1 << 22)] = 4096
    layers: Size | None = None
    hidden: Size | None = None
    heads: Size | None = None
    head_dim: Size | None = None
    ffn: Size | None = None
    vocab: Annotated[int, Field(ge=256, le=1 << 20)] | None = None
    tokenizer: str = local("auto", description="a tokenizer.json, or its folder")
    tokenizer_sha256: str = Field("", pattern="^([0-9a-f]{64})?$")

    @model_validator(mode="after")
    def _parts_fit(self) -> Backbone:
        attention, position = self.attention, self.position
        if isinstance(position, BIASES) and isinstance(attention, MultiHeadLatent | NativeSparse):
            raise ValueError(
                f"position {position.kind} adds a bias to every score, which {attention.kind}"
                " has no place for; use rope, sinusoidal, learned or none"
            )
        if self.match != "none" and isinstance(attention, CustomAttention):
            raise ValueError(f"match: nobody has counted what {attention.name} holds or reads")
        if self.match == "none" and self.match_context != 4096:
            raise ValueError("match_context belongs to match: flops or cache")
        return self


class CatalogShape(Spec):
    """A published architecture at full size with random weights: cost, never quality."""

    kind: Literal["shape"] = "shape"
    name: Name
    implementation: Implementation = "auto"
    tokenizer: str = local("auto", description="a tokenizer.json, or its folder")
    tokenizer_sha256: str = Field("", pattern="^([0-9a-f]{64})?$")


class Checkpoint(Spec):
    """Trained weights from a hub or a local folder.

    `commit` (hub) or `sha256` (folder) is filled in before planning, and alone
    identifies the weights; `source` says where to look.
    """

    kind: Literal["checkpoint"] = "checkpoint"
    source: str = local("", max_length=4096, description="a hub id, `id@revision`, or a folder")
    commit: str = Field("", pattern="^([0-9a-f]{40})?$")
    sha256: str = Field("", pattern="^([0-9a-f]{64})?$")
    implementation: Implementation = "auto"
    allow_code: bool = Field(False, description="run the Python file a checkpoint brings along")

    @model_validator(mode="after")
    def _code_needs_a_full_revision(self) -> Checkpoint:
        revision = self.commit or self.source.partition("@")[2]
        full = len(revision) == 40 and all(c in "0123456789abcdef" for c in revision)
        if self.allow_code and not (full or self.sha256 or is_local(self.source)):
            raise ValueError(
                "allow_code runs somebody's Python on this machine: name the exact code as"
                " source: id@<40-digit commit>"
            )
        return self


class Product(Spec):
    """What an earlier case of the same suite made: the lineage of one model.

    `parent` is the parent's case id, filled in when the suite is expanded, so a
    product's id changes whenever anything about its ancestors does.
    """

    kind: Literal["product"] = "product"
    of: str = local("", description="the parent case's name")
    seed: Annotated[int, Field(ge=0, le=1 << 16)] = 0
    parent: str = Field("", pattern="^([0-9a-f]{64})?$")


def is_local(source: str) -> bool:
    """Whether a checkpoint's source is a folder rather than a hub id."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1


def model_from_name(value: Any) -> Any:
    """Turn the one-string forms of the module docstring into a mapping."""
    if not isinstance(value, str):
        return value
    if value.startswith("backbone-"):
        return {"kind": "backbone", "preset": value.removeprefix("backbone-")}
    if is_local(value) or "/" in value:
        return {"kind": "checkpoint", "source": value}
    return {"kind": "shape", "name": value}


Model = Annotated[
    Annotated[Backbone | CatalogShape | Checkpoint | Product, Field(discriminator="kind")],
    BeforeValidator(model_from_name),
]
