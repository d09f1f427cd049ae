"""What can go wrong becomes one clear message and an exit status, for every command alike."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from efficientllm.failure import Failure, Interrupted


@contextmanager
def explained() -> Iterator[None]:
    """Turn what is raised inside into a message on standard error and the command's end."""
    try:
        yield
    except ValueError as error:  # SpecError and Unequal among them
        fail(str(error), 2)
    except Failure as error:
        fail(str(error), error.exit_status)
    except Interrupted as stop:
        fail(f"stopped by {stop}; finished trials are kept, run again to go on", 128 + stop.sign)
    except BrokenPipeError:
        sys.stderr.close()
        raise typer.Exit(0) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}", 3)


def fail(message: str, status: int) -> None:
    """End the command."""
    typer.echo(f"efficientllm: {message}", err=True)
    raise typer.Exit(status)
