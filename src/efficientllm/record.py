"""The record: what one trial saw, raw, with the machine it was seen on.

A record is immutable and carries raw samples and raw counts. Statistics, FLOPs, bytes
per second and verdicts are derived from it when it is read, so a corrected formula
needs no new run. What was not measured is null, and `notes` says why.

    schema 1   first

On disk a record is one JSON object whose last member is the SHA-256 of everything
before it. A file that is cut short anywhere, or changed by one bit, does not load.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

SCHEMA = 1

MEASURING = 1
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


class Phase(Frozen):
    """A stretch of a trial on the monotonic clock."""

    name: str
    start_ns: int
    end_ns: int
    point: int | None = None


class Window(Frozen):
    """A steady window: `units` repeats of one piece of work, drained at both edges.

    `unit_s` are seconds of each unit on the device's timeline; `counts` are raw totals of
    the window (tokens, samples, pairs, rows ...). `first_call_s` is the cold call, which
    holds compilation; `recompiles` were seen inside the window.
    """

    name: str
    start_ns: int
    end_ns: int
    unit_s: tuple[float, ...]
    counts: dict[str, float]
    first_call_s: float
    warmup_units: int
    warmup_s: float
    converged: bool
    recompiles: int = 0

    @property
    def units(self) -> int:
        return len(self.unit_s)

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


class PointResult(Frozen):
    """One (batch, context): its windows, what lay in memory, and how it ended.

    `left_out` names windows that did not fit under the protocol's cap, with the reason.
    """

    point_id: str
    batch: int
    context: int
    outcome: Outcome = Outcome()
    windows: tuple[Window, ...] = ()
    left_out: dict[str, str] = {}
    holdings: dict[str, int] = {}
    memory: dict[str, int | None] = {}
    output_sha256: str = ""
    compilation: dict[str, int] = {}

    def window(self, name: str) -> Window | None:
        return next((window for window in self.windows if window.name == name), None)


class Scores(Frozen):
    """Held-out text: negative log-likelihood (nats), tokens and UTF-8 bytes, per document."""

    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]
    text_sha256: str
    source: str


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
    parameters: int
    by_kind: dict[str, int]
    bytes_before: int
    bytes_after: int
    source: str = ""


class Build(Frozen):
    """The model as it was measured."""

    total_params: int
    trainable_params: int
    active_params: int
    bytes_by_kind: dict[str, int]
    dtypes: dict[str, int]
    weights: Literal["random", "trained"]
    reach: tuple[Reach, ...] = ()
    shape: dict[str, Any] | None = None
    disk_bytes: int | None = None
    reference_bytes: int | None = None
    sha256: str = ""


class Reading(Frozen):
    """One meter's series: columns of equal length, times on the monotonic clock."""

    meter: str
    device: str
    rank: int = 0
    scope: str = ""
    t_ns: tuple[int, ...] = ()
    columns: dict[str, tuple[float | None, ...]] = {}


class Machine(Frozen):
    """The class of a machine (comparable), and the card it was (a salted hash)."""

    name: str
    device: str
    device_kind: str
    device_count: int
    device_memory_bytes: int
    power_limit_w: float | None
    cpu: str
    cpu_cores: int
    memory_bytes: int
    card: str = ""


class Trial(Frozen):
    """Which repeat of which case this was."""

    suite: str
    name: str
    case_id: str
    round: int
    attempt: int
    seed: int
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
    seconds: float
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


class CorruptRecord(ValueError):
    """A file that is not a whole, unchanged record of a known schema."""


_SEAL = b',"sha256":"'


def to_bytes(record: Record) -> bytes:
    """The file content of a record: its JSON, sealed with its own digest."""
    body = record.model_dump_json().encode("utf-8")[:-1]
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode("ascii") + b'"}\n'


def from_bytes(content: bytes) -> Record:
    """Load a record, or raise CorruptRecord; never half of one."""
    body, seal, tail = content.rpartition(_SEAL)
    if not seal or tail[64:] != b'"}\n' or hashlib.sha256(body).hexdigest().encode() != tail[:64]:
        raise CorruptRecord("cut short or changed: the content does not match its digest")
    try:
        return Record.model_validate_json(body + b"}")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CorruptRecord(f"not a record of schema {SCHEMA}: {where}: {first['msg']}") from error


def digest_of(content: bytes) -> str:
    """The digest inside a record file (its last member)."""
    return content.rpartition(_SEAL)[2][:64].decode("ascii", "replace")
