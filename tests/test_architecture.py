"""The laws of the house, held by tests: who imports whom, who reads a clock, how big."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from efficientllm.failure import Failure

SOURCE = Path(__file__).parents[1] / "src" / "efficientllm"
FILES = sorted(SOURCE.rglob("*.py"))
MAX_LINES = 300
MAX_FUNCTION_LINES = 60
VENDOR_FILES = {"machine.py", "clock.py", "device.py", "unopened.py"}

CHILD_ONLY = {
    "worker",
    "idle",
    "interludes",
    "assembly",
    "prepare",
    "prepare_generation",
    "scoring",
    "describe",
    "measure",
    "steady",
    "device",
    "models",
    "techniques",
    "workloads",
}
"""Modules of the child; nothing of the parent may import them."""


def module_name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix().removesuffix(".py").removesuffix("/__init__")


def top(path: Path) -> str:
    return module_name(path).split("/")[0]


@cache
def imports(path: Path) -> frozenset[str]:
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def own_imports(path: Path) -> set[str]:
    """Top-level parts of this package that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("efficientllm.")}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_stay_small_enough_to_hold_in_the_head(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= MAX_LINES, f"{lines} lines"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_functions_stay_short_and_modules_begin_with_why(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name}: {length} lines"


def test_no_file_is_named_after_nothing() -> None:
    empty = {"utils", "util", "helpers", "common", "misc", "base", "core", "manager"}
    assert not empty & {path.stem for path in FILES}


@pytest.mark.parametrize("path", [p for p in FILES if top(p) not in CHILD_ONLY], ids=module_name)
def test_the_parent_never_imports_the_child(path: Path) -> None:
    if top(path) == "forkserver":
        return  # it becomes the child
    assert not own_imports(path) & CHILD_ONLY


def test_the_parent_never_imports_torch() -> None:
    code = (
        "import sys, efficientllm.cli, efficientllm.commands, efficientllm.runner,"
        " efficientllm.forecast,"
        " efficientllm.doctor, efficientllm.results, efficientllm.report.html,"
        " efficientllm.report.export, efficientllm.listing, efficientllm.fetch;"
        " sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


HEAVY = ("numpy", "scipy", "efficientllm.commands", "efficientllm.launch", "efficientllm.metrics")


@pytest.mark.parametrize(
    ("words", "heavy", "status"),
    [
        (["--help"], (*HEAVY, "efficientllm.machine", "pydantic"), 0),
        (["list"], (*HEAVY, "efficientllm.machine"), 0),
        (["run", "quickstar"], HEAVY, 2),
        (["plan", "quickstart", "steps"], HEAVY, 2),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_only_lists_or_refuses_imports_nothing_slow(
    words: list[str], heavy: tuple[str, ...], status: int
) -> None:
    code = (
        f"import sys; sys.argv = ['efficientllm', *{words!r}]\n"
        "from efficientllm.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    status = end.code or 0\n"
        f"print(status, *({{'torch', *{heavy!r}}} & sys.modules.keys()), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == str(status), done.stderr


def test_the_package_s_failures_each_have_an_exit_status() -> None:
    assert {kind.__name__: kind.exit_status for kind in Failure.__subclasses__()} == {
        "StoreError": 3,
        "DeviceError": 4,
        "CannotStart": 4,
    }


def test_only_the_worker_sees_everything() -> None:
    everything = {"models", "techniques", "workloads", "meters"}
    for path in FILES:
        if everything <= own_imports(path):
            assert module_name(path) == "worker"


def test_workloads_and_meters_never_meet() -> None:
    for path in FILES:
        if top(path) == "workloads":
            assert "meters" not in own_imports(path), module_name(path)
        if top(path) == "meters":
            assert not own_imports(path) & {"workloads", "models", "techniques"}
        if top(path) == "measure":
            assert not own_imports(path) & {"workloads", "models", "techniques", "meters"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_the_clock_reads_a_clock(path: Path) -> None:
    if path.name == "clock.py":
        return
    for name in imports(path):
        assert name.split(".")[0] not in ("time", "datetime"), name
    text = path.read_text()
    for call in ("cuda.Event(", "torch.Event(", "perf_counter", "monotonic("):
        assert call not in text, call


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_meters_and_the_machine_talk_to_nvml_and_rapl(path: Path) -> None:
    if top(path) == "meters" or path.name == "machine.py":
        return
    text = path.read_text()
    assert "import pynvml" not in text
    assert "nvmlDevice" not in text
    assert "powercap" not in text


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_vendors_are_named_at_the_bottom_only(path: Path) -> None:
    if top(path) == "meters" or path.name in VENDOR_FILES:
        return
    assert "torch.cuda" not in path.read_text()


def test_analysis_and_reports_are_pure() -> None:
    doing = {"launch", "store", "machine", "runner", "processes", "clock", "plan"}
    for path in FILES:
        if top(path) in ("analysis", "metrics"):
            assert not own_imports(path) & doing, module_name(path)
        if top(path) == "report":
            assert not own_imports(path) & (doing - {"results"}), module_name(path)


def test_specs_and_catalog_need_nothing_of_ours_above_them() -> None:
    for path in FILES:
        if top(path) in ("spec", "catalog"):
            assert own_imports(path) <= {"spec", "catalog"}, module_name(path)
