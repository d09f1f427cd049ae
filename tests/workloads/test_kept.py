"""Arrays on disk: given back as they were made, and never one that is torn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientllm.workloads import kept as kept_module
from efficientllm.workloads.kept import Numbers, kept


class Maker:
    """Makes the same numbers, and counts how often it is asked to."""

    def __init__(self, count: int = 1000) -> None:
        self.asked = 0
        self.numbers = np.arange(count, dtype=np.uint32)[::-1] * np.uint32(4_000_037)

    def __call__(self) -> Numbers:
        self.asked += 1
        return self.numbers


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_was_made_once_is_mapped_and_not_made_again(tmp_path: Path) -> None:
    make = Maker()
    for _ in range(3):
        assert np.array_equal(kept(tmp_path, "tokens", ["a", 1], make), make.numbers)
    assert make.asked == 1
    assert isinstance(kept(tmp_path, "tokens", ["a", 1], make).base, np.memmap)
    assert only(tmp_path).name.startswith("tokens-")


@pytest.mark.parametrize("key", [["a", 2], ["b", 1], ["a"], ["a", "1"]])
def test_another_key_is_another_array(tmp_path: Path, key: list[Any]) -> None:
    first, second = Maker(), Maker(5)
    kept(tmp_path, "tokens", ["a", 1], first)
    assert len(kept(tmp_path, "tokens", key, second)) == 5
    assert len(kept(tmp_path, "places", ["a", 1], second)) == 5


def _cut(content: bytes) -> bytes:
    return content[:-1]


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes) -> bytes:
    return content[:2000] + bytes([content[2000] ^ 1]) + content[2001:]


def _zeros_at_the_end(content: bytes) -> bytes:
    return content[: -4096 // 2] + bytes(4096 // 2)


def _empty(_: bytes) -> bytes:
    return b""


def _other(_: bytes) -> bytes:
    return b"not an array at all" * 100


@pytest.mark.parametrize("damage", [_cut, _half, _flipped, _zeros_at_the_end, _empty, _other])
def test_a_torn_file_is_never_used(tmp_path: Path, damage: Any) -> None:
    make = Maker()
    kept(tmp_path, "tokens", ["a"], make)
    path = only(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert np.array_equal(kept(tmp_path, "tokens", ["a"], make), make.numbers)
    assert make.asked == 2
    assert np.array_equal(kept(tmp_path, "tokens", ["a"], make), make.numbers)
    assert make.asked == 2  # and whole again


def test_an_array_of_another_type_is_not_ours(tmp_path: Path) -> None:
    make = Maker()
    kept(tmp_path, "tokens", ["a"], make)
    np.save(only(tmp_path), np.arange(100, dtype=np.int64))
    assert np.array_equal(kept(tmp_path, "tokens", ["a"], make), make.numbers)


def test_a_write_that_fails_leaves_nothing_and_costs_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    make = Maker()
    assert np.array_equal(kept(tmp_path, "tokens", ["a"], make), make.numbers)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert len(kept(tmp_path / "file", "tokens", ["a"], make)) == 1000


def test_nothing_is_kept_without_a_folder() -> None:
    make = Maker()
    kept(None, "tokens", [], make)
    kept(None, "tokens", [], make)
    assert make.asked == 2


def test_an_empty_array_is_one_too(tmp_path: Path) -> None:
    make = Maker(0)
    assert len(kept(tmp_path, "tokens", ["a"], make)) == 0
    assert len(kept(tmp_path, "tokens", ["a"], make)) == 0
    assert make.asked == 1


def test_the_least_recently_used_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Maker()
    names = []
    for age, key in ((3, "a"), (2, "b")):
        kept(tmp_path, "tokens", [key], make)
        (new,) = set(tmp_path.iterdir()) - set(names)
        names.append(new)
        os.utime(new, (1000 - age, 1000 - age))
    kept(tmp_path, "tokens", ["a"], make)  # used again
    monkeypatch.setattr(kept_module, "KEPT_BYTES", 2 * names[0].stat().st_size)
    kept(tmp_path, "tokens", ["c"], make)
    assert names[0].exists()
    assert not names[1].exists()
    monkeypatch.setattr(kept_module, "KEPT_BYTES", 1)
    kept(tmp_path, "tokens", ["d"], make)
    assert len(list(tmp_path.iterdir())) == 1  # what was just made stays, however large
