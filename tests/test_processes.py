"""Where the interpreters that are started look for modules."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from efficientllm.environment import child_environment
from efficientllm.processes import ForkServer, FreshInterpreter, start_sampler

STANDS_IN = """
import random
from pathlib import Path

Path({told!r}).write_text(random.__file__)
print('{{"ready": true, "device_files": []}}', flush=True)
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A package of our name on PYTHONPATH, and a random.py where the command is given."""
    package = tmp_path / "elsewhere" / "efficientllm"
    (package / "meters").mkdir(parents=True)
    for name in ("__init__", "meters/__init__"):
        (package / f"{name}.py").touch()
    for name in ("forkserver", "worker", "meters/sampler"):
        text = STANDS_IN.format(told=str(tmp_path / "told"))
        (package / f"{name}.py").write_text(text)
    here = tmp_path / "here"
    here.mkdir()
    (here / "random.py").write_text("raise SystemExit('not Python's own random')")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return child_environment(None)


@pytest.mark.parametrize("which", ["fork server", "worker", "sampler"])
def test_what_is_started_is_found_on_the_path_and_takes_nothing_from_the_current_folder(
    tmp_path: Path, environment: dict[str, str], which: str
) -> None:
    match which:
        case "fork server":
            ForkServer(environment, tmp_path / "errors").close()
        case "worker":
            assert FreshInterpreter(environment).start(tmp_path).wait(60.0) == 0
        case _:
            assert start_sampler(tmp_path, os.getpid(), None, environment).wait(60.0) == 0
    assert (tmp_path / "told").read_text() == os.__file__.replace("os.py", "random.py")
