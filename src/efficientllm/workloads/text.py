"""Reading text: documents of a text spec, divided into what is trained on and held out.

Every document goes to one side or the other by a rule that does not depend on order: the
file's or the row's own split where it has one, else the document's digest (one in twenty
is held out).
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, assert_never

import numpy as np

from efficientllm import hub
from efficientllm.content import TEXT_FILES
from efficientllm.content import digest_of as digest_of_files
from efficientllm.documents import Document, documents_in, held_out_by_name, text_files
from efficientllm.record import Unsupported
from efficientllm.spec.text import SUFFIXES, Files, Hub, StandardLibrary, Text

Split = Literal["train", "heldout"]

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


class Corpus(NamedTuple):
    """Documents of one side of a text spec, and the digest of what was read.

    `rank` is the place of each document in the sequence in which they are trained on; None
    leaves that to the seed. `selected` says, as a digest, which documents were left out and
    how the rest is ranked; it is empty where nothing was selected.
    """

    documents: tuple[Document, ...]
    sha256: str
    source: str
    rank: np.ndarray | None = None
    selected: str = ""

    @property
    def paired(self) -> bool:
        """Whether documents are prompts with responses."""
        return any(document.prompt for document in self.documents)


def read_corpus(spec: Text, split: Split) -> Corpus:
    """One side of a text. Raises Unsupported, saying why, when there is nothing there."""
    documents, source = documents_of(spec, split)
    if not documents:
        raise Unsupported(f"{source}: no {split} documents; mark some with a `split` of {split}")
    return Corpus(documents, digest_of(documents), source)


def documents_of(spec: Text, split: Split) -> tuple[tuple[Document, ...], str]:
    """The documents of one side of a text, in the order they are read, and its name."""
    match spec:
        case StandardLibrary(part="prose"):
            sided, source = _prose(), "standard library prose"
        case StandardLibrary():
            sided, source = _code(), "standard library code"
        case Files(path=path):
            sided, source = _files(spec), Path(path).name
        case Hub():
            sided, source = _hub(spec), spec.source.partition("@")[0]
        case _:
            assert_never(spec)
    return tuple(document for document, side in sided if side == split), source


def digest_of(documents: Iterable[Document]) -> str:
    """SHA-256 of documents in their order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.prompt.encode() + b"\x00" + document.text.encode() + b"\x00")
    return digest.hexdigest()


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


def _files(spec: Files) -> Sided:
    root = Path(spec.path).expanduser()
    paths = text_files(root)
    if not paths:
        raise Unsupported(f"{spec.path}: no text there (looked for {', '.join(SUFFIXES)})")
    marked = any(held_out_by_name(path.name) for path in paths)
    for path in paths:
        for document, stated in documents_in(path, path.name, spec):
            yield document, _side_of(document, path.name, stated, marked=marked)
    if spec.sha256 and digest_of_files(root, TEXT_FILES) != spec.sha256:  # after they were read
        raise Unsupported(f"{spec.path}: has changed since the case was planned; run again")


def _hub(spec: Hub) -> Sided:
    marked = any(map(held_out_by_name, hub.names(spec)))
    for name, document, stated in hub.documents(spec):
        yield document, _side_of(document, name, stated, marked=marked)


def _side_of(document: Document, name: str, stated: str | None, *, marked: bool) -> Split:
    """The row's own split, else the file's; beside a file that is held out by name (`marked`)
    the others are all for training."""
    if stated is not None:
        return "train" if stated == "train" else "heldout"
    if held_out_by_name(name):
        return "heldout"
    return "train" if marked else _side(document.prompt + document.text)
