"""Kernels that start while the one before them still runs (programmatic dependent launch).

A decode step is a chain of some 400 short kernels. Between two of them a card drains, flushes
and fills again: half a microsecond in which nothing is read. From Hopper on a kernel may be
launched as soon as every program of the one before has allowed it: what it reads that nothing
writes (weights) is then on its way before that one has ended. On an H200 a step of the 8B shape
takes 4.22 instead of 4.42 ms if Inductor's kernels do this too, and nothing less if ours do it
alone. In steps of 32 sequences Inductor's gain 0.5 to 0.9 %, with all of ours in the chain.

Two rules keep the numbers right, for any mixture with kernels that know nothing of this:

* A program reads what a step writes, and writes anything, only after `follow`. This waits until
  the kernel before has ended and what it wrote is seen.
* It lets the next kernel start only after that. So whenever a kernel runs, all but the one
  before it have ended (what Inductor's kernels, where they do the same, take for granted), and
  since every program waits, an end is an end of all before. Inductor breaks this for kernels that
  read nothing (filling a buffer) and write what the one before does not touch: a decode step has
  none, and must get none. Prompts have: masks of windows are made of numbers alone, and a user's
  own attention may make any. Those are compiled without the chain.

In Triton; imported only where Triton is.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.runtime import driver

HOPPER = 90


def links() -> dict[str, Any]:
    """What a launch is told beside its arguments: a constant `chained`, and Triton's option."""
    if triton.knobs.runtime.interpret:
        return {"chained": False}
    card = driver.active.get_current_target()
    if card.backend != "cuda" or card.arch < HOPPER:
        return {"chained": False}
    return {"chained": True, "launch_pdl": True}


@triton.jit
def follow(chained: tl.constexpr):
    """Wait for the kernel before, then allow the next: once, in every program, on every path.

    Never in a loop: Triton moves reads of a pipelined loop before it (triton#11905).
    """
    if chained:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
