"""Which code made a record: the commit, or the source itself where there is none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from efficientllm import __version__, provenance
from efficientllm.provenance import own_code, source_digest


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of one file below a root of its own."""
    folder = tmp_path / "src" / "efficientllm"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("1")
    monkeypatch.setattr(provenance, "PACKAGE", folder)
    source_digest.cache_clear()
    return folder


def git(root: Path, *words: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run(["git", "-C", str(root), *identity, *words], check=True, capture_output=True)


def test_a_checkout_names_its_commit_and_says_when_the_source_has_changed_since(
    package: Path, tmp_path: Path
) -> None:
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "x")
    commit = own_code()["commit"]
    assert len(commit) == 40
    (package / "a.py").write_text("2")
    assert own_code()["commit"] == f"{commit}-dirty"


def test_outside_a_checkout_the_digest_of_the_source_stands_alone(package: Path) -> None:
    code = own_code()
    assert code == {"efficientllm": __version__, "source": source_digest(package)}
    assert len(code["source"]) == 16


def test_the_digest_follows_names_and_contents_of_sources_and_nothing_else(package: Path) -> None:
    def digest() -> str:
        source_digest.cache_clear()
        return source_digest(package)

    first = digest()
    (package / "a.pyc").write_bytes(b"compiled")
    assert digest() == first
    (package / "a.py").write_text("2")
    changed = digest()
    assert changed != first
    (package / "a.py").rename(package / "b.py")
    assert digest() not in (first, changed)


def test_a_folder_that_is_no_repository_has_no_commit(tmp_path: Path) -> None:
    assert provenance._git(tmp_path / "nowhere", "rev-parse", "HEAD") == ""
