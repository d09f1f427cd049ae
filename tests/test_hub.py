"""Datasets of the hub: by commit, no more files than the text takes, and none from a trial."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow
import pytest
from huggingface_hub import errors
from pyarrow import parquet

from efficientllm import hub
from efficientllm.fetch import fetch_suite, fetch_texts
from efficientllm.pin import pin, pin_suite
from efficientllm.record import Unsupported
from efficientllm.spec.case import Case
from efficientllm.spec.document import SpecError
from efficientllm.spec.suite import one_line_suite
from efficientllm.spec.text import Hub
from efficientllm.workloads.text import documents_of, read_corpus

COMMIT = "0123456789" * 4


class FakeHub:
    """A dataset `org/set` with files in a folder; what was asked of it, and a cable to pull."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.files, self.cache = folder, cache
        self.asked: list[str] = []
        self.connected = True

    def _ask(self, what: str) -> None:
        if not self.connected:
            raise errors.OfflineModeIsEnabled("offline")
        self.asked.append(what)

    def dataset_info(self, _: Any, name: str, **__: Any) -> Any:
        self._ask(f"commit of {name}")
        return huggingface_hub.DatasetInfo(id=name, sha=COMMIT, private=False)

    def list_repo_files(self, _: Any, name: str, **where: str) -> list[str]:
        assert where == {"repo_type": "dataset", "revision": COMMIT}
        self._ask(f"files of {name}")
        return [p.relative_to(self.files).as_posix() for p in self.files.rglob("*") if p.is_file()]

    def snapshot(self, file: str) -> Path:
        return self.cache / "datasets--org--set" / "snapshots" / COMMIT / file

    def download(self, name: str, file: str, **how: Any) -> str:
        assert (name, how["repo_type"], how["revision"]) == ("org/set", "dataset", COMMIT)
        path = self.snapshot(file)
        if not path.exists():
            if how["local_files_only"]:
                raise errors.LocalEntryNotFoundError("not in the cache")
            self._ask(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((self.files / file).read_bytes())
        return str(path)

    def cached(self, _: str, file: str, **__: Any) -> str | None:
        return str(self.snapshot(file)) if self.snapshot(file).exists() else None

    def lines(self, file: str, texts: list[str], field: str = "text") -> None:
        path = self.files / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    made = FakeHub(tmp_path / "files", tmp_path / "hub")
    for name in ("dataset_info", "list_repo_files"):
        asked: Callable[..., Any] = getattr(made, name)
        monkeypatch.setattr(
            huggingface_hub.HfApi, name, lambda self, *a, _asked=asked, **k: _asked(self, *a, **k)
        )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", made.download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", made.cached)
    return made


def spec(**changes: Any) -> Hub:
    return Hub.model_validate({"source": "org/set", "commit": COMMIT} | changes)


def case(data: Any) -> Case:
    workload = {"kind": "pretrain", "data": data}
    return Case.model_validate({"model": "backbone-tiny", "workload": workload})


def texts(of: Hub) -> set[str]:
    both = (*documents_of(of, "train")[0], *documents_of(of, "heldout")[0])
    return {document.text for document in both}


def numbered(part: str, count: int = 100) -> list[str]:
    return [f"{part} {i:06}" for i in range(count)]  # 8 bytes each for a part of one letter


# By commit


def test_a_dataset_is_pinned_to_its_commit_and_named_by_it(fake: FakeHub) -> None:
    pinned = pin(case("org/set"))
    assert isinstance(pinned.workload.data, Hub)
    assert pinned.workload.data.commit == COMMIT
    assert pin(case("hub:org/set@v1")).case_id == pinned.case_id
    assert pin(case(pinned.workload.data)).case_id == pinned.case_id
    assert fake.asked == ["commit of org/set"] * 2  # a commit that is known is not asked for


def test_quality_may_be_taken_on_a_dataset(fake: FakeHub) -> None:
    asked = {"model": "a/b@" + COMMIT, "workload": "generate", "quality": {"data": "hub:org/set"}}
    quality = pin(Case.model_validate(asked)).quality
    assert quality is not None
    assert isinstance(quality.data, Hub)
    assert quality.data.commit == COMMIT


def test_a_path_that_is_here_is_a_path(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert case("org/set").workload.data.kind == "hub"
    (tmp_path / "org" / "set").mkdir(parents=True)
    assert case("org/set").workload.data.kind == "files"
    assert case("hub:org/set").workload.data.kind == "hub"
    for path in ("texts/a.jsonl", "./org/other", "a/b/c", "folder", "~/x"):
        assert case(path).workload.data.kind == "files"


def test_a_name_that_nobody_has_says_that_it_is_no_folder_either(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Response:
        headers: dict[str, str] = {}  # noqa: RUF012
        status_code = 404
        request = type("Request", (), {"url": "https://hub/api"})()

    def nothing(*_: Any, **__: Any) -> None:
        raise errors.RepositoryNotFoundError("no", response=Response())  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", nothing)
    with pytest.raises(SpecError, match=r"no such dataset.*A folder or file of this name is not"):
        pin(case("org/typo"))


def test_a_folder_that_is_not_there_says_how_a_dataset_is_written() -> None:
    with pytest.raises(SpecError, match=r"nothing at this path; a dataset .* hub:NAME"):
        pin(case("./org/set"))


# As far as the text is needed


def test_no_more_files_are_taken_than_the_text_needs(fake: FakeHub) -> None:
    for part in "abcd":
        fake.lines(f"data/{part}.jsonl", numbered(part))
    of = spec(max_bytes=1200)  # the first file has 800
    line = hub.take(of)
    assert line == "org/set@0123456: 0.0 MiB of text from 2 of 4 files are in the hub's cache"
    assert fake.asked == ["files of org/set", "data/a.jsonl", "data/b.jsonl"]
    fake.connected = False
    assert texts(of) == {*numbered("a"), *numbered("b", 50)}
    assert texts(spec(max_bytes=800)) == set(numbered("a"))


def test_files_are_chosen_by_name_and_by_what_can_be_read(fake: FakeHub) -> None:
    fake.lines("sample/10BT/a.jsonl", numbered("a"))
    fake.lines("sample/100BT/b.jsonl", numbered("b"))
    (fake.files / "README.md").write_text("words about the data")
    (fake.files / "picture.png").write_bytes(b"")
    hub.take(spec())
    assert hub.names(spec()) == ["sample/100BT/b.jsonl", "sample/10BT/a.jsonl"]
    assert hub.names(spec(files="sample/10BT/*.jsonl")) == ["sample/10BT/a.jsonl"]
    with pytest.raises(Unsupported, match=r"none of its 4 files is called train/\* and ends in"):
        hub.names(spec(files="train/*"))


def test_parquet_is_read_in_the_columns_that_hold_text(fake: FakeHub) -> None:
    (fake.files / "data").mkdir(parents=True)
    table = pyarrow.table({"text": numbered("a"), "url": ["u"] * 100, "score": [1.0] * 100})
    parquet.write_table(table, fake.files / "data" / "a.parquet", row_group_size=10)
    hub.take(spec())
    assert texts(spec(max_bytes=160)) == set(numbered("a", 20))
    with pytest.raises(
        Unsupported,
        match=r"data/a\.parquet:1: this row has score \(double\), text \(string\), url.*; say",
    ):
        texts(spec(text_field="content", max_bytes=8))


def test_compressed_lines_are_read(fake: FakeHub) -> None:
    (fake.files / "en").mkdir(parents=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in numbered("a"))
    (fake.files / "en" / "a.json.gz").write_bytes(gzip.compress(lines.encode()))
    hub.take(spec())
    assert texts(spec()) == set(numbered("a"))
    fake.snapshot("en/a.json.gz").write_bytes(gzip.compress(lines.encode())[:-50])
    with pytest.raises(Unsupported, match=r"en/a\.json\.gz: cannot be read"):
        texts(spec())


def test_one_in_twenty_is_held_out_unless_a_file_is(fake: FakeHub) -> None:
    fake.lines("data/a.jsonl", numbered("a", 1000))
    hub.take(spec())
    held_out = read_corpus(spec(), "heldout").documents
    assert 20 < len(held_out) < 90
    fake.lines("marked/train-0.jsonl", numbered("a", 1000))
    fake.lines("marked/validation-0.jsonl", ["held out"])
    hub._note(spec()).unlink()
    of = spec(files="marked/*", max_bytes=800)  # what is held out comes first
    hub.take(of)
    assert [d.text for d in read_corpus(of, "heldout").documents] == ["held out"]
    assert len(read_corpus(of, "train").documents) == 99


# Without a network


def test_what_was_fetched_is_all_that_a_trial_needs(fake: FakeHub) -> None:
    fake.lines("a.jsonl", numbered("a"))
    suite = pin_suite(one_line_suite("pretrain", ("model=backbone-tiny", "data=org/set")))
    assert list(fetch_suite(suite))[-1].startswith("org/set@0123456: ")
    fake.connected = False
    again = pin_suite(one_line_suite("pretrain", ("model=backbone-tiny", "data=org/set")))
    assert [c.case_id for c in again.cases] == [c.case_id for c in suite.cases]
    assert list(fetch_texts(again.cases, missing=True)) == []
    assert texts(again.cases[0].workload.data) == set(numbered("a"))


def test_without_a_network_and_a_copy_the_way_out_is_named(fake: FakeHub) -> None:
    fake.lines("a.jsonl", numbered("a"))
    fake.connected = False
    says = r"efficientllm fetch pretrain data=hub:org/set, or give a local folder: data=\./FOLDER"
    with pytest.raises(SpecError, match=says):
        pin(case("org/set"))
    with pytest.raises(SpecError, match=says):
        list(fetch_texts([case(spec())], missing=True))
    with pytest.raises(Unsupported, match=says):
        read_corpus(spec(), "train")


def test_a_trial_never_downloads(fake: FakeHub) -> None:
    for part in "ab":
        fake.lines(f"{part}.jsonl", numbered(part))
    hub.take(spec(max_bytes=100))
    before = list(fake.asked)
    with pytest.raises(Unsupported, match=r"not on this disk; .* \(b\.jsonl: not in the cache\)"):
        read_corpus(spec(), "train")
    assert fake.asked == before
    assert not hub.is_here(spec())
    assert hub.is_here(spec(max_bytes=100))
    fake.snapshot("a.jsonl").unlink()
    assert not hub.is_here(spec(max_bytes=100))


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_a_damaged_note_is_made_again(fake: FakeHub, content: str) -> None:
    fake.lines("a.jsonl", numbered("a"))
    hub.take(spec())
    hub._note(spec()).write_text(content)
    assert not hub.is_here(spec())
    hub.take(spec())
    assert hub.is_here(spec())


def test_a_text_that_several_cases_read_is_fetched_once(fake: FakeHub) -> None:
    fake.lines("a.jsonl", numbered("a"))
    words = ("model=backbone-tiny", "data=org/set", "model.attention=mha,mqa", "data.dedup=near")
    suite = pin_suite(one_line_suite("pretrain", words))
    assert len(suite.cases) == 2
    assert len(list(fetch_suite(suite))) == 1


def test_the_name_of_a_revision_stays_in_its_folder(fake: FakeHub, tmp_path: Path) -> None:
    hub.keep_name("org/set@../../../outside", COMMIT, hub.DATASET)
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path.parent / "outside").exists()
