"""Pinning: what a case names from outside gets the name of its content."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from efficientllm import pin as pin_module
from efficientllm.hub import MODEL, commit_of
from efficientllm.pin import pin, pin_suite
from efficientllm.spec.case import Case
from efficientllm.spec.document import SpecError
from efficientllm.spec.suite import Suite, load_suite, one_line_suite

COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def generate(model: Any, **parts: Any) -> Case:
    return Case.model_validate({"name": "g", "model": model, "workload": "generate"} | parts)


def digest(folder: Path) -> str:
    return str(getattr(pin(generate(str(folder))).model, "sha256", ""))


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[tuple[str, str | None]]:
    """A hub that answers with a commit, or raises; what it was asked for."""
    asked: list[tuple[str, str | None]] = []

    def model_info(_: Any, name: str, revision: str | None = None, **__: Any) -> Any:
        asked.append((name, revision))
        if isinstance(answer, Exception):
            raise answer
        return huggingface_hub.ModelInfo(id=name, sha=answer)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return asked


def refused(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    """An error as the hub's client raises it for a status."""

    class Request:
        url = "https://hub/api"

    class Response:
        headers: dict[str, str] = {}  # noqa: RUF012
        request = Request()
        status_code = status

    return kind("refused", response=Response())  # type: ignore[arg-type]


# Folders


def test_a_folder_is_named_by_its_content(checkpoint: Path) -> None:
    first = digest(checkpoint)
    assert len(first) == 64
    (checkpoint / "model.safetensors").write_bytes(b"Weights")
    second = digest(checkpoint)
    (checkpoint / "tokenizer.json").write_text("{}")
    third = digest(checkpoint)
    (checkpoint / "tokenizer.json").rename(checkpoint / "vocab.json")
    assert len({first, second, third, digest(checkpoint)}) == 4


def test_where_a_folder_lies_does_not_matter(checkpoint: Path) -> None:
    before = pin(generate(str(checkpoint)))
    moved = checkpoint.rename(checkpoint.with_name("elsewhere"))
    after = pin(generate(str(moved)))
    assert before.model.sha256 == after.model.sha256
    assert before.case_id == after.case_id


def test_files_that_decide_nothing_are_left_out(checkpoint: Path) -> None:
    before = digest(checkpoint)
    (checkpoint / "README.md").write_text("words")
    (checkpoint / ".cache").mkdir()
    assert digest(checkpoint) == before


def test_code_that_a_folder_brings_along_is_part_of_it(checkpoint: Path) -> None:
    before = digest(checkpoint)
    (checkpoint / "modeling.py").write_text("x = 1")
    assert digest(checkpoint) != before


def test_a_folder_of_links_is_what_they_lead_to(checkpoint: Path, tmp_path: Path) -> None:
    """The hub's cache is made of links."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in checkpoint.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert digest(snapshot) == digest(checkpoint)


def test_large_files_are_remembered_and_noticed_when_they_change(
    checkpoint: Path, tmp_path: Path
) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(b"a" * (1 << 20))
    first = digest(checkpoint)
    known = tmp_path / "cache" / "efficientllm" / "digests.json"
    assert len(json.loads(known.read_text())) == 1
    assert digest(checkpoint) == first
    weights.write_bytes(b"b" * (1 << 20))
    os.utime(weights, ns=(1, 1))
    assert digest(checkpoint) != first


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_a_damaged_memory_of_digests_costs_only_time(
    checkpoint: Path, tmp_path: Path, content: str
) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"a" * (1 << 20))
    first = digest(checkpoint)
    (tmp_path / "cache" / "efficientllm" / "digests.json").write_text(content)
    assert digest(checkpoint) == first


def test_a_place_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no checkpoint there"):
        pin(generate("./nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match=r"no checkpoint there \(no config\.json\)"):
        pin(generate(str(tmp_path / "empty")))


# Texts and tokenizers


def test_a_text_is_named_by_its_content_and_not_its_path(tmp_path: Path) -> None:
    text = tmp_path / "a" / "text.txt"
    text.parent.mkdir()
    text.write_text("some words")

    def with_text(path: Path) -> Case:
        data = {"kind": "files", "path": str(path)}
        parts = {"workload": {"kind": "generate", "data": data}, "quality": {"data": data}}
        return pin(generate("backbone-tiny", **parts))

    first = with_text(text)
    assert first.workload.data.sha256
    assert first.quality is not None
    assert first.quality.data.sha256 == first.workload.data.sha256
    moved = text.parent.rename(tmp_path / "b") / "text.txt"
    assert with_text(moved).case_id == first.case_id
    moved.write_text("other words")
    assert with_text(moved).case_id != first.case_id
    folder = with_text(moved.parent)
    (moved.parent / "more.jsonl").write_text("{}")
    assert with_text(moved.parent).case_id != folder.case_id
    with pytest.raises(SpecError, match="there is nothing at this path"):
        with_text(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    for other in (tmp_path / "empty", Path("/dev/null")):
        with pytest.raises(SpecError, match=r"no text there \(looked for \.txt"):
            with_text(other)
    with pytest.raises(SpecError, match="no text there"):
        pin(generate("backbone-tiny", workload={"kind": "generate", "data": ""}))


def test_a_named_tokenizer_is_part_of_the_case(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")

    def with_tokenizer(model: dict[str, str]) -> str:
        return pin(generate(model | {"tokenizer": str(path)})).case_id

    for model in ({"kind": "backbone", "preset": "tiny"}, {"kind": "shape", "name": "Qwen3-8B"}):
        before = with_tokenizer(model)
        path.write_text(path.read_text() + " ")
        assert with_tokenizer(model) != before
    path.unlink()
    with pytest.raises(SpecError, match="there is nothing at this path"):
        with_tokenizer({"kind": "backbone", "preset": "tiny"})


def test_a_shape_has_one_spelling_and_a_typo_is_found_before_anything_runs() -> None:
    assert pin(generate("llama-3.1-8b")).case_id == pin(generate("Llama-3.1-8B")).case_id
    with pytest.raises(SpecError, match=r"no shape 'Llama-3\.1-8C'; did you mean"):
        pin(generate("Llama-3.1-8C"))
    with pytest.raises(SpecError, match="no backbone preset"):
        pin(generate("backbone-1.6B"))
    with pytest.raises(SpecError, match="query heads do not divide"):
        pin(generate({"kind": "backbone", "attention": {"kind": "gqa", "kv_heads": 3}}))


# The hub


def test_a_revision_becomes_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, COMMIT)
    assert commit_of("a/b", MODEL) == COMMIT
    assert pin(generate("a/b@v1")).model.commit == COMMIT
    assert asked == [("a/b", None), ("a/b", "v1")]


def test_a_full_commit_is_believed_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, "f" * 40)
    assert commit_of(f"a/b@{COMMIT}", MODEL) == COMMIT
    assert pin(
        generate({"kind": "checkpoint", "source": "a/b", "commit": COMMIT})
    ).model.commit == (COMMIT)
    assert asked == []


@pytest.mark.parametrize("revision", ["z" * 40, "A" * 40])
def test_forty_letters_are_not_yet_a_commit(monkeypatch: pytest.MonkeyPatch, revision: str) -> None:
    asked = hub(monkeypatch, COMMIT)
    assert commit_of(f"a/b@{revision}", MODEL) == COMMIT
    assert asked == [("a/b", revision)]


def test_two_branches_on_one_commit_are_one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, COMMIT)
    assert pin(generate("a/b@main")).case_id == pin(generate("a/b@v1")).case_id


@pytest.mark.parametrize(
    "error",
    [
        refused(errors.GatedRepoError, 403),
        refused(errors.HfHubHTTPError, 401),
        refused(errors.HfHubHTTPError, 403),
    ],
    ids=["gated", "401", "403"],
)
def test_a_gated_model_names_the_license_page_and_the_log_in_command(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    hub(monkeypatch, error)
    with pytest.raises(SpecError) as caught:
        commit_of("meta-llama/Llama-3.1-8B", MODEL)
    assert "https://huggingface.co/meta-llama/Llama-3.1-8B" in str(caught.value)
    assert "hf auth login" in str(caught.value)


def test_a_model_and_a_revision_that_are_not_there_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub(monkeypatch, refused(errors.RepositoryNotFoundError, 404))
    with pytest.raises(SpecError, match="the hub has no such model, or not for you"):
        commit_of("a/typo", MODEL)
    hub(monkeypatch, refused(errors.RevisionNotFoundError, 404))
    with pytest.raises(SpecError, match="the hub has no revision 'v9' of it"):
        commit_of("a/b@v9", MODEL)
    hub(monkeypatch, errors.HFValidationError("no spaces"))
    with pytest.raises(SpecError, match="neither a folder nor a hub id"):
        commit_of("a b/c", MODEL)


OFFLINE = [
    errors.OfflineModeIsEnabled("offline"),
    ConnectionError("no route"),
    TimeoutError(),
    refused(errors.HfHubHTTPError, 503),
]


@pytest.mark.parametrize("error", OFFLINE, ids=lambda e: type(e).__name__)
def test_without_a_network_the_cache_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    hub(monkeypatch, error)
    refs = tmp_path / "hub" / "models--a--b" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT + "\n")
    (refs / "v1").write_text("f" * 40)
    assert commit_of("a/b", MODEL) == COMMIT
    assert commit_of("a/b@v1", MODEL) == "f" * 40


@pytest.mark.parametrize("content", [None, "", "not a commit", "\xff"])
def test_without_a_network_and_a_cache_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    hub(monkeypatch, ConnectionError("no route"))
    if content is not None:
        refs = tmp_path / "hub" / "models--a--b" / "refs"
        refs.mkdir(parents=True)
        (refs / "main").write_text(content, "latin-1")
    with pytest.raises(SpecError, match="efficientllm fetch generate model=a/b"):
        commit_of("a/b", MODEL)


def test_a_revision_cannot_read_other_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub(monkeypatch, ConnectionError("no route"))
    (tmp_path / "hub" / "models--a--b" / "refs").mkdir(parents=True)
    (tmp_path / "secret").write_text("token")
    with pytest.raises(SpecError) as caught:
        commit_of("a/b@../../../secret", MODEL)
    assert "token" not in str(caught.value)


def test_no_token_of_the_user_enters_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    hub(monkeypatch, COMMIT)
    assert "secret" not in pin(generate("a/b")).model_dump_json()


# Somebody else's code


def test_code_runs_only_when_case_and_command_line_say_so(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    asked = hub(monkeypatch, COMMIT)
    for source in (f"a/b@{COMMIT}", str(checkpoint)):
        case = generate({"kind": "checkpoint", "source": source, "allow_code": True})
        with pytest.raises(SpecError, match=r"g: model\.allow_code runs .* say --allow-code"):
            pin(case)
        assert pin(case, allow_code=True).model.allow_code
    assert asked == []


def test_the_flag_alone_allows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, COMMIT)
    assert pin(generate("a/b"), allow_code=True).model.allow_code is False


def test_a_users_own_technique_is_named_by_its_content_and_needs_the_flag(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("def apply(model): ...\n")
    case = generate("backbone-tiny", technique=f"custom:{path}:apply")
    with pytest.raises(SpecError, match="technique custom runs your Python file"):
        pin(case)
    first = pin(case, allow_code=True)
    moved = path.rename(tmp_path / "b.py")
    case = generate("backbone-tiny", technique=f"custom:{moved}:apply")
    assert pin(case, allow_code=True).case_id == first.case_id
    moved.write_text("def apply(model): pass\n")
    assert pin(case, allow_code=True).case_id != first.case_id
    moved.unlink()
    with pytest.raises(SpecError, match="there is no such file"):
        pin(case, allow_code=True)


def test_an_attention_from_a_file_is_named_by_its_content_and_needs_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.py"
    path.write_text("class MyAttention: ...\n")
    monkeypatch.chdir(tmp_path)
    case = attending("mine.py:MyAttention")
    with pytest.raises(SpecError, match="attention custom runs your Python file on"):
        pin(case)
    pinned = pin(case, allow_code=True)
    assert pinned.own_attention is not None
    assert pinned.own_attention.file == str(path)
    moved = path.rename(tmp_path / "yours.py")
    same = pin(attending("yours.py:MyAttention"), allow_code=True)
    assert same.case_id == pinned.case_id
    moved.write_text("class MyAttention: pass\n")
    assert pin(attending("yours.py:MyAttention"), allow_code=True).case_id != pinned.case_id


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, r"attention: .*mine.py: there is no such file"),
        ("class MyAttentoin: ...\n", "has no MyAttention; did you mean MyAttentoin?"),
        ("class A: ...\n\ndef f(): ...\n", "has no MyAttention; there is A, f"),
        ("class MyAttention\n", r"mine.py: is not Python \(.*line 1"),
    ],
)
def test_a_file_without_the_class_is_refused_without_running_it(
    tmp_path: Path, text: str | None, why: str
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SpecError, match=why):
        pin(attending(f"{path}:MyAttention"), allow_code=True)


def test_a_class_may_be_made_or_imported_there(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    for text in ("from x import y as MyAttention\n", "if 1:\n    MyAttention = type\n"):
        path.write_text(text)
        assert pin(attending(f"{path}:MyAttention"), allow_code=True).own_attention


def attending(what: str) -> Case:
    return generate({"kind": "backbone", "preset": "tiny", "attention": f"custom:{what}"})


# Suites


def test_children_follow_their_parents_new_ids(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words")
    path = tmp_path / "study.yaml"
    path.write_text(
        "base:\n  name: p\n  model: backbone-tiny\n"
        f"  workload: {{kind: pretrain, steps: 1, data: {text}}}\n"
        "---\nbase: {name: f, model: {kind: product, of: p}, technique: full,"
        " workload: {kind: finetune, steps: 1}}\n"
        "---\nbase: {name: g, model: {kind: product, of: f}, workload: generate}\n"
    )
    suite = load_suite(str(path))
    pinned = pin_suite(suite)
    p, f, g = pinned.cases
    assert p.case_id != suite.cases[0].case_id
    assert (f.model.parent, g.model.parent) == (p.case_id, f.case_id)
    assert [case.name for case in pinned.cases] == ["p", "f", "g"]
    for case in pinned.cases:  # no id is left over from before
        assert case.case_id == Case.model_validate(case.model_dump()).case_id
    again = pin_suite(pinned)
    assert [c.case_id for c in again.cases] == [c.case_id for c in pinned.cases]


def test_the_quickstart_needs_nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, ConnectionError("no route"))
    suite = load_suite("quickstart")
    pinned: Suite = pin_suite(suite)
    assert [c.case_id for c in pinned.cases] == [c.case_id for c in suite.cases]
    assert asked == []


def test_every_case_of_one_hub_model_gets_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, COMMIT)
    suite = pin_suite(one_line_suite("generate", ("model=a/b", "technique=bf16,int4")))
    assert {case.model.commit for case in suite.cases} == {COMMIT}
    assert len({case.case_id for case in suite.cases}) == 2


def test_what_counts_as_part_of_a_checkpoint() -> None:
    assert {".safetensors", ".json", ".py"} <= set(pin_module.CHECKPOINT_FILES)
    assert not {".bin", ".pt"} & set(pin_module.CHECKPOINT_FILES)  # pickles are never loaded
