"""Held-out text: every token once, whatever the window, and in units that compare."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor, nn

from efficientllm.documents import Document
from efficientllm.models.language_model import face
from efficientllm.record import Scores, Unsupported
from efficientllm.workloads.quality import limited, score, windows_of
from efficientllm.workloads.text import Corpus
from efficientllm.workloads.vocabulary import Vocabulary
from tests import tiny

BYTES = tiny.byte_vocabulary()


class Bigram:
    """A language model by hand: log-probabilities of the next token given the current one."""

    packs_documents = False

    def __init__(self, log_p: Tensor) -> None:
        self._size = log_p.shape[0]
        self._head = nn.Linear(self._size, self._size, bias=False)
        self._head.weight = nn.Parameter(log_p.T.contiguous(), requires_grad=False)

    def hidden(self, tokens: Tensor, documents: object = None) -> Tensor:
        return nn.functional.one_hot(tokens, self._size).float()

    def head(self) -> nn.Linear:
        return self._head


def guess(vocabulary: Vocabulary, likely: dict[str, float]) -> Bigram:
    """The same distribution after every token: the named texts, and the end takes the rest."""
    p = torch.full((vocabulary.size,), 1e-30)
    for text, share in likely.items():
        (ids,) = vocabulary.encode([text])
        assert len(ids) == 1, f"{text} is not one token"
        p[ids[0]] = share
    p[vocabulary.end] = max(1e-30, 1 - sum(likely.values()))
    return Bigram(p.log().expand(vocabulary.size, -1))


def uniform(vocabulary: Vocabulary) -> Bigram:
    return Bigram(torch.zeros(vocabulary.size, vocabulary.size))


def run(
    model: object, corpus: Corpus, vocabulary: Vocabulary = BYTES, *, length: int = 16
) -> Scores:
    return score(
        model,  # type: ignore[arg-type]
        corpus,
        vocabulary,
        max_bytes=1 << 20,
        length=length,
        device=tiny.CPU,
    )


def bits_per_byte(scores: Scores) -> float:
    return sum(scores.nll) / math.log(2) / sum(scores.bytes)


@pytest.mark.parametrize("length", [2, 3, 4, 5, 8, 13, 64])
def test_every_token_is_scored_exactly_once_with_enough_before_it(length: int) -> None:
    for size in range(60):
        for prompt in (0, 1, 2, 7, 30):
            document = Document("x" * size, prompt="p" * prompt)
            first = 1 + prompt
            scored = []
            for window in windows_of(0, document, BYTES, length):
                assert 2 <= len(window.tokens) <= length
                end = (scored[-1] if scored else first - 1) + 1
                start = end - window.first_scored
                scored += range(end, start + len(window.tokens))
                # the context is the document's own beginning, or half a window
                assert start == 0 or window.first_scored == length // 2
                assert window.first_scored >= 1
            assert scored == list(range(first, first + size))


def test_windows_are_the_documents_own_tokens() -> None:
    document = Document("abcdefgh", prompt="pq")
    tokens = [BYTES.end, *BYTES.encode(["pqabcdefgh"])[0]]
    windows = windows_of(3, document, BYTES, 6)
    assert [w.document for w in windows] == [3, 3, 3]
    assert [w.tokens for w in windows] == [tokens[0:6], tokens[3:9], tokens[6:11]]
    assert [w.first_scored for w in windows] == [3, 3, 3]


def test_a_uniform_guess_costs_the_log_of_the_vocabulary_a_token() -> None:
    scores = run(uniform(BYTES), tiny.corpus("hello", "a longer document, " * 9))
    assert scores.tokens == scores.bytes == (5, 171)
    for nll, tokens in zip(scores.nll, scores.tokens, strict=True):
        assert nll == pytest.approx(tokens * math.log(257), rel=1e-6)


def test_characters_and_byte_pairs_of_equal_likelihood_have_equal_bits_per_byte() -> None:
    pairs = tiny.byte_vocabulary((("a", "b"),))
    corpus = tiny.corpus("ab" * 20, "ab" * 33, "ab")
    by_character = run(guess(BYTES, {"a": 0.5, "b": 0.5}), corpus)
    by_pair = run(guess(pairs, {"ab": 0.25}), corpus, pairs)  # (1/2)**2
    assert sum(by_character.tokens) == 2 * sum(by_pair.tokens) == 108
    assert bits_per_byte(by_character) == pytest.approx(1.0, rel=1e-6)
    assert bits_per_byte(by_pair) == pytest.approx(1.0, rel=1e-6)
    assert by_character.bytes == by_pair.bytes


def test_bytes_are_utf8_bytes_of_the_scored_text() -> None:
    scores = run(uniform(BYTES), tiny.corpus("naïve 日本", ("prompt", "é")))
    assert scores.bytes == (len("naïve 日本".encode()), 2)
    assert scores.tokens == scores.bytes  # one token a byte


@pytest.mark.parametrize("lengths", [(2, 4), (4, 8), (8, 64), (5, 7)])
def test_a_longer_context_scores_the_same_bytes(lengths: tuple[int, int]) -> None:
    generator = random.Random(0)
    corpus = tiny.corpus(*("x" * generator.randrange(1, 90) for _ in range(12)))
    short, long = (run(uniform(BYTES), corpus, length=length) for length in lengths)
    assert short.bytes == long.bytes
    assert short.tokens == long.tokens
    assert short.nll == pytest.approx(long.nll, rel=1e-6)


def test_prompts_are_context_and_cost_nothing() -> None:
    model = guess(BYTES, {"r": 0.5})
    scores = run(model, tiny.corpus(("qqqq", "rrr"), ("", "rr")))
    assert scores.tokens == (3, 2)
    assert scores.nll == pytest.approx((3 * math.log(2), 2 * math.log(2)), rel=1e-6)


def test_the_first_token_is_scored_after_the_end_of_another_document() -> None:
    log_p = torch.full((257, 257), -100.0)
    (a, b) = BYTES.encode(["ab"])[0]
    log_p[BYTES.end, a] = math.log(0.25)
    log_p[a, b] = math.log(0.5)
    log_p[:, 256] = (1 - log_p[:, :256].exp().sum(dim=1)).clamp_min(1e-30).log()
    scores = run(Bigram(log_p), tiny.corpus("ab"))
    assert scores.nll[0] == pytest.approx(math.log(4) + math.log(2), rel=1e-4)


def test_scores_are_the_log_probabilities_of_the_real_model() -> None:
    model = tiny.decoder()
    text = "the quick brown fox"
    tokens = torch.tensor([[BYTES.end, *BYTES.encode([text])[0]]])
    with torch.inference_mode():
        log_p = model(tokens).logits.double().log_softmax(-1)
    expected = -log_p[0, :-1].gather(1, tokens[0, 1:, None]).sum().item()
    scores = run(face(model), tiny.corpus(text), length=64)
    assert scores.nll[0] == pytest.approx(expected, rel=1e-5)


def test_padding_and_company_change_no_score() -> None:
    model = face(tiny.decoder())
    texts = ["short", "of middling length, this", "the longest of them by far " * 2, "x"]
    together = run(model, tiny.corpus(*texts), length=24)
    for text, nll in zip(texts, together.nll, strict=True):
        alone = run(model, tiny.corpus(text), length=24)
        assert nll == pytest.approx(alone.nll[0], rel=1e-5)


def test_a_model_that_looks_back_gains_from_a_longer_context() -> None:
    class Repeater(Bigram):
        def hidden(self, tokens: Tensor, documents: object = None) -> Tensor:
            back = torch.full_like(tokens, BYTES.end)
            back[:, 3:] = tokens[:, : tokens.shape[1] - 3]
            return nn.functional.one_hot(back, self._size).float()

    model = Repeater((torch.eye(257) * 0.9 + 0.1 / 257).log())
    costs = [
        sum(run(model, tiny.corpus("abcd" * 16), length=length).nll) for length in (4, 6, 8, 32, 80)
    ]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(costs))
    assert costs[0] > 2 * costs[-1]  # windows of 4 never show what was 4 tokens ago


def test_each_document_is_cut_to_a_fair_share() -> None:
    documents = tuple(Document("x" * 1000) for _ in range(4))
    assert [len(d.text) for d in limited(documents, 400)] == [100, 100, 100, 100]
    many = tuple(Document("x" * 1000) for _ in range(100))
    assert [len(d.text) for d in limited(many, 3200)] == [100] * 32
    short = (Document("x" * 10), Document("y" * 1000))
    assert [len(d.text) for d in limited(short, 400)] == [10, 200]


def test_a_cut_never_divides_a_character() -> None:
    (kept,) = limited((Document("日" * 10),), 10)
    assert kept.text == "日日日"


def test_what_was_scored_is_named() -> None:
    corpus = tiny.corpus("text")
    scores = run(uniform(BYTES), corpus)
    assert scores.text_sha256 == corpus.sha256
    assert scores.source == "tiny text, held out"


def test_a_model_that_gives_no_numbers_has_no_score_and_says_for_how_much() -> None:
    broken = Bigram(torch.full((BYTES.size, BYTES.size), math.nan))
    corpus = tiny.corpus("some text", "and more of it")
    with pytest.raises(Unsupported, match="the loss of 2 of 2 held-out documents is not finite"):
        run(broken, corpus, BYTES)


def test_scoring_shows_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each batch of windows, so that long text is no timeout."""
    from efficientllm.workloads import quality

    monkeypatch.setattr(quality, "LOGIT_BYTES", 1)
    signs: list[int] = []
    corpus = Corpus((Document("abcdefgh" * 8),), "0" * 64, "made up")
    score(
        uniform(BYTES),  # type: ignore[arg-type]
        corpus,
        BYTES,
        max_bytes=64,
        length=16,
        device=tiny.CPU,
        alive=lambda: signs.append(1),
    )
    assert len(signs) == 8, "15 tokens in the first window, then 8 in each, 1 in the last"
