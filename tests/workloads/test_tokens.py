"""The stream of tokens: what the seed draws, in which sequence, and the same from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from efficientllm.workloads import tokens as tokens_module
from efficientllm.workloads.batches import Packed, Stream
from efficientllm.workloads.text import Corpus
from efficientllm.workloads.tokens import chunks_of, joined_tokens
from tests import tiny

VOCABULARY = tiny.byte_vocabulary()
MERGED = tiny.byte_vocabulary((("a", "b"),))
TEXTS = [f"document number {i}, " * (1 + i % 7) for i in range(60)]


def by_hand(corpus: Corpus, seed: int) -> list[int]:
    """The definition: documents in the order drawn, each closed by the end token."""
    joined: list[int] = []
    for i in np.random.default_rng(seed).permutation(len(corpus.documents)):
        joined += [*VOCABULARY.encode([corpus.documents[i].text])[0], VOCABULARY.end]
    return joined


def ranked(corpus: Corpus, rank: list[int]) -> Corpus:
    return corpus._replace(rank=np.array(rank), selected="1" * 64)


def test_the_stream_is_what_the_seed_draws() -> None:
    corpus = tiny.corpus(*TEXTS)
    for seed in (0, 1):
        found = joined_tokens(corpus, VOCABULARY, seed=seed, needed=10**9, cache=None)
        assert found.dtype == np.uint32
        assert found.tolist() == by_hand(corpus, seed)


@pytest.mark.parametrize("ahead", [1, 3000, 1 << 23])
def test_how_much_is_tokenized_at_once_changes_nothing(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "_CHUNK_BYTES", 300)
    monkeypatch.setattr(tokens_module, "_AHEAD_BYTES", ahead)
    corpus = tiny.corpus(*TEXTS)
    whole = by_hand(corpus, 0)
    for needed in (0, 1, 250, 2000):
        found = joined_tokens(corpus, VOCABULARY, seed=0, needed=needed, cache=None).tolist()
        assert found == whole[: len(found)]
        # it ends with the chunk that goes beyond what is needed
        ends = np.cumsum([sum(len(TEXTS[i]) + 1 for i in c) for c in chunks_of(corpus, 0)])
        assert len(found) == ends[np.argmax(ends > needed)]


def test_a_stream_from_disk_gives_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tiny.corpus(*TEXTS)

    def stream(cache: Path | None) -> Stream:
        return Stream(corpus, VOCABULARY, rows=3, length=16, seed=5, batches=9, cache=cache)

    plain, made = stream(None), stream(tmp_path)
    monkeypatch.setattr(tokens_module, "_joined", None)  # nothing is tokenized any more
    mapped = stream(tmp_path)
    for index in (0, 1, 8, 100):
        one, two, three = (s.batch(index) for s in (plain, made, mapped))
        assert torch.equal(one.tokens, two.tokens)
        assert torch.equal(one.tokens, three.tokens)
        assert torch.equal(one.targets, three.targets)
        assert one.counts == three.counts
    assert plain.epochs == mapped.epochs


def test_every_part_of_what_decides_the_tokens_is_in_the_name(tmp_path: Path) -> None:
    corpus = tiny.corpus(*TEXTS)
    other = tiny.corpus(*TEXTS[1:])._replace(sha256="1" * 64)
    for text, vocabulary, seed, needed in (
        (corpus, VOCABULARY, 0, 100),
        (other, VOCABULARY, 0, 100),
        (ranked(corpus, list(range(60))), VOCABULARY, 0, 100),
        (corpus, MERGED, 0, 100),
        (corpus, VOCABULARY, 1, 100),
        (corpus, VOCABULARY, 0, 101),
    ):
        fresh = joined_tokens(text, vocabulary, seed=seed, needed=needed, cache=None)
        found = joined_tokens(text, vocabulary, seed=seed, needed=needed, cache=tmp_path)
        assert np.array_equal(found, fresh)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_sequence_holds_what_the_seed_drew_and_no_more() -> None:
    corpus = ranked(tiny.corpus("aaaa", "bbbb", "cccc", "dddd"), [3, 1, 0, 2])
    found = joined_tokens(corpus, VOCABULARY, seed=0, needed=9, cache=None).tolist()
    drawn = np.random.default_rng(0).permutation(4)[:2]  # ten tokens are more than nine
    expected = []
    for letter in sorted(drawn, key=lambda i: [3, 1, 0, 2][i]):
        expected += [*VOCABULARY.encode(["abcd"[letter] * 4])[0], VOCABULARY.end]
    assert found == expected
    whole = joined_tokens(corpus, VOCABULARY, seed=1, needed=10**6, cache=None).tolist()
    assert VOCABULARY.tokenizer.decode(whole).replace("<|end|>", "") == "ccccbbbbddddaaaa"


def test_rows_of_a_sequence_come_in_sequence_in_every_epoch() -> None:
    corpus = ranked(tiny.corpus("aaa", "bbb", "ccc"), [2, 0, 1])
    stream = Stream(corpus, VOCABULARY, rows=1, length=4, seed=0, batches=6)
    letters = [VOCABULARY.tokenizer.decode(stream.batch(i).tokens[0].tolist())[0] for i in range(4)]
    assert letters == ["b", "c", "b", "c"]  # the third row lacks its last target


def test_packed_documents_follow_the_sequence_too() -> None:
    corpus = ranked(tiny.corpus(("q", "a"), ("q", "b"), ("q", "c")), [2, 0, 1])
    packed = Packed(corpus, VOCABULARY, rows=1, length=3, seed=0, batches=9, separate=True)
    letters = [VOCABULARY.tokenizer.decode([int(packed.batch(i).tokens[0, 2])]) for i in range(3)]
    assert letters == ["b", "c", "a"]


def test_epochs_are_told_where_the_text_is_used_up() -> None:
    corpus = tiny.corpus("x" * 40)  # 41 tokens: ten rows of four and a target

    def epochs(batches: int) -> float | None:
        return Stream(corpus, VOCABULARY, rows=2, length=4, seed=0, batches=batches).epochs

    assert epochs(25) == 5.0
    assert epochs(6) == 1.2
    assert epochs(5) is None
    pairs = tiny.corpus(*((f"{i}", "ab") for i in range(9)))
    packed = Packed(pairs, VOCABULARY, rows=2, length=8, seed=0, batches=10, separate=True)
    assert packed.epochs == round(20 / 9, 3)
