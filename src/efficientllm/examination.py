"""Examining an attention: what `check` prints about a user's file, or about one of ours.

The examination itself (`models/soundness.py`) needs torch and runs somebody's code, so it is
done by a worker, as a probe; its findings come back in the record of a trial that is not kept.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from efficientllm.launch import Launcher
from efficientllm.machine import Gpu
from efficientllm.pin import pin
from efficientllm.plan import Planned
from efficientllm.record import Finding, Record
from efficientllm.spec.case import Case
from efficientllm.spec.document import SpecError
from efficientllm.spec.problems import explain
from efficientllm.spec.protocol import Protocol
from efficientllm.store import Store

NEEDED_BYTES = 1 << 24
COLOURS = {"passed": "green", "failed": "red", "told": "yellow", "unused": "red"}


def examine_command(
    console: Console, what: str, preset: str, position: str, gpu: Gpu | None, as_json: bool
) -> int:
    """Print every finding about an attention; 1 when it failed any, or could not be examined.

    One that ignores the positions it is given is sound, and 0: it has its own way to be ranked.
    """
    findings = examined(what, preset, position, gpu)
    failed = [finding for finding in findings if finding.verdict == "failed"]
    if as_json:
        text = json.dumps([finding.model_dump() for finding in findings], indent=1)
        console.print(text, markup=False, soft_wrap=True)
        return 1 if failed else 0
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        colour = COLOURS[finding.verdict]
        verdict = f"[{colour}]{finding.verdict}[/{colour}]"
        table.add_row(finding.name, verdict, escape(finding.seen))
        if finding.advice:
            table.add_row("", "", escape(f"-> {finding.advice}"))
    console.print(table)
    if failed:
        runs = findings[0].verdict != "failed"  # without an output nothing else is looked for
        verdict = "It runs; its rows will not be ranked." if runs else "It does not run."
        console.print(f"[red]{verdict}[/red]")
        return 1
    if any(finding.verdict == "unused" for finding in findings):
        console.print("[red]It runs; it may be ranked with model.position=none only.[/red]")
        return 0
    console.print("It may be ranked.")
    return 0


def examined(what: str, preset: str, position: str, gpu: Gpu | None) -> tuple[Finding, ...]:
    """The findings about `FILE:CLASS` or one of our kinds under an encoding, from a worker.

    Raises SpecError where there is no such thing.
    """
    case = _case(what, preset, position)
    with (
        tempfile.TemporaryDirectory(prefix="efficientllm-check-") as folder,
        Launcher(Store(Path(folder)), gpu, space_bytes=NEEDED_BYTES) as launcher,
    ):
        record = launcher.run(Planned(case, 0, 0), Protocol(profile="smoke"), keep=False)
    assert record is not None, "nobody else knows the folder"
    return _findings(record)


def _findings(record: Record) -> tuple[Finding, ...]:
    if record.build is not None and record.build.attention is not None:
        return record.build.attention.findings
    end = record.outcome
    return (Finding(name=end.phase or "start", verdict="failed", seen=end.reason or end.status),)


def _case(what: str, preset: str, position: str) -> Case:
    value = {
        "name": "check",
        "model": {
            "kind": "backbone",
            "preset": preset,
            "attention": f"custom:{what}" if ":" in what else what,
            "position": position,
        },
        "workload": {"kind": "probe", "check": "attention"},
    }
    try:
        case = Case.model_validate(value)
    except ValidationError as error:
        raise SpecError(explain(error, f"check {what}", {})) from error
    return pin(case, allow_code=True)
