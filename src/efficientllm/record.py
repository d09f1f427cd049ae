"""The record: what one trial saw, raw, with the machine it was seen on.

A record is immutable and carries raw samples and raw counts. Statistics, FLOPs, bytes
per second and verdicts are derived from it when it is read, so a corrected formula
needs no new run. What was not measured is null, and `notes` says why.

    schema 1   first

What says something that cannot be (less than nothing, columns of unequal length, a model
without parameters) is no record. Formulas rest on that.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA = 1

MEASURING = 3
"""Raised when the way of measuring changes so that old and new windows are no replicates."""

Status = Literal[
    "ok",
    "out_of_memory",
    "nan",
    "crash",
    "timeout",
    "device_lost",
    "unsupported",
    "blocked",
    "interrupted",
]
DONE: frozenset[str] = frozenset({"ok", "out_of_memory", "nan", "unsupported"})
"""Outcomes that a rerun would only repeat; the others are tried again, at most twice."""


Count = Annotated[int, Field(ge=0, lt=2**63)]
"""Whole things, bytes, or nanoseconds of the monotonic clock: what 64 bits hold."""
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Amount = Annotated[float, Field(ge=0, le=1e30)]
Sample = Annotated[float, Field(ge=-1e30, le=1e30)]


class Frozen(BaseModel):
    """Base of every part of a record: immutable, closed, finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Outcome(Frozen):
    """How a trial or a point ended; anything but ok says why and in which phase."""

    status: Status = "ok"
    reason: str = ""
    phase: str = ""


class Unsupported(RuntimeError):
    """Raised where a case cannot run on this machine; the text says which part and what would."""


class Span(Frozen):
    """Two moments of the monotonic clock, in order."""

    name: str
    start_ns: Count
    end_ns: Count

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.end_ns < self.start_ns:
            raise ValueError(f"{self.name}: it ends before it starts")
        return self


class Phase(Span):
    """A stretch of a trial."""

    point: int | None = None


class Window(Span):
    """A steady window: `units` repeats of one piece of work, drained at both edges.

    `unit_s` are seconds of each unit on the device's timeline; `counts` are raw totals of
    the window (tokens, samples, pairs, rows ...). `first_call_s` is the cold call, which
    holds compilation; `recompiles` were seen inside the window.
    """

    unit_s: tuple[Seconds, ...]
    counts: dict[str, Amount]
    first_call_s: Seconds
    warmup_units: Count
    warmup_s: Seconds
    converged: bool
    recompiles: Count = 0

    @property
    def units(self) -> int:
        return len(self.unit_s)

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


class PointResult(Frozen):
    """One (batch, context): its windows, what lay in memory, and how it ended.

    `left_out` names windows that did not fit under the protocol's cap, with the reason;
    `captured` those whose units were replays of one CUDA graph.
    """

    point_id: str
    batch: Positive
    context: Positive
    outcome: Outcome = Outcome()
    windows: tuple[Window, ...] = ()
    left_out: dict[str, str] = {}
    captured: tuple[str, ...] = ()
    holdings: dict[str, Count] = {}
    memory: dict[str, Count | None] = {}
    output_sha256: str = ""
    compilation: dict[str, Count] = {}

    def window(self, name: str) -> Window | None:
        return next((window for window in self.windows if window.name == name), None)


class Scores(Frozen):
    """Held-out text: negative log-likelihood (nats), tokens and UTF-8 bytes, per document."""

    nll: tuple[float, ...]
    tokens: tuple[Count, ...]
    bytes: tuple[Count, ...]
    text_sha256: str
    source: str

    @model_validator(mode="after")
    def _one_of_each_per_document(self) -> Scores:
        lengths = [len(self.nll), len(self.tokens), len(self.bytes)]
        if len(set(lengths)) > 1:
            raise ValueError("nll, tokens and bytes have {}, {} and {} entries".format(*lengths))
        return self


class CurvePoint(Frozen):
    """Held-out text scored in the middle of a training.

    After so many steps and tokens (no padding): the sum of the negative log-likelihood in
    nats, and the UTF-8 bytes that it is over.
    """

    step: int
    tokens: float
    nll: float
    bytes: int


class Reach(Frozen):
    """What one technique touched, by kind of module; how much of a model it really reached."""

    technique: str
    parameters: Count
    by_kind: dict[str, Count]
    bytes_before: Count
    bytes_after: Count
    source: str = ""


class Finding(Frozen):
    """One thing that an attention was examined for: what was seen, and what to do about it.

    `told` neither passes nor fails: it is for the reader to know. `unused` is sound and ignores
    something that its rows would be named after.
    """

    name: str
    verdict: Literal["passed", "failed", "told", "unused"]
    seen: str
    advice: str = ""


class Examined(Frozen):
    """An attention that was examined; with its source where it comes from a user's file."""

    name: str
    sha256: str = ""
    source: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def failed(self) -> tuple[Finding, ...]:
        """What it did not pass."""
        return tuple(finding for finding in self.findings if finding.verdict == "failed")


class Build(Frozen):
    """The model as it was measured."""

    total_params: Positive
    trainable_params: Count
    active_params: Count
    bytes_by_kind: dict[str, Count]
    dtypes: dict[str, Count]
    weights: Literal["random", "trained"]
    reach: tuple[Reach, ...] = ()
    shape: dict[str, Any] | None = None
    disk_bytes: Count | None = None
    reference_bytes: Count | None = None
    sha256: str = ""
    attention: Examined | None = None

    @model_validator(mode="after")
    def _weighs_something(self) -> Build:
        if not sum(self.bytes_by_kind.values()):
            raise ValueError("bytes_by_kind: a model holds at least one byte")
        return self


class Reading(Frozen):
    """One meter's series: columns of equal length, times on the monotonic clock."""

    meter: str
    device: str
    rank: int = 0
    scope: str = ""
    t_ns: tuple[Count, ...] = ()
    columns: dict[str, tuple[Sample | None, ...]] = {}

    @model_validator(mode="after")
    def _whole(self) -> Reading:
        if any(len(column) != len(self.t_ns) for column in self.columns.values()):
            raise ValueError(f"{self.meter}: its columns are not as long as its times")
        if any(later < earlier for earlier, later in pairwise(self.t_ns)):
            raise ValueError(f"{self.meter}: its times run backwards")
        return self


class Machine(Frozen):
    """The class of a machine (comparable), and the card it was (a salted hash)."""

    name: str
    device: str
    device_kind: str
    device_count: Count
    device_memory_bytes: Count
    power_limit_w: Amount | None
    cpu: str
    cpu_cores: Count
    memory_bytes: Count
    card: str = ""


class Trial(Frozen):
    """Which repeat of which case this was."""

    suite: str
    name: str
    case_id: str
    round: Count
    attempt: Count
    seed: Count
    labels: dict[str, Any] = {}


class Record(Frozen):
    """Everything about one trial."""

    schema_version: Literal[1] = 1
    measuring: int = MEASURING
    trial: Trial
    case: dict[str, Any]
    protocol: dict[str, Any]
    outcome: Outcome
    started_at: str
    seconds: Seconds
    machine: Machine
    software: dict[str, str]
    resolved: dict[str, Any] = {}
    environment: dict[str, str] = {}
    env_id: str = ""
    declared_peak: dict[str, Any] | None = None
    build: Build | None = None
    phases: tuple[Phase, ...] = ()
    points: tuple[PointResult, ...] = ()
    losses: tuple[float, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    scores: Scores | None = None
    readings: tuple[Reading, ...] = ()
    notes: dict[str, str] = {}

    @property
    def key(self) -> str:
        """Short name of this record, unique in a store."""
        return f"{self.trial.case_id[:8]}/{self.trial.round}-{self.trial.attempt}"
