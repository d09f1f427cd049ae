"""One point of one record, as formulas see it; whole, or one block of its windows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

from efficientllm.catalog.peaks import Peak, peak_of
from efficientllm.catalog.shape import Shape
from efficientllm.record import PointResult, Reading, Record, Window
from efficientllm.spec.case import Case


class Unmeasured(NamedTuple):
    """A value that is not there, and why. It is never 0 and never infinity."""

    reason: str


Value = float | Unmeasured


@dataclass(frozen=True)
class Ceiling:
    """What `doctor` reached on this machine: products in FLOP/s, copies in byte/s."""

    flops: float | None = None
    bytes_per_s: float | None = None


@dataclass(frozen=True)
class View:
    """A point of a record. `reference` is the row that compression is compared with."""

    record: Record
    point: PointResult
    ceiling: Ceiling = field(default_factory=Ceiling)
    reference: View | None = None

    @cached_property
    def case(self) -> Case:
        return Case.model_validate(self.record.case)

    @property
    def stage(self) -> str:
        return str(self.record.case["workload"]["kind"])

    @cached_property
    def shape(self) -> Shape | None:
        build = self.record.build
        return None if build is None or build.shape is None else Shape.model_validate(build.shape)

    @cached_property
    def peak(self) -> Peak | None:
        """The device's peaks: the catalog's, else those declared for the run."""
        declared = self.record.declared_peak
        if declared is not None:
            return Peak.model_validate(declared | {"declared": True})
        return peak_of(self.record.machine.device)

    def window(self, name: str) -> Window | Unmeasured:
        found = self.point.window(name)
        if found is not None and found.units:
            return found
        if name in self.point.left_out:
            return Unmeasured(self.point.left_out[name])
        if self.point.outcome.status != "ok":
            return Unmeasured(f"{self.point.outcome.status}: {self.point.outcome.reason}")
        return Unmeasured(f"no {name} window was measured")

    @property
    def main_window(self) -> Window | Unmeasured:
        """The window that energy, activity and memory over time are taken from."""
        names = {"pretrain": "step", "finetune": "step", "generate": "decode"}
        if self.stage in names:
            return self.window(names[self.stage])
        windows = self.point.windows
        return windows[0] if windows else Unmeasured("nothing was measured")

    def series(self, meter: str) -> Reading | None:
        """The longest series of a meter (a trial of several processes has one for each)."""
        window = self.main_window
        found = [r for r in self.record.readings if r.meter == meter and r.t_ns]
        if isinstance(window, Window):
            middle = (window.start_ns + window.end_ns) // 2
            found = [r for r in found if r.t_ns[0] <= middle <= r.t_ns[-1]] or found
        return max(found, key=lambda r: len(r.t_ns), default=None)

    def note(self, *keys: str, default: str) -> Unmeasured:
        """Why something is missing: the first note that the trial left under these keys."""
        notes = self.record.notes
        return Unmeasured(next((notes[key] for key in keys if notes.get(key)), default))

    def blocks(self, count: int) -> tuple[View, ...]:
        """The same point seen through equal parts of its windows, for within-run intervals."""
        if count not in self._blocks:
            parts = zip(*(divided(w, count) for w in self.point.windows), strict=True)
            points = (self.point.model_copy(update={"windows": windows}) for windows in parts)
            self._blocks[count] = tuple(replace(self, point=point) for point in points)
        return self._blocks[count]

    @cached_property
    def _blocks(self) -> dict[int, tuple[View, ...]]:
        """Made once: every metric asks for them."""
        return {}


def divided(window: Window, count: int) -> list[Window]:
    """So many equal stretches of a window; raw counts go with the units."""
    units, edges = window.units, [0.0, *accumulate(window.unit_s)]
    length, whole = window.end_ns - window.start_ns, edges[-1] or 1.0
    cuts = [i * units // count for i in range(count + 1)]
    times = [window.start_ns + round(edges[cut] / whole * length) for cut in cuts]
    stretches = []
    for (first, last), (start, end) in zip(pairwise(cuts), pairwise(times), strict=True):
        share = (last - first) / units if units else 0.0
        counts = {key: value * share for key, value in window.counts.items()}
        changes = {"start_ns": start, "end_ns": end, "unit_s": window.unit_s[first:last]}
        stretches.append(window.model_copy(update={**changes, "counts": counts}))
    return stretches


def mean_over(reading: Reading, column: str, start_ns: int, end_ns: int) -> float | None:
    """Time-weighted mean of a sampled column between two moments.

    Samples hold until the next one; None when none falls inside.
    """
    rows = [
        (t, v)
        for t, v in zip(reading.t_ns, reading.columns[column], strict=True)
        if start_ns <= t <= end_ns and v is not None
    ]
    if not rows:
        return None
    if len(rows) == 1:
        return rows[0][1]
    spans = [(b[0] - a[0], a[1]) for a, b in pairwise(rows)]
    total = sum(width for width, _ in spans)
    return sum(width * value for width, value in spans) / total if total else rows[0][1]
