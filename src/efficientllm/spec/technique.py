"""Which techniques, and in which order they are applied.

A technique is written as its name, with the back-end after a colon where there is a
choice, and several are joined by a plus sign in the order of application:

    lora     int4:tinygemm     bf16+lora     int4+lora     custom:prune.py:apply

A mapping gives parameters: `{kind: lora, r: 8}`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from efficientllm.spec.canonical import Many, Spec, local


class Full(Spec):
    """Train every parameter."""

    kind: Literal["full"] = "full"


class Freeze(Spec):
    """Train the last decoder layers only; embeddings, head and the rest stay as they are."""

    kind: Literal["freeze"] = "freeze"
    last_layers: Annotated[int, Field(ge=1, le=1000)] = 2


class Lora(Spec):
    """Low-rank adapters beside frozen linear layers (Hu 2021), through peft."""

    kind: Literal["lora"] = "lora"
    r: Annotated[int, Field(ge=1, le=4096)] = 16
    alpha: Annotated[float, Field(gt=0, le=65536)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Many[str] = Field(
        ("all-linear",), description="names of linear layers; all-linear: every one but the head"
    )


class Cast(Spec):
    """Hold every weight in one floating-point type."""

    kind: Literal["bf16", "fp16", "float32"]


class Int8WeightOnly(Spec):
    """int8 weights, one scale per output channel, multiplied in bf16 (torchao)."""

    kind: Literal["int8"] = "int8"


class Int8Dynamic(Spec):
    """int8 weights and activations, the latter scaled per token at run time (torchao)."""

    kind: Literal["int8-dynamic"] = "int8-dynamic"


class Int4WeightOnly(Spec):
    """int4 weights with a scale and a zero per group, multiplied in bf16 (torchao).

    `tinygemm` is torch's own packed product: tile-packed on CUDA, its own layout on a
    CPU. `auto` is resolved on the machine and recorded.
    """

    kind: Literal["int4"] = "int4"
    backend: Literal["auto", "tinygemm"] = "auto"
    group_size: Literal[32, 64, 128, 256] = 128


class Custom(Spec):
    """A user's own function from a file, run on the model before it is measured.

    The file's content identifies the technique and is kept in the record. Rows with one
    are shown and never ranked among built-in ones.
    """

    kind: Literal["custom"] = "custom"
    file: str = local("", description="a Python file")
    function: str = Field(pattern=r"^[A-Za-z_]\w*$", description="called with the model")
    sha256: str = Field("", pattern="^([0-9a-f]{64})?$")


def _from_name(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    name, colon, backend = value.partition(":")
    if name == "custom":
        file, _, function = backend.rpartition(":")
        return {"kind": name, "file": file, "function": function}
    return {"kind": name, "backend": backend} if colon else {"kind": name}


def _from_composed(value: Any) -> Any:
    """`a+b` is two techniques, one mapping is one, null is none."""
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split("+")) if value else ()
    if isinstance(value, dict | Spec):
        return (value,)
    return value


Technique = Annotated[
    Annotated[
        Full | Freeze | Lora | Cast | Int8WeightOnly | Int8Dynamic | Int4WeightOnly | Custom,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_from_name),
]
Techniques = Annotated[Many[Technique], Field(max_length=16), BeforeValidator(_from_composed)]

TUNING = (Full, Freeze, Lora)
WEIGHTS = (Cast, Int8WeightOnly, Int8Dynamic, Int4WeightOnly)


def label(techniques: tuple[Technique, ...]) -> str:
    """The composed string form, as it is written on the command line."""
    names = []
    for technique in techniques:
        detail = getattr(technique, "backend", getattr(technique, "function", "auto"))
        names.append(technique.kind if detail == "auto" else f"{technique.kind}:{detail}")
    return "+".join(names) or "none"
