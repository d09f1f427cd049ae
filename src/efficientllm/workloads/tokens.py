"""From documents to one stream of tokens: which documents, in which sequence, as numbers.

The seed draws documents until there are as many tokens as will be asked for, so variants
with the same tokenizer, seed and budget read the same tokens in the same order, whatever
their model is. Where the corpus has a sequence of its own, the documents that were drawn
are put into it. Tokenizing is what takes the time: it works on several megabytes at once,
on all cores, and is kept on disk for the next trial.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tokenizers

from efficientllm.workloads.kept import Numbers, kept
from efficientllm.workloads.text import Corpus
from efficientllm.workloads.vocabulary import Vocabulary

_CHUNK_BYTES = 1 << 18
_AHEAD_BYTES = 1 << 23
_BYTES_PER_TOKEN = 3
"""Fewer than text has, so that hardly anything is tokenized in vain."""

REVISION = 1
"""Raised when the same corpus, tokenizer and seed come to give other tokens."""


def joined_tokens(
    corpus: Corpus, vocabulary: Vocabulary, *, seed: int, needed: int, cache: Path | None
) -> Numbers:
    """Documents joined end to end, each closed by the end token [tokens], uint32.

    More than `needed` tokens where the text has them, else all of it.
    """
    key = [REVISION, corpus.sha256, corpus.selected, vocabulary.sha256, vocabulary.end]
    key += [seed, needed, tokenizers.__version__, np.__version__]
    return kept(cache, "tokens", key, lambda: _joined(corpus, vocabulary, seed, needed))


def _joined(corpus: Corpus, vocabulary: Vocabulary, seed: int, needed: int) -> Numbers:
    numbers: list[int] = []
    pieces: list[Numbers] = []
    total = 0
    for chunk in _encoded(corpus, vocabulary, seed, needed):
        for number, ids in chunk:
            # A sequence is cut where the budget ends; it would not be reached to its end.
            if corpus.rank is not None and total > needed:
                break
            numbers.append(number)
            pieces.append(np.array([*ids, vocabulary.end], dtype=np.uint32))
            total += len(pieces[-1])
        if total > needed:
            break
    return np.concatenate([pieces[i] for i in in_sequence(corpus, numbers)])


def in_sequence(corpus: Corpus, numbers: list[int]) -> list[int]:
    """The places of drawn documents in the sequence that their corpus wants them in."""
    if corpus.rank is None:
        return list(range(len(numbers)))
    return [int(i) for i in np.argsort(corpus.rank[numbers], kind="stable")]


def _encoded(
    corpus: Corpus, vocabulary: Vocabulary, seed: int, needed: int
) -> Iterator[list[tuple[int, list[int]]]]:
    """The chunks that the seed draws, with the tokens of their documents."""
    chunks, left = chunks_of(corpus, seed), needed
    while True:
        ahead: list[list[int]] = []
        size = 0
        while size < max(1, min(_AHEAD_BYTES, left * _BYTES_PER_TOKEN)):
            chunk = next(chunks, None)
            if chunk is None:
                break
            ahead.append(chunk)
            size += sum(len(corpus.documents[i].text) for i in chunk)
        if not ahead:
            return
        texts = [corpus.documents[i].prompt + corpus.documents[i].text for c in ahead for i in c]
        encoded = iter(vocabulary.encode(texts))
        for chunk in ahead:
            tokens = [(number, next(encoded)) for number in chunk]
            left -= sum(len(ids) + 1 for _, ids in tokens)
            yield tokens


def chunks_of(corpus: Corpus, seed: int) -> Iterator[list[int]]:
    """Numbers of documents in an order drawn from the seed, about 256 KB at a time."""
    chunk: list[int] = []
    size = 0
    for number in np.random.default_rng(seed).permutation(len(corpus.documents)):
        chunk.append(int(number))
        size += len(corpus.documents[number].text)
        if size > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
