"""Peaks of accelerators, and which entry a device is. An unknown device has no peak."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from efficientllm.catalog.shape import read_catalog
from efficientllm.spec.document import SpecError, read
from efficientllm.spec.problems import nearest

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Peak(BaseModel):
    """One product: dense peaks in TFLOP/s by type, bandwidth in TB/s, memory in GiB."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    match: tuple[str, ...]
    memory_gib: Positive
    bandwidth_tb_s: Positive
    power_w: Positive
    peak: dict[str, Positive]
    source: str
    nominal: bool = False
    declared: bool = False

    def flops(self, dtype: str) -> float | None:
        """Dense peak in FLOP/s of a multiplied type, or None where the maker gives none."""
        value = self.peak.get(dtype)
        return None if value is None else value * 1e12

    @property
    def bytes_per_s(self) -> float:
        return self.bandwidth_tb_s * 1e12


@cache
def peaks() -> tuple[Peak, ...]:
    """The catalog's machines."""
    return tuple(Peak.model_validate(row) for row in read_catalog("machines.yaml")["machines"])


def declared(path: Path) -> Peak:
    """A peak that a user declares for a card the catalog lacks; it is shown as declared."""
    documents = read(path)
    try:
        return Peak.model_validate({**documents[0].value, "declared": True})
    except (IndexError, ValueError, TypeError) as error:
        raise SpecError(
            f"{path}: not a machine's peaks (see catalog/machines.yaml): {error}"
        ) from error


@cache
def peak_of(product: str) -> Peak | None:
    """The entry whose name ends a product name, in whole words.

    What follows a name makes another card of it: a 4090 D or Laptop, a GH200 144G, a slice
    of a MIG device. Those have peaks of their own, or none here.
    """
    found = [
        (len(name), peak)
        for peak in peaks()
        for name in peak.match
        if re.search(rf"(?<![\w-]){re.escape(name)}$", product)
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def machine_named(name: str) -> Peak:
    """A machine by its catalog id, for predictions without the machine."""
    for peak in peaks():
        if peak.id == name.lower():
            return peak
    raise SpecError(f"--on: no machine {name!r}{nearest(name, [p.id for p in peaks()])}")
