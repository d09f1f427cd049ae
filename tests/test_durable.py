"""A file stands whole, or as it was before."""

from __future__ import annotations

from pathlib import Path

import pytest

from efficientllm import durable


def test_a_disk_that_is_full_leaves_the_old_file_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "page.html"
    durable.replace(target, b"old")
    written = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        written(path, content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: .*page\.html"):
        durable.replace(target, b"new and longer")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_one_and_a_private_file_private(tmp_path: Path) -> None:
    target, link = tmp_path / "real", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to(target)
    durable.replace(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_device_is_written_to_and_not_replaced() -> None:
    durable.replace(Path("/dev/null"), b"gone")
    assert Path("/dev/null").is_char_device()
