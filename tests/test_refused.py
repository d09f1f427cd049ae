"""Files that cannot be used: told once, by the command that met them, and never in its way."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from efficientllm import commands
from efficientllm.cli import app
from efficientllm.runner import Options, Summary
from efficientllm.spec.protocol import Protocol
from efficientllm.spec.suite import Suite
from efficientllm.store import Store
from tests import samples

READING = (
    ["export", "{store}"],
    ["show", "generate-bf16", "--store", "{store}"],
    ["compare", "generate-bf16", "generate-int4", "--store", "{store}"],
    ["report", "{store}", "--alone"],
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two rows, and one file that was cut short."""
    store = Store(tmp_path / "store")
    store.put(samples.record())
    store.put(samples.record(of=samples.case(name="generate-int4", technique="int4")))
    cut_short(store)
    return store


def cut_short(store: Store, round_: int = 1) -> Path:
    path = store.put(samples.record(round_=round_))
    path.write_bytes(path.read_bytes()[:100])
    return path


def call(command: list[str], store: Store) -> Result:
    return CliRunner().invoke(app, [word.format(store=store.root) for word in command])


def told(found: Result) -> list[str]:
    return found.stderr.splitlines()


@pytest.mark.parametrize("command", READING, ids=lambda command: command[0])
def test_a_command_that_moves_a_file_says_so_once(command: list[str], store: Store) -> None:
    found = call(command, store)
    assert found.exit_code == 0, found.output
    (line,) = told(found)
    assert line.startswith(f"efficientllm: {store.root}")
    assert "1-0.json: moved to quarantine: cut short or changed" in line
    assert told(call(command, store)) == []
    assert len(store.quarantined()) == 1


@pytest.mark.parametrize("command", READING, ids=lambda command: command[0])
def test_where_nothing_can_be_moved_the_file_is_skipped_and_named(
    command: list[str], store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = Path.write_text

    def refuse(path: Path, *arguments: Any, **options: Any) -> int:
        if store.root in path.parents and path.suffix != ".html":
            raise OSError(errno.EROFS, "Read-only file system")
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", refuse)
    for _ in range(2):  # nothing was moved, so it is said again
        found = call(command, store)
        assert found.exit_code == 0, found.output
        (line,) = told(found)
        assert "1-0.json: skipped: cut short or changed" in line
        assert line.endswith("(it cannot be moved: Read-only file system)")
    assert store.quarantined() == []


def test_a_place_for_quarantine_that_is_no_folder_stops_nobody(store: Store) -> None:
    (store.root / "quarantine").write_text("x")
    assert len(list(store.entries())) == 2
    (line,) = store.refused.values()
    assert ": skipped: " in line


def test_no_reason_lies_in_quarantine_without_its_file(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faster(_: Path, target: Path) -> Path:
        raise FileNotFoundError(errno.ENOENT, "another process was faster")

    monkeypatch.setattr(Path, "replace", faster)
    assert len(list(store.entries())) == 2
    assert list((store.root / "quarantine").iterdir()) == []
    assert store.refused == {}


def test_a_bad_line_of_a_published_file_is_told_by_every_command(tmp_path: Path) -> None:
    path = tmp_path / "published.jsonl"
    good = samples.record().model_dump_json()
    path.write_text(json.dumps({"\x1b[31mred": 1}) + "\n" + good + "\n", "utf-8")
    found = CliRunner().invoke(app, ["export", str(path)])
    assert found.exit_code == 0
    assert told(found) == [f"efficientllm: {path}:1: left out: not a record: trial: Field required"]
    assert found.stdout.count("generate-bf16") == 1


def test_a_report_without_any_usable_record_is_an_error_after_the_reasons(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    cut_short(store)
    found = call(["report", "{store}"], store)
    assert found.exit_code == 2
    moved, nothing = told(found)
    assert "moved to quarantine" in moved
    assert nothing == f"efficientllm: no records in {store.root}; run something first"


def test_a_run_tells_what_it_moved_and_not_what_earlier_calls_did(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = Suite("sample", "", Protocol(profile="smoke"), (samples.case(),))
    monkeypatch.setattr(commands, "run_suite", lambda *_: Summary((), (), out_of_time=False))

    def run() -> str:
        console = Console(file=io.StringIO(), width=1000)
        commands.run_command(console, suite, store.root, Options(), write_page=False)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    assert run().count("1-0.json: moved to quarantine") == 1
    assert "quarantine" not in run()
    cut_short(store, 2)
    again = run()
    assert "2-0.json: moved to quarantine" in again
    assert "1-0.json" not in again
