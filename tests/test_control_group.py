"""Control groups as files: whose limits hold, and which file counts whom the kernel ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from efficientllm import control_group
from efficientllm.control_group import kill_count, limits, memory_kills

Laid = Callable[..., Path]


@pytest.fixture
def laid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laid:
    """Lay out a made-up tree of control groups, and which group a process is in."""
    root, processes = tmp_path / "cgroup", tmp_path / "proc"
    monkeypatch.setattr(control_group, "ROOT", root)
    monkeypatch.setattr(control_group, "PROCESSES", processes)
    monkeypatch.setattr(control_group, "HOST", processes / "vmstat")

    def write(folder: Path, files: dict[str, str]) -> None:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    def lay(files: dict[str, str], **groups: str) -> Path:
        write(root, files)
        write(processes, {f"{process.strip('_')}/cgroup": told for process, told in groups.items()})
        write(processes, {"vmstat": "pgfault 12\noom_kill 7\n"})
        return root

    return lay


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({}, "0::/\n", []),
        ({"memory.max": "max\n"}, "0::/\n", []),
        ({"memory.max": "1073741824\n"}, "0::/\n", [1 << 30]),
        ({"memory.max": "8000\n"}, "12:cpuset:/\n0::/\n", [8000]),
        # a container of the first version, which is told its path from outside
        ({"memory/memory.limit_in_bytes": "4096\n"}, "4:memory:/x\n0::/\n", [4096]),
        (
            {"memory/a/memory.limit_in_bytes": "1", "memory/memory.limit_in_bytes": "2"},
            "4:cpu,memory:/a\n",
            [1, 2],
        ),
        # a batch system's job, seen from outside its own namespace
        (
            {"job/step/memory.max": "max", "job/memory.max": "500", "memory.max": "900"},
            "0::/job/step\n",
            [500, 900],
        ),
        ({"memory.max": "900"}, "0::/../../elsewhere\n", [900]),
        ({"memory.max": "900"}, "garbage", []),
    ],
)
def test_limits_of_a_group_and_of_those_above_it(
    files: dict[str, str], own: str, expected: list[int], laid: Laid
) -> None:
    laid(files, self=own)
    assert list(limits()) == expected


@pytest.mark.parametrize(
    ("files", "told", "file"),
    [
        ({"memory.events": "oom 9\noom_kill 2\noom_group_kill 0\n"}, "0::/\n", "memory.events"),
        ({"a/memory.events": "oom_kill 1\n"}, "4:cpu:/\n0::/a\n", "a/memory.events"),
        # a group without a memory controller of its own
        ({"a/memory.events": "oom_kill 1\n", "a/b/cpu.max": ""}, "0::/a/b\n", "a/memory.events"),
        (
            {
                "memory/a/memory.oom_control": "under_oom 0\noom_kill 3\n",
                "memory/memory.oom_control": "under_oom 0\noom_kill 5\n",
            },
            "4:memory:/a\n0::/\n",
            "memory/a/memory.oom_control",
        ),
    ],
)
def test_kills_for_memory_are_counted_by_the_group_of_the_process(
    files: dict[str, str], told: str, file: str, laid: Laid
) -> None:
    root = laid(files, _12=told, self="0::/elsewhere\n")
    assert kill_count(12) == root / file


def test_where_no_group_counts_the_host_does(laid: Laid) -> None:
    root = laid({"cpu.max": "max"}, _12="0::/\n")
    assert kill_count(12) == control_group.HOST
    assert memory_kills(control_group.HOST) == 7
    assert memory_kills(root / "gone") == 0


def test_the_group_of_a_process_that_has_ended_is_taken_to_be_ours(laid: Laid) -> None:
    root = laid({"ours/memory.events": "oom_kill 4\n"}, self="0::/ours\n")
    assert kill_count(12) == root / "ours" / "memory.events"
    assert memory_kills(kill_count(12)) == 4
