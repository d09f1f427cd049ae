"""Leases: one holder at a time, the living respected, the dead not waited for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from efficientllm import clock
from efficientllm.lease import STALE_SECONDS
from efficientllm.store import Store, StoreError
from tests.faults.tree import wait_until

HOLD = """
import sys
from pathlib import Path
from efficientllm.store import Store
lease = Store(Path(sys.argv[1])).lease("x")
print("held" if lease else "none", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def holder(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease `x`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.stdin.close()
    process.stdout.close()
    process.wait()


def path_of(store: Store) -> Path:
    return store.work / "leases" / "x.json"


def rewrite(store: Store, **changes: Any) -> None:
    """Change what the lease file says about its holder."""
    path = path_of(store)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_lease_is_had_once_and_again_after_its_release(store: Store) -> None:
    first = store.lease("x")
    assert first is not None
    assert store.lease("x") is None
    assert store.lease("y") is not None
    first.release()
    assert store.lease("x") is not None


def test_leaving_the_block_gives_the_lease_back_even_after_an_error(store: Store) -> None:
    lease = store.lease("x")
    assert lease is not None
    with pytest.raises(KeyError), lease:
        raise KeyError
    assert store.lease("x") is not None


def test_a_lease_that_is_kept_beating_shows_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efficientllm.lease.BEAT_SECONDS", 0.01)
    held = store.lease("x")
    assert held is not None
    rewrite(store, beat=0.0)
    with held.beating():
        wait_until(lambda: json.loads(path_of(store).read_text())["beat"] > 0.0, 10.0, "a beat")
    rewrite(store, beat=0.0)
    time.sleep(0.05)
    assert json.loads(path_of(store).read_text())["beat"] == 0.0, "and stops with the block"


def test_another_living_process_is_respected(store: Store, holder: subprocess.Popen[str]) -> None:
    assert store.lease("x") is None
    rewrite(store, beat=clock.wall_unix() - 10 * STALE_SECONDS)  # silent, but alive
    assert store.lease("x") is None


def test_a_stopped_process_still_holds_what_it_holds(
    store: Store, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    rewrite(store, beat=clock.wall_unix() - 10 * STALE_SECONDS)
    assert store.lease("x") is None
    holder.send_signal(signal.SIGCONT)
    assert store.lease("x") is None


def test_a_dead_process_is_not_waited_for(store: Store, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert store.lease("x") is not None


def test_a_dead_process_that_nobody_has_buried_is_dead(
    store: Store, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    assert store.lease("x") is not None


def test_a_process_that_got_the_pid_of_a_dead_one_is_not_the_holder(store: Store) -> None:
    assert store.lease("x") is not None
    rewrite(store, started="1")  # this pid, but begun at another time
    assert store.lease("x") is not None


@pytest.mark.parametrize(
    "elsewhere",
    [
        lambda place: "another-boot pid:[1]",
        lambda place: place.split()[0] + " pid:[1]",  # another container of this host
    ],
    ids=["host", "container"],
)
@pytest.mark.parametrize(
    ("silent_s", "taken"), [(0.0, False), (STALE_SECONDS - 20, False), (STALE_SECONDS + 1, True)]
)
def test_where_a_pid_means_nothing_only_two_silent_minutes_count(
    store: Store, elsewhere: Callable[[str], str], silent_s: float, *, taken: bool
) -> None:
    assert store.lease("x") is not None
    place = json.loads(path_of(store).read_text())["boot"]
    rewrite(store, boot=elsewhere(place), pid=1 << 22, beat=clock.wall_unix() - silent_s)
    assert (store.lease("x") is not None) == taken


def test_a_holder_in_another_container_of_this_host_is_respected(store: Store) -> None:
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs the right to make a namespace of process ids")
    with subprocess.Popen(
        [*inside, sys.executable, "-c", HOLD, str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert json.loads(path_of(store).read_text())["pid"] == 1  # not the 1 of this test
        assert store.lease("x") is None


@pytest.mark.parametrize("content", ["", '{"boot": "a', "[]", "null", '{"boot": "a"}', "\x00" * 80])
def test_a_lease_left_half_written_is_respected_for_ten_seconds(store: Store, content: str) -> None:
    path = path_of(store)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert store.lease("x") is None  # perhaps it is being written this instant
    old = clock.wall_unix() - 11
    os.utime(path, (old, old))
    assert store.lease("x") is not None


def test_a_beat_renews_a_lease(store: Store) -> None:
    lease = store.lease("x")
    assert lease is not None
    rewrite(store, beat=0.0)
    lease.beat()
    assert json.loads(path_of(store).read_text())["beat"] > clock.wall_unix() - 60
    assert [p.name for p in path_of(store).parent.glob("x*")] == ["x.json"]


def test_who_was_taken_over_neither_renews_nor_removes_the_new_holders_lease(
    store: Store,
) -> None:
    lease = store.lease("x")
    assert lease is not None
    rewrite(store, boot="another-boot pid:[1]", pid=7)
    theirs = path_of(store).read_text()
    lease.beat()
    lease.release()
    assert path_of(store).read_text() == theirs
    path_of(store).unlink()
    lease.beat()
    assert not path_of(store).exists()


def test_a_hostile_name_stays_in_the_folder_of_leases(store: Store) -> None:
    lease = store.lease("../../x" + "y" * 300)
    assert lease is not None
    assert lease.path.parent == store.work / "leases"


def test_a_store_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file where leases would lie")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path).lease("x")


@pytest.mark.slow
def test_twenty_processes_racing_for_a_dead_holders_lease_give_one_holder(store: Store) -> None:
    code = """
    import json, os, random, sys, time
    from pathlib import Path
    from efficientllm import lease as leases
    from efficientllm.store import Store
    store = Store(Path(sys.argv[1]))
    winners, judge = [], leases._is_stale

    def slowly(path):  # a disk on which others can come in between
        stale = judge(path)
        time.sleep(random.uniform(0, 0.01))
        return stale

    leases._is_stale = slowly
    for race in range(10):
        stale = store.lease(f"race-{race}")
        path = stale.path
        path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "1"}))
        ready, go = os.pipe()
        told, tell = os.pipe()
        hold, drop = os.pipe()
        children = []
        for _ in range(20):
            if (child := os.fork()) == 0:
                os.close(go)
                os.close(drop)
                random.seed()
                os.read(ready, 1)
                lease = store.lease(f"race-{race}")
                os.write(tell, b"1" if lease else b"0")
                os.read(hold, 1)  # live until everybody has tried
                os._exit(0)
            children.append(child)
        for end in (ready, go, hold):
            os.close(end)
        answers = b""
        while len(answers) < 20:
            answers += os.read(told, 20)
        os.close(drop)
        for child in children:
            os.waitpid(child, 0)
        os.close(told)
        os.close(tell)
        winners.append(answers.count(b"1"))
    print(winners)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(store.root)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1] * 10
