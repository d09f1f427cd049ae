"""A fork server without torch, whose workers follow a script: 0.5 s to start instead of 10.

A `sitecustomize`: inside the fork server alone, every heavy library is an empty module and
`efficientllm.worker` is what stands below. Server, forks, sampler, journal, launcher and
store are the real ones. What a worker does is said by its case's name, before the first
dash.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

SECONDS = {"nap": 0.05, "doze": 0.5, "long": 1.3, "late": 600.0}
HEAVY = ("torch", "safetensors", "tokenizers", "transformers", "peft", "torchao")
BROKEN = os.environ.get("TORCH_STAND_IN_BROKEN", "")
"""A library that cannot be imported (the prefix is one that reaches the fork server)."""

GROUP = os.environ.get("TORCH_STAND_IN_GROUP", "")
"""A control group that is to run out of memory: the server joins it, and so do its workers."""


def run(folder: Path) -> int:
    """Do what the case's name says, and say how it went."""
    from efficientllm.journal import Journal, Task
    from efficientllm.record import Outcome, PointResult
    from efficientllm.spec.case import Case

    task = Task.read(folder)
    case, behaviour = Case.model_validate(task.case), str(task.case["name"]).partition("-")[0]
    if behaviour == "mute":
        time.sleep(600)
    log = Journal(folder)
    log.limit(0.2 if behaviour == "late" else 600.0, "the whole of it")
    with log.phase("load"):
        pass
    log.write("enter", name="measure", point=0)
    status = _act(behaviour)
    if status:
        return status
    for index in task.points:
        if behaviour == "hungry" and index == 1:
            log.write("enter", name="prepare", point=index)
            _eat()
        point = case.points[index]
        result = PointResult(
            point_id=case.point_id(point), batch=point.batch, context=point.context
        )
        log.write_durable("point", result=result.model_dump())
    log.write("note", key="quality", reason="not asked for")
    log.write_durable("end", outcome=Outcome().model_dump())
    return 0


def _act(behaviour: str) -> int:
    """What the middle of the trial is like; the exit status if the worker ends there."""
    match behaviour:
        case "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for _ in range(2):
                _child("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)")
            time.sleep(600)
        case "untidy":
            _child("import time; time.sleep(600)")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exits":
            print("the last thing it said", file=sys.stderr)
            return 7
        case "serverless":
            time.sleep(0.5)  # until the server has told whom it forked
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        case _:
            time.sleep(SECONDS.get(behaviour, 0.0))
    return 0


def _eat() -> None:
    """Use more memory than the control group has."""
    kept = []
    while True:
        kept.append(b"x" * (1 << 20))


def _child(code: str) -> None:
    subprocess.Popen([sys.executable, "-S", "-c", code])
    time.sleep(0.2)  # until it has said what it does with signals


class Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every heavy library, and finds nothing in it."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name.split(".")[0] in HEAVY or name == "efficientllm.worker":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == BROKEN:
            raise ImportError(f"{BROKEN} was built for another machine")
        if module.__name__ == "efficientllm.worker":
            # Once, before any fork, as the real one brings them.
            for name in ("efficientllm.journal", "efficientllm.spec.case"):
                importlib.import_module(name)
            module.__dict__["run"] = run


if "efficientllm.forkserver" in sys.orig_argv:
    sys.meta_path.insert(0, Empty())
    if GROUP:
        (Path(GROUP) / "cgroup.procs").write_text(str(os.getpid()))
