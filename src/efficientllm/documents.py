"""Documents out of files: the rows of each format, and what in a row is text.

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

    Rows whose text is null are passed over. Raises Unsupported with the file's name.
    """
    for row in _readable_rows(path, name, spec):
        document = _document(row, spec, name)
        if document is not None:
            stated = row.get("split")
            yield document, None if stated is None else str(stated)


def _readable_rows(path: Path, name: str, spec: Rows) -> Iterator[dict[str, Any]]:
    """The rows of a file; what its library says about a broken one, with the file's name."""
    try:
        yield from _rows(path, name, spec)
    except (ValueError, OSError, EOFError) as error:  # what pyarrow raises is one of these
        raise Unsupported(f"{name}: cannot be read ({error})") from error


def _rows(path: Path, name: str, spec: Rows) -> Iterator[dict[str, Any]]:
    if name.endswith((".txt", ".md")):
        yield {"text": path.read_text("utf-8")}
    elif name.endswith(".parquet"):
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
        pairs = {name for pair in _PAIRS for name in pair}
        fields = {spec.text_field, spec.prompt_field, spec.response_field, *pairs, "split"}
        columns = [name for name in file.schema_arrow.names if name in fields]
        wanted = columns if set(columns) - {"split"} else None
        for batch in file.iter_batches(batch_size=1024, columns=wanted):
            yield from batch.to_pylist()


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


_WORDS = str | None


def _document(row: dict[str, Any], spec: Rows, name: str) -> Document | None:
    """A row as a document; None for a row whose text is null.

    A field that is named wins over the known pairs. Numbers are an answer, but nobody's prose;
    lists and objects are neither.
    """
    usual = Rows.model_fields["text_field"].default
    pairs = _PAIRS if spec.text_field == usual else ()
    if spec.prompt_field and spec.response_field:
        pairs = ((spec.prompt_field, spec.response_field),)
    for pair in pairs:
        if all(field in row and isinstance(row[field], _WORDS | int | float) for field in pair):
            prompt, text = (row[field] for field in pair)
            return None if prompt is None or text is None else Document(str(text), f"{prompt}\n")
    if isinstance(row.get(spec.text_field, 0), _WORDS):
        text = row[spec.text_field]
        return None if text is None else Document(text)
    has = ", ".join(f"{field} ({type(row[field]).__name__})" for field in sorted(row)[:8])
    raise Unsupported(
        f"{name}: rows have {has}; say which one is text with data.text_field,"
        " or data.prompt_field and data.response_field"
    )
