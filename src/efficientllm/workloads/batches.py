"""From documents to what one forward pass reads: streams, and packed documents.

Legend: B sequences, T positions. Targets are the next token; IGNORED ones give no loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from efficientllm.models.position import Documents
from efficientllm.record import Unsupported
from efficientllm.workloads.text import Corpus
from efficientllm.workloads.tokens import chunks_of, in_sequence, joined_tokens
from efficientllm.workloads.vocabulary import Vocabulary

IGNORED = -100


class Batch(NamedTuple):
    """What one forward pass reads, on the host. tokens and targets [B, T]."""

    tokens: Tensor
    targets: Tensor
    documents: Documents | None
    counts: dict[str, float]
    """Raw: tokens (no padding), those that give loss, positions computed (with padding),
    samples, causal (query, key) pairs, and the pairs without causality."""


class Batches(Protocol):
    """An endless, reproducible supply of batches."""

    def batch(self, index: int) -> Batch:
        """The batch at an index; the same for the same seed on any machine."""


class Stream:
    """Documents joined end to end and cut into rows of equal length; attention is causal
    over a whole row. The usual layout of pretraining.

    `batches` is how many will be asked for; no more text than that is tokenized. Asking
    for more starts a new epoch, in a new order unless the corpus has a sequence of its own.
    `epochs` is how often so many go through the text, None where it holds more. Tokens are
    kept in the folder `cache`.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        *,
        rows: int,
        length: int,
        seed: int,
        batches: int,
        cache: Path | None = None,
    ) -> None:
        self._rows, self._length, self._seed = rows, length, seed
        needed = batches * rows * length
        joined = joined_tokens(corpus, vocabulary, seed=seed, needed=needed, cache=cache)
        self._count = (len(joined) - 1) // length
        if self._count < 1:
            raise Unsupported(
                f"{corpus.source}: {len(joined)} tokens do not fill one sequence of {length};"
                " give more text or a shorter sequence_length"
            )
        self.epochs = _epochs(batches * rows, self._count) if len(joined) <= needed else None
        self._tokens = joined[: self._count * length + 1]
        self._in_sequence = corpus.rank is not None
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def batch(self, index: int) -> Batch:
        numbers = [self._row(index * self._rows + i) for i in range(self._rows)]
        places = np.array(numbers)[:, None] * self._length + np.arange(self._length + 1)
        rows = torch.from_numpy(self._tokens[places].astype(np.int64))
        tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        size = float(self._rows * self._length)
        return Batch(
            tokens,
            targets,
            None,
            {
                "tokens": size,
                "loss_tokens": size,
                "positions": size,
                "samples": float(self._rows),
                "pairs": self._rows * self._length * (self._length + 1) / 2,
                "square_pairs": float(self._rows * self._length**2),
            },
        )

    def _row(self, number: int) -> int:
        """Rows are visited in a new order in every epoch, or always in sequence."""
        epoch, place = divmod(number, self._count)
        if self._in_sequence:
            return place
        if self._order[0] != epoch:
            generator = np.random.default_rng((self._seed, epoch))
            self._order = (epoch, generator.permutation(self._count))
        return int(self._order[1][place])


def _epochs(asked: int, there: int) -> float:
    return round(asked / there, 3)


class Packed:
    """Whole documents laid side by side, never seeing each other.

    A batch is one row of `rows * length` positions in which each stretch of `length`
    holds whole documents and ends in padding; documents longer than a stretch are cut, and
    those whose prompt alone fills one are left out.
    `separate` gives [B, T] rows with one document each instead, for models that cannot
    keep packed documents apart. `epochs` is as in a stream.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        *,
        rows: int,
        length: int,
        seed: int,
        batches: int,
        separate: bool,
    ) -> None:
        self._rows, self._length, self._separate = rows, length, separate
        self._end = vocabulary.end
        self._examples: list[tuple[list[int], list[int]]] = []
        needed = batches * rows * length
        taken = self._read(corpus, vocabulary, seed, needed)
        if not self._examples:
            raise Unsupported(
                f"{corpus.source}: every prompt fills a sequence of {length} tokens; give a longer"
                " sequence_length"
            )
        self._stretches = list(self._fill())
        self._most = rows * (1 + max(len(stretch) for stretch in self._stretches))
        self.epochs = _epochs(batches * rows, len(self._stretches)) if taken <= needed else None

    def _read(self, corpus: Corpus, vocabulary: Vocabulary, seed: int, needed: int) -> int:
        """Tokenize until there is enough, and put it into the sequence of the corpus."""
        numbers: list[int] = []
        taken = 0
        for chunk in chunks_of(corpus, seed):
            prompts_ = vocabulary.encode([corpus.documents[i].prompt for i in chunk])
            texts = vocabulary.encode([corpus.documents[i].text for i in chunk])
            for number, p, t in zip(chunk, prompts_, texts, strict=True):
                if len(p) >= self._length:  # nothing of the response would be left to learn
                    continue
                if corpus.rank is not None and taken > needed:
                    break
                self._examples.append((p, [*t, vocabulary.end]))
                numbers.append(number)
                taken += self._length if self._separate else len(p) + len(t)
            if taken > needed:
                break
        self._examples = [self._examples[i] for i in in_sequence(corpus, numbers)]
        return taken

    def batch(self, index: int) -> Batch:
        count = len(self._stretches)
        chosen = [self._stretches[(index * self._rows + i) % count] for i in range(self._rows)]
        tokens = torch.full((self._rows, self._length), self._end, dtype=torch.long)
        targets = torch.full((self._rows, self._length), IGNORED, dtype=torch.long)
        lengths: list[int] = []
        for row, examples in enumerate(chosen):
            at = 0
            for number in examples:
                ids, goals = self._example(number)
                tokens[row, at : at + len(ids)] = torch.tensor(ids)
                targets[row, at : at + len(ids)] = torch.tensor(goals)
                lengths.append(len(ids))
                at += len(ids)
            if at < self._length and not self._separate:
                lengths.append(self._length - at)
        counts = self._counts(chosen, targets)
        if self._separate:
            return Batch(tokens, targets, None, counts)
        documents = _documents(lengths, self._most + 1, self._length)
        return Batch(tokens.view(1, -1), targets.view(1, -1), documents, counts)

    def _fill(self) -> Iterator[list[int]]:
        """Consecutive examples that fit one stretch (one example each, if separate)."""
        stretch: list[int] = []
        used = 0
        for number in range(len(self._examples)):
            size = len(self._example(number)[0])
            if stretch and (self._separate or used + size > self._length):
                yield stretch
                stretch, used = [], 0
            stretch.append(number)
            used += size
        if stretch:
            yield stretch

    def _example(self, number: int) -> tuple[list[int], list[int]]:
        """Inputs and targets of one document: the response is learned, the prompt is not."""
        prompt, text = self._examples[number]
        whole = [self._end, *prompt, *text][: self._length + 1]
        return whole[:-1], [IGNORED] * len(prompt) + whole[1 + len(prompt) :]

    def _counts(self, chosen: list[list[int]], targets: Tensor) -> dict[str, float]:
        sizes = np.array([len(self._example(n)[0]) for row in chosen for n in row], dtype=float)
        return {
            "tokens": float(sizes.sum()),
            "loss_tokens": float((targets != IGNORED).sum()),
            "positions": float(self._rows * self._length),
            "samples": float(len(sizes)),
            "pairs": float((sizes * (sizes + 1) / 2).sum()),
            "square_pairs": float((sizes**2).sum()),
        }


def _documents(lengths: list[int], size: int, longest: int) -> Documents:
    """Offsets padded to one fixed number, so that a compiled step sees one shape."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    padded = np.full(size, offsets[-1])
    padded[: len(offsets)] = offsets
    return Documents(torch.tensor(padded, dtype=torch.int32), longest, tuple(lengths))


def split_documents(documents: Documents, count: int) -> list[Documents]:
    """The documents in each of `count` equal parts of a packed row; none lies across two."""
    part = sum(documents.lengths) // count
    found: list[Documents] = []
    lengths: list[int] = []
    for length in documents.lengths:
        lengths.append(length)
        if sum(lengths) == part:
            found.append(_documents(lengths, len(documents.offsets), documents.longest))
            lengths = []
    return found


def prompts(corpus: Corpus, vocabulary: Vocabulary, rows: int, length: int, seed: int) -> Tensor:
    """Prompts [B, T] of real text, the same for the same seed; short corpora repeat."""
    needed = rows * length
    tokens: list[int] = []
    for chunk in chunks_of(corpus, seed):
        documents = [corpus.documents[i] for i in chunk]
        for ids in vocabulary.encode([d.prompt + d.text for d in documents]):
            tokens += [*ids, vocabulary.end]
        if len(tokens) >= needed:
            break
    repeated = np.resize(np.array(tokens), needed)
    return torch.tensor(repeated, dtype=torch.long).view(rows, length)
