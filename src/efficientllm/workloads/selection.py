"""Selection: which documents of a text are trained on, and in which sequence.

The paper calls it token efficiency: whether fewer, better or better ordered tokens buy the
same quality. It compares only if the held-out text stays the same, so that is never
filtered, deduplicated or reordered, and only if it is not learned: `dedup` also removes what
training and held-out text have in common.

A document that one rule drops is counted for the first that does, in the order of REASONS.
Easy is a low mean rarity of the words, -log of their share among all words that are kept
(Platanios et al. 2019, arXiv 1903.09848, who sum it; the mean leaves length to
`short_first`). Compressibility would be the other cheap measure; it falls with length,
because a compressor learns as it reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efficientllm.documents import Document
from efficientllm.record import Unsupported
from efficientllm.spec.canonical import canonical
from efficientllm.spec.text import Filter, Selected, Text
from efficientllm.workloads.kept import Numbers, kept
from efficientllm.workloads.shingles import bands, likeness, shingles, words
from efficientllm.workloads.text import Corpus, digest_of, documents_of, read_corpus

REVISION = 1
"""Raised when the same rules come to drop or order differently."""

NEAR = 0.8
"""Likeness from which on two documents are near duplicates (Lee et al. 2022, arXiv
2107.06499)."""

REASONS = (
    *("min_chars", "max_chars", "max_symbol_share", "min_letter_share", "max_repeated_lines"),
    *("duplicate", "held_out", "near_duplicate", "near_held_out"),
)
_WORD_BUCKETS = 1 << 22
_CANDIDATES = 4
"""Documents that a band remembers: enough, as what resembles the first is dropped."""

Places = NDArray[np.int32]


def training_text(
    spec: Text, scored: Text | None, cache: Path | None
) -> tuple[Corpus, dict[str, Any]]:
    """What of a text is trained on, and what to tell about it.

    `scored` is the text whose held-out part the model is scored on, the same one if None.
    The digest that is told is that of the text before selection.
    """
    corpus = read_corpus(spec, "train")
    facts: dict[str, Any] = {"text_sha256": corpus.sha256}
    if not spec.selects:
        return corpus, facts
    held_out = documents_of(scored or spec, "heldout")[0] if spec.dedup != "none" else ()
    selected, facts["selection"] = select(corpus, spec, held_out, cache)
    return selected, facts


def select(
    corpus: Corpus, spec: Selected, held_out: tuple[Document, ...], cache: Path | None
) -> tuple[Corpus, dict[str, Any]]:
    """A corpus after selection, and how many documents and bytes went for which reason.

    Raises Unsupported where nothing is left.
    """
    rules = {"filter": canonical(spec.filter), "dedup": spec.dedup, "order": spec.order}
    near_to = digest_of(held_out) if spec.dedup != "none" else ""
    key = [REVISION, corpus.sha256, near_to, rules]
    found = kept(cache, "places", key, lambda: _places(corpus.documents, spec, held_out))
    places: Places = np.asarray(found).view(np.int32)
    report = _report(corpus.documents, places)
    chosen = np.flatnonzero(places >= 0)
    if not len(chosen):
        most = max(report["dropped"].items(), key=lambda item: item[1]["documents"])[0]
        raise Unsupported(f"{corpus.source}: nothing is left to train on, mostly for {most}")
    # The same places mean another stream where the seed has the last word.
    by_seed = spec.order == "shuffled"
    selected = corpus._replace(
        documents=tuple(corpus.documents[i] for i in chosen),
        rank=None if by_seed else places[chosen],
        selected=hashlib.sha256(bytes([by_seed]) + places.tobytes()).hexdigest(),
    )
    return selected, report


def _places(
    documents: tuple[Document, ...], spec: Selected, held_out: tuple[Document, ...]
) -> Numbers:
    """For each document its place in the sequence, or -1 - the number of a reason [N]."""
    places = np.zeros(len(documents), dtype=np.int32)

    def drop(dropped: Iterable[tuple[int, str]]) -> None:
        for number, reason in dropped:
            places[number] = -1 - REASONS.index(reason)

    def left() -> list[int]:
        return [int(i) for i in np.flatnonzero(places >= 0)]

    if spec.filter != Filter():
        drop(_filtered(documents, spec.filter))
    if spec.dedup != "none":
        drop(_duplicates(documents, left(), held_out))
    if spec.dedup == "near":
        drop(_near_duplicates(documents, left(), held_out))
    chosen = left()
    sequence = np.argsort(_order_keys([documents[i] for i in chosen], spec), kind="stable")
    places[np.array(chosen, dtype=np.int64)[sequence]] = np.arange(len(chosen), dtype=np.int32)
    return places.view(np.uint32)


def _report(documents: tuple[Document, ...], places: Places) -> dict[str, Any]:
    sizes = np.array([document.size for document in documents], dtype=np.int64)

    def amount(which: NDArray[np.bool_]) -> dict[str, int]:
        return {"documents": int(which.sum()), "bytes": int(sizes[which].sum())}

    dropped = {reason: amount(places == -1 - number) for number, reason in enumerate(REASONS)}
    return {
        "read": amount(places > -1 << 30),
        "kept": amount(places >= 0),
        "dropped": {reason: what for reason, what in dropped.items() if what["documents"]},
    }


# Filters


def _filtered(documents: tuple[Document, ...], rules: Filter) -> Iterator[tuple[int, str]]:
    for number, document in enumerate(documents):
        reason = broken_rule(document.text, rules)
        if reason:
            yield number, reason


def broken_rule(text: str, rules: Filter) -> str:
    """The first rule that a text breaks, or nothing."""
    limits: list[tuple[str, Any]] = [
        ("min_chars", lambda limit: len(text) < limit),
        ("max_chars", lambda limit: len(text) > limit),
        ("max_symbol_share", lambda limit: _symbol_share(text) > limit),
        ("min_letter_share", lambda limit: _letter_share(text) < limit),
        ("max_repeated_lines", lambda limit: _repeated_lines(text) > limit),
    ]
    for name, broken in limits:
        limit = getattr(rules, name)
        if limit is not None and broken(limit):
            return name
    return ""


def _symbol_share(text: str) -> float:
    """Hash signs for each word, or ellipses, whichever are more."""
    ellipses = text.count("...") + text.count("\u2026")
    return max(text.count("#"), ellipses) / max(1, len(text.split()))


def _letter_share(text: str) -> float:
    """Words that hold a letter."""
    found = text.split()
    return sum(w.isalpha() or any(map(str.isalpha, w)) for w in found) / max(1, len(found))


def _repeated_lines(text: str) -> float:
    """Lines that stood there before; empty ones do not count."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return 1 - len(set(lines)) / max(1, len(lines))


# Duplicates


def _duplicates(
    documents: tuple[Document, ...], chosen: list[int], held_out: tuple[Document, ...]
) -> Iterator[tuple[int, str]]:
    """Documents that are equal to one that is held out, or to an earlier one."""
    outside, seen = {_name(document) for document in held_out}, set()
    for number in chosen:
        name = _name(documents[number])
        if name in outside or name in seen:
            yield number, "held_out" if name in outside else "duplicate"
        seen.add(name)


def _name(document: Document) -> bytes:
    return hashlib.sha256(_whole(document).encode("utf-8", "replace")).digest()


def _whole(document: Document) -> str:
    return document.prompt + document.text


def _near_duplicates(
    documents: tuple[Document, ...], chosen: list[int], held_out: tuple[Document, ...]
) -> Iterator[tuple[int, str]]:
    """Documents that resemble one that is held out, or an earlier one that stays."""
    every = (*held_out, *documents)

    @lru_cache(maxsize=256)
    def of(number: int) -> NDArray[np.uint64]:
        return shingles(_whole(every[number]))

    known: dict[tuple[int, int], list[int]] = {}
    for number in (*range(len(held_out)), *(len(held_out) + i for i in chosen)):
        mine = of(number)
        names = [(band, int(value)) for band, value in enumerate(bands(mine))]
        candidates = sorted({other for name in names for other in known.get(name, ())})
        like = next((other for other in candidates if likeness(mine, of(other)) >= NEAR), None)
        if like is not None and number >= len(held_out):
            reason = "near_held_out" if like < len(held_out) else "near_duplicate"
            yield number - len(held_out), reason
            continue
        for name in names:
            if len(others := known.setdefault(name, [])) < _CANDIDATES:
                others.append(number)


# Order


def _order_keys(documents: list[Document], spec: Selected) -> NDArray[np.float64]:
    """What documents are sorted by; those with equal keys stay as they were read."""
    if spec.order == "short_first":
        return np.array([document.size for document in documents], dtype=np.float64)
    if spec.order == "easy_first":
        return rarity(documents)
    return np.zeros(len(documents))


def rarity(documents: list[Document]) -> NDArray[np.float64]:
    """Mean of -log(share of the word among all words) for each document [N], in nats.

    Rounded to a millionth, so that the order is the same on every machine.
    """
    counts = np.zeros(_WORD_BUCKETS, dtype=np.int64)
    mask = np.uint64(_WORD_BUCKETS - 1)
    for document in documents:
        np.add.at(counts, (words(document.text) & mask).astype(np.int64), 1)
    total = max(1, int(counts.sum()))
    means = np.zeros(len(documents))
    for number, document in enumerate(documents):
        found = counts[(words(document.text) & mask).astype(np.int64)]
        if len(found):
            means[number] = np.mean(np.log(total) - np.log(found))
    return means.round(6)
