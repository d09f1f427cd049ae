"""Arms: the same work done by different programs, each in a fresh process, in rounds.

Rounds interleave (A B C A B C), so that a card that warms up or changes its clock meets all
arms alike, and a ratio is taken within a round: an arm against `ours` of the same round. A
claim can be no finer than these ratios scatter. Every process starts with empty compiler
caches of its own, so each time to a first step is a cold one; what an arm imports is part of
it. An arm that fails or is not installed is a row with the reason.

Known lies: one round has no spread. A fallback that a library chose is seen in an arm's log at
most, which is kept beside its result. Two threads on two shared cores wait for each other: on
such a CPU steps took 20 times as long, and not for all arms alike; set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from efficientllm import clock
from efficientllm.lifeline import die_with_parent
from efficientllm.record import Unsupported

OURS = "ours"
Result = dict[str, Any]
Arm = Callable[[argparse.Namespace, int], Result]
"""Measures one arm at one point (a length, a batch) in this process."""


class Column(NamedTuple):
    """A column of the table: its title, the result's key, and how a number is written."""

    title: str
    key: str
    form: str = ""


def parser(text: str, arms: list[str], out: str) -> argparse.ArgumentParser:
    """The options that all comparisons have; those of a child are not for people."""
    made = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--arms", default=",".join(arms), help="which to run, in this order")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--steps", type=int, default=20, help="timed ones")
    made.add_argument("--warmup", type=int, default=5, help="steps between first and timed ones")
    made.add_argument("--timeout", type=float, default=600.0, help="seconds for one process")
    made.add_argument("--out", type=Path, default=Path("efficientllm-results") / out)
    made.add_argument("--text", default="", help="text as in data=; default: Python's own prose")
    made.add_argument("--tokenizer", default="auto", help="a tokenizer.json or its folder")
    for name in ("--child", "--result"):
        made.add_argument(name, default="", help=argparse.SUPPRESS)
    for name in ("--at", "--started-ns", "--parent"):
        made.add_argument(name, type=int, default=0, help=argparse.SUPPRESS)
    return made


def compare(
    args: argparse.Namespace, arms: dict[str, Arm], points: list[int], columns: list[Column]
) -> None:
    """Run every arm of every round at every point; a table for each point, raw JSON in --out.

    In a child: measure the one arm it was started for.
    """
    if args.child:
        die_with_parent(args.parent)
        _measure(args, arms[args.child])
        return
    chosen = args.arms.split(",")
    if unknown := set(chosen) - arms.keys():
        sys.exit(f"no arm called {', '.join(sorted(unknown))}; there are {', '.join(arms)}")
    # A child has a session of its own: without this what it started would outlive us.
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, lambda number, _: sys.exit(128 + number))
    args.out.mkdir(parents=True, exist_ok=True)
    for point in points:
        results: list[Result] = []
        for number in range(args.rounds):
            for name in chosen:
                results.append(_fresh(args, name, point, number))
                print(f"  round {number + 1}, {name}: {_brief(results[-1])}", file=sys.stderr)
        (args.out / f"{point}.json").write_text(json.dumps(results, indent=1))
        print(table(results, columns), flush=True)


def _brief(result: Result) -> str:
    return str(result.get("error") or f"{result['tokens_per_s']:,.1f} tokens/s")


def _measure(args: argparse.Namespace, arm: Arm) -> None:
    try:
        result = arm(args, args.at)
    except Unsupported as why:
        result = {"error": str(why)}
    Path(args.result).write_text(json.dumps(result))


def _fresh(args: argparse.Namespace, name: str, point: int, number: int) -> Result:
    """One arm in one process; its result, or what it died of."""
    stem = (args.out / f"{point}-{name}-{number}").absolute()
    result, log = stem.with_suffix(".json"), stem.with_suffix(".log")
    result.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as caches:
        variables = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT")
        own = {variable: f"{caches}/{variable}" for variable in variables}
        words = ["--child", name, "--at", str(point), "--result", str(result)]
        words += ["--started-ns", str(clock.now_ns()), "--parent", str(os.getpid())]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *sys.argv, *words],
                env={**os.environ, "HF_HUB_OFFLINE": "1", **own},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        late = ""
        try:
            process.wait(args.timeout)
        except subprocess.TimeoutExpired:
            late = f"not finished after {args.timeout:.0f} s"
        finally:  # engines and compilers leave processes of their own behind
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found: Result = json.loads(result.read_text()) if result.exists() else {}
    if not found:
        said = log.read_text("utf-8", "replace").strip().splitlines() or ["no word"]
        found = {"error": late or f"exit {process.returncode}: {said[-1][:200]}"}
    return {"arm": name, "round": number, "at": point, **found}


def table(results: list[Result], columns: list[Column]) -> str:
    """Markdown, one row an arm: rate and ratio as median [least, most] over rounds."""
    done = [r for r in results if "error" not in r]
    where = next((f"{r['where']}, " for r in done), "")
    head = ["arm", "tokens/s", f"of {OURS}", *(c.title for c in columns), "what"]
    lines = [f"\n{where}rounds: {max(r['round'] for r in results) + 1}", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    base = {r["round"]: r["tokens_per_s"] for r in done if r["arm"] == OURS}
    for name in dict.fromkeys(r["arm"] for r in results):
        mine = [r for r in done if r["arm"] == name]
        ratios = [r["tokens_per_s"] / base[r["round"]] for r in mine if r["round"] in base]
        cells = [name, spread([r["tokens_per_s"] for r in mine], ",.1f"), spread(ratios, ".3f")]
        cells += [_cell([r.get(c.key) for r in mine], c.form) for c in columns]
        errors = [r["error"] for r in results if r["arm"] == name and "error" in r]
        what = [*(r["what"] for r in mine[:1]), *dict.fromkeys(errors)]
        lines.append("| " + " | ".join([*cells, "; ".join(what)]) + " |")
    return "\n".join(lines)


def _cell(values: list[Any], form: str) -> str:
    known = [v for v in values if v is not None]
    if not known or isinstance(known[0], str):
        return known[0] if known else "-"
    return format(statistics.median(known), form)


def spread(values: list[float], form: str) -> str:
    """Median [least, most]; the value alone where there is one."""
    if not values:
        return "-"
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} [{format(min(values), form)}, {format(max(values), form)}]"
