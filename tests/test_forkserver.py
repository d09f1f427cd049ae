"""The fork server: clean, loud about what is missing, and never outliving its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from efficientllm import forkserver
from efficientllm.environment import child_environment
from efficientllm.forkserver import open_device_files
from efficientllm.lifeline import die_with_parent
from efficientllm.processes import CannotStart, ForkServer
from tests.fakes import lay_out
from tests.faults.tree import alive, descendants, wait_until


def test_the_server_refuses_to_start_where_a_question_would_poison_its_forks() -> None:
    environment = child_environment(None)
    del environment["PYTORCH_NVML_BASED_CUDA_CHECK"]
    command = [sys.executable, "-m", "efficientllm.forkserver", str(os.getpid())]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == b"start this with PYTORCH_NVML_BASED_CUDA_CHECK=1"


def test_what_is_imported_is_looked_through_for_garbage_neither_then_nor_later() -> None:
    program = (
        "import gc; from efficientllm.forkserver import _import_uncollected as load;"
        "before = gc.get_stats(); load(('email.mime.text', 'xml.dom.minidom', 'unittest.mock'));"
        "print(gc.get_stats() == before, gc.isenabled(), gc.get_freeze_count() > 10_000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True", "True"]


def test_a_library_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    environment = child_environment(None) | {
        "PYTHONPATH": str(lay_out(tmp_path / "fakes", customize="light")),
        "TORCH_STAND_IN_BROKEN": "torchao",
    }
    with pytest.raises(CannotStart, match="ImportError: torchao was built for another machine"):
        ForkServer(environment, tmp_path / "log")


def test_a_server_holds_no_device_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = child_environment(None) | {
        "PYTHONPATH": str(lay_out(tmp_path / "fakes", customize="light"))
    }
    before = descendants(os.getpid())
    server = ForkServer(environment, tmp_path / "log")
    assert (server.alive, server.device_files) == (True, [])
    server.close()
    assert not server.alive
    assert descendants(os.getpid()) == before
    assert not (tmp_path / "log").exists()


def test_a_server_that_was_killed_cannot_start_a_worker(tmp_path: Path) -> None:
    environment = child_environment(None) | {
        "PYTHONPATH": str(lay_out(tmp_path / "fakes", customize="light"))
    }
    before = descendants(os.getpid())
    server = ForkServer(environment, tmp_path / "log")
    (pid,) = descendants(os.getpid()) - before
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not server.alive, 5, "its death")
    with pytest.raises(CannotStart, match="the fork server has ended"):
        server.start(tmp_path)
    server.close()


@pytest.mark.parametrize("cuda", [True, False])
def test_files_of_accelerators_are_told_from_others(
    cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVIDIA's are NVML's as long as CUDA is not open, and a fork survives those."""
    files = [
        *("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128"),
        *("/dev/null", "pipe:[123]", "/home/nvidia/log", "/dev/shm/x"),
    ]
    links = [_Link(target) for target in files]
    monkeypatch.setattr(forkserver.Path, "iterdir", lambda _: iter(links))
    monkeypatch.setattr(forkserver, "cuda_is_open", lambda: cuda)
    nvidia = ["/dev/nvidia0", "/dev/nvidiactl"] if cuda else []
    assert open_device_files() == ["/dev/dri/renderD128", "/dev/kfd", *nvidia]


class _Link:
    def __init__(self, target: str) -> None:
        self._target = target

    def readlink(self) -> str:
        return self._target


def test_preloads_are_modules_and_not_packages_that_load_lazily() -> None:
    """`import transformers` alone loads nothing: every fork would pay for it again."""
    assert not {"transformers", "torchao", "safetensors"} & set(forkserver.PRELOAD)
    assert forkserver.PRELOAD[-1] == "efficientllm.worker"


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """The parent is killed with SIGKILL, which no amount of tidying up in it survives."""
    child = "import os, time; from efficientllm.lifeline import die_with_parent;"
    child += f"die_with_parent(os.getppid()); open({str(tmp_path / 'pid')!r}, 'w').write("
    child += "str(os.getpid()) + '.'); time.sleep(600)"
    parent = textwrap.dedent(f"""
        import subprocess, sys
        subprocess.run([sys.executable, "-c", {child!r}])
    """)
    process = subprocess.Popen([sys.executable, "-c", parent])
    told = tmp_path / "pid"
    wait_until(lambda: told.exists() and told.read_text().endswith("."), 30, "the child")
    pid = int(told.read_text()[:-1])
    assert alive({pid})
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not alive({pid}), 5, "the end of the child")


def test_a_child_that_was_adopted_before_it_could_ask_ends_at_once() -> None:
    with pytest.raises(SystemExit, match="the parent has already ended"):
        die_with_parent(os.getppid() + 1)


def test_a_worker_ends_before_others_when_memory_runs_out() -> None:
    code = "from efficientllm.lifeline import die_first; die_first();"
    code += "print(open('/proc/self/oom_score_adj').read())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1000"


@pytest.mark.slow
def test_no_preload_opens_cuda_or_asks_for_it_unprotected() -> None:
    """The one question that is allowed goes to NVML, as long as the variable stands."""
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    code = textwrap.dedent(f"""
        import importlib, os, torch
        from efficientllm.forkserver import PRELOAD
        seen = set()
        torch.cuda._lazy_init = lambda: seen.add("opened CUDA")
        torch.cuda.is_available = lambda: bool(seen.add(os.environ.get({name!r})))
        for module in PRELOAD:
            importlib.import_module(module)
        assert seen <= {{"1"}}, seen
    """)
    environment = child_environment(None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
