"""The worker: one process, one trial. This is the page to read.

    load      device, weights, techniques
    prepare   text, tokens, compilation set up
    point     cold call, warm-up, steady windows            (measure.py)
              and between a training's steps, untimed: held-out text,
              its state saved                         (interludes.py)
    quality   held-out text, in a phase of its own
    keep      trained weights for the cases that continue from them

Whatever happens is written to the journal as it happens; the parent makes the record.
Only here do models, techniques, workloads and meters meet.
"""

from __future__ import annotations

import math
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from efficientllm import clock, measure
from efficientllm.assembly import Assembly
from efficientllm.describe import build_facts
from efficientllm.device import Device, is_lost, is_out_of_memory, open_device
from efficientllm.interludes import STALL_LIMIT_S, Interludes
from efficientllm.journal import Journal, Task
from efficientllm.lifeline import die_first, die_with_parent
from efficientllm.meters.memory import AllocatorMemory
from efficientllm.models.checkpoint import disk_bytes, save_checkpoint
from efficientllm.models.own import line_of, told
from efficientllm.prepare import assemble, work_for
from efficientllm.record import Outcome, PointResult, Scores, Unsupported
from efficientllm.scoring import evaluate
from efficientllm.spec.case import Case, Point
from efficientllm.spec.protocol import Protocol as MeasuringProtocol
from efficientllm.techniques.peft import merge_adapters
from efficientllm.workloads.compiling import report as compilation_report
from efficientllm.workloads.compiling import start_compilers
from efficientllm.workloads.train import NotFinite, Train

IDLE_SECONDS = 2.0
LOAD_LIMIT_S = 1800.0
COMPILE_LIMIT_S = 900.0
QUALITY_LIMIT_S = 900.0
LEAK_BYTES = 64 << 20


class PointWork(measure.Work, Protocol):
    """What the worker itself asks of a workload, beside what `measure` asks."""

    def holdings(self) -> dict[str, int]:
        """Bytes by what they hold."""

    def result(self, result: PointResult) -> PointResult:
        """Add what only the workload knows."""

    def close(self) -> None:
        """Free what the point allocated."""


class Setting(NamedTuple):
    """What every part of a trial needs to know."""

    task: Task
    case: Case
    protocol: MeasuringProtocol
    device: Device
    log: Journal
    memory: AllocatorMemory


def run(folder: Path) -> int:
    """Run the trial in a folder to its end, whatever that is; the exit status."""
    task = Task.read(folder)
    with Journal(folder) as log:
        try:
            outcome = _trial(task, log)
        except BaseException as error:
            outcome = outcome_of(error)
            if outcome.status in ("crash", "device_lost"):
                traceback.print_exc()
        log.write_durable("end", outcome=outcome.model_dump())
    return 0


def _trial(task: Task, log: Journal) -> Outcome:
    case = Case.model_validate(task.case)
    protocol = MeasuringProtocol.model_validate(task.protocol)
    log.limit(LOAD_LIMIT_S, "opening the device and loading the model")
    with log.phase("open"):
        device = open_device(task.device)
    start_compilers(getattr(case.workload, "compile", "none"), device)
    setting = Setting(task, case, protocol, device, log, AllocatorMemory(device.torch))
    if task.sits_idle:
        with log.phase("idle"):
            clock.sleep(IDLE_SECONDS)
    with log.phase("load"):
        assembly = assemble(case, task, device)
    with log.phase("describe"):
        if assembly.build is not None:
            facts = build_facts(assembly.build, assembly.logical_params)
            log.write_durable("build", build=facts.model_dump())
    return _points(setting, assembly) or _after(setting, assembly)


def _points(setting: Setting, assembly: Assembly) -> Outcome | None:
    """Measure the points that are left; None when quality may follow in this process.

    After a failed point nothing here is trusted any more: this process ends, and the
    parent starts another one for the rest.
    """
    level = setting.memory.now()
    for index in setting.task.points:
        result = _point(setting, assembly, index, setting.case.points[index])
        setting.log.write("resolved", values=assembly.resolved)
        setting.log.write_durable("point", result=result.model_dump())
        if result.outcome.status != "ok":
            only = len(setting.case.points) == 1
            return result.outcome if only else Outcome(reason="the rest runs in a new process")
        if _leaked(setting, level) and index != setting.task.points[-1]:
            return Outcome(reason="memory did not return to its level: the rest runs afresh")
    return None


def _point(setting: Setting, assembly: Assembly, index: int, point: Point) -> PointResult:
    """Measure one point; what goes wrong is its outcome, not the trial's end."""
    limits = setting.protocol.limits
    empty = PointResult(
        point_id=setting.case.point_id(point), batch=point.batch, context=point.context
    )
    budget = getattr(setting.case.workload, "budget_steps", None)
    allowed = COMPILE_LIMIT_S + limits.cap_seconds * 3
    setting.log.limit(allowed if budget is None else STALL_LIMIT_S, f"measuring {point}")
    setting.memory.restart()
    work: PointWork | None = None
    try:
        with setting.log.phase("prepare", index):
            work = _work(assembly, point, setting.task)
            due = _due(setting, assembly, work)
        with setting.log.phase("measure", index):
            tell = _tell(setting, declared=budget is not None)
            timeline = clock.timeline(setting.device.torch)
            loop = measure.Loop(work, timeline, limits, tell, due)
            windows = tuple(loop.measure())
        done = empty.model_copy(
            update={
                "windows": windows,
                "left_out": loop.left_out,
                "holdings": work.holdings(),
                "memory": setting.memory.peaks(),
                "compilation": compilation_report(),
            }
        )
        return work.result(done)
    except Exception as error:
        outcome = outcome_of(error)
        if outcome.status == "crash":
            traceback.print_exc()
        return empty.model_copy(update={"outcome": outcome, "memory": setting.memory.peaks()})
    finally:
        if isinstance(work, Train):
            setting.log.write("losses", values=[x for x in work.losses() if math.isfinite(x)])
        if work is not None:
            work.close()


def _work(assembly: Assembly, point: Point, task: Task) -> PointWork:
    """The point's work; here the type checker sees that workloads satisfy the protocol."""
    return work_for(assembly, point, task)


def _due(setting: Setting, assembly: Assembly, work: PointWork) -> dict[int, Callable[[], None]]:
    """What is to happen between the units of the work, by how many are done."""
    if not isinstance(work, Train):
        return {}
    between = Interludes(assembly, work, setting.task, setting.log, setting.memory.aside)
    between.resume()
    return between.due()


def _tell(setting: Setting, *, declared: bool) -> Callable[[measure.Progress], None]:
    """Tell the parent how far it is; declared work may take for ever as long as it moves on."""

    def tell(progress: measure.Progress) -> None:
        setting.log.write("progress", **progress._asdict())
        if declared:
            setting.log.limit(STALL_LIMIT_S, "the next step of the declared work")

    return tell


def _leaked(setting: Setting, level: int | None) -> bool:
    now = setting.memory.now()
    return now is not None and level is not None and now > level + LEAK_BYTES


def _after(setting: Setting, assembly: Assembly) -> Outcome:
    """Quality, then the product. Failing here takes nothing from what was measured."""
    log = setting.log
    with log.phase("quality"):
        alive = log.renewed_limit(QUALITY_LIMIT_S, "scoring held-out text")
        scores, reason = _scored(assembly, setting.task, alive)
    if scores is not None:
        log.write_durable("scores", scores=scores.model_dump())
    else:
        log.write("note", key="quality", reason=reason)
    if setting.task.product_folder and assembly.build is not None:
        log.limit(LOAD_LIMIT_S, "keeping the trained weights")
        with log.phase("keep"), _whole(Path(setting.task.product_folder)) as folder:
            merge_adapters(assembly.build)
            sha256 = save_checkpoint(assembly.build.model, folder)
            assembly.save_vocabulary(folder)
            log.write("product", sha256=sha256, disk_bytes=disk_bytes(folder))
    return Outcome()


def _scored(assembly: Assembly, task: Task, alive: Callable[[], None]) -> tuple[Scores | None, str]:
    """Held-out scores, or why there are none; what fails here is told, and costs only them."""
    try:
        return evaluate(assembly, task, alive)
    except Exception as error:
        outcome = outcome_of(error)
        if outcome.status == "crash":
            traceback.print_exc()
        return None, f"{outcome.status}: {outcome.reason}"


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name only when everything is in it.

    What continues from the weights looks for that name, so a kill in the middle of saving
    leaves no weights rather than half of them.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


_ADVICE = " If reserved but unallocated memory is large"
"""Where torch's message stops telling what happened and begins to tell what to set."""


def outcome_of(error: BaseException) -> Outcome:
    """What an exception means for a trial."""
    phase = str(getattr(error, "efficientllm_phase", ""))
    reason = (str(error).strip().splitlines() or [""])[0][:500]
    if isinstance(error, NotFinite):
        return Outcome(status="nan", reason=reason, phase=phase)
    if isinstance(error, Unsupported):
        return Outcome(status="unsupported", reason=reason, phase=phase)
    if isinstance(error, measure.PointTimeout):
        return Outcome(status="timeout", reason=reason, phase=phase)
    if isinstance(error, KeyboardInterrupt):
        return Outcome(status="interrupted", phase=phase)
    if is_out_of_memory(error):
        needed = reason.partition(_ADVICE)[0]
        return Outcome(status="out_of_memory", reason=needed, phase=phase)
    named = f"{type(error).__name__}: {reason}"
    if isinstance(error, SystemExit) and line_of(error) is not None:  # it would leave again
        return Outcome(status="unsupported", reason=told(error)[:500], phase=phase)
    return Outcome(status="device_lost" if is_lost(error) else "crash", reason=named, phase=phase)


def main() -> None:
    """A worker in an interpreter of its own: `python -m efficientllm.worker FOLDER PARENT`."""
    die_with_parent(int(sys.argv[2]))
    die_first()
    sys.exit(run(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
