"""Casting every weight to one floating-point type."""

from __future__ import annotations

from efficientllm.record import Reach
from efficientllm.spec.technique import Cast
from efficientllm.techniques.build import DTYPES, Build, bytes_by_kind, touched


def apply_cast(build: Build, technique: Cast) -> Reach:
    """Cast parameters in place. Buffers keep their type: rotary frequencies need float32."""
    before = sum(bytes_by_kind(build.model).values())
    dtype = DTYPES[technique.kind]
    changed = [n for n, p in build.model.named_parameters() if p.dtype != dtype]
    for parameter in build.model.parameters():
        parameter.data = parameter.data.to(dtype)
    by_kind = touched(changed, build.model)
    after = sum(bytes_by_kind(build.model).values())
    return Reach(
        technique=technique.kind,
        parameters=sum(by_kind.values()),
        by_kind=by_kind,
        bytes_before=before,
        bytes_after=after,
    )
