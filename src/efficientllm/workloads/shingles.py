"""Words of a text as numbers, and how alike two texts are.

A word is a run of letters, digits and other characters beyond ASCII, in lower case; its
number a polynomial of its bytes modulo 2^64, made by numpy for a whole text at once, the
same on every machine. A shingle is a sequence of five words, and the likeness of two texts
the share of their shingles that both have (Jaccard). MinHash (Broder 1997) estimates it:
the smallest of a hash over each text's shingles is equal with just that probability. With
14 bands of 8 hashes, as FineWeb has them (Penedo et al. 2024, arXiv 2406.17557), two texts
of likeness s share a band with probability 1 - (1 - s^8)^14: 0.92 at 0.8, 0.99 at 0.85,
0.05 at 0.5. What shares one is then compared exactly, so nothing is taken for alike by
chance; a few pairs just above the threshold are missed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

WORDS = 5
BANDS, ROWS = 14, 8
_BLOCK = 1024
_BASE = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: odd, with mixed bits


def _character_kinds() -> NDArray[np.uint8]:
    """For each byte the lower case of it, or 0 where it ends a word."""
    table = np.zeros(256, dtype=np.uint8)
    for byte in range(256):
        if byte >= 128 or chr(byte).isalnum():
            table[byte] = ord(chr(byte).lower()) if byte < 128 else byte
    return table


_LOWER = _character_kinds()
_FACTORS = np.random.default_rng(1997).integers(0, 1 << 63, (2, BANDS * ROWS), dtype=np.uint64)
_ODD, _ADDED = (_FACTORS[0] << np.uint64(1)) | np.uint64(1), _FACTORS[1]


def words(text: str) -> Hashes:
    """One number for each word of a text [words]."""
    letters = _LOWER[np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)]
    inside = letters != 0
    edges = np.flatnonzero(np.diff(inside, prepend=False, append=False))
    lengths = edges[1::2] - edges[::2]
    if not len(lengths):
        return np.empty(0, dtype=np.uint64)
    begins = np.cumsum(lengths) - lengths
    places = np.arange(lengths.sum()) - np.repeat(begins, lengths)
    terms = letters[inside].astype(np.uint64) * _powers(int(lengths.max()))[places]
    return _mixed(np.add.reduceat(terms, begins))


def shingles(text: str) -> Hashes:
    """The different sequences of five words, sorted; a shorter text is one sequence."""
    numbers = words(text)
    width = min(WORDS, len(numbers))
    if not width:
        return np.zeros(1, dtype=np.uint64)
    powers, count = _powers(width), len(numbers) - width + 1
    joined = sum(
        (numbers[k : k + count] * powers[k] for k in range(width)), np.zeros(count, np.uint64)
    )
    return np.unique(_mixed(joined))


def bands(of: Hashes) -> Hashes:
    """A number for each band of the MinHash signature of some shingles [BANDS]."""
    least = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(of), _BLOCK):
        hashed = of[start : start + _BLOCK, None] * _ODD + _ADDED
        least = np.minimum(least, hashed.min(axis=0))
    return _mixed((_mixed(least).reshape(BANDS, ROWS) * _powers(ROWS)).sum(axis=1))


def likeness(a: Hashes, b: Hashes) -> float:
    """The share of shingles that both have, of those that either has (Jaccard)."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def _powers(count: int) -> Hashes:
    return np.cumprod(np.full(count, _BASE), dtype=np.uint64)


def _mixed(numbers: Hashes) -> Hashes:
    """Numbers whose bits depend on every bit of the input (how splitmix64 ends)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
