"""Failures that end a command: each kind with the exit status it gives.

They stand apart from what raises them, so that the command line can name them without
importing a store, a launcher or a machine that it may never need.
"""

from __future__ import annotations

import signal
from typing import ClassVar


class Failure(RuntimeError):
    """Something outside the request is in the way; the text says what, and what to do."""

    exit_status: ClassVar[int]


class StoreError(Failure):
    """The store cannot do what was asked; nothing that was in it is lost."""

    exit_status = 3


class DeviceError(Failure):
    """No device can be used as asked; the text says what to do."""

    exit_status = 4


class CannotStart(Failure):
    """No worker can be started here; the text says what failed."""

    exit_status = 4


class Interrupted(BaseException):
    """The user or the batch system wants this to end; what ran is on record."""

    def __init__(self, sign: int) -> None:
        super().__init__(signal.Signals(sign).name)
        self.sign = sign
