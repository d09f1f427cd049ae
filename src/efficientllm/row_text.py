"""Which fields of a row are text: a prompt and its response, or running text.

A pair that is named is all that counts; running text that is named counts before the pairs
that are known. Numbers are an answer, but nobody's prose; truth values, dates, lists and
objects are neither. A row that holds something else where its text should be is refused, not
written out as Python would write it.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, NamedTuple

from efficientllm.spec.text import Rows

_KNOWN: tuple[tuple[str, str], ...] = (
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
)
_SHOWN = 8
"""Fields of a row that an error names."""


class NoText(ValueError):
    """Where a row's text should be is something else, or nothing."""


class RowText(NamedTuple):
    """The fields that count: pairs of prompt and response, then running text, if any."""

    pairs: tuple[tuple[str, str], ...]
    running: str | None

    @classmethod
    def of(cls, spec: Rows) -> RowText:
        if spec.prompt_field and spec.response_field:
            return cls(((spec.prompt_field, spec.response_field),), None)
        named = spec.text_field != Rows.model_fields["text_field"].default
        return cls(() if named else _KNOWN, spec.text_field)

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that counts."""
        paired = (name for pair in self.pairs for name in pair)
        prose = () if self.running is None else (self.running,)
        return tuple(dict.fromkeys((*paired, *prose)))

    def read(self, row: dict[str, Any]) -> tuple[str, str] | None:
        """Prompt ("" for running text) and text; None where all that counts is null.

        Raises NoText where there is nothing that counts, or it is neither text nor null.
        """
        for prompt, response in self.pairs:
            if prompt in row and response in row:
                first, second = _said(row[prompt]), _said(row[response])
                if first is not None and second is not None:
                    return f"{first}\n", second
        text = None if self.running is None else row.get(self.running)
        if isinstance(text, str):
            return "", text
        if not self._null(row):
            raise NoText
        return None

    def _null(self, row: dict[str, Any]) -> bool:
        """Whether a row has fields that count, and in these nothing but words and null."""
        pairs = [pair for pair in self.pairs if pair[0] in row and pair[1] in row]
        words = [row[name] for pair in pairs for name in pair]
        prose = [row[self.running]] if self.running in row else []
        odd = any(_said(x) is None and not _absent(x) for x in words)
        return bool(words or prose) and not odd and all(map(_absent, prose))

    def told(self, types: dict[str, str]) -> str:
        """What a row has, as an error says it: what counts first, and not everything of many."""
        counting = self.fields
        names = sorted(types, key=lambda name: (name not in counting, name))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return ", ".join(f"{n} ({types[n]})" for n in names[:_SHOWN]) + more or "no fields"


def types_of(row: dict[str, Any]) -> dict[str, str]:
    """The types of a row's values, as Python calls them."""
    return {name: type(value).__name__ for name, value in row.items()}


def _said(value: Any) -> str | None:
    """A prompt or a response in words; None where it is none."""
    if isinstance(value, str):
        return value
    number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    return str(value) if number and not _absent(value) else None


def _absent(value: Any) -> bool:
    """Null, or how tables say it: not a number."""
    return value is None or (isinstance(value, (float, Decimal)) and math.isnan(value))
