"""Results: records from a store or a published file, ready to be asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from efficientllm.analysis.compare import Comparison, compare
from efficientllm.analysis.replicates import shared
from efficientllm.analysis.study import variant
from efficientllm.analysis.table import Row, rows
from efficientllm.damage import damage
from efficientllm.metrics import Ceiling, Unmeasured, View
from efficientllm.record import Record
from efficientllm.seal import first_problem
from efficientllm.spec.document import SpecError
from efficientllm.store import Store


class Results(NamedTuple):
    """Records with what was learned about them while reading.

    `quarantined` names everything that is not among them, for the page; `refused` what this
    very reading moved away or left out, a line each, to be told at once.
    """

    records: tuple[Record, ...]
    quarantined: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def rows(self) -> list[Row]:
        """Replicates grouped into rows, with this machine's ceilings where doctor ran."""
        return rows(self.records, ceilings(self.records))

    def beside(self, others: Results) -> Results:
        """These with others, for one table; a record that both hold counts once."""

        def identity(record: Record) -> tuple[str, str, str]:
            return record.machine.name, record.key, record.started_at

        known = {identity(record) for record in self.records}
        more = tuple(r for r in others.records if identity(r) not in known)
        return Results(
            self.records + more,
            self.quarantined + others.quarantined,
            self.refused + others.refused,
        )

    def probes(self) -> list[Record]:
        """What `doctor` measured."""
        return [r for r in self.records if r.case["workload"]["kind"] == "probe"]

    def cases(self, suite: str = "") -> list[Record]:
        """What suites, or the one that is named, measured: all that is no probe."""
        found = (r for r in self.records if r.case["workload"]["kind"] != "probe")
        return [record for record in found if suite in ("", record.trial.suite)]

    def repeated(self, rows: list[Row], suite: str) -> list[Record]:
        """Records of a suite whose place in its rows another suite's have taken.

        Without them, nobody who reads these rows again knows them for the suite's.
        """
        shown = {id(view.record) for row in rows for view in row.views}
        others = {shared(row.record) for row in rows if row.record.trial.suite != suite}
        return [r for r in self.cases(suite) if id(r) not in shown and shared(r) in others]

    def newest(self, suite: str = "") -> Record:
        """The newest case, or the newest of a suite; raises SpecError where there is none."""
        found = self.cases(suite)
        if found:
            return max(found, key=lambda record: record.started_at)
        if not self.cases():
            raise SpecError("there are only doctor's probes here; run a suite first")
        names = ", ".join(sorted({record.trial.suite for record in self.cases()} - {""}))
        raise SpecError(f"no record here is of a suite called {suite!r}; there is {names}")

    def find(self, key: str, at: dict[str, int] | None = None) -> Row:
        """The one row that a key names: part of a case id, or of a case's name.

        `at` narrows it to a point, as {"batch": 1}. Raises SpecError when none or several
        rows fit, naming them.
        """
        named = [row for row in self.rows() if _named(row, key)]
        fitting = [row for row in named if _at(row, at or {})]
        if named and not fitting:
            points = ", ".join(dict.fromkeys(row.point for row in named))
            raise SpecError(f"{key!r} has no such point; there is {points}")
        exact = [r for r in fitting if r.name == key] or [r for r in fitting if r.label == key]
        newest = _newest_of_each(exact or fitting)
        if len(newest) == 1:
            return newest[0]
        if not newest:
            known = ", ".join(_known(self.rows())[:20]) or "nothing"
            raise SpecError(f"no row is called {key!r}; there is {known}")
        names = ", ".join(f"{row.key} {row.name} {row.point}" for row in newest[:8])
        several = len({row.point for row in newest}) > 1
        advice = "name one" + (", or narrow with --at batch=N" if several else "")
        raise SpecError(f"{key!r} fits several rows: {names}; {advice}")

    def compare(self, a: str, b: str, at: dict[str, int] | None = None) -> Comparison:
        """Compare two rows by key; raises Unequal when their work differs."""
        return compare(self.find(a, at), self.find(b, at))


def _known(rows: list[Row]) -> list[str]:
    """Names of cases, each with its id and variant where several have one name."""
    cases = {row.record.trial.case_id: row for row in rows}
    names = Counter(row.name for row in cases.values())
    told = (
        f"{row.key} {row.name} {variant(row.case)}".rstrip() if names[row.name] > 1 else row.name
        for row in cases.values()
    )
    return sorted(told)


def _named(row: Row, key: str) -> bool:
    return row.record.trial.case_id.startswith(key) or key in row.name


def _at(row: Row, at: dict[str, int]) -> bool:
    point = row.views[0].point
    return all(getattr(point, name) == value for name, value in at.items())


def _newest_of_each(found: list[Row]) -> list[Row]:
    """Of rows that differ only in software, the newest; one that failed only where none is ok."""
    newest: dict[tuple[str, str, str], Row] = {}
    for row in found:
        key = (row.record.trial.case_id, row.point, row.record.machine.name)
        if key not in newest or _standing(row) >= _standing(newest[key]):
            newest[key] = row
    return list(newest.values())


def _standing(row: Row) -> tuple[bool, str]:
    return row.status == "ok", row.record.started_at


def parse_at(text: str) -> dict[str, int]:
    """`batch=1,context=1024` as a mapping."""
    found: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in ("batch", "context") or not (value.isascii() and value.isdigit()):
            raise SpecError(f"--at {text!r}: write it like batch=1 or batch=1,context=1024")
        found[name] = int(value)
    return found


def load(*places: str | Path) -> Results:
    """Records from stores (folders) and published files (.jsonl); missing folders are empty.

    A record that this version cannot use is left out and named, never half shown.
    """
    records: list[Record] = []
    earlier: list[str] = []
    refused: list[str] = []
    for place in map(Path, places):
        if place.is_file():
            found, bad = read_published(place)
        else:
            store = Store(place)
            earlier += [reason.strip() for _, reason in store.quarantined()]
            found, bad = _read_store(store)
        records += found
        refused += bad
    return Results(tuple(records), (*earlier, *refused), tuple(refused))


def _read_store(store: Store) -> tuple[list[Record], list[str]]:
    found: list[Record] = []
    bad: list[str] = []
    for entry in store.entries():
        if reason := damage(entry.record):
            bad.append(f"{entry.path}: left out: {reason}")
        else:
            found.append(entry.record)
    return found, [*store.refused.values(), *bad]


def read_published(path: Path) -> tuple[list[Record], list[str]]:
    """Records of an exported .jsonl, and the lines that cannot be used, each with its reason."""
    found: list[Record] = []
    bad: list[str] = []
    try:
        content = path.read_bytes()
    except OSError as error:
        return [], [f"{path}: cannot be read ({error.strerror})"]
    for number, line in enumerate(content.splitlines(), 1):
        try:
            record = Record.model_validate_json(line)
            reason = damage(record)
        except ValidationError as error:
            reason = f"not a record: {first_problem(error)}"
        if reason:
            bad.append(f"{path}:{number}: left out: {reason}")
        else:
            found.append(record)
    return found, bad


def published() -> list[Path]:
    """Record files that come with the package, or lie in the source tree."""
    inside = Path(str(resources.files("efficientllm"))) / "published"
    beside = Path(__file__).resolve().parents[2] / "results"
    folder = inside if inside.is_dir() else beside
    return sorted(folder.glob("*.jsonl"))


def ceilings(records: Iterable[Record]) -> dict[str, Ceiling]:
    """What doctor's products and copies reached on each machine class (best of all runs)."""
    flops: dict[str, float] = {}
    moved: dict[str, float] = {}
    for record in records:
        if record.case["workload"]["kind"] != "probe" or not record.points:
            continue
        window = View(record, record.points[0]).main_window
        if isinstance(window, Unmeasured):
            continue
        machine = record.machine.name
        for count, best in (("flops", flops), ("bytes", moved)):
            if window.counts.get(count) and window.seconds:
                rate = window.counts[count] / window.seconds
                best[machine] = max(rate, best.get(machine, 0.0))
    return {m: Ceiling(flops.get(m), moved.get(m)) for m in {*flops, *moved}}
