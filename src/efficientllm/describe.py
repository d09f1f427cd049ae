"""The model as it will be measured, in numbers, for the record."""

from __future__ import annotations

import io
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.serialization import get_crc32_options, set_crc32_options

from efficientllm.parameters import parameters
from efficientllm.record import Build as BuildFacts
from efficientllm.techniques.build import Build, bytes_by_kind, dtypes_of

MAX_SERIALIZED_BYTES = 4 << 30


def build_facts(build: Build, logical_params: int) -> BuildFacts:
    """The model as it will be measured, for the record."""
    model, shape = build.model, build.shape
    added = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    total = logical_params + added
    active = total
    if shape is not None and shape.experts is not None:
        counted = parameters(shape)
        active = counted.active + added
    held = bytes_by_kind(model)
    return BuildFacts(
        total_params=total,
        trainable_params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        active_params=active,
        bytes_by_kind=held,
        dtypes=dtypes_of(model),
        weights="random" if build.weights_random else "trained",
        reach=tuple(build.reach),
        attention=build.attention,
        shape=None if shape is None else shape.model_dump(exclude={"sources", "note"}),
        reference_bytes=2 * logical_params,
        disk_bytes=_serialized_bytes(model) if sum(held.values()) < MAX_SERIALIZED_BYTES else None,
    )


class _Counter(io.RawIOBase):
    """A file that keeps nothing but its length."""

    written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.written += len(data)
        return len(data)


def _serialized_bytes(model: torch.nn.Module) -> int:
    """Bytes of the state as torch writes it from a host; quantized weights with their scales."""
    counter, blanks = _Counter(), dict[int, Tensor]()
    state = model.state_dict()
    state.update({name: _blank(held, blanks) for name, held in state.items()})
    checked = get_crc32_options()
    set_crc32_options(False)  # a second for 4 GB, and the file has the same length
    try:
        torch.save(state, cast("IO[bytes]", counter))
    finally:
        set_crc32_options(checked)
    return counter.written


def _blank(held: Any, blanks: dict[int, Tensor]) -> Any:
    """A plain tensor as one of the host that nothing was written into; others as they are.

    Only lengths count, and copying gigabytes off a GPU takes seconds of every trial. What
    shares memory still does (by torch's own key for it), since a file holds it once.
    """
    if type(held) is not Tensor or held.layout is not torch.strided or held.is_meta:
        return held
    if held.is_quantized or held.is_nested:
        return held
    storage = held.untyped_storage()
    if storage._cdata not in blanks:
        blanks[storage._cdata] = torch.empty(storage.nbytes(), dtype=torch.uint8, device="cpu")
    view = torch.empty(0, dtype=held.dtype, device="cpu")
    shared = blanks[storage._cdata].untyped_storage()
    return view.set_(shared, held.storage_offset(), held.shape, held.stride())
