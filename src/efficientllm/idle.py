"""An open device with nothing to do: what a board draws before any work.

    python -m efficientllm.idle FOLDER PARENT_PID SECONDS

A process of its own that imports torch and little else, so that its seconds pass while the
fork server is still importing the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path

from efficientllm import clock
from efficientllm.journal import Journal
from efficientllm.lifeline import die_with_parent
from efficientllm.record import Outcome

SETTLE_SECONDS = 2.5
"""Opening a context raises the clocks; they have fallen again after so long."""

LIMIT_S = 300.0


def main() -> None:
    """Open the device, let it settle, and tell when the idle seconds began and ended."""
    folder, parent, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    die_with_parent(parent)  # before torch is imported, which takes seconds
    from efficientllm.device import open_device

    with Journal(folder) as log:
        log.limit(LIMIT_S, "idle power")
        with log.phase("open"):
            open_device("accelerator")
        clock.sleep(SETTLE_SECONDS)
        with log.phase("idle"):
            clock.sleep(seconds)
        log.write_durable("end", outcome=Outcome().model_dump())


if __name__ == "__main__":
    main()
