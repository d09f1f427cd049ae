"""One trial in, one record out, always.

The launcher is the only writer of the store. For each trial it takes a lease, makes a
folder, starts a worker and beside it the sampler, and then sleeps until the worker has
ended, has been silent past the limit it announced, or the user wants to stop. What comes
back becomes a record whatever it is: out of memory, a crash and a kill are results with a
reason, never absences.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efficientllm import clock, journal, machine, processes
from efficientllm.endings import left_over, overall, with_lost_point
from efficientllm.environment import child_environment, tuning
from efficientllm.failure import Interrupted as Interrupted
from efficientllm.plan import Planned, env_id
from efficientllm.preflight import wait_for_memory
from efficientllm.processes import ForkServer, FreshInterpreter, Starters, Worker
from efficientllm.readings import is_steady, last_line, mean_power, read_notes, read_readings
from efficientllm.record import DONE, Outcome, Reading, Record, Trial
from efficientllm.spec.model import Product
from efficientllm.spec.protocol import Protocol
from efficientllm.store import Store, StoreError, require_space, safe_name
from efficientllm.watch import Listener, watch

SPACE_BYTES = 1 << 30
IDLE_S, GLANCE_S = 10.0, 2.0
"""How long idle power is taken over, and how long before a first look.

Two seconds of a trial and the five of the run before it differed by 0.5 W of 125 at most, in
eight runs on two H200s.
"""

FRESH_S = 60.0
"""How long idle power needs no second look; seconds pass while the fork server imports."""


class Launcher:
    """Runs trials on one device; a context manager, because it holds a fork server."""

    def __init__(
        self,
        store: Store,
        gpu: machine.Gpu | None,
        *,
        space_bytes: int = SPACE_BYTES,
        declared_peak: dict[str, Any] | None = None,
    ) -> None:
        self.store, self.gpu = store, gpu
        self.machine = machine.describe(gpu)
        self.software = machine.software(gpu)
        self.idle_power_w: float | None = None
        self.micro_batches: dict[str, int] = {}
        """What `micro_batch: fit` means here, by case id (`fitting.py`)."""

        self._declared_peak = declared_peak
        self._space_bytes = space_bytes
        self._environment = child_environment(gpu.uuid if gpu else None)
        self._starters = Starters(self._environment, store.work)
        self._asked_to_stop: list[int] = []
        self._idle_asked, self._notes = False, dict[str, str]()
        self._idle_taken_ns: int | None = None

    def __enter__(self) -> Launcher:
        self._restore = [
            (sign, signal.signal(sign, lambda number, _: self._asked_to_stop.append(number)))
            for sign in (signal.SIGINT, signal.SIGTERM)
            if threading.current_thread() is threading.main_thread()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for sign, handler in self._restore:
            signal.signal(sign, handler)
        self._starters.close()

    def device_files(self) -> list[str]:
        """Device files that the fork server held open; any would have poisoned its forks."""
        return list(self._starters.device_files)

    def measure_idle(self, protocol: Protocol) -> None:
        """Board power (W) with an open context and nothing to do, once a run.

        The fork server imports meanwhile, which no board notices. Raises Interrupted.
        """
        if self.gpu is None or self._idle_asked:
            return
        self._idle_asked = True
        self._stop_if_asked()
        wait_for_memory(self.gpu)
        seconds = GLANCE_S if protocol.profile in ("smoke", "quick") else IDLE_S
        with self._folder() as folder:
            worker = processes.start_idle(folder, seconds, self._environment)
            outcome, _ = self._watched(
                worker, folder, lambda _: None, meanwhile=lambda: self._starter(protocol)
            )
            sat = next((p for p in journal.read(folder).phases if p.name == "idle"), None)
            if sat is not None:
                readings = read_readings(folder)
                self.idle_power_w = mean_power(readings, sat.start_ns, sat.end_ns)
                if is_steady(readings, sat.start_ns, sat.end_ns):
                    self._idle_taken_ns = sat.end_ns
            elif outcome.status != "ok":
                why = outcome.reason or last_line(folder / "stderr") or outcome.status
                self._notes["idle"] = f"idle power could not be measured: {why}"
        self._stop_if_asked()

    def run(
        self,
        planned: Planned,
        protocol: Protocol,
        *,
        suite: str = "",
        listener: Listener = lambda _: None,
        keep: bool = True,
    ) -> Record | None:
        """Run one trial; its record, or None while another process has it.

        Raises Interrupted after recording, when the user wants to stop.
        """
        self._stop_if_asked()
        require_space(self.store.root, self._space_bytes)
        lease = self.store.lease(self._name(planned))
        if lease is None:
            return None
        trial = _trial_of(planned, suite)
        with lease, lease.beating(), self._folder() as folder:
            if keep and planned.purpose == "measure" and self._exists(trial):
                return None  # another process finished it between our plan and our lease
            record = self._trial(planned, protocol, suite, listener, folder)
            if keep and planned.purpose == "measure":
                self.store.put(record)
            if record.outcome.status in DONE:
                shutil.rmtree(self._checkpoint(planned).parent, ignore_errors=True)
        self._stop_if_asked()
        return record

    def _stop_if_asked(self) -> None:
        if self._asked_to_stop:
            raise Interrupted(self._asked_to_stop[0])

    def _exists(self, trial: Trial) -> bool:
        return self.store.path_of(self.machine.name, trial).exists()

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """A trial's folder; where the store cannot take the record, it stays a day for a look."""
        folder = self.store.work / f"trial-{os.getpid()}-{clock.now_ns()}"
        try:
            folder.mkdir(parents=True)
            yield folder
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(f"{folder}: the trial cannot be run there ({reason})") from error
        shutil.rmtree(folder, ignore_errors=True)

    def _trial(
        self,
        planned: Planned,
        protocol: Protocol,
        suite: str,
        listener: Listener,
        folder: Path,
    ) -> Record:
        started_at, start_ns = clock.wall(), clock.now_ns()
        in_use = wait_for_memory(self.gpu)
        notes, fresh = self._notes | in_use, self._idle_was_just_taken() and not in_use
        stories: list[journal.Story] = []
        readings: list[Reading] = []
        outcome = Outcome()
        left: tuple[int, ...] | None = tuple(range(len(planned.case.points)))
        while left is not None:
            part = folder / str(len(stories))
            part.mkdir()
            sits_idle = not stories and not fresh
            self._task(planned, protocol, left, sits_idle=sits_idle).write(part)
            outcome, alive = self._process(part, protocol, listener)
            outcome, story = with_lost_point(outcome, planned.case, left, journal.read(part))
            stories.append(story)
            readings += read_readings(part)
            notes |= story.notes | read_notes(part, alive=alive)
            left = left_over(outcome, left, story)
        resolved = {k: v for story in stories for k, v in story.resolved.items()}
        if self.idle_power_w is not None:
            resolved["idle_power_w"] = round(self.idle_power_w, 2)
        points = tuple(point for story in stories for point in story.points)
        return Record(
            trial=_trial_of(planned, suite),
            case=planned.case.model_dump(mode="json"),
            protocol=protocol.model_dump(mode="json"),
            outcome=overall(outcome, points),
            started_at=started_at,
            seconds=clock.seconds_since(start_ns),
            machine=self.machine,
            software=self.software,
            resolved=resolved,
            environment=tuning(self._environment),
            env_id=env_id(self.machine, self.software, resolved),
            declared_peak=self._declared_peak,
            build=next((s.build for s in reversed(stories) if s.build), None),
            phases=tuple(phase for story in stories for phase in story.phases),
            points=points,
            losses=stories[-1].losses,
            curve=stories[-1].curve,
            scores=next((s.scores for s in reversed(stories) if s.scores), None),
            readings=tuple(readings),
            notes=notes,
        )

    def _idle_was_just_taken(self) -> bool:
        """Whether this is the first trial after it was, steadily: a second look tells no more."""
        taken_ns, self._idle_taken_ns = self._idle_taken_ns, None
        return taken_ns is not None and clock.seconds_since(taken_ns) < FRESH_S

    def _task(
        self, planned: Planned, protocol: Protocol, points: tuple[int, ...], *, sits_idle: bool
    ) -> journal.Task:
        case = planned.case
        parent = ""
        if isinstance(case.model, Product):
            parent = str(self.store.artifact(case.model.parent, case.model.seed))
        return journal.Task(
            case=case.model_dump(mode="json"),
            protocol=protocol.model_dump(mode="json"),
            seed=planned.seed,
            points=points,
            parent_weights=parent,
            product_folder=str(self._product_folder(planned)) if case.makes_product else "",
            checkpoint=str(self._checkpoint(planned)),
            micro_batch=self.micro_batches.get(case.case_id),
            cache_folder=str(self.store.work / "cache"),
            device="cpu" if self.gpu is None else "accelerator",
            sits_idle=sits_idle and self.gpu is not None,
        )

    def _name(self, planned: Planned) -> str:
        """What one process at a time may work on: a round of a case on this machine class."""
        return f"{planned.case.case_id}-{planned.round}-{self.machine.name}"

    def _checkpoint(self, planned: Planned) -> Path:
        """Where a training under way is kept, for attempts with the same software."""
        folder = self.store.work / "checkpoints" / safe_name(self._name(planned))
        return folder / f"{env_id(self.machine, self.software, {})[:16]}.safetensors"

    def _product_folder(self, planned: Planned) -> Path:
        return self.store.artifact(planned.case.case_id, planned.seed)

    def _process(
        self, folder: Path, protocol: Protocol, listener: Listener
    ) -> tuple[Outcome, bool]:
        """One worker from start to end; how it ended, and whether the sampler lived."""
        return self._watched(self._starter(protocol).start(folder), folder, listener)

    def _watched(
        self,
        worker: Worker,
        folder: Path,
        listener: Listener,
        *,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> tuple[Outcome, bool]:
        """A worker that runs to its end, with meters beside it; as `_process` gives it.

        Whatever happens, neither the meters nor what the worker started outlive it.
        """
        uuid, alive = self.gpu.uuid if self.gpu else None, False
        try:
            sampler = processes.start_sampler(folder, worker.pid, uuid, self._environment)
            try:
                meanwhile()
                outcome = watch(worker, folder, listener, self._asked_to_stop)
            finally:
                alive = processes.stop_sampler(sampler)
        finally:
            processes.end_group(worker.pid)
        return outcome, alive

    def _starter(self, protocol: Protocol) -> ForkServer | FreshInterpreter:
        return self._starters.starter(fresh=protocol.fresh_interpreters)


def _trial_of(planned: Planned, suite: str) -> Trial:
    return Trial(
        suite=suite,
        name=planned.case.name,
        case_id=planned.case.case_id,
        round=planned.round,
        attempt=planned.attempt,
        seed=planned.seed,
    )
