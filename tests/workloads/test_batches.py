"""What a step reads: which token predicts which, who sees whom, and every count by hand."""

from __future__ import annotations

import pytest
import torch

from efficientllm.models.language_model import face
from efficientllm.record import Unsupported
from efficientllm.workloads.batches import IGNORED, Packed, Stream, prompts, split_documents
from efficientllm.workloads.text import Corpus
from tests import tiny

VOCABULARY = tiny.byte_vocabulary()
END = VOCABULARY.end


def ids(text: str) -> list[int]:
    return VOCABULARY.encode([text])[0]


def stream(corpus: Corpus, *, rows: int = 2, length: int = 5, seed: int = 0) -> Stream:
    return Stream(corpus, VOCABULARY, rows=rows, length=length, seed=seed, batches=1000)


def packed(
    corpus: Corpus, *, rows: int = 2, length: int = 12, seed: int = 0, separate: bool = False
) -> Packed:
    return Packed(
        corpus, VOCABULARY, rows=rows, length=length, seed=seed, batches=1000, separate=separate
    )


def test_stream_targets_are_the_next_tokens() -> None:
    batches = stream(tiny.corpus("abcdefghijklmnopqrstuvwxyz"))
    seen: set[tuple[int, ...]] = set()
    text = [*ids("abcdefghijklmnopqrstuvwxyz"), END]
    for index in range(3):
        batch = batches.batch(index)
        for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
            at = text.index(tokens[0])
            assert tokens == text[at : at + 5]
            assert targets == text[at + 1 : at + 6]
            seen.add(tuple(tokens))
    assert len(seen) == 5  # 27 tokens are five whole rows and a target


def test_documents_of_a_stream_are_joined_by_the_end_token() -> None:
    batch = stream(tiny.corpus("abc", "xyz"), rows=1, length=7).batch(0)
    joined = batch.tokens[0].tolist()
    assert joined in ([*ids("abc"), END, *ids("xyz")], [*ids("xyz"), END, *ids("abc")])
    assert batch.targets[0, -1] == END
    assert batch.documents is None


def test_every_row_is_visited_once_an_epoch_in_an_order_of_its_own() -> None:
    batches = stream(tiny.corpus("".join(chr(c) for c in range(33, 127)) * 2), rows=1, length=4)
    epochs = [
        [tuple(batches.batch(e * 47 + i).tokens[0].tolist()) for i in range(47)] for e in range(3)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    assert batches.batch(0).tokens[0].tolist() == list(epochs[0][0])  # and back again


def test_a_stream_is_the_same_for_the_same_seed_and_no_other() -> None:
    corpus = tiny.corpus(*(f"document number {i}" for i in range(40)))
    one, same, other = (stream(corpus, seed=s).batch(3).tokens for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_counts_of_a_stream_are_those_of_whole_causal_rows() -> None:
    counts = stream(tiny.corpus("a" * 100), rows=3, length=6).batch(0).counts
    assert counts == {
        "tokens": 18,
        "loss_tokens": 18,
        "positions": 18,
        "samples": 3,
        "pairs": 3 * 21,  # 1 + 2 + ... + 6
        "square_pairs": 3 * 36,
    }


def test_text_that_fills_no_row_says_so() -> None:
    with pytest.raises(Unsupported, match="4 tokens do not fill one sequence of 5"):
        stream(tiny.corpus("abc"))


def test_only_as_much_text_as_asked_for_is_tokenized() -> None:
    corpus = tiny.corpus(*("x" * 200_000 for _ in range(10)))
    batches = Stream(corpus, VOCABULARY, rows=2, length=100, seed=0, batches=5)
    assert len(batches._tokens) < 500_000


PAIRS = tiny.corpus(("ab", "xyz"), ("abcd", "u"), ("a", "vwxyz"))


def test_packed_rows_hold_whole_documents_that_begin_with_the_end_token() -> None:
    batch = packed(PAIRS, rows=3, length=8).batch(0)
    documents = batch.documents
    assert documents is not None
    row, begin = batch.tokens[0].tolist(), 0
    found = set()
    for length in documents.lengths:
        found.add(tuple(row[begin : begin + length]))
        begin += length
    # what is read ends before its last target, the end token
    for prompt, text in (("ab", "xyz"), ("abcd", "u"), ("a", "vwxyz")):
        assert (END, *ids(prompt), *ids(text)) in found
    assert begin == 24


def test_prompts_are_read_and_not_learned() -> None:
    batch = packed(tiny.corpus(("ab", "xyz")), rows=1, length=8).batch(0)
    assert batch.tokens[0].tolist() == [END, *ids("abxyz"), END, END]
    expected = [IGNORED, IGNORED, *ids("xyz"), END, IGNORED, IGNORED]
    assert batch.targets[0].tolist() == expected


def test_counts_of_packed_documents_leave_padding_out() -> None:
    batch = packed(PAIRS, rows=3, length=8).batch(0)
    # documents of 1 + 5, 1 + 5 and 1 + 6 positions; responses of 3, 1 and 5 and an end each
    assert batch.counts == {
        "tokens": 6 + 6 + 7,
        "loss_tokens": 4 + 2 + 6,
        "positions": 24,
        "samples": 3,
        "pairs": 21 + 21 + 28,
        "square_pairs": 36 + 36 + 49,
    }
    assert int((batch.targets != IGNORED).sum()) == 12


def test_short_documents_share_a_stretch() -> None:
    batch = packed(tiny.corpus(*(("q", "a") for _ in range(8))), rows=2, length=9).batch(0)
    documents = batch.documents
    assert documents is not None
    assert documents.lengths == (3, 3, 3, 3, 3, 3)  # three of 3 fill 9, twice
    assert batch.counts["samples"] == 6


def test_no_packed_document_sees_another() -> None:
    model = tiny.decoder()
    batch = packed(PAIRS, rows=3, length=8).batch(0)
    documents = batch.documents
    assert documents is not None
    with torch.inference_mode():
        before = face(model).hidden(batch.tokens, documents)[0]
        changed = batch.tokens.clone()
        first = documents.lengths[0]
        changed[0, :first] = (changed[0, :first] + 1) % 256
        after = face(model).hidden(changed, documents)[0]
    assert torch.equal(before[first:], after[first:])
    assert not torch.equal(before[:first], after[:first])


def test_offsets_have_one_length_whatever_lies_in_the_row() -> None:
    texts = [("q" * (1 + i % 5), "a" * (1 + i % 7)) for i in range(60)]
    batches = packed(tiny.corpus(*texts), rows=2, length=16)
    sizes = set()
    for index in range(20):
        documents = batches.batch(index).documents
        assert documents is not None
        sizes.add(len(documents.offsets))
        assert documents.offsets[len(documents.lengths)] == 32
        assert bool((documents.offsets[len(documents.lengths) :] == 32).all())
        assert sum(documents.lengths) == 32
        assert max(documents.lengths) <= documents.longest == 16
    assert len(sizes) == 1


def test_documents_longer_than_a_stretch_are_cut() -> None:
    batch = packed(tiny.corpus(("ab", "x" * 50)), rows=1, length=8).batch(0)
    assert batch.tokens[0].tolist() == [END, *ids("ab"), *ids("x") * 5]
    assert batch.targets[0].tolist() == [IGNORED, IGNORED, *ids("x") * 6]


def test_a_prompt_that_leaves_no_room_for_its_response_is_left_out() -> None:
    corpus = tiny.corpus(("p" * 8, "never learned"), ("p" * 7, "r"))
    batch = packed(corpus, rows=1, length=8).batch(0)
    assert batch.counts["samples"] == 1
    assert batch.targets[0].tolist() == [IGNORED] * 7 + ids("r")
    with pytest.raises(Unsupported, match="every prompt fills a sequence of 8 tokens"):
        packed(tiny.corpus(("p" * 8, "x"), ("p" * 20, "y")), length=8)


def test_separate_rows_hold_one_document_each() -> None:
    batch = packed(PAIRS, rows=3, length=8, separate=True).batch(0)
    assert batch.tokens.shape == (3, 8)
    assert batch.documents is None
    assert batch.counts == packed(PAIRS, rows=3, length=8).batch(0).counts
    starts = batch.tokens[:, 0].tolist()
    assert starts == [END, END, END]


def test_packed_batches_repeat_for_the_same_seed() -> None:
    corpus = tiny.corpus(*((f"question {i}", f"answer {i}") for i in range(30)))
    one, same, other = (packed(corpus, length=40, seed=s).batch(2).tokens for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_packed_row_divides_where_stretches_meet() -> None:
    texts = [("q" * (1 + i % 5), "a" * (1 + i % 7)) for i in range(40)]
    documents = packed(tiny.corpus(*texts), rows=4, length=16).batch(0).documents
    assert documents is not None
    parts = split_documents(documents, 2)
    assert [sum(part.lengths) for part in parts] == [32, 32]
    assert parts[0].lengths + parts[1].lengths == documents.lengths
    for part in parts:
        assert len(part.offsets) == len(documents.offsets)
        assert part.offsets[: len(part.lengths) + 1].diff().tolist() == list(part.lengths)
        assert part.offsets[-1] == 32
    assert split_documents(documents, 1)[0].lengths == documents.lengths


def test_prompts_are_real_text_and_the_same_for_the_same_seed() -> None:
    corpus = tiny.corpus(*(f"document number {i}, " for i in range(50)))
    one, same, other = (prompts(corpus, VOCABULARY, 3, 20, seed) for seed in (1, 1, 2))
    assert one.shape == (3, 20)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    text = VOCABULARY.tokenizer.decode(one.flatten().tolist())
    assert text.count("document number") >= 2


def test_a_short_corpus_repeats_to_fill_its_prompts() -> None:
    found = prompts(tiny.corpus("abc"), VOCABULARY, 2, 6, 0).flatten().tolist()
    assert found == ([*ids("abc"), END] * 3)
