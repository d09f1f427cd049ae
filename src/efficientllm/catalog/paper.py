"""Published numbers of the paper (arXiv 2505.13840), each with how far it can be trusted.

They were recovered second-hand and from figures, so a number without its mark does not
exist here: the type holds both, and `paper.yaml` says what the marks mean. Nothing in it
was measured by this program.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from efficientllm.catalog.shape import read_catalog

Mark = Literal["A", "F", "E", "C", "S"]
Quantity = Literal["ppl", "amu", "al", "tt", "aec"]
Axis = Literal["attention", "position"]

_WRITTEN = re.compile(r"(~?\d+(?:\.\d+)?(?:e-?\d+)?) ([A-Z])")


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Number(_Fact):
    """A number as it was published, with its mark; or the reason why there is none."""

    written: str = ""
    mark: Mark | None = None
    note: str = ""
    missing: str = ""

    @model_validator(mode="after")
    def _marked_or_missing(self) -> Number:
        if bool(self.written) == bool(self.missing) or bool(self.written) != bool(self.mark):
            raise ValueError("a number needs its mark, and a missing one its reason")
        return self

    @property
    def value(self) -> float | None:
        """The number alone; None where it is missing."""
        return float(self.written.lstrip("~")) if self.written else None

    def __str__(self) -> str:
        return f"{self.written} {self.mark}" if self.written else "-"


def _number(value: Any) -> Any:
    """`8.23 A`, `{is: 8.23 A, note: ...}`, or `{missing: why}`."""
    if isinstance(value, dict) and "is" in value:
        rest = {key: part for key, part in value.items() if key != "is"}
        return {**_number(value["is"]), **rest}
    if not isinstance(value, str):
        return value
    found = _WRITTEN.fullmatch(value)
    if found is None:
        raise ValueError(f"needs a number and its mark, as in `8.23 A` (got {value!r:.40})")
    return {"written": found[1], "mark": found[2]}


Marked = Annotated[Number, BeforeValidator(_number)]


class Meaning(_Fact):
    """What a mark means, and how far off its numbers may be."""

    meaning: str
    error: float = 0.0
    relative_error: float = 0.0


class Unit(_Fact):
    """A quantity's symbol and unit in the paper."""

    symbol: str
    unit: str


class Doubt(_Fact):
    """What speaks against a quantity; `impossible` values are shown and never compared."""

    text: str
    impossible: bool = False


class Variant(_Fact):
    """One row of a table: its numbers, and what the authors' figure draws for them."""

    numbers: dict[Quantity, Marked]
    figure: dict[Quantity, Marked]


class Table(_Fact):
    """One table: rows by size and by our name of the variant, ranks of the site by variant."""

    table: int
    axis: Axis
    names: dict[str, str]
    notes: dict[str, str]
    ranks: dict[str, dict[Quantity, Marked]]
    sizes: dict[str, dict[str, Variant]]


class Cards(_Fact):
    """The cards that the paper's pretraining ran on."""

    device: str
    count: int


class Setting(_Fact):
    """Tokens of a sequence, and sequences of a step on one card at each size."""

    sequence_length: Marked
    micro_batch: dict[str, Marked]


class Paper(_Fact):
    """Everything that `paper.yaml` holds."""

    source: str
    machine: Cards
    marks: dict[Mark, Meaning]
    setting: Setting
    quantities: dict[Quantity, Unit]
    doubts: dict[Quantity, Doubt]
    tables: tuple[Table, ...]


@cache
def paper() -> Paper:
    """The paper's numbers."""
    return Paper.model_validate(read_catalog("paper.yaml"))
