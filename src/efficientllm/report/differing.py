"""Differences in quality between trained variants, in words: one row a pair.

A difference is that of the first named from the second, so that less is better for it.
"""

from __future__ import annotations

from efficientllm.analysis.differences import Difference


def signed(found: Difference) -> str:
    """`+0.0123 [+0.0101, +0.0145]`; a dash where nothing could be subtracted."""
    if found.difference is None:
        return "\u2013"
    text = f"{found.difference:+.4f}"
    if found.low is None or found.high is None:
        return text
    return f"{text} [{found.low:+.4f}, {found.high:+.4f}]"


def briefly(found: Difference) -> str:
    """`+0.0123 \u00b10.0022`: Student's interval lies evenly about its middle."""
    if found.difference is None or found.low is None or found.high is None:
        return signed(found)
    return f"{found.difference:+.4f} \u00b1{(found.high - found.low) / 2:.4f}"


def p_value(found: Difference) -> str:
    """Holm's p-value to three places."""
    if found.p is None:
        return "\u2013"
    return "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"


def verdict(found: Difference) -> str:
    """`better`, or `undecided: one seed`."""
    return f"{found.verdict}: {found.why}" if found.why else found.verdict


def told(found: Difference) -> list[str]:
    """The cells of a pair's row."""
    return [found.b, found.a, str(found.seeds), signed(found), p_value(found), verdict(found)]
