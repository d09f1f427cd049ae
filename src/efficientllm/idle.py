"""An open device with nothing to do: what a board draws before any work.

    python -m efficientllm.idle FOLDER PARENT_PID SECONDS

A process of its own, whose seconds pass while the fork server is still importing. It opens
CUDA through the driver, which takes a moment; importing torch takes seconds, and takes them
from the fork server too.
"""

from __future__ import annotations

import ctypes
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
    die_with_parent(parent)
    with Journal(folder) as log:
        log.limit(LIMIT_S, "idle power")
        with log.phase("open"):
            if not open_cuda():
                _open_with_torch()
        clock.sleep(SETTLE_SECONDS)
        with log.phase("idle"):
            clock.sleep(seconds)
        log.write_durable("end", outcome=Outcome().model_dump())


def open_cuda() -> bool:
    """Make the context that torch would make, by CUDA's driver alone; False where it has none.

    Raises RuntimeError with the driver's number where it cannot.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    device, context = ctypes.c_int(), ctypes.c_void_p()
    for name, arguments in (
        ("cuInit", (ctypes.c_uint(0),)),
        ("cuDeviceGet", (ctypes.byref(device), 0)),  # the first that is visible, as torch takes
        ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), device)),
    ):
        if error := getattr(driver, name)(*arguments):
            raise RuntimeError(f"{name} ended with CUDA error {error}")
    return True


def _open_with_torch() -> None:
    from efficientllm.device import open_device

    open_device("accelerator")


if __name__ == "__main__":
    main()
