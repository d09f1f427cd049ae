"""Words and shingles: equal where the words are, and likeness as counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from efficientllm.workloads.shingles import BANDS, bands, likeness, shingles, words


def test_a_word_is_a_run_of_letters_and_digits_in_any_case() -> None:
    one, two, three = words("Hello, hello WORLD"), words("hello"), words("  world!\n")
    assert len(one) == 3
    assert one[0] == one[1] == two[0]
    assert one[2] == three[0]
    assert len(set(words("ab ba a b aab naïve naive 日本").tolist())) == 8
    assert len(words("")) == len(words(" ...\n")) == 0


def test_numbers_are_the_same_on_every_machine() -> None:
    """From the definition, with Python's integers: the byte times the base, mixed."""
    assert words("a").tolist() == words("-A-").tolist() == [0x64952424897B2307]


def test_likeness_is_the_share_of_sequences_of_five_words() -> None:
    text = "one two three four five six seven"
    assert len(shingles(text)) == 3
    assert likeness(shingles(text), shingles(text.upper())) == 1
    # two of the three stay, and one comes on each side
    assert likeness(shingles(text), shingles("zero " + text.removesuffix(" seven"))) == 2 / 4
    assert likeness(shingles(text), shingles("something else altogether stands here")) == 0
    assert len(shingles("too short")) == len(shingles("")) == 1
    assert likeness(shingles("too short"), shingles("short too")) == 0


def test_a_sequence_that_repeats_counts_once() -> None:
    assert len(shingles("a b c d e " * 10)) == 5


@pytest.mark.parametrize(
    ("alike", "low", "high"), [(0.95, 0.99, 1.0), (0.8, 0.8, 1.0), (0.3, 0.0, 0.05)]
)
def test_texts_share_a_band_as_often_as_the_formula_says(
    alike: float, low: float, high: float
) -> None:
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        numbers = generator.integers(0, 1 << 63, 600, dtype=np.uint64)
        common = round(300 * 2 * alike / (1 + alike))  # of 300 each
        one, two = numbers[:300], np.r_[numbers[:common], numbers[300 : 600 - common]]
        assert likeness(one, two) == pytest.approx(alike, abs=0.01)
        found += bool((bands(one) == bands(two)).any())
    assert low <= found / 200 <= high
    assert bands(one).shape == (BANDS,)


def test_the_signature_does_not_depend_on_how_much_is_hashed_at_once() -> None:
    numbers = np.random.default_rng(0).integers(0, 1 << 63, 5000, dtype=np.uint64)
    assert (bands(numbers) == bands(numbers[::-1])).all()
