"""A remark about a number."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["info", "warn", "invalid"]


class Flag(NamedTuple):
    """One remark: its code, how bad it is, what it concerns, and why."""

    code: str
    level: Level
    about: Literal["all", "energy", "quality"]
    text: str
