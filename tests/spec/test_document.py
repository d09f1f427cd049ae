"""Hostile and surprising YAML: read as YAML 1.2 means it, or refused at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from efficientllm.spec.document import MAX_BYTES, SpecError, parse, read, scalar

CPU_SECONDS = 3.0
"""Refusing takes 0.5 s at most on a free core; three times that and more is a bug."""


@pytest.fixture(autouse=True)
def _cheap() -> Iterator[None]:
    """Seconds of this process, which neighbors on the machine hardly change."""
    start = time.process_time()
    yield
    assert time.process_time() - start < CPU_SECONDS


def refusal(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse(text, "study.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),  # YAML 1.1: a string
        ("3.0e-3", 3e-3),
        (".5", 0.5),
        ("010", 10),  # YAML 1.1: 8
        ("-7", -7),
        ("no", "no"),  # YAML 1.1: false
        ("off", "off"),
        ("12:30", "12:30"),  # YAML 1.1: 750
        ("2024-01-01", "2024-01-01"),  # YAML 1.1: a date
        ("1_000", "1_000"),  # YAML 1.1: 1000
        ("0x10", "0x10"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("inf", "inf"),
        ("nan", "nan"),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", [".nan", ".NaN", ".inf", "-.inf", "+.INF"])
def test_values_that_are_not_finite_are_refused_with_their_key(text: str) -> None:
    assert refusal(f"a:\n  lr: {text}\n").startswith("study.yaml:2: a.lr: ")


def test_a_number_too_large_for_a_float_stays_visible_as_one() -> None:
    assert scalar("1e999") == float("inf")  # finite fields refuse it (see test_suite)


def test_an_integer_of_absurd_length_is_refused() -> None:
    assert "more than 40 digits" in refusal("a: " + "9" * 5000)


def test_quoted_scalars_are_always_text() -> None:
    assert parse("a: '1'\nb: \"null\"\nc: |\n  3\n", "s")[0].value == {
        "a": "1",
        "b": "null",
        "c": "3\n",
    }


def test_every_value_knows_its_line() -> None:
    lines = parse("a:\n  b: [1,\n      2]\nc: 3\n", "s")[0].lines
    assert (lines[("a",)], lines[("a", "b")]) == (1, 2)
    assert (lines[("a", "b", 0)], lines[("a", "b", 1)], lines[("c",)]) == (2, 3, 4)


def test_several_documents_keep_lines_of_the_file() -> None:
    first, second = parse("a: 1\n---\nb: 2\n", "s")
    assert first.lines[("a",)] == 1
    assert second.lines[("b",)] == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a:\n\tb: 1\n", "study.yaml:2: indented with a tab"),
        ("a: {b: 1,\n\tc: 2}\n", "study.yaml:2: indented with a tab"),
        ("a:\tb\tc: 1\n", "study.yaml:1: not YAML"),
        ("a: 1\nb: 2\na: 3\n", "study.yaml:3: a stands here and on line 1"),
        ("a:\n  b: 1\n  b: 1\n", "study.yaml:3: b stands here and on line 2"),
        ("a: 1\nb: &x [1]\n", "study.yaml:2: anchors and aliases"),
        ("a: *x\n", "study.yaml:1: anchors and aliases"),
        ("a: !!python/object/apply:os.system [id]\n", "study.yaml:1: tags such as"),
        ("a: !!str 1\n", "study.yaml:1: tags such as"),
        ("a: !own {}\n", "study.yaml:1: tags such as"),
        ("\ufeffa: 1\n", "study.yaml:1: starts with a byte-order mark"),
        ("a: 1\nb: \x00\n", "study.yaml:2: not YAML: U+0000"),
        ("a: 1\nb: \x1b[31m\n", "study.yaml:2: not YAML: U+001B"),
        ("a: [1, 2\nb: 3\n", "study.yaml:2: not YAML"),
        ("? [1, 2]\n: 3\n", "study.yaml:1: a key must be a word"),
    ],
)
def test_what_a_study_must_not_contain_is_refused_with_its_line(text: str, says: str) -> None:
    assert refusal(text).startswith(says)


def test_python_tags_run_nothing(tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    refusal(f"a: !!python/object/apply:pathlib.Path.touch [{payload}]\n")
    assert not payload.exists()


def test_a_bomb_of_aliases_is_refused_before_it_grows() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for name, before in zip("bcdefghi", "abcdefgh", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    assert "anchors and aliases" in refusal("\n".join(lines))


@pytest.mark.parametrize("unit", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_refused_before_the_stack_is_gone(unit: str) -> None:
    assert "nested more than 32 deep" in refusal(unit * (MAX_BYTES // len(unit)))


@pytest.mark.parametrize(
    "text",
    ["".join(f"k{i}: 1\n" for i in range(20_001)), "---\na\n" * 20_001],
    ids=["keys", "documents"],
)
def test_more_values_than_anybody_reads_are_refused(text: str) -> None:
    assert "divide the file" in refusal(text)


def test_a_file_of_100_megabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(SpecError, match=r"big\.yaml: 104857600 bytes; a suite has at most"):
        read(path)


@pytest.mark.parametrize(
    "content", ["a: é".encode("latin-1"), "a: 1".encode("utf-16")], ids=["latin-1", "utf-16"]
)
def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match="not UTF-8"):
        read(path)


def test_a_missing_file_a_folder_and_a_device_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nothing\.yaml: cannot be read \(No such file"):
        read(tmp_path / "nothing.yaml")
    with pytest.raises(SpecError, match="not a file"):
        read(tmp_path)
    endless = tmp_path / "endless.yaml"
    endless.symlink_to("/dev/zero")
    with pytest.raises(SpecError, match="not a file"):
        read(endless)
