"""Starting workers and ending them: from a prepared fork server, or a fresh interpreter.

Every worker has a process group of its own, so that ending it ends whatever it started,
and dies with its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from efficientllm import clock
from efficientllm.failure import CannotStart as CannotStart

START_LIMIT_S = 300.0
GRACE_S = 10.0


class Worker(Protocol):
    """A running worker."""

    pid: int

    def wait(self, seconds: float) -> int | None:
        """Its exit status (negative: killed by that signal), or None after so long."""


def _python(module: str, *words: str) -> list[str]:
    """The command for a module of ours, which imports nothing from the working directory.

    A file there is no part of a case's identity, and one called random.py would take the
    place of Python's own.
    """
    return [sys.executable, "-P", "-m", module, *words]


class ForkServer:
    """A `efficientllm.forkserver` and the workers it has forked."""

    def __init__(self, environment: dict[str, str], errors: Path) -> None:
        self._errors = errors
        self._unread = b""
        self._exits: dict[int, int] = {}
        with errors.open("ab") as file:
            self._process = subprocess.Popen(
                _python("efficientllm.forkserver", str(os.getpid())),
                bufsize=0,  # a request that cannot be written must not wait for close()
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                start_new_session=True,
            )
        try:
            hello = self._message("ready", START_LIMIT_S)
        except CannotStart:
            self.close()
            raise
        self.device_files: list[str] = hello["device_files"]

    @property
    def alive(self) -> bool:
        """Whether it can still fork; its workers die with it."""
        return self._process.poll() is None

    def start(self, folder: Path) -> Worker:
        """Fork a worker for a trial folder."""
        assert self._process.stdin is not None
        request = json.dumps({"folder": str(folder)}) + "\n"
        try:
            self._process.stdin.write(request.encode())
        except BrokenPipeError as error:
            raise CannotStart(f"the fork server has ended\n{self._last_words()}") from error
        return _Forked(self, self._message("folder", 30.0)["pid"])

    def close(self) -> None:
        """End the server; its workers end with it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode == 0:
            self._errors.unlink(missing_ok=True)

    def exit_of(self, pid: int, seconds: float) -> int | None:
        """How a worker ended, waiting at most so long."""
        deadline = clock.now_ns() + round(seconds * 1e9)
        while pid not in self._exits:
            left = (deadline - clock.now_ns()) / 1e9
            if left <= 0 or self._read(left) is None:
                break
        if pid not in self._exits and self._process.poll() is not None:
            raise CannotStart(f"the fork server has ended\n{self._last_words()}")
        return self._exits.get(pid)

    def _message(self, key: str, seconds: float) -> dict[str, Any]:
        deadline = clock.now_ns() + round(seconds * 1e9)
        while (left := (deadline - clock.now_ns()) / 1e9) > 0:
            message = self._read(left)
            if message is not None and key in message:
                return message
            if message is None and self._process.poll() is not None:
                break
        raise CannotStart(f"the fork server does not answer\n{self._last_words()}")

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """The next line the server writes; exits are noted on the way."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = clock.now_ns() + round(seconds * 1e9)
        while b"\n" not in self._unread:
            left = max(0.0, (deadline - clock.now_ns()) / 1e9)
            if not select.select([descriptor], [], [], left)[0]:
                return None
            chunk = os.read(descriptor, 65536)
            if not chunk:
                return None
            self._unread += chunk
        line, self._unread = self._unread.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        if "status" in message:
            self._exits[message["pid"]] = message["status"]
        return message

    def _last_words(self) -> str:
        try:
            return "\n".join(self._errors.read_text("utf-8", "replace").splitlines()[-5:])
        except OSError:
            return ""


class _Forked:
    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server, self.pid = server, pid

    def wait(self, seconds: float) -> int | None:
        return self._server.exit_of(self.pid, seconds)


class FreshInterpreter:
    """Starts every worker in an interpreter of its own (the `publish` profile)."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def start(self, folder: Path) -> Worker:
        return _spawn("efficientllm.worker", folder, self._environment)


class Starters:
    """Who starts a run's workers: one fork server as long as it lives, or fresh interpreters."""

    def __init__(self, environment: dict[str, str], work: Path) -> None:
        self._environment, self._work = environment, work
        self._server: ForkServer | None = None
        self.device_files: list[str] = []
        """What the fork server held open; it would have poisoned its forks, so it was ended."""

    def starter(self, *, fresh: bool) -> ForkServer | FreshInterpreter:
        """A living fork server, or a fresh interpreter where asked for or needed."""
        if fresh or self.device_files:
            return FreshInterpreter(self._environment)
        if self._server is not None and not self._server.alive:
            self.close()
        if self._server is None:
            self._work.mkdir(parents=True, exist_ok=True)
            errors = self._work / f"forkserver-{os.getpid()}.log"
            self._server = ForkServer(self._environment, errors)
            if self._server.device_files:
                # A library has opened the card on import. Slower starts, the same numbers.
                self.device_files = self._server.device_files
                self.close()
                return FreshInterpreter(self._environment)
        return self._server

    def close(self) -> None:
        """End the fork server; its workers end with it."""
        if self._server is not None:
            self._server.close()
            self._server = None


def start_idle(folder: Path, seconds: float, environment: dict[str, str]) -> Worker:
    """A process that opens the device and does nothing with it for so long."""
    return _spawn("efficientllm.idle", folder, environment, str(seconds))


def _spawn(module: str, folder: Path, environment: dict[str, str], *words: str) -> Worker:
    command = _python(module, str(folder), str(os.getpid()), *words)
    with (folder / "stdout").open("ab") as out, (folder / "stderr").open("ab") as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,
        )
    return _Spawned(process)


class _Spawned:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self.pid = process, process.pid

    def wait(self, seconds: float) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


def end(worker: Worker) -> int | None:
    """End a worker and everything it started: ask, wait, then insist."""
    for sign, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 30.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, sign)
        status = worker.wait(patience)
        if status is not None:
            end_group(worker.pid)
            return status
    return None


def end_group(group: int) -> None:
    """End whatever a dead worker left behind in its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def start_sampler(
    folder: Path, worker_pid: int, gpu_uuid: str | None, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """The process that reads meters beside a worker."""
    command = _python("efficientllm.meters.sampler", "--pid", str(worker_pid))
    command += ["--parent", str(os.getpid()), "--out", str(folder)]
    if gpu_uuid is not None:
        command += ["--uuid", gpu_uuid]
    with (folder / "sampler.stderr").open("ab") as errors:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )


def stop_sampler(sampler: subprocess.Popen[bytes]) -> bool:
    """End the sampler; False when it had died before it was asked to stop."""
    alive = sampler.poll() is None
    sampler.terminate()
    try:
        sampler.wait(5)
    except subprocess.TimeoutExpired:
        sampler.kill()
        sampler.wait()
    return alive
