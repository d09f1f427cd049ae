"""Documents out of files: the rows of each format, and what in a row is text.

Parent and worker read the same way: `fetch` counts the text that a worker will find. A
parquet file is read row group by row group and only in the columns that matter, compressed
lines as a stream, so no file has to fit into memory.
"""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from efficientllm.record import Unsupported
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
    over. Raises Unsupported with the file's name.
    """
    if name.endswith((".txt", ".md")):
        yield Document(_plain(path, name)), None
        return
    for number, row in enumerate(_readable_rows(path, name, spec), 1):
        try:
            document = _document(row, spec)
        except _NoText as error:
            fields = _parquet_fields(path) if name.endswith(".parquet") else error.fields
            raise Unsupported(
                f"{name}: row {number} has {fields or 'no fields'}; say which one is text with"
                " data.text_field, or data.prompt_field and data.response_field"
            ) from error
        if document is not None:
            stated = row.get("split")
            yield document, None if stated is None else str(stated)


def _plain(path: Path, name: str) -> str:
    try:
        return path.read_text("utf-8")
    except (ValueError, OSError) as error:
        raise Unsupported(f"{name}: cannot be read ({error})") from error


def _readable_rows(path: Path, name: str, spec: Rows) -> Iterator[dict[str, Any]]:
    """The rows of a file; what its library says about a broken one, with the file's name."""
    try:
        yield from _rows(path, name, spec)
    except (ValueError, OSError, EOFError) as error:  # what pyarrow raises is one of these
        raise Unsupported(f"{name}: cannot be read ({error})") from error


def _rows(path: Path, name: str, spec: Rows) -> Iterator[dict[str, Any]]:
    if name.endswith(".parquet"):
        yield from _parquet_rows(path, spec)
    elif name.endswith(".zst"):
        yield from _zstandard_lines(path, name)
    elif name.endswith(".gz"):
        with gzip.open(path, "rb") as file:
            yield from _json_lines(file, name)
    else:
        with path.open("rb") as file:
            yield from _json_lines(file, name)


def _parquet_rows(path: Path, spec: Rows) -> Iterator[dict[str, Any]]:
    """Rows in the columns that can matter; in all of them where none can be text."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        fields = {"split", spec.text_field, *(name for pair in _pairs(spec) for name in pair)}
        found = [name for name in file.schema_arrow.names if name in fields]
        wanted = found if set(found) - {"split"} else None
        for batch in file.iter_batches(batch_size=1024, columns=wanted):
            yield from batch.to_pylist()


def _parquet_fields(path: Path) -> str:
    """Names and types of all columns, those that were not read among them."""
    from pyarrow import parquet

    return ", ".join(f"{field.name} ({field.type})" for field in parquet.read_schema(path))


def _zstandard_lines(path: Path, name: str) -> Iterator[dict[str, Any]]:
    try:
        import zstandard
    except ImportError as error:
        raise Unsupported(f"{name}: reading .zst needs the package zstandard") from error
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        try:
            yield from _json_lines(io.BufferedReader(stream), name)
        except zstandard.ZstdError as error:
            raise Unsupported(f"{name}: cannot be read ({error})") from error


def _json_lines(file: IO[bytes] | gzip.GzipFile, name: str) -> Iterator[dict[str, Any]]:
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
            yield row


_PAIRS: tuple[tuple[str, str], ...] = (
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
)


def _pairs(spec: Rows) -> tuple[tuple[str, str], ...]:
    """Fields that may hold a prompt and its response; none where other text is named."""
    if spec.prompt_field and spec.response_field:
        return ((spec.prompt_field, spec.response_field),)
    return _PAIRS if spec.text_field == Rows.model_fields["text_field"].default else ()


class _NoText(ValueError):
    """A row in which nothing is text; `fields` are what it has, with their types."""

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__()
        self.fields = ", ".join(f"{key} ({type(row[key]).__name__})" for key in sorted(row)[:8])


def _document(row: dict[str, Any], spec: Rows) -> Document | None:
    """A row as a document: a pair, else running text; None where what there is is null.

    A pair that is named is all that counts. Numbers are an answer, but nobody's prose; truth
    values, lists and objects are neither. Raises _NoText where nothing is text.
    """
    for prompt, response in _pairs(spec):
        said = _said(row.get(prompt)), _said(row.get(response))
        if said[0] is not None and said[1] is not None:
            return Document(said[1], f"{said[0]}\n")
    text = None if spec.prompt_field else row.get(spec.text_field)
    if isinstance(text, str):
        return Document(text)
    if any(_null(row, fields) for fields in (*_pairs(spec), (spec.text_field,))):
        return None
    raise _NoText(row)


def _said(value: Any) -> str | None:
    """A prompt or a response in words; None where it is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if (number and not _absent(value)) or isinstance(value, str) else None


def _null(row: dict[str, Any], fields: tuple[str, ...]) -> bool:
    """Whether a row has these fields and nothing in one of them."""
    return all(f in row for f in fields) and any(_absent(row[f]) for f in fields)


def _absent(value: Any) -> bool:
    """Null, or how tables say it: not a number."""
    return value is None or (isinstance(value, float) and math.isnan(value))
