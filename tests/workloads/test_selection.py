"""Selection: which documents go and why, in which sequence the rest is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientllm.documents import Document
from efficientllm.record import Unsupported
from efficientllm.spec.text import Files, Filter
from efficientllm.workloads import selection
from efficientllm.workloads.selection import broken_rule, rarity, select, training_text
from efficientllm.workloads.text import Corpus
from tests import tiny

LONG = " ".join(f"word{i}" for i in range(100))


def chosen(corpus: Corpus, *held_out: str, **rules: Any) -> tuple[list[str], dict[str, Any]]:
    """Texts in the sequence of their ranks, and how many documents went for which reason."""
    outside = tuple(Document(text) for text in held_out)
    found, report = select(corpus, Files.model_validate(rules), outside, None)
    texts = [document.text for document in found.documents]
    if found.rank is not None:
        texts = [text for _, text in sorted(zip(found.rank.tolist(), texts, strict=True))]
    return texts, {reason: what["documents"] for reason, what in report["dropped"].items()}


# Filters


@pytest.mark.parametrize(
    ("rule", "limit", "good", "bad"),
    [
        ("min_chars", 4, "four", "abc"),
        ("max_chars", 3, "abc", "four"),
        ("max_symbol_share", 0.1, "# and nine words more are ten as you see", "# and eight more"),
        ("max_symbol_share", 0.5, "wait ... for", "wait ..."[:4] + "... \u2026"),
        ("min_letter_share", 0.8, "a b c d 5", "a b c 4 5"),
        ("min_letter_share", 0.8, "a1 (b) c-- d's 5", ""),
        ("max_repeated_lines", 0.3, "a\nb\nc\n\n\n\na\n", "a\nb\n a"),
    ],
)
def test_each_rule_by_hand(rule: str, limit: float, good: str, bad: str) -> None:
    rules = Filter.model_validate({rule: limit})
    assert broken_rule(good, rules) == ""
    assert broken_rule(bad, rules) == rule


def test_a_document_is_counted_for_the_first_rule_that_drops_it() -> None:
    corpus = tiny.corpus("ab", "#", "fine enough", "also fine", "also fine")
    rules = {"min_chars": 2, "max_symbol_share": 0.1}
    texts, dropped = chosen(corpus, filter=rules, dedup="exact")
    assert texts == ["ab", "fine enough", "also fine"]
    assert dropped == {"min_chars": 1, "duplicate": 1}


def test_what_went_is_told_in_documents_and_bytes() -> None:
    _, report = select(tiny.corpus("ä", "abc", "abcd"), Files(filter=Filter(min_chars=3)), (), None)
    assert report == {
        "read": {"documents": 3, "bytes": 9},
        "kept": {"documents": 2, "bytes": 7},
        "dropped": {"min_chars": {"documents": 1, "bytes": 2}},
    }


def test_a_selection_that_leaves_nothing_says_why() -> None:
    with pytest.raises(Unsupported, match=r"tiny text: nothing is left .* mostly for min_chars"):
        chosen(tiny.corpus("a", "b"), filter={"min_chars": 5})


# Duplicates


def test_exact_duplicates_go_and_the_first_stays() -> None:
    corpus = tiny.corpus("one", "two", "one", ("q", "one"), "One")
    texts, dropped = chosen(corpus, dedup="exact")
    assert texts == ["one", "two", "one", "One"]  # one of them has a prompt
    assert dropped == {"duplicate": 1}


def test_what_is_held_out_is_not_trained_on() -> None:
    texts, dropped = chosen(tiny.corpus("one", "two", "two"), "two", dedup="exact")
    assert texts == ["one"]
    assert dropped == {"held_out": 2}
    assert chosen(tiny.corpus("one", "two"), "two")[0] == ["one", "two"]  # unless asked for


def test_near_duplicates_go_where_at_least_eight_tenths_are_alike() -> None:
    near = LONG + " more words"
    half = " ".join(LONG.split()[:50]) + " " + " ".join(f"other{i}" for i in range(50))
    corpus = tiny.corpus(LONG, near, half, near)
    assert chosen(corpus, dedup="near") == ([LONG, half], {"duplicate": 1, "near_duplicate": 1})
    texts, dropped = chosen(corpus, near + " still", dedup="near")
    assert texts == [half]
    assert dropped == {"duplicate": 1, "near_held_out": 2}


def test_what_shares_a_band_and_is_not_alike_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "bands", lambda _: np.zeros(14, dtype=np.uint64))
    corpus = tiny.corpus(*(f"{LONG} {i}" if i % 2 else f"text number {i}" for i in range(8)))
    texts, dropped = chosen(corpus, dedup="near")
    assert len(texts) == 5
    assert dropped == {"near_duplicate": 3}


# Order


def test_orders() -> None:
    corpus = tiny.corpus("the cat sat", "zygote", "the the the cat", "a cat")
    assert chosen(corpus)[0] == [d.text for d in corpus.documents]
    assert chosen(corpus, order="as_read")[0] == [d.text for d in corpus.documents]
    assert chosen(corpus, order="short_first")[0] == [
        "a cat",
        "zygote",
        "the cat sat",
        "the the the cat",
    ]
    # of ten words the four "the" and three "cat" are frequent
    assert chosen(corpus, order="easy_first")[0] == [
        "the the the cat",
        "the cat sat",
        "a cat",
        "zygote",
    ]


def test_rarity_by_hand() -> None:
    found = rarity([Document("a a b"), Document("a"), Document("!")])
    easy, hard = math.log(4 / 3), math.log(4 / 1)
    assert found == pytest.approx([(2 * easy + hard) / 3, easy, 0], abs=1e-6)


def test_equals_stay_as_they_were_read() -> None:
    corpus = tiny.corpus("b", "a", "c")
    assert chosen(corpus, order="short_first")[0] == ["b", "a", "c"]


# The whole of it


def test_defaults_leave_the_text_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "row {i}"}}\n' for i in range(100)))
    corpus, facts = training_text(Files(path=str(tmp_path)), None, tmp_path / "cache")
    assert facts == {"text_sha256": corpus.sha256}
    assert (corpus.rank, corpus.selected) == (None, "")
    assert not (tmp_path / "cache").exists()


def test_a_selection_names_what_it_chose_and_not_another_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "row {i}"}}\n' for i in range(100)))
    plain = training_text(Files(path=str(tmp_path)), None, None)[0]
    made = [
        training_text(Files.model_validate({"path": str(tmp_path)} | rules), None, cache)
        for cache in (tmp_path / "cache", tmp_path / "cache", None)
        for rules in ({"order": "short_first"}, {"dedup": "exact"}, {"filter": {"min_chars": 6}})
    ]
    assert {corpus.sha256 for corpus, _ in made} == {plain.sha256}
    assert len({corpus.selected for corpus, _ in made}) == 3
    for (a, told), (b, again) in zip(made, made[3:], strict=False):
        assert (a.documents, a.selected, told) == (b.documents, b.selected, again)
    assert len(list((tmp_path / "cache").glob("places-*.npy"))) == 3


def test_the_same_places_with_and_without_a_sequence_are_two_selections() -> None:
    """Their streams differ, and so must the names under which tokens are kept."""
    corpus = tiny.corpus("a", "b")
    found = [
        select(corpus, Files.model_validate(rules), (), None)[0].selected
        for rules in ({"dedup": "exact"}, {"order": "as_read"}, {"order": "short_first"})
    ]
    assert found[0] != found[1] == found[2]


def test_what_is_scored_elsewhere_is_what_is_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(
        '{"text": "a", "split": "train"}\n{"text": "b", "split": "train"}'
    )
    (tmp_path / "scored.jsonl").write_text('{"text": "b", "split": "test"}')
    spec = Files(path=str(tmp_path / "train.jsonl"), dedup="exact")
    corpus, _ = training_text(spec, Files(path=str(tmp_path / "scored.jsonl")), None)
    assert [document.text for document in corpus.documents] == ["a"]
