"""Running a suite: ask the plan for the next round until there is none.

Everything that was finished is in the store, so stopping anywhere loses at most the trial
under way, and running again goes on where it stopped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from efficientllm import clock
from efficientllm.analysis.precision import precise
from efficientllm.fetch import fetch_texts
from efficientllm.fitting import micro_batches
from efficientllm.launch import Launcher
from efficientllm.machine import Gpu
from efficientllm.plan import Blocked, Planned, Round, Shelf, env_id, next_round
from efficientllm.record import Machine, Outcome, Record, Trial
from efficientllm.spec.suite import Suite
from efficientllm.store import Store
from efficientllm.watch import Listener

WAIT_S = 1.0


class Options(NamedTuple):
    """How to run. `until_s` stops starting trials after so many seconds."""

    gpu: Gpu | None = None
    shard: tuple[int, int] = (0, 1)
    until_s: float | None = None
    declared_peak: dict[str, Any] | None = None
    space_bytes: int = 1 << 30
    whole: Suite | None = None
    """What the cases were chosen from, where not all are run: `micro_batch: fit` asks it."""


class Events(NamedTuple):
    """What a caller may want to hear while a suite runs."""

    planned: Callable[[Round], None] = lambda _: None
    fetched: Callable[[str], None] = lambda _: None
    started: Callable[[Planned], None] = lambda _: None
    progress: Listener = lambda _: None
    finished: Callable[[Planned, Record], None] = lambda *_: None


class Summary(NamedTuple):
    """What a run did: its own records, what could not start, and whether time ran out."""

    records: tuple[Record, ...]
    blocked: tuple[Blocked, ...]
    out_of_time: bool


def run_suite(suite: Suite, store: Store, options: Options, events: Events) -> Summary:
    """Run every missing trial of a suite; raises Interrupted when told to stop.

    Datasets of the hub that trials need and the cache lacks are fetched first; raises SpecError
    where there is no way to them, before anything is measured.

    Several processes may run one suite on one store: a trial that another one holds is
    left to it and waited for, since children may need what it makes.
    """
    store.clear_abandoned()
    with Launcher(
        store,
        options.gpu,
        space_bytes=options.space_bytes,
        declared_peak=options.declared_peak,
    ) as launcher:
        return _Run(suite, store, options, events, launcher).to_the_end()


class _Run:
    """One run of a suite under way."""

    def __init__(
        self, suite: Suite, store: Store, options: Options, events: Events, launcher: Launcher
    ) -> None:
        self.suite, self.store, self.options, self.events = suite, store, options, events
        self.launcher = launcher
        memory = launcher.machine.device_memory_bytes
        launcher.micro_batches = micro_batches(options.whole or suite, memory)
        self.start_ns = clock.now_ns()
        self.shelf = Shelf(store, suite.cases, launcher.machine, launcher.software)
        self.records: list[Record] = []
        self.given_up: set[str] = set()

    def to_the_end(self) -> Summary:
        """Round after round, until nothing is missing or the time is up."""
        while True:
            due = next_round(self.suite, self.shelf, self.store, precise, shard=self.options.shard)
            trials = [p for p in due.trials if _key(p) not in self.given_up]
            if not trials:
                for item in due.blocked:
                    self._record_blocked(item)
                return Summary(tuple(self.records), due.blocked, out_of_time=False)
            self.events.planned(due)
            for line in fetch_texts((p.case for p in trials), missing=True):
                self.events.fetched(line)
            self.launcher.measure_idle(self.suite.protocol)
            ran = 0
            for planned in trials:
                if self._no_time_for_another():
                    return Summary(tuple(self.records), due.blocked, out_of_time=True)
                ran += self._run(planned)
            if not ran:
                clock.sleep(WAIT_S)
            self.shelf.refresh(self.suite.cases)

    def _run(self, planned: Planned) -> bool:
        """Run one trial; False when another process has it or has had it."""
        self.events.started(planned)
        record = self.launcher.run(
            planned, self.suite.protocol, suite=self.suite.name, listener=self.events.progress
        )
        if record is None:
            return False
        self.events.finished(planned, record)
        if planned.purpose == "measure":
            self.records.append(record)
        elif record.outcome.status != "ok":
            self.given_up.add(_key(planned))
        return True

    def _no_time_for_another(self) -> bool:
        until = self.options.until_s
        longest = max((record.seconds for record in self.records), default=0.0)
        return until is not None and clock.seconds_since(self.start_ns) + longest > until

    def _record_blocked(self, item: Blocked) -> None:
        """A row on the page for a case that could not even start, written once."""
        here = self.shelf.here(item.case)
        if any(record.outcome.status == "blocked" for record in here):
            return
        attempt = self.shelf.next_attempt(item.case, 0)
        record = blocked_record(
            item, self.suite, self.launcher.machine, self.launcher.software, attempt
        )
        self.store.put(record)
        self.records.append(record)


def _key(planned: Planned) -> str:
    return f"{planned.case.name} round {planned.round} {planned.purpose}"


def blocked_record(
    item: Blocked, suite: Suite, machine: Machine, software: dict[str, str], attempt: int
) -> Record:
    """The record of a case whose parent failed."""
    return Record(
        trial=Trial(
            suite=suite.name,
            name=item.case.name,
            case_id=item.case.case_id,
            round=0,
            attempt=attempt,
            seed=0,
        ),
        case=item.case.model_dump(mode="json"),
        protocol=suite.protocol.model_dump(mode="json"),
        outcome=Outcome(status="blocked", reason=item.reason),
        started_at=clock.wall(),
        seconds=0.0,
        machine=machine,
        software=software,
        env_id=env_id(machine, software, {}),
    )


_DURATION = re.compile(r"^(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?$")


def parse_duration(text: str) -> float:
    """`3h50m`, `90m`, `45s` in seconds; ValueError otherwise."""
    match = _DURATION.match(text.strip())
    if not match or not any(match.groups()):
        raise ValueError(f"{text!r} is not a duration; write it like 3h50m, 90m or 45s")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(hours * 3600 + minutes * 60 + seconds)


def parse_shard(text: str) -> tuple[int, int]:
    """`3/16`: the third of sixteen shares, counted from 1; as (index from 0, count)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match or not 1 <= int(match.group(1)) <= int(match.group(2)):
        raise ValueError(f"{text!r} is not a shard; write it like 3/16 (1/16 to 16/16)")
    return int(match.group(1)) - 1, int(match.group(2))
