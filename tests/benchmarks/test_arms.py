from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

SLOW = """
import os, sys, time
from pathlib import Path

import pytest

sys.path.insert(0, {benchmarks!r})
import arms


def slow(args, at):
    Path({told!r}).write_text(str(os.getpid()))
    time.sleep(600)


parser = arms.parser("", ["ours"], "out")
arms.compare(parser.parse_args(), {{"ours": slow}}, [1], [])
"""


def waited_for(told: Path) -> int:
    for _ in range(1200):
        if told.exists() and told.read_text():
            return int(told.read_text())
        time.sleep(0.1)
    raise AssertionError("the arm never began")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pid: int) -> bool:
    for _ in range(100):
        if not alive(pid):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_who_is_told_to_stop_takes_the_arm_along(sign: signal.Signals, tmp_path: Path) -> None:
    """`timeout`, a lost connection, a kill: an arm left behind would keep the card."""
    told, script = tmp_path / "pid", tmp_path / "slow.py"
    script.write_text(SLOW.format(benchmarks=str(BENCHMARKS), told=str(told)))
    command = [sys.executable, str(script), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, start_new_session=True)
    arm = waited_for(told)
    try:
        process.send_signal(sign)
        assert process.wait(30) == (-sign if sign == signal.SIGKILL else 128 + sign)
        assert gone(arm)
    finally:
        process.kill()
        if alive(arm):
            os.kill(arm, signal.SIGKILL)
