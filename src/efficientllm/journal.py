"""What passes between the parent and a worker: a trial file in, a journal out.

Both lie in the trial's folder. The journal is one JSON object a line, flushed to the
disk at once where losing it would lose a measurement, so whatever was finished before a
crash is kept. Nothing is parsed from standard output, and no pipe can be left open.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from efficientllm import clock
from efficientllm.record import Build, CurvePoint, Outcome, Phase, PointResult, Scores

TRIAL = "trial.json"
JOURNAL = "journal.jsonl"


class Task(BaseModel):
    """What a worker is asked to do: one trial, or the points of it that are left."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: dict[str, Any]
    protocol: dict[str, Any]
    seed: int
    points: tuple[int, ...]
    """Indices into the case's points that are still to be measured."""

    parent_weights: str = ""
    """Folder of the weights that a product case starts from."""

    product_folder: str = ""
    """Where to leave trained weights; empty when the case makes none."""

    checkpoint: str = ""
    """File in which a training under way is kept; empty when none is to be."""

    micro_batch: int | None = None
    """Sequences in one forward pass where the case leaves it to `fit`."""

    cache_folder: str
    device: Literal["cpu", "accelerator"]
    sits_idle: bool
    """Whether to do nothing for two seconds first, so that a drift of idle power is seen."""

    def write(self, folder: Path) -> None:
        (folder / TRIAL).write_text(self.model_dump_json(), "utf-8")

    @staticmethod
    def read(folder: Path) -> Task:
        return Task.model_validate_json((folder / TRIAL).read_text("utf-8"))


class Journal:
    """The worker's side: appends events."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / JOURNAL).open("ab", buffering=0)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; a single write, so a reader sees whole lines only."""
        line = json.dumps({"event": event, **fields}, allow_nan=False) + "\n"
        self._file.write(line.encode("utf-8"))

    def write_durable(self, event: str, **fields: Any) -> None:
        """Append one event that must survive a kill or a power cut."""
        self.write(event, **fields)
        os.fsync(self._file.fileno())

    def limit(self, seconds: float, what: str) -> None:
        """Tell the parent how long the next stretch may take before it is a timeout."""
        self.write("limit", until_ns=clock.now_ns() + round(seconds * 1e9), what=what)

    def renewed_limit(self, seconds: float, what: str) -> Callable[[], None]:
        """A limit that is told now, and again while it is called, a tenth of it apart at least."""
        told = clock.now_ns()

        def alive() -> None:
            nonlocal told
            if clock.seconds_since(told) > seconds / 10:
                told = clock.now_ns()
                self.limit(seconds, what)

        self.limit(seconds, what)
        return alive

    @contextmanager
    def phase(self, name: str, point: int | None = None) -> Iterator[None]:
        """Mark a phase; an exception inside it is told where it happened."""
        self.write("enter", name=name, point=point)
        start = clock.now_ns()
        try:
            yield
        except Exception as error:
            error.__dict__.setdefault("efficientllm_phase", name)
            raise
        finally:
            phase = Phase(name=name, start_ns=start, end_ns=clock.now_ns(), point=point)
            self.write("phase", **phase.model_dump())


class Story(NamedTuple):
    """The parent's side: everything a worker has told so far."""

    phases: tuple[Phase, ...]
    points: tuple[PointResult, ...]
    build: Build | None
    scores: Scores | None
    losses: tuple[float, ...]
    curve: tuple[CurvePoint, ...]
    resolved: dict[str, Any]
    notes: dict[str, str]
    outcome: Outcome | None
    phase_now: str
    deadline_ns: int | None
    progress: dict[str, Any]


def read(folder: Path) -> Story:
    """Read a journal; a last line cut short by a kill is left out."""
    events = list(_events(folder / JOURNAL))
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_kind.setdefault(event["event"], []).append(event)

    def last(kind: str) -> dict[str, Any]:
        return by_kind[kind][-1] if kind in by_kind else {}

    resolved: dict[str, Any] = {}
    for event in by_kind.get("resolved", []):
        resolved |= event["values"]
    return Story(
        phases=tuple(Phase.model_validate(_body(e)) for e in by_kind.get("phase", [])),
        points=tuple(PointResult.model_validate(e["result"]) for e in by_kind.get("point", [])),
        build=Build.model_validate(last("build")["build"]) if "build" in by_kind else None,
        scores=Scores.model_validate(last("scores")["scores"]) if "scores" in by_kind else None,
        losses=tuple(last("losses").get("values", ())),
        curve=tuple(CurvePoint.model_validate(e["point"]) for e in by_kind.get("curve", [])),
        resolved=resolved,
        notes={e["key"]: e["reason"] for e in by_kind.get("note", [])},
        outcome=Outcome.model_validate(last("end")["outcome"]) if "end" in by_kind else None,
        phase_now=last("enter").get("name", "start"),
        deadline_ns=last("limit").get("until_ns"),
        progress=last("progress"),
    )


def _body(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != "event"}


def _events(path: Path) -> Iterator[dict[str, Any]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for line in content.split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event
