"""Is B's quality like A's? Bits per byte on the same held-out text, document by document.

The same trained weights in two precisions differ only by what the precision does, so each
document is its own pair, and a bootstrap over documents gives the interval of the ratio of
the sums. Separately trained models differ by their seeds too, which documents cannot show:
three trainings a side decide there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from efficientllm.analysis.table import Row
from efficientllm.metrics.quality import other_text
from efficientllm.record import Scores
from efficientllm.spec.canonical import digest
from efficientllm.spec.case import Case

QUALITY_BAND = 0.005
"""Ratios of bits per byte within half a percent of one count as no difference."""

MIN_DOCUMENTS = 8
DRAWS = 4000


def same_weights(a: Case, b: Case) -> bool:
    """Whether both rows start from one and the same trained model and train it no further."""
    generating = a.stage == b.stage == "generate"
    return generating and digest(a.model) == digest(b.model)


def ratio_over_documents(a: Scores, b: Scores) -> tuple[float, float] | None:
    """95 % bootstrap interval of (sum of B's nll) / (sum of A's); None below eight documents."""
    if len(a.nll) < MIN_DOCUMENTS:
        return None
    one, two = np.asarray(a.nll), np.asarray(b.nll)
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(one), size=(DRAWS, len(one)))
    ratios = two[chosen].sum(axis=1) / one[chosen].sum(axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


class Evidence(NamedTuple):
    """What a quality verdict may rest on: a reason against any, or an interval of its own."""

    against: str = ""
    basis: str = ""
    documents: tuple[float, float] | None = None


def evidence(a: Row, b: Row) -> Evidence:
    """Same trained weights: paired over documents. Separately trained: trials are seeds."""
    one, two = a.record.scores, b.record.scores
    if one is None or two is None:
        return Evidence()
    if other := other_text(a.record, b.record):
        return Evidence(other)
    if same_weights(a.case, b.case):
        found = ratio_over_documents(one, two)
        if found is None:
            return Evidence(f"{len(one.nll)} documents; {MIN_DOCUMENTS} are needed")
        return Evidence("", "paired over documents", found)
    if a.case.stage == "generate":
        return Evidence("separately trained: compare the trainings, over three seeds")
    return Evidence()


def few_seeds(n: int) -> str:
    """Why so few seeds in common decide nothing between separately trained models."""
    if not n:
        return "no seed in common"
    return "one seed" if n == 1 else f"{n} seeds; three are needed"
