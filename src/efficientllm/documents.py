"""Documents out of files: the rows of each format (what in a row is text: `row_text.py`).

Parent and worker read the same way: `fetch` counts the text that a worker will find. A
parquet file is read row group by row group and only in the columns that matter, compressed
lines as a stream, so no file has to fit into memory.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from efficientllm.record import Unsupported
from efficientllm.row_text import NoText, RowText, types_of
from efficientllm.spec.text import SUFFIXES, Rows

_HELDOUT_NAMES = ("test", "valid", "heldout", "held_out", "dev")


class Document(NamedTuple):
    """A text to learn or score; `prompt` comes before it and is not scored."""

    text: str
    prompt: str = ""

    @property
    def size(self) -> int:
        """UTF-8 bytes of both."""
        return len(self.text.encode()) + len(self.prompt.encode())


def text_files(path: Path) -> list[Path]:
    """Readable text files at a path, in a fixed order."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))


def held_out_by_name(name: str) -> bool:
    """Whether a file's name says that what is in it is held out."""
    return name.rpartition("/")[2].startswith(_HELDOUT_NAMES)


def documents_in(path: Path, name: str, spec: Rows) -> Iterator[tuple[Document, str | None]]:
    """The documents of one file, each with the split that its row states, if it does.

    Plain text is one document, whatever is named for rows. Rows whose text is null are passed
    over. Raises Unsupported with the file's name, and what a library says about a broken file.
    """
    try:
        yield from _documents(path, name, spec)
    except (ValueError, OSError, EOFError) as error:  # what pyarrow raises is one of these
        raise Unsupported(f"{name}: cannot be read ({error})") from error


def _documents(path: Path, name: str, spec: Rows) -> Iterator[tuple[Document, str | None]]:
    if name.endswith((".txt", ".md")):
        yield Document(path.read_text("utf-8")), None
        return
    counts = RowText.of(spec)
    for number, row in _rows(path, name, counts):
        try:
            found = counts.read(row)
        except NoText as error:
            raise Unsupported(
                f"{name}:{number}: this row has {_fields(path, row, counts)}; say which one is"
                " text with data.text_field, or data.prompt_field and data.response_field"
            ) from error
        if found is not None:
            stated = row.get("split")
            yield Document(found[1], found[0]), None if stated is None else str(stated)


def _fields(path: Path, row: dict[str, Any], counts: RowText) -> str:
    """What a row has; of a table all columns, also those that were not read."""
    if path.suffix != ".parquet":
        return counts.told(types_of(row))
    from pyarrow import parquet

    return counts.told({field.name: str(field.type) for field in parquet.read_schema(path)})


Numbered = Iterator[tuple[int, dict[str, Any]]]
"""Rows with their numbers in the file, from 1; lines where it has lines."""


def _rows(path: Path, name: str, counts: RowText) -> Numbered:
    if name.endswith(".parquet"):
        yield from enumerate(_parquet_rows(path, counts), 1)
    elif name.endswith(".zst"):
        yield from _zstandard_lines(path, name)
    elif name.endswith(".gz"):
        with gzip.open(path, "rb") as file:
            yield from _json_lines(file, name)
    else:
        with path.open("rb") as file:
            yield from _json_lines(file, name)


def _parquet_rows(path: Path, counts: RowText) -> Iterator[dict[str, Any]]:
    """Rows in the columns that count; where there are none, in all, so that they can be told."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        fields = {"split", *counts.fields}
        found = [name for name in file.schema_arrow.names if name in fields]
        wanted = found if set(found) - {"split"} else None
        for batch in file.iter_batches(batch_size=1024, columns=wanted):
            yield from batch.to_pylist()


def _zstandard_lines(path: Path, name: str) -> Numbered:
    try:
        import zstandard
    except ImportError as error:
        raise Unsupported(f"{name}: reading .zst needs the package zstandard") from error
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        try:
            yield from _json_lines(io.BufferedReader(stream), name)
        except zstandard.ZstdError as error:
            raise Unsupported(f"{name}: cannot be read ({error})") from error


def _json_lines(file: IO[bytes] | gzip.GzipFile, name: str) -> Numbered:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            line.decode("utf-8")
            if b"\\u" in line:  # an escape may be half of a character
                json.dumps(row, ensure_ascii=False).encode("utf-8")
        except (ValueError, RecursionError) as error:
            hint = "" if ".json" in name else "; plain text has to be called .txt or .md"
            raise Unsupported(f"{name}:{number}: not JSON in UTF-8 ({error}){hint}") from error
        if isinstance(row, dict):
            yield number, row
