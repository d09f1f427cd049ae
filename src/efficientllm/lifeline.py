"""Children that cannot outlive their parent.

Linux can send a process a signal when its parent dies (`prctl(PR_SET_PDEATHSIG)`), which
no amount of cleaning up in the parent replaces: a parent killed with SIGKILL runs no code.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, sign: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel for a signal when the parent dies; end at once if it already has.

    `parent` is the pid that started this process: between the start and this call it may
    have died and this process been adopted by another.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, sign, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the parent has already ended")


def die_first() -> None:
    """Ask the kernel to end this process before others when the machine's memory runs out.

    What a worker measures may take all of it, and nobody else shall pay for that.
    """
    with suppress(OSError):  # not Linux, or not allowed: then anyone may be chosen
        Path("/proc/self/oom_score_adj").write_text("1000")
