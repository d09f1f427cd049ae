"""Techniques: each edits a build and tells what it reached.

To add one: a frozen spec class in `spec/technique.py` with a `kind` of its own, one
function here that applies it, one arm below. The type checker finds a missing arm.
"""

from __future__ import annotations

from typing import assert_never

from efficientllm.record import Reach
from efficientllm.spec.technique import (
    Cast,
    Custom,
    Freeze,
    Full,
    Int4WeightOnly,
    Int8Dynamic,
    Int8WeightOnly,
    Lora,
    Technique,
)
from efficientllm.techniques.build import Build
from efficientllm.techniques.custom import apply_custom
from efficientllm.techniques.peft import apply_freeze, apply_full, apply_lora
from efficientllm.techniques.precision import apply_cast
from efficientllm.techniques.quantize import apply_quantization


def apply(build: Build, technique: Technique) -> Reach:
    """Apply one technique in place; raises Unsupported where it cannot run here."""
    match technique:
        case Cast():
            return apply_cast(build, technique)
        case Full():
            return apply_full(build, technique)
        case Freeze():
            return apply_freeze(build, technique)
        case Lora():
            return apply_lora(build, technique)
        case Int8WeightOnly() | Int8Dynamic() | Int4WeightOnly():
            return apply_quantization(build, technique)
        case Custom():
            return apply_custom(build, technique)
        case _:
            assert_never(technique)
