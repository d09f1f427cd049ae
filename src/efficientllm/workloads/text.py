"""Reading text: documents of a text spec, divided into what is trained on and held out.

Every document goes to one side or the other by a rule that does not depend on order: the
file's or the row's own split where it has one, else the document's digest (one in twenty
is held out).
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, assert_never

from efficientllm.record import Unsupported
from efficientllm.spec.text import Files, StandardLibrary, Text

Split = Literal["train", "heldout"]
SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.zst", ".parquet")
_HELDOUT_NAMES = ("test", "valid", "heldout", "held_out", "dev")

# Plain text of moderate size that every CPython ships; private and generated files stay out.
_STDLIB_CODE = """
    argparse ast asyncio/base_events asyncio/tasks bdb calendar cmd codecs collections/__init__
    configparser contextlib copy csv dataclasses datetime decimal difflib dis doctest enum
    fileinput fractions ftplib functools gettext graphlib heapq http/client http/server imaplib
    inspect ipaddress json/decoder json/encoder locale logging/__init__ logging/handlers mailbox
    mimetypes multiprocessing/managers multiprocessing/pool nntplib numbers optparse os pathlib
    pdb pickle pickletools platform plistlib poplib pprint profile pstats pydoc random
    re/_parser reprlib sched selectors shelve shlex shutil smtplib socket socketserver
    statistics string subprocess symtable tarfile tempfile textwrap threading timeit tokenize
    trace traceback turtle types typing unittest/case unittest/loader unittest/mock urllib/parse
    urllib/request uuid warnings wave weakref webbrowser xml/dom/minidom zipfile zipapp
""".split()


class Document(NamedTuple):
    """A text to learn or score; `prompt` comes before it and is not scored."""

    text: str
    prompt: str = ""


class Corpus(NamedTuple):
    """All documents of one side of a text spec, and the digest of what was read."""

    documents: tuple[Document, ...]
    sha256: str
    source: str

    @property
    def paired(self) -> bool:
        """Whether documents are prompts with responses."""
        return any(document.prompt for document in self.documents)


def read_corpus(spec: Text, split: Split) -> Corpus:
    """One side of a text. Raises Unsupported, saying why, when there is nothing there."""
    match spec:
        case StandardLibrary(part="prose"):
            documents, source = _prose(), "standard library prose"
        case StandardLibrary():
            documents, source = _code(), "standard library code"
        case Files(path=path):
            documents, source = _files(spec), Path(path).name
        case _:
            assert_never(spec)
    kept = tuple(document for document, side in documents if side == split)
    if not kept:
        raise Unsupported(f"{source}: no {split} documents; mark some with a `split` of {split}")
    digest = hashlib.sha256()
    for document in kept:
        digest.update(document.prompt.encode() + b"\x00" + document.text.encode() + b"\x00")
    return Corpus(kept, digest.hexdigest(), source)


# A triple-quoted string that begins a line: near enough to docstrings, and 40 times as
# fast as parsing four megabytes of source.
_DOCSTRING = re.compile(r'^[ \t]*[rR]?"""(.*?)"""', re.DOTALL | re.MULTILINE)

_DEFINITION = re.compile(r"(?m)(?=^(?:class|def|async def|@))")

Sided = Iterator[tuple[Document, Split]]


def _side(text: str) -> Split:
    first = hashlib.sha256(text.encode()).digest()[0]
    return "heldout" if first < 13 else "train"  # 13/256, about one in twenty


def _prose() -> Sided:
    """The language reference, then docstrings: what people wrote about Python."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(topics[name].strip() + "\n"), _side(topics[name])
    for path in _stdlib_files():
        for found in _DOCSTRING.finditer(path.read_text("utf-8")):
            text = inspect.cleandoc(found.group(1))
            if len(text) > 200:
                yield Document(text + "\n"), _side(text)


def _code() -> Sided:
    """Source in pieces of a few thousand characters, cut where a definition begins."""
    for path in _stdlib_files():
        piece = ""
        for part in _DEFINITION.split(path.read_text("utf-8")):
            piece += part
            if len(piece) > 4096:
                yield Document(piece), _side(piece)
                piece = ""
        if piece.strip():
            yield Document(piece), _side(piece)


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [root / f"{name}.py" for name in _STDLIB_CODE]
    return [path for path in files if path.exists()]


def text_files(path: Path) -> list[Path]:
    """Readable text files at a path, in a fixed order."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))


def _files(spec: Files) -> Sided:
    root = Path(spec.path).expanduser()
    paths = text_files(root)
    if not paths:
        raise Unsupported(f"{spec.path}: no text there (looked for {', '.join(SUFFIXES)})")
    for path in paths:
        by_name: Split | None = "heldout" if path.name.startswith(_HELDOUT_NAMES) else None
        for row in _readable_rows(path):
            document = _document(row, spec, path)
            if document is None:
                continue
            stated = row.get("split")
            if stated is not None:
                yield document, "train" if stated == "train" else "heldout"
            else:
                yield document, by_name or _unmarked(paths, document)


def _unmarked(paths: list[Path], document: Document) -> Split:
    """Beside a file that is held out by name, the others are all for training."""
    if any(path.name.startswith(_HELDOUT_NAMES) for path in paths):
        return "train"
    return _side(document.prompt + document.text)


def _readable_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file; what its library says about a broken one, with the file's name."""
    try:
        yield from _rows(path)
    except (ValueError, OSError) as error:  # what pyarrow raises is one of these
        raise Unsupported(f"{path.name}: cannot be read ({error})") from error


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.name.endswith((".txt", ".md")):
        yield {"text": path.read_text("utf-8", "replace")}
    elif path.name.endswith(".parquet"):
        from pyarrow import parquet

        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    elif path.name.endswith(".zst"):
        yield from _zstandard_lines(path)
    else:
        with path.open("rb") as file:
            yield from _json_lines(file, path)


def _zstandard_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import zstandard
    except ImportError as error:
        raise Unsupported(f"{path.name}: reading .zst needs the package zstandard") from error
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        try:
            yield from _json_lines(io.BufferedReader(stream), path)
        except zstandard.ZstdError as error:
            raise Unsupported(f"{path.name}: cannot be read ({error})") from error


def _json_lines(file: IO[bytes], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise Unsupported(f"{path.name}:{number}: not JSON ({error})") from error
        if isinstance(row, dict):
            yield row


_PAIRS = (
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
)


def _document(row: dict[str, Any], spec: Files, path: Path) -> Document | None:
    """A row as a document; None for a row whose text is null."""
    if spec.prompt_field and spec.response_field:
        pair: tuple[str, str] | None = (spec.prompt_field, spec.response_field)
    else:
        pair = next((p for p in _PAIRS if p[0] in row and p[1] in row), None)
    if pair is not None and pair[0] in row and pair[1] in row:
        prompt, text = row[pair[0]], row[pair[1]]
        return None if prompt is None or text is None else Document(str(text), f"{prompt}\n")
    if spec.text_field in row:
        text = row[spec.text_field]
        return None if text is None else Document(str(text))
    raise Unsupported(
        f"{path.name}: rows have {', '.join(sorted(row)[:8])}; say which one with data.text_field,"
        " or data.prompt_field and data.response_field"
    )
