"""How hard a case is measured: repeats, windows, caps and the precision that ends it.

The profiles are the table of METHODOLOGY.md, section "Protocol". A protocol is no part
of a case's identity: the same work measured longer is the same work.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from efficientllm.spec.canonical import Spec

LOOKS = (3, 5, 7, 10, 14, 20)
"""Numbers of trials at which the precision is looked at; the interval pays for looking."""


class Limits(Spec):
    """What one profile asks of a trial and of a case."""

    min_trials: int
    max_trials: int
    min_units: int
    min_seconds: float
    energy_seconds: float
    cap_seconds: float
    time_half_width: float | None
    energy_half_width: float | None


PROFILES: dict[str, Limits] = {
    "smoke": Limits(
        min_trials=1,
        max_trials=1,
        min_units=5,
        min_seconds=0.0,
        energy_seconds=0.0,
        cap_seconds=20.0,
        time_half_width=None,
        energy_half_width=None,
    ),
    "quick": Limits(
        min_trials=1,
        max_trials=1,
        min_units=20,
        min_seconds=5.0,
        energy_seconds=5.0,
        cap_seconds=60.0,
        time_half_width=None,
        energy_half_width=None,
    ),
    "standard": Limits(
        min_trials=3,
        max_trials=10,
        min_units=30,
        min_seconds=10.0,
        energy_seconds=10.0,
        cap_seconds=180.0,
        time_half_width=0.02,
        energy_half_width=0.03,
    ),
    "publish": Limits(
        min_trials=5,
        max_trials=20,
        min_units=100,
        min_seconds=30.0,
        energy_seconds=30.0,
        cap_seconds=600.0,
        time_half_width=0.01,
        energy_half_width=0.02,
    ),
}


class Protocol(Spec):
    """A profile by name; `trials` fixes the number of trials instead of looking."""

    profile: Literal["smoke", "quick", "standard", "publish"] = "quick"
    trials: Annotated[int, Field(ge=1, le=100)] | None = None

    @property
    def limits(self) -> Limits:
        return PROFILES[self.profile]

    @property
    def ranked(self) -> bool:
        """Smoke runs exist to see whether something works; they are never ranked."""
        return self.profile != "smoke"

    @property
    def fresh_interpreters(self) -> bool:
        """Whether a trial gets a new interpreter instead of a fork of a prepared one."""
        return self.profile == "publish"

    def looks(self) -> tuple[int, ...]:
        """Numbers of finished trials at which a case may be found precise enough."""
        if self.trials is not None:
            return (self.trials,)
        low, high = self.limits.min_trials, self.limits.max_trials
        return tuple(n for n in LOOKS if low <= n <= high) or (low,)


def _from_name(value: Any) -> Any:
    return {"profile": value} if isinstance(value, str) else value


AnyProtocol = Annotated[Protocol, BeforeValidator(_from_name)]
