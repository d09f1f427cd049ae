"""What of a record may leave the machine: neither a host, a user, a path nor a serial number.

Error messages carry the paths of the machine that they happened on. In what is told to
others an absolute path becomes its last component: `'/home/ada/x.json'` becomes
`'x.json'`, and a home folder, which names its user, `~`. Addresses on the web, rates as
`tok/s` and hub ids stay.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from efficientllm.analysis.table import Row
from efficientllm.metrics import View
from efficientllm.record import Examined, Outcome, PointResult, Record

_START = r"(?:file://)?(?:~\w*)?(?:/|(?<!:)//)(?!/)"
_QUOTED = re.compile(rf"(?<=[\"'])({_START}[^\"'\n]*)(?=[\"'])")
_BARE = re.compile(rf"(?:(?<![\w./~])|(?<=\s-[A-Z]))({_START}[^\s\"'`,;:()\[\]{{}}<>|]+)")
_HOME = re.compile(r"(?:file://)?(?:~\w*|/+(?:home|Users)/+[^/]+|/+root)")


_PLACES = ("tokenizer", "source")
"""Members that hold a path or the id of a hub."""


def public_record(record: Record) -> Record:
    """A record without paths: what it names by content stays, where it lay does not.

    What the source of a user's own technique or attention says stays as it was hashed.
    """
    update: dict[str, Any] = {
        "case": _names_only(record.case),
        "environment": {},
        "outcome": _public_outcome(record.outcome),
        "points": tuple(_public_point(point) for point in record.points),
        "resolved": _told(record.resolved),
        "notes": _told(record.notes),
        "declared_peak": _told(record.declared_peak),
    }
    if record.build is not None and record.build.shape is not None:
        name = str(record.build.shape.get("name", ""))  # a local checkpoint's is its folder
        shape = record.build.shape | {"name": Path(name).name if _is_path(name) else name}
        update["build"] = record.build.model_copy(update={"shape": shape})
    build = update.get("build", record.build)
    if build is not None and build.attention is not None:
        update["build"] = build.model_copy(update={"attention": _public_findings(build.attention)})
    return record.model_copy(update=update)


def _public_findings(examined: Examined) -> Examined:
    findings = tuple(
        f.model_copy(update={"seen": without_paths(f.seen)}) for f in examined.findings
    )
    return examined.model_copy(update={"findings": findings})


def public_rows(rows: list[Row]) -> list[Row]:
    """The rows as they may be told to anybody, made from public records."""
    known: dict[int, Record] = {}

    def public(view: View) -> View:
        if id(view.record) not in known:
            known[id(view.record)] = public_record(view.record)
        record, point = known[id(view.record)], _public_point(view.point)
        reference = None if view.reference is None else public(view.reference)
        return replace(view, record=record, point=point, reference=reference)

    return [Row(tuple(public(view) for view in row.views)) for row in rows]


def _public_point(point: PointResult) -> PointResult:
    """A point without paths in what it says about its end."""
    outcome, left_out = _public_outcome(point.outcome), _told(point.left_out)
    return point.model_copy(update={"outcome": outcome, "left_out": left_out})


def _public_outcome(outcome: Outcome) -> Outcome:
    return outcome.model_copy(update={"reason": without_paths(outcome.reason)})


def _told(value: Any) -> Any:
    """What was said in words, without paths; numbers and structure stay."""
    if isinstance(value, dict):
        return {key: _told(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_told(item) for item in value]
    return without_paths(value) if isinstance(value, str) else value


def _names_only(value: Any) -> Any:
    """Members that may be a path, relative ones included, reduced to their names."""
    if isinstance(value, dict):
        return {
            k: Path(v).name
            if isinstance(v, str) and (k in ("path", "file") or (k in _PLACES and _is_path(v)))
            else _names_only(v)
            for k, v in value.items()
        }
    return [_names_only(item) for item in value] if isinstance(value, list) else value


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith(("/", ".", "~")) or value.count("/") > 1)


def without_paths(text: str) -> str:
    """The text with every absolute path replaced by its last component."""
    for pattern in (_QUOTED, _BARE):  # in quotes a path may hold spaces
        text = pattern.sub(lambda found: _name(found.group()), text)
    return text


def _name(path: str) -> str:
    kept = path.rstrip("/.")
    return "~" if _HOME.fullmatch(kept) else kept.rpartition("/")[2]
