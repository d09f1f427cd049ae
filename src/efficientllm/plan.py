"""From a suite and a store to the trials that are still missing, in the order to run them.

A trial is missing when the store has no finished record of its case from this machine
class, this software and this way of measuring, with windows that satisfy the protocol.
Parents come before children; within one level rounds interleave, A B C A B C and not
A A B B, so that slow drift of a machine meets every case alike.

`next_round` is a pure function of suite and store. Running a suite is asking for the next
round until there is none, so resuming after a kill is nothing special, and a case that is
not yet precise enough simply appears in another round.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from efficientllm.damage import damage
from efficientllm.record import DONE, MEASURING, Machine, Record
from efficientllm.spec.canonical import digest
from efficientllm.spec.case import Case
from efficientllm.spec.model import Product
from efficientllm.spec.protocol import Limits, Protocol
from efficientllm.spec.suite import Suite
from efficientllm.store import Store

MAX_TRIES = 3
_UNSETTLED = ("idle_power_w", "epochs", "match_residual")
_IDENTITY_FREE = ("efficientllm", "commit", "source", "kernel", "python")


class Planned(NamedTuple):
    """One trial to run. `rebuild`: only to make a product's weights again, no new record."""

    case: Case
    round: int
    attempt: int
    purpose: Literal["measure", "rebuild"] = "measure"

    @property
    def seed(self) -> int:
        """Round r trains from seed r, so repeats of a training case are seeds too."""
        return self.round


class Blocked(NamedTuple):
    """A case that cannot run because its parent did not end well."""

    case: Case
    reason: str


class Round(NamedTuple):
    """What to run next, and what cannot run at all."""

    trials: tuple[Planned, ...]
    blocked: tuple[Blocked, ...]


def env_id(
    machine: Machine, software: dict[str, str], resolved: dict[str, Any], measuring: int = MEASURING
) -> str:
    """What must be equal for two records of a case to be replicates."""
    relevant = {k: v for k, v in software.items() if k not in _IDENTITY_FREE}
    # The idle power was measured; how documents fill rows, and so the epochs, is the seed's;
    # what matching left over follows from the case.
    settled = {k: v for k, v in resolved.items() if k not in _UNSETTLED}
    return digest([machine.name, relevant, settled, measuring])


class Shelf:
    """The records of a suite's cases, sorted by what they are good for here."""

    def __init__(
        self, store: Store, cases: Iterable[Case], machine: Machine, software: dict[str, str]
    ) -> None:
        self._machine, self._software, self._store = machine, software, store
        self._records: dict[str, list[Record]] = {}
        self._sound: dict[str, list[Record]] = {}
        self._files: dict[str, tuple[str, ...]] = {}
        self.refresh(cases)

    def refresh(self, cases: Iterable[Case]) -> None:
        """Read what this or another process has written since, where something has changed."""
        for case_id in {case.case_id for case in cases}:
            names = self._store.names_of(case_id)
            if self._files.get(case_id) != names:
                self._files[case_id] = names
                found = [e.record for e in self._store.of_case(case_id)]
                self._records[case_id] = found
                self._sound[case_id] = [record for record in found if not damage(record)]

    def here(self, case: Case) -> list[Record]:
        """Records of a case from this machine class, software and way of measuring."""
        return [
            record
            for record in self._sound.get(case.case_id, [])
            if record.env_id
            == env_id(self._machine, self._software, record.resolved, record.measuring)
            and record.measuring == MEASURING
            and record.machine.name == self._machine.name
        ]

    def finished(self, case: Case, protocol: Protocol) -> dict[int, Record]:
        """Rounds that are done: any outcome that a rerun would repeat, with whole windows."""
        done = {}
        for record in self.here(case):
            good = record.outcome.status in DONE
            if good and (record.outcome.status != "ok" or sufficient(record, protocol.limits)):
                done[record.trial.round] = record
        return done

    def tries(self, case: Case, round_: int) -> int:
        """Attempts at a round that failed by themselves; being told to stop is no failure."""
        return sum(
            record.trial.round == round_
            and record.outcome.status not in DONE
            and record.outcome.status != "interrupted"
            for record in self.here(case)
        )

    def next_attempt(self, case: Case, round_: int) -> int:
        """An attempt number that no file of this machine class has taken."""
        taken = [
            record.trial.attempt
            for record in self._records.get(case.case_id, [])
            if record.trial.round == round_ and record.machine.name == self._machine.name
        ]
        return max(taken, default=-1) + 1


def sufficient(record: Record, limits: Limits) -> bool:
    """Whether a record was measured at least as long as a profile asks.

    A window that the work's own budget or the cap cut short is as long as it will get, so
    a record made under the same or a longer profile counts.
    """
    made = Protocol.model_validate(record.protocol).limits
    return made.min_seconds >= limits.min_seconds and made.min_units >= limits.min_units


def next_round(
    suite: Suite,
    shelf: Shelf,
    store: Store,
    precise: Any,
    *,
    shard: tuple[int, int] = (0, 1),
) -> Round:
    """The next trials of a suite.

    `precise(records, protocol)` says whether finished records of a case reach the
    protocol's precision; it is asked only at the protocol's looks. `shard` (i, n) keeps
    every n-th case, with whatever its lineage needs.
    """
    mine = _sharded(suite, shard)
    wanted: dict[str, int] = {}
    blocked: list[Blocked] = []
    for case in mine:
        obstacle = _obstacle(case, suite, shelf)
        if obstacle:
            blocked.append(Blocked(case, obstacle))
        elif (round_ := _missing_round(case, suite.protocol, shelf, precise)) is not None:
            wanted[case.name] = round_
    if not wanted:
        return Round((), tuple(blocked))
    chosen: list[Planned] = []
    for level in _levels(mine):
        at_level = [case for case in level if case.name in wanted]
        if not at_level:
            continue
        first = min(wanted[case.name] for case in at_level)
        for case in at_level:
            if wanted[case.name] == first:
                chosen += _rebuilds(case, suite, store, chosen)
                attempt = shelf.next_attempt(case, first)
                chosen.append(Planned(case, first, attempt))
        break
    return Round(tuple(chosen), tuple(blocked))


def _missing_round(case: Case, protocol: Protocol, shelf: Shelf, precise: Any) -> int | None:
    done = shelf.finished(case, protocol)
    looks = protocol.looks()
    target = next((look for look in looks if look > len(done)), None)
    if len(done) in looks and precise(list(done.values()), protocol):
        return None
    if target is None or any(record.outcome.status != "ok" for record in done.values()):
        return None
    for round_ in range(looks[-1] + MAX_TRIES):
        if round_ not in done:
            return None if shelf.tries(case, round_) >= MAX_TRIES else round_
    return None


def _obstacle(case: Case, suite: Suite, shelf: Shelf) -> str:
    """Why a product cannot be had: its parent failed, or was given up."""
    parent = _parent(case, suite)
    if parent is None:
        return ""
    assert isinstance(case.model, Product)
    above = _obstacle(parent, suite, shelf)
    if above:
        return above
    failed = [
        record
        for record in shelf.here(parent)
        if record.trial.round == case.model.seed and record.outcome.status != "ok"
    ]
    finished = shelf.finished(parent, suite.protocol).get(case.model.seed)
    if finished is not None and finished.outcome.status != "ok":
        return f"its parent {parent.name} ended {finished.outcome.status}"
    if finished is None and len(failed) >= MAX_TRIES:
        return f"its parent {parent.name} failed {len(failed)} times ({failed[-1].outcome.status})"
    return ""


def _parent(case: Case, suite: Suite) -> Case | None:
    if not isinstance(case.model, Product):
        return None
    parent_id = case.model.parent
    return next((c for c in suite.cases if c.case_id == parent_id), None)


def _rebuilds(case: Case, suite: Suite, store: Store, already: list[Planned]) -> list[Planned]:
    """Trials that make missing weights of ancestors again, eldest first."""
    parent = _parent(case, suite)
    if parent is None:
        return []
    assert isinstance(case.model, Product)
    seed = case.model.seed
    if (store.artifact(parent.case_id, seed) / "config.json").exists():
        return []
    if any(p.case.case_id == parent.case_id and p.round == seed for p in already):
        return []
    above = _rebuilds(parent, suite, store, already)
    return [*above, Planned(parent, seed, 0, "rebuild")]


def _levels(cases: list[Case]) -> list[list[Case]]:
    """Cases by generation: those without a parent first."""
    depth: dict[str, int] = {}
    for case in cases:
        parent = case.model.parent if isinstance(case.model, Product) else ""
        depth[case.case_id] = depth.get(parent, -1) + 1 if parent else 0
    deepest = max(depth.values(), default=0)
    return [[c for c in cases if depth[c.case_id] == level] for level in range(deepest + 1)]


def _sharded(suite: Suite, shard: tuple[int, int]) -> list[Case]:
    """Every n-th case and its ancestors, in the suite's order."""
    index, count = shard
    keep = {case.case_id for i, case in enumerate(suite.cases) if i % count == index}
    for case in reversed(suite.cases):
        if case.case_id in keep and isinstance(case.model, Product):
            keep.add(case.model.parent)
    return [case for case in suite.cases if case.case_id in keep]
