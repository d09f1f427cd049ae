from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.outside import BENCHMARKS
from tests.faults.tree import alive, wait_until

SLOW = """
import os, sys, time
from pathlib import Path

sys.path.insert(0, {benchmarks!r})
import arms


def slow(args, at):
    Path({told!r}).write_text(str(os.getpid()))
    time.sleep(600)


parser = arms.parser("", ["ours"], "out")
arms.compare(parser.parse_args(), {{"ours": slow}}, [1], [])
"""


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_who_is_told_to_stop_takes_the_arm_along(sign: signal.Signals, tmp_path: Path) -> None:
    """`timeout`, a lost connection, a kill: an arm left behind would keep the card."""
    told, script = tmp_path / "pid", tmp_path / "slow.py"
    script.write_text(SLOW.format(benchmarks=str(BENCHMARKS), told=str(told)))
    command = [sys.executable, str(script), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, start_new_session=True)
    wait_until(lambda: told.exists() and told.read_text(), 120, "the arm begins")
    arm = int(told.read_text())
    try:
        process.send_signal(sign)
        assert process.wait(30) == (-sign if sign == signal.SIGKILL else 128 + sign)
        wait_until(lambda: not alive([arm]), 10, "the arm ends")
    finally:
        process.kill()
        if alive([arm]):
            os.kill(arm, signal.SIGKILL)
