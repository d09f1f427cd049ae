"""The store: whole records or none, whoever writes, whatever dies."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from efficientllm.record import Record
from efficientllm.seal import from_bytes, to_bytes
from efficientllm.store import Store, StoreError, require_space, safe_name, write_once
from tests import samples


def small(round_: int = 0, attempt: int = 0, **changes: Any) -> Record:
    """A record of some three kilobytes."""
    fields: dict[str, Any] = {"windows": [], "readings": (), "round_": round_, "attempt": attempt}
    return samples.record(**fields | changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def loaded(store: Store) -> list[Record]:
    return [entry.record for entry in store.entries()]


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh, single-threaded interpreter, where forking is safe."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[1],
    )


def test_opening_a_store_creates_nothing(store: Store) -> None:
    assert loaded(store) == []
    assert store.quarantined() == []
    assert store.of_case("a" * 64) == []
    assert not store.root.exists()


def test_a_record_lies_under_its_machine_case_round_and_attempt(store: Store) -> None:
    record = small(round_=2, attempt=1)
    path = store.put(record)
    assert path == store.root / record.machine.name / record.trial.case_id / "2-1.json"
    assert loaded(store) == [record]


def test_a_record_is_never_replaced(store: Store) -> None:
    first = small()
    path = store.put(first)
    with pytest.raises(StoreError, match="records are never replaced"):
        store.put(small(seconds=5.0))
    assert path.read_bytes() == to_bytes(first)
    assert [p.name for p in path.parent.iterdir()] == ["0-0.json"]  # no temporary left


def test_records_of_a_case_come_from_every_machine(store: Store) -> None:
    here, there = small(), small(machine=samples.CPU_MACHINE)
    other = small(of=samples.case(technique="int4"))
    for record in (here, there, other):
        store.put(record)
    found = [entry.record for entry in store.of_case(here.trial.case_id)]
    assert sorted(r.machine.name for r in found) == sorted([here.machine.name, there.machine.name])
    assert len(loaded(store)) == 3


def test_names_of_a_case_change_when_something_was_written(store: Store) -> None:
    record = small()
    before = store.names_of(record.trial.case_id)
    store.put(record)
    after = store.names_of(record.trial.case_id)
    assert (before, after) == ((), (f"{record.machine.name}/0-0.json",))


def test_work_artifacts_and_quarantine_hold_no_records(store: Store) -> None:
    record = small()
    for reserved in ("work", "artifacts", "quarantine"):
        path = store.root / reserved / record.trial.case_id / "0-0.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"{}")
    assert loaded(store) == []
    assert store.quarantined() == []


def test_a_file_is_flushed_before_it_is_named_and_its_folder_after(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[tuple[str, str]] = []
    fsync, link = os.fsync, os.link

    def recording_fsync(descriptor: int) -> None:
        fsync(descriptor)
        happened.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))

    def recording_link(source: Any, target: Any) -> None:
        assert from_bytes(Path(source).read_bytes())  # whole before it has a name
        assert Path(source).parent == Path(target).parent
        happened.append(("link", str(target)))
        link(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "link", recording_link)
    path = store.put(small())
    (first, temporary), *rest = happened
    assert first == "fsync"
    assert Path(temporary).name.startswith(".0-0.json.")
    assert rest == [
        ("link", str(path)),
        ("fsync", str(path.parent)),
        ("fsync", str(path.parent.parent)),  # the folders are new: their names must last too
        ("fsync", str(store.root)),
    ]
    happened.clear()
    store.put(small(round_=1))
    assert [what for what, _ in happened] == ["fsync", "link", "fsync"]


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_disk_that_fails_leaves_no_record_and_no_rest(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, broken)
    with pytest.raises(StoreError, match="cannot be written"):
        store.put(small())
    assert [p for p in store.root.rglob("*") if p.is_file()] == []


# Damage


def test_a_file_cut_short_at_any_byte_ends_in_quarantine(store: Store) -> None:
    content = to_bytes(small())
    folder = store.put(small()).parent
    for length in range(len(content)):
        (folder / f"1-{length}.json").write_bytes(content[:length])
    assert len(loaded(store)) == 1
    assert sorted(p.name for p in folder.iterdir()) == ["0-0.json"]
    told = [reason for _, reason in store.quarantined()]
    assert len(told) == len(content)
    assert all("cut short or changed" in reason for reason in told)


def test_a_file_with_one_changed_byte_ends_in_quarantine(store: Store) -> None:
    content, chance = to_bytes(small()), random.Random(1)
    folder = store.put(small()).parent
    for number, position in enumerate(chance.sample(range(len(content)), 200)):
        changed = bytearray(content)
        changed[position] ^= chance.randrange(1, 256)
        (folder / f"1-{number}.json").write_bytes(changed)
    assert len(loaded(store)) == 1
    assert len(store.quarantined()) == 200
    moved = {path.read_bytes() for path, _ in store.quarantined()}
    assert len(moved) == 200  # nothing of the evidence is lost


def test_a_quarantined_trial_can_be_written_again(store: Store) -> None:
    path = store.put(small())
    path.write_bytes(path.read_bytes()[:100])
    assert loaded(store) == []
    assert store.put(small()) == path
    assert len(loaded(store)) == 1
    ((_, reason),) = store.quarantined()
    assert reason.startswith("0-0.json: cut short or changed")


def test_a_whole_record_under_a_wrong_name_is_no_replicate(store: Store) -> None:
    path = store.put(small())
    other = store.root / path.parent.parent.name / ("b" * 64)
    other.mkdir()
    for copy in (path.with_name("1-0.json"), other / "0-0.json"):
        copy.write_bytes(path.read_bytes())
    assert len(loaded(store)) == 1
    assert len(store.quarantined()) == 2
    assert all("does not belong" in reason for _, reason in store.quarantined())


def test_a_temporary_file_left_by_a_kill_is_no_record(store: Store) -> None:
    path = store.put(small())
    path.with_name(".1-0.json.123-456").write_bytes(b'{"half')
    assert len(loaded(store)) == 1
    assert store.quarantined() == []


def test_a_folder_where_a_record_should_be_is_an_error_and_no_crash(store: Store) -> None:
    path = store.put(small())
    path.with_name("1-0.json").mkdir()
    with pytest.raises(StoreError, match=r"1-0\.json: cannot be read"):
        loaded(store)


def test_processes_that_find_the_same_damage_at_once_all_go_on(store: Store) -> None:
    folder = store.put(small()).parent
    for number in range(100):
        (folder / f"1-{number}.json").write_bytes(b"{}")
    done = run(
        """
        import os, sys
        from pathlib import Path
        from efficientllm.store import Store
        store = Store(Path(sys.argv[1]))
        children = []
        for _ in range(6):
            if (child := os.fork()) == 0:
                os._exit(len(list(store.entries())) != 1)
            children.append(child)
        assert not any(os.waitpid(child, 0)[1] for child in children)
        """,
        store.root,
    )
    assert done.returncode == 0, done.stderr
    assert len(store.quarantined()) == 100


# A full disk


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_an_error_and_no_damage(tiny_disk: Path) -> None:
    store, written = Store(tiny_disk), list[int]()

    def fill() -> None:
        for round_ in range(100):
            store.put(small(round_=round_))
            written.append(round_)

    with pytest.raises(StoreError, match="the disk is full; nothing was changed"):
        fill()
    assert 0 < len(written) < 100
    assert sorted(record.trial.round for record in loaded(store)) == written
    files = [p.name for p in tiny_disk.rglob("*") if p.is_file()]
    assert sorted(files) == sorted(f"{r}-0.json" for r in written)  # no temporary left
    assert store.quarantined() == []
    entry = next(store.entries())
    entry.path.unlink()
    assert store.put(small(round_=99)).exists()  # once there is room


def test_space_is_asked_for_before_a_trial(tiny_disk: Path) -> None:
    require_space(tiny_disk, 1024)
    with pytest.raises(StoreError, match="0 MiB free, 1024 MiB needed; make room or choose"):
        require_space(tiny_disk, 1 << 30)


# Several processes


@pytest.mark.slow
def test_eight_processes_on_one_store_lose_nothing_and_write_nothing_twice(store: Store) -> None:
    """Each writes 50 of its own, and all of them try the same 50."""
    done = run(
        """
        import os, random, sys
        from pathlib import Path
        from efficientllm.store import Store, StoreError
        from tests.test_store import small
        store, template = Store(Path(sys.argv[1])), small()
        ready, go = os.pipe()
        children, ends = [], []
        for worker in range(8):
            result, told = os.pipe()
            if (pid := os.fork()) == 0:
                os.close(go)
                os.read(ready, 1)
                shared = [(100, i) for i in range(50)]
                mine = [(worker, i) for i in range(50)]
                tries = shared + mine
                random.Random(worker).shuffle(tries)
                won = 0
                for round_, attempt in tries:
                    trial = template.trial.model_copy(update={"round": round_, "attempt": attempt})
                    try:
                        store.put(template.model_copy(update={"trial": trial}))
                        won += round_ == 100
                    except StoreError as error:
                        assert round_ == 100 and "never replaced" in str(error), error
                os.write(told, f"{won}\\n".encode())
                os._exit(0)
            children.append(pid)
            ends.append(result)
            os.close(told)
        os.close(ready)
        os.close(go)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
        print(sum(int(os.read(end, 100)) for end in ends))
        """,
        store.root,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 50
    names = sorted((r.trial.round, r.trial.attempt) for r in loaded(store))
    expected = [(round_, i) for round_ in (*range(8), 100) for i in range(50)]
    assert names == expected
    assert store.quarantined() == []


@pytest.mark.slow
def test_a_kill_while_writing_leaves_whole_records_and_every_acknowledged_one(
    store: Store,
) -> None:
    code = """
    import sys
    from pathlib import Path
    from efficientllm.store import Store
    from tests.test_store import small
    store, template, round_ = Store(Path(sys.argv[1])), small(), int(sys.argv[2])
    for attempt in range(10_000):
        trial = template.trial.model_copy(update={"round": round_, "attempt": attempt})
        store.put(template.model_copy(update={"trial": trial}))
        print(attempt, flush=True)
    """
    acknowledged: set[tuple[int, int]] = set()
    for round_ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(store.root), str(round_)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged.add((round_, int(line)))
            if int(line) >= 20 + 7 * round_:
                process.kill()
                break
        acknowledged |= {(round_, int(line)) for line in process.stdout}
        process.stdout.close()
        process.wait()
    found = {(r.trial.round, r.trial.attempt) for r in loaded(store)}
    assert acknowledged <= found
    assert len(found) <= len(acknowledged) + 3  # written, and killed before saying so
    assert store.quarantined() == []


# Names and links


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "../../etc/passwd",
        "/etc/passwd",
        "a\0b",
        "x" * 300,
        ".hidden",
        "..x",
        "a/b\\c",
        "é",
        " ",
    ],
)
def test_any_name_becomes_one_component_inside_the_store(name: str, tmp_path: Path) -> None:
    made = safe_name(name)
    assert Path(made).name == made
    assert not made.startswith(".")
    assert len(made) <= 120
    assert (tmp_path / made).resolve().parent == tmp_path.resolve()


@pytest.mark.parametrize("name", ["", ".", "..", "..."])
def test_a_name_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(StoreError, match="cannot name a file"):
        safe_name(name)


def test_names_in_use_stay_as_they_are() -> None:
    for name in (samples.MACHINE.name, "a" * 64, "generate-int4_tinygemm+lora-8.0"):
        assert safe_name(name) == name


def test_hostile_names_in_a_record_stay_inside_the_store(store: Store) -> None:
    machine = samples.MACHINE.model_copy(update={"name": "../../outside"})
    trial = small().trial.model_copy(update={"case_id": "../../../x\0"})
    path = store.put(small(machine=machine, trial=trial))
    assert path.resolve().is_relative_to(store.root.resolve())
    assert len(loaded(store)) == 1
    assert store.artifact("../../x", 0).is_relative_to(store.root / "artifacts")
    assert store.of_case("../*") == []


def test_links_that_lead_out_of_the_store_are_not_followed(store: Store, tmp_path: Path) -> None:
    outside = Store(tmp_path / "outside")
    real = outside.put(small(round_=5))
    inside = store.put(small())
    inside.with_name("5-0.json").symlink_to(real)
    (inside.parent.parent / ("c" * 64)).symlink_to(real.parent)
    (store.root / "other-machine").symlink_to(real.parent.parent)
    assert len(loaded(store)) == 1
    assert len(store.of_case(real.parent.name)) == 1
    assert real.exists()
    assert store.quarantined() == []


def test_nothing_is_written_through_a_link(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    store.root.mkdir()
    (store.root / samples.MACHINE.name).symlink_to(outside)
    with pytest.raises(StoreError, match="a symbolic link leads out of the store"):
        store.put(small())
    assert list(outside.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "file" / "store").put(small())


def test_write_once_raises_for_a_name_that_is_taken(tmp_path: Path) -> None:
    write_once(tmp_path / "x", b"1")
    with pytest.raises(FileExistsError):
        write_once(tmp_path / "x", b"2")
    assert (tmp_path / "x").read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_a_killed_run_left_goes_after_a_day_without_a_word(store: Store) -> None:
    def left(name: str, hours: float) -> Path:
        folder = store.work / name
        (folder / "0").mkdir(parents=True)
        (folder / "0" / "journal.jsonl").write_text("{}")
        for path in (folder / "0" / "journal.jsonl", folder / "0", folder):
            moment = time.time() - 3600 * hours
            os.utime(path, (moment, moment))
        return folder

    old, long = left("trial-1-1", 25), left("trial-2-2", 48)
    (long / "0" / "readings.jsonl").write_text("[]")  # a trial of two days, still written to
    young, other = left("trial-3-3", 23), left("checkpoints", 300)
    store.clear_abandoned()
    assert [path.exists() for path in (old, long, young, other)] == [False, True, True, True]


def test_a_file_in_the_place_of_a_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("not a store")
    with pytest.raises(StoreError, match="afile: a file, and a store is a folder"):
        Store(tmp_path / "afile")
