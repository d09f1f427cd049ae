"""Text is read whole, told apart into training and held out, and complained about by name."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from efficientllm.content import TEXT_FILES, digest_of
from efficientllm.documents import text_files
from efficientllm.record import Unsupported
from efficientllm.spec.text import Files, StandardLibrary
from efficientllm.workloads.text import read_corpus


def texts(spec: Files | StandardLibrary, split: str = "train") -> list[str]:
    return [document.text for document in read_corpus(spec, split).documents]


def write_lines(path: Path, *rows: object) -> Files:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Files(path=str(path))


@pytest.mark.parametrize("part", ["prose", "code"])
def test_the_standard_library_reads_the_same_every_time(part: str) -> None:
    spec = StandardLibrary(part=part)
    one, again = read_corpus(spec, "train"), read_corpus(spec, "train")
    assert one.sha256 == again.sha256
    assert one.documents == again.documents
    assert sum(len(d.text) for d in one.documents) > 1_000_000


@pytest.mark.parametrize("part", ["prose", "code"])
def test_no_document_of_the_standard_library_is_on_both_sides(part: str) -> None:
    spec = StandardLibrary(part=part)
    train, heldout = set(texts(spec)), set(texts(spec, "heldout"))
    assert not train & heldout
    share = len(heldout) / (len(train) + len(heldout))
    assert 0.02 < share < 0.09  # one in twenty by digest
    assert read_corpus(spec, "train").sha256 != read_corpus(spec, "heldout").sha256


def test_prose_and_code_are_different_text() -> None:
    prose, code = (
        read_corpus(StandardLibrary(), "train"),
        read_corpus(StandardLibrary(part="code"), "train"),
    )
    assert prose.sha256 != code.sha256
    assert "def " in code.documents[0].text or "class " in code.documents[0].text


def test_a_folder_of_plain_text_is_one_document_a_file(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "notes.csv"):
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "test.txt").write_text("held out")
    assert texts(Files(path=str(tmp_path))) == ["text of a.md", "text of b.txt"]
    assert texts(Files(path=str(tmp_path)), "heldout") == ["held out"]
    assert [p.name for p in text_files(tmp_path)] == ["a.md", "b.txt", "test.txt"]


def test_each_row_of_a_jsonl_file_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_lines(path, {"text": "one", "split": "train"}, {"text": "two", "split": "train"})
    with path.open("a") as file:
        file.write("\n  \n")  # a blank line at the end is no row
    assert texts(Files(path=str(path))) == ["one", "two"]


def test_compressed_lines_read_like_plain_ones(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"row {i}", "split": "train"}) + "\n" for i in range(5000))
    (tmp_path / "rows.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    found = texts(Files(path=str(tmp_path / "rows.jsonl.zst")))
    assert found == [f"row {i}" for i in range(5000)]


def test_parquet_reads_rows_and_their_split(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["one", "two", None], "split": ["train", "test", "train"]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    spec = Files(path=str(tmp_path / "rows.parquet"))
    assert texts(spec) == ["one"]  # a null is no document, least of all the word None
    assert texts(spec, "heldout") == ["two"]


@pytest.mark.parametrize("split", ["test", "validation", "dev"])
def test_a_rows_own_split_decides(split: str, tmp_path: Path) -> None:
    spec = write_lines(
        tmp_path / "test.jsonl", {"text": "a", "split": "train"}, {"text": "b", "split": split}
    )
    assert texts(spec) == ["a"]
    assert texts(spec, "heldout") == ["b"]


@pytest.mark.parametrize("name", ["test.jsonl", "validation.jsonl", "heldout-1.jsonl"])
def test_a_file_called_test_is_held_out_and_its_neighbors_are_not(
    name: str, tmp_path: Path
) -> None:
    write_lines(tmp_path / "train.jsonl", *({"text": f"row {i}"} for i in range(60)))
    write_lines(tmp_path / name, {"text": "held out"})
    spec = Files(path=str(tmp_path))
    assert len(texts(spec)) == 60  # nothing is taken from the file for training
    assert texts(spec, "heldout") == ["held out"]


def test_without_any_mark_one_in_twenty_is_held_out_whatever_the_order(tmp_path: Path) -> None:
    rows = [{"text": f"row number {i}"} for i in range(2000)]
    forward = write_lines(tmp_path / "a.jsonl", *rows)
    backward = write_lines(tmp_path / "b.jsonl", *reversed(rows))
    held = set(texts(forward, "heldout"))
    assert held == set(texts(backward, "heldout"))
    assert 60 < len(held) < 150
    assert len(held) + len(texts(forward)) == 2000


@pytest.mark.parametrize(
    ("row", "prompt", "text"),
    [
        ({"question": "2 + 2?", "answer": "4"}, "2 + 2?\n", "4"),
        ({"prompt": "p", "completion": "c"}, "p\n", "c"),
        ({"instruction": "i", "input": "", "output": "o"}, "i\n", "o"),
        ({"text": "running"}, "", "running"),
    ],
    ids=["question", "completion", "instruction", "text"],
)
def test_common_pairs_are_known(
    row: dict[str, str], prompt: str, text: str, tmp_path: Path
) -> None:
    corpus = read_corpus(write_lines(tmp_path / "r.jsonl", row | {"split": "train"}), "train")
    assert corpus.documents[0].prompt == prompt
    assert corpus.documents[0].text == text
    assert corpus.paired == bool(prompt)


def test_named_fields_win_over_known_ones(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a", "body": "b", "head": "h", "split": "train"}
    write_lines(tmp_path / "r.jsonl", row)
    spec = Files(path=str(tmp_path / "r.jsonl"), prompt_field="head", response_field="body")
    document = read_corpus(spec, "train").documents[0]
    assert (document.prompt, document.text) == ("h\n", "b")
    spec = Files(path=str(tmp_path / "r.jsonl"), text_field="body")
    assert texts(spec) == ["b"]
    assert not read_corpus(spec, "train").paired


def test_an_answer_may_be_a_number(tmp_path: Path) -> None:
    row = {"question": "2 + 2?", "answer": 4, "split": "train"}
    (document,) = read_corpus(write_lines(tmp_path / "r.jsonl", row), "train").documents
    assert (document.prompt, document.text) == ("2 + 2?\n", "4")


@pytest.mark.parametrize(
    ("row", "prompt", "text"),
    [
        ({"question": "q", "answer": {"aliases": ["a"]}, "text": "prose"}, "", "prose"),
        ({"question": None, "answer": None, "text": "prose"}, "", "prose"),
        ({"question": "q", "answer": float("nan"), "text": "prose"}, "", "prose"),
        ({"question": "q", "answer": True, "text": "prose"}, "", "prose"),
        ({"prompt": "p", "response": None, "completion": "c"}, "p\n", "c"),
    ],
    ids=["object", "null", "not a number", "truth value", "another pair"],
)
def test_a_pair_that_holds_no_words_is_passed_over_for_what_does(
    row: dict[str, object], prompt: str, text: str, tmp_path: Path
) -> None:
    spec = write_lines(tmp_path / "r.jsonl", row | {"split": "train"})
    (document,) = read_corpus(spec, "train").documents
    assert (document.prompt, document.text) == (prompt, text)


@pytest.mark.parametrize("row", [{"question": "q", "answer": None}, {"text": None}])
def test_a_row_whose_text_is_null_is_passed_over(row: dict[str, object], tmp_path: Path) -> None:
    lines = (row | {"split": "train"}, {"text": "prose", "split": "train"})
    assert texts(write_lines(tmp_path / "r.jsonl", *lines)) == ["prose"]


@pytest.mark.parametrize("value", [12, ["a", "b"], {"role": "user"}, True])
def test_what_is_no_text_is_never_trained_on_as_if_it_were(value: object, tmp_path: Path) -> None:
    spec = write_lines(tmp_path / "r.jsonl", {"text": "prose"}, {"text": value})
    told = rf"r\.jsonl:2: this row has text \({type(value).__name__}\); say which one is text"
    with pytest.raises(Unsupported, match=told):
        texts(spec)


@pytest.mark.parametrize("text", ["prose", None])
@pytest.mark.parametrize("response", [["a"], True, ...])
def test_a_pair_that_is_named_is_never_replaced(
    response: object, text: str | None, tmp_path: Path
) -> None:
    row = {"context": "c", "text": text} | ({"gold": response} if response is not ... else {})
    write_lines(tmp_path / "r.jsonl", row)
    spec = Files(path=str(tmp_path), prompt_field="context", response_field="gold")
    with pytest.raises(Unsupported, match=r"r\.jsonl:1: this row has context \(str\)"):
        texts(spec)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": None, "text": 12},
        {"question": ["x"], "answer": None},
        {"question": True, "answer": None},
        {"question": None, "answer": None, "instruction": "i", "output": ["b"]},
    ],
)
def test_null_hides_nothing_that_is_no_text(row: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"r\.jsonl:1: this row has "):
        texts(write_lines(tmp_path / "r.jsonl", row))


def test_an_error_names_first_what_should_be_text_and_the_line(tmp_path: Path) -> None:
    rest = {f"a{i}": i for i in range(2000)}
    (tmp_path / "r.jsonl").write_text("\n[]\n" + json.dumps(rest | {"text": 12}) + "\n")
    with pytest.raises(
        Unsupported, match=r"r\.jsonl:3: this row has text \(int\).* and 1993 more;"
    ):
        texts(Files(path=str(tmp_path)))
    with pytest.raises(Unsupported, match="this row has no fields"):
        texts(write_lines(tmp_path / "r.jsonl", {}))


@pytest.mark.parametrize("field", ["prompt_field", "response_field"])
@pytest.mark.parametrize("other", [{}, {"prompt_field": "", "response_field": "b"}])
def test_half_a_pair_is_refused(field: str, other: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"name both, or neither|at least 1 character"):
        Files.model_validate({"path": "x", field: "context"} | other)


def test_plain_text_beside_rows_is_read_whatever_is_named_for_these(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("plain")
    (tmp_path / "test.txt").write_text("held out")
    write_lines(tmp_path / "train.jsonl", {"body": "row"})
    assert texts(Files(path=str(tmp_path), text_field="body")) == ["row", "plain"]


def test_rows_without_text_name_the_fields_there_are(tmp_path: Path) -> None:
    spec = write_lines(tmp_path / "rows.jsonl", {"content": "x", "id": 1})
    with pytest.raises(
        Unsupported,
        match=r"rows\.jsonl:1: this row has content \(str\), id \(int\); .*data\.text_field",
    ):
        texts(spec)


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "fine", "split": "train"}\n{"text": \n')
    with pytest.raises(Unsupported, match=r"rows\.jsonl:2: not JSON"):
        texts(Files(path=str(tmp_path / "rows.jsonl")))


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "half a \\ud800 character"}',
        b'{"text": "another \xed\xa0\x80"}',
        b'{"text": "caf\xe9"}',
        b"[" * 200_000,
    ],
    ids=["escaped surrogate", "surrogate", "latin-1", "too deep"],
)
def test_a_line_that_holds_no_text_is_named(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "\\u00e9 is fine"}\n' + line + b"\n")
    with pytest.raises(Unsupported, match=r"rows\.jsonl:2: not JSON in UTF-8"):
        texts(Files(path=str(tmp_path / "rows.jsonl")))


def test_plain_text_under_a_name_that_says_nothing_is_told_how_to_be_called(
    tmp_path: Path,
) -> None:
    (tmp_path / "afile").write_text("Plain words.\n")
    with pytest.raises(Unsupported, match=r"plain text has to be called \.txt or \.md"):
        texts(Files(path=str(tmp_path / "afile")))


def test_plain_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\u00e9 au lait".encode("latin-1"))
    with pytest.raises(Unsupported, match=r"latin\.txt: cannot be read .*utf-8.* position 3"):
        texts(Files(path=str(tmp_path)))


def test_text_that_changed_after_planning_is_not_what_the_case_names(tmp_path: Path) -> None:
    spec = write_lines(tmp_path / "rows.jsonl", {"text": "as planned", "split": "train"})
    pinned = spec.model_copy(update={"sha256": digest_of(tmp_path / "rows.jsonl", TEXT_FILES)})
    assert texts(pinned) == ["as planned"]
    write_lines(tmp_path / "rows.jsonl", {"text": "edited since", "split": "train"})
    with pytest.raises(Unsupported, match="has changed since the case was planned; run again"):
        texts(pinned)


@pytest.mark.parametrize("name", ["broken.parquet", "broken.jsonl.zst"])
def test_a_broken_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"this is neither")
    with pytest.raises(Unsupported, match=f"{name}: cannot be read"):
        texts(Files(path=str(tmp_path / name)))


def test_a_folder_without_text_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(Unsupported, match=r"no text there \(looked for \.txt, \.md, \.jsonl"):
        texts(Files(path=str(tmp_path)))


def test_a_side_without_documents_says_which(tmp_path: Path) -> None:
    spec = write_lines(tmp_path / "rows.jsonl", {"text": "a", "split": "train"})
    with pytest.raises(Unsupported, match="no heldout documents"):
        texts(spec, "heldout")


def test_the_digest_follows_what_was_read(tmp_path: Path) -> None:
    one = write_lines(tmp_path / "a.jsonl", {"text": "ab", "split": "train"})
    same = write_lines(tmp_path / "b.jsonl", {"text": "ab", "split": "train"})
    other = write_lines(tmp_path / "c.jsonl", {"text": "ac", "split": "train"})
    assert read_corpus(one, "train").sha256 == read_corpus(same, "train").sha256
    assert read_corpus(one, "train").sha256 != read_corpus(other, "train").sha256
