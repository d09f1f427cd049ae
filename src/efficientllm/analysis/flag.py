"""A remark about a number."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["info", "warn", "invalid"]


UNSOUND = frozenset({"CUSTOM_UNCHECKED", "CUSTOM_CHECK_FAILED", "POSITION_UNUSED"})
"""Codes of what does not do what its name says, or nobody has shown to."""

UNRANKED = UNSOUND | {"CUSTOM_CODE"}
"""With those of what is somebody's own: shown, and not ranked among built-in ones."""


class Flag(NamedTuple):
    """One remark: its code, how bad it is, what it concerns, and why."""

    code: str
    level: Level
    about: Literal["all", "energy", "quality"]
    text: str

    @property
    def subject(self) -> str:
        """What one example speaks for: all rows with this code, but each failed check itself."""
        return f"{self.code} {self.text}" if self.code in UNSOUND else self.code

    @property
    def bars_ranking(self) -> bool:
        """Whether a row with this remark is shown and never ranked."""
        return self.code in UNRANKED or (self.level == "invalid" and self.about == "all")
