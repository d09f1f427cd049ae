"""Records as files: sealed with their own digest.

On disk a record is one JSON object whose last member is the SHA-256 of everything
before it. A file that is cut short anywhere, or changed by one bit, does not load.
"""

from __future__ import annotations

import hashlib

from pydantic import ValidationError

from efficientllm.record import SCHEMA, Record


class CorruptRecord(ValueError):
    """A file that is not a whole, unchanged record of a known schema."""


_SEAL = b',"sha256":"'


def to_bytes(record: Record) -> bytes:
    """The file content of a record: its JSON, sealed with its own digest."""
    body = record.model_dump_json().encode("utf-8")[:-1]
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode("ascii") + b'"}\n'


def from_bytes(content: bytes) -> Record:
    """Load a record, or raise CorruptRecord; never half of one."""
    body, seal, tail = content.rpartition(_SEAL)
    if not seal or tail[64:] != b'"}\n' or hashlib.sha256(body).hexdigest().encode() != tail[:64]:
        raise CorruptRecord("cut short or changed: the content does not match its digest")
    try:
        return Record.model_validate_json(body + b"}")
    except ValidationError as error:
        raise CorruptRecord(f"not a record of schema {SCHEMA}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, as one short line that is safe to print."""
    first = error.errors(include_url=False, include_input=False)[0]
    text = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    return "".join(c if c.isprintable() else "?" for c in text[:200])
