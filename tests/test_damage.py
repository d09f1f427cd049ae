"""Damage: a record that cannot be used is named in one line, and the others are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficientllm.damage import damage
from efficientllm.plan import Shelf
from efficientllm.record import Record
from efficientllm.report.export import export
from efficientllm.report.html import page
from efficientllm.results import Results, load
from efficientllm.seal import CorruptRecord, from_bytes, to_bytes
from efficientllm.spec.protocol import Protocol
from efficientllm.store import Store
from tests import samples
from tests.test_record import sealed

Break = Callable[[dict[str, Any]], None]


def put(path: str, value: Any) -> Break:
    """Set one member of a record's JSON; `-1` and the like are indices."""

    def do(record: dict[str, Any]) -> None:
        target: Any = record
        *parents, last = (int(p) if p.lstrip("-").isdigit() else p for p in path.split("."))
        for part in parents:
            target = target[part]
        target[last] = value

    return do


def drop(path: str) -> Break:
    """Remove one member of a record's JSON."""

    def do(record: dict[str, Any]) -> None:
        target: Any = record
        *parents, last = (int(p) if p.isdigit() else p for p in path.split("."))
        for part in parents:
            target = target[part]
        del target[last]

    return do


def plain(record: Record) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(record.model_dump_json())
    return value


def published(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "published.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def shown(results: Results) -> None:
    """Every cell, and every table that is made of them; none of it may raise."""
    table = results.rows()
    for row in table:
        for key, cell in row._cells.items():
            assert cell.interval is not None or cell.reason, key
    for form in ("csv", "md"):
        assert export(table, form, results.probes())


CANNOT_BE: list[tuple[str, Break, str]] = [
    ("no parameters", put("build.total_params", 0), "build.total_params"),
    ("a weightless model", put("build.bytes_by_kind", {}), "at least one byte"),
    ("a negative size", put("build.bytes_by_kind", {"other": -5}), "bytes_by_kind.other"),
    ("an endless integer", put("points.0.memory.peak_allocated", 10**400), "peak_allocated"),
    ("no batch", put("points.0.batch", 0), "points.0.batch"),
    ("a window before itself", put("points.0.windows.0.end_ns", 1), "ends before it starts"),
    ("a negative time", put("points.0.windows.0.unit_s", [-0.1]), "unit_s"),
    ("a count without end", put("points.0.windows.0.counts", {"tokens": 1e308}), "counts.tokens"),
    ("lists of unequal length", put("scores.tokens", [1]), "20, 1 and 20 entries"),
    ("a short column", put("readings.1.columns.power_w", [1.0]), "not as long as its times"),
    ("times that run backwards", put("readings.1.t_ns.0", 2**62), "run backwards"),
    ("a missing column", put("readings.1.columns", {}), "no column power_w"),
    ("a wattage in words", put("resolved.idle_power_w", "many"), "no number of watts"),
    ("a shape without layers", put("build.shape.layers", 0), "its shape cannot be read"),
    ("a shape of a billion layers", put("build.shape.layers", 10**9), "its shape cannot be read"),
    ("an unknown shape key", put("build.shape.depth\x1b\n", 4), "its shape cannot be read"),
    ("an unknown protocol", put("protocol.profile", "hasty"), "its protocol cannot be read"),
    ("no protocol", put("protocol", {}), "its protocol cannot be read"),
    ("a peak without a source", put("declared_peak", {"id": "x"}), "its declared peak cannot"),
    ("an unknown workload", put("case.workload.kind", "dream"), "its case cannot be read"),
    ("a short form", put("case.workload", "generate"), "its case cannot be read"),
    ("no case", drop("case"), "case"),
]


@pytest.mark.parametrize(
    ("break_it", "says"), [c[1:] for c in CANNOT_BE], ids=[c[0] for c in CANNOT_BE]
)
def test_a_published_line_that_cannot_be_is_named_and_the_others_are_shown(
    break_it: Break, says: str, tmp_path: Path
) -> None:
    # The good record stands behind the bad one and has the same case id.
    bad, good = plain(samples.record()), samples.record(round_=1)
    break_it(bad)
    path = published(tmp_path, bad, plain(good))
    results = load(path)
    assert results.records == (good,)
    (told,) = results.quarantined
    assert told.startswith(f"{path}:1: ")
    assert says in told
    assert told.isprintable()
    assert len(told) < 200 + 2 * len(str(path)) + 60
    assert "pydantic" not in told
    shown(results)


@pytest.mark.parametrize(
    ("break_it", "says"), [c[1:] for c in CANNOT_BE], ids=[c[0] for c in CANNOT_BE]
)
def test_a_sealed_record_that_cannot_be_is_left_out_of_a_store(
    break_it: Break, says: str, tmp_path: Path
) -> None:
    store, bad = Store(tmp_path), plain(samples.record())
    good = samples.record(round_=1)
    store.put(samples.record()).write_bytes(_sealed_after(break_it, bad))
    store.put(good)
    results = load(tmp_path)
    assert results.records == (good,)
    assert any(says in told for told in results.quarantined)
    shown(results)


def _sealed_after(break_it: Break, record: dict[str, Any]) -> bytes:
    break_it(record)
    return sealed(record)


ODD: list[tuple[str, Break]] = [
    ("a window that counts nothing", put("points.0.windows.0.counts", {})),
    ("a loss beyond any exponential", put("scores.nll", [1e8] * 20)),
    ("a loss beyond any sum", put("scores.nll", [1e308] * 20)),
    ("text without tokens", put("scores.tokens", [0] * 20)),
    ("text without bytes", put("scores.bytes", [0] * 20)),
    ("one document of twenty with any size", put("scores.bytes", [1] + [0] * 19)),
    ("no text at all", put("scores", None)),
    ("no text, and no reason", lambda r: r.update(scores=None, notes={"quality": ""})),
    ("losses beyond any sum", put("losses", [1e308] * 20)),
    ("units that took no time", put("points.0.windows.0.unit_s", [0.0] * 100)),
    ("a machine without memory", put("machine.device_memory_bytes", 0)),
    ("readings at one moment", put("readings.1.t_ns", [5] * 1601)),
    ("nothing held", put("points.0.holdings", {})),
    ("a tiny number", put("points.0.windows.0.unit_s", [5e-324] * 100)),
]


@pytest.mark.parametrize("break_it", [c[1] for c in ODD], ids=[c[0] for c in ODD])
@pytest.mark.parametrize("trials", [1, 3])
@pytest.mark.parametrize("stage", ["generate", "pretrain"])
def test_odd_numbers_give_a_reason_and_no_traceback(
    break_it: Break, trials: int, stage: str, tmp_path: Path
) -> None:
    of = samples.case() if stage == "generate" else samples.pretrain()
    records = [plain(samples.record(of=of, round_=i)) for i in range(trials)]
    for record in records:
        break_it(record)
    results = load(published(tmp_path, *records))
    assert (len(results.records), results.quarantined) == (trials, ())
    shown(results)


def test_one_page_shows_every_odd_record(tmp_path: Path) -> None:
    records = [plain(samples.record(round_=i)) for i in range(len(ODD))]
    for record, (_, break_it) in zip(records, ODD, strict=True):
        record["env_id"] = f"{record['trial']['round']:064}"  # a row of its own
        break_it(record)
    results = load(published(tmp_path, *records))
    assert len(results.rows()) == len(ODD)
    assert page(results, None)


def test_trials_of_every_size_have_no_interval(tmp_path: Path) -> None:
    records = [plain(samples.record(round_=i)) for i in range(3)]
    for record, size in zip(records, (1e-300, 1.0, 1e12), strict=True):
        put("points.0.windows.1.unit_s", [size] * 1000)(record)
    results = load(published(tmp_path, *records))
    (row,) = results.rows()
    interval = row.cell("tpot_s").interval
    assert interval is not None
    assert (interval.low, interval.high) == (None, None)
    shown(results)


@pytest.mark.parametrize("line", ["", "{", "[]", '"x"', "[" * 10_000, "\ufeff{}", "\x00"])
def test_lines_that_are_no_json_object_are_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "published.jsonl"
    path.write_text(f"{line}\n{json.dumps(plain(samples.record()))}\n", "utf-8")
    results = load(path)
    assert len(results.records) == 1
    (told,) = results.quarantined
    assert told.startswith(f"{path}:1: left out: not a record: ")
    assert told.isprintable()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    path = published(tmp_path, plain(samples.record()))

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    told = (f"{path}: cannot be read (Permission denied)",)
    assert load(path) == Results((), told, told)


def test_a_damaged_record_stands_in_nobody_s_way_when_a_suite_runs_again(tmp_path: Path) -> None:
    case, store = samples.case(), Store(tmp_path)
    bad = plain(samples.record(of=case))
    store.put(samples.record(of=case)).write_bytes(
        _sealed_after(put("protocol.profile", "hasty"), bad)
    )
    shelf = Shelf(store, [case], samples.MACHINE, samples.SOFTWARE)
    assert shelf.finished(case, Protocol(profile="standard")) == {}
    assert shelf.next_attempt(case, 0) == 1  # its name stays taken


def test_sound_records_have_no_damage() -> None:
    for record in (samples.record(), samples.record(of=samples.pretrain())):
        assert damage(record) == ""
        assert from_bytes(to_bytes(record)) == record


def test_a_record_that_does_not_load_says_so_on_one_line() -> None:
    with pytest.raises(CorruptRecord) as caught:
        from_bytes(sealed(plain(samples.record()) | {"a\nb\x1b[31m": 1}))
    assert str(caught.value).isprintable()
