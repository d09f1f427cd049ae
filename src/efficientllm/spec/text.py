"""Text: what models are trained on, prompted with and scored against.

`stdlib` is carried by every CPython, so a first run needs no network: `prose` is the
language reference of `pydoc_data.topics` with the docstrings of the standard library,
`code` is the standard library's source. `files` is a user's own folder or file, `hub` a
dataset of the Hugging Face hub at one commit. In one string:

    stdlib:code                        the standard library's source
    ./texts                            a folder or a file
    HuggingFaceFW/fineweb-edu          a dataset of the hub, unless a/b is a path that is here
    hub:NAME@REVISION                  a dataset of the hub, whatever lies here
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from efficientllm.spec.canonical import Spec, canonical, local

SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.zst", ".parquet")
Share = Annotated[float, Field(ge=0, le=1)]
Chars = Annotated[int, Field(ge=1, le=1 << 40)]


class Filter(Spec):
    """Documents to leave out of training; null leaves none out.

    Shares are those of Gopher's quality rules (Rae et al. 2021, arXiv 2112.11446, table A1),
    which drop a document with more than 0.1 hash signs or ellipses for each word, with less
    than 0.8 of its words holding a letter, or with more than 0.3 of its lines repeated.
    Lengths are in characters.
    """

    min_chars: Chars | None = Field(None, description="characters of a document, at least")
    max_chars: Chars | None = Field(None, description="characters of a document, at most")
    max_symbol_share: Share | None = Field(
        None, description="hash signs for each word, or ellipses, at most; Gopher: 0.1"
    )
    min_letter_share: Share | None = Field(
        None, description="share of the words that hold a letter, at least; Gopher: 0.8"
    )
    max_repeated_lines: Share | None = Field(
        None, description="share of the lines that stood there before, at most; Gopher: 0.3"
    )


class Selected(Spec):
    """What is taken from a text for training, and in which sequence.

    Held-out documents are never left out and never reordered, so quality compares between
    selections. `dedup` removes training documents that an earlier one or a held-out one
    equals (`exact`) or resembles (`near`: at least 0.8 of their sequences of five words
    in common, found by MinHash). `order` is the sequence of the documents that the seed
    and the budget take, so every order trains on the same text: `shuffled`, `as_read`, the
    shortest first, or the easiest first (those of the most frequent words).
    """

    filter: Filter = Filter()
    dedup: Literal["none", "exact", "near"] = "none"
    order: Literal["shuffled", "as_read", "short_first", "easy_first"] = "shuffled"

    @property
    def selects(self) -> bool:
        """Whether anything is left out or put into a sequence of its own."""
        return (self.filter, self.dedup, self.order) != (Filter(), "none", "shuffled")

    @property
    def said(self) -> str:
        """The selection in words; `none` where there is none."""
        rules = canonical(self.filter) | {"dedup": self.dedup, "order": self.order}
        return ", ".join(f"{k} {v}" for k, v in rules.items()) if self.selects else "none"


class StandardLibrary(Selected):
    """Text that came with this Python; its digest is in the record, as versions differ."""

    kind: Literal["stdlib"] = "stdlib"
    part: Literal["prose", "code"] = "prose"


class Rows(Selected):
    """Text in rows: either running text (`text_field`) or a prompt and its response.

    A named pair is all that is read; `text_field`, where it is another than `text`, comes before
    the pairs that are known by their names (question and answer, prompt and completion, ...).
    A row's `split`, or a file called test*, valid*, dev*, heldout* or held_out*, marks what
    is held out; without either, every twentieth document (by digest) is held out.
    """

    text_field: str = Field("text", min_length=1)
    prompt_field: str | None = Field(None, min_length=1)
    response_field: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _both_of_a_pair(self) -> Rows:
        if (self.prompt_field is None) != (self.response_field is None):
            raise ValueError("prompt_field and response_field are a pair: name both, or neither")
        return self


class Files(Rows):
    """A file or a folder of .txt, .md, .jsonl, .jsonl.zst or .parquet."""

    kind: Literal["files"] = "files"
    path: str = local("", description="where to look; what is found there enters as `sha256`")
    sha256: str = Field("", pattern="^([0-9a-f]{64})?$")


class Hub(Rows):
    """A dataset of the hub: its .parquet, .jsonl (plain, .zst, .gz), .json.gz and .txt files.

    `commit` is filled in before planning and identifies the dataset; `source` says where to
    look. Files are read in the order of their names, those held out by name first, until
    there are `max_bytes` of text (UTF-8, held-out documents included); no more are taken.
    """

    kind: Literal["hub"] = "hub"
    source: str = local("", max_length=4096, description="a dataset's id, or `id@revision`")
    commit: str = Field("", pattern="^([0-9a-f]{40})?$")
    files: str = Field(
        "*",
        min_length=1,
        max_length=1000,
        description="which files, as sample/10BT/*.parquet; * stands for folders too",
    )
    max_bytes: Annotated[int, Field(ge=1, le=1 << 40)] = 1 << 30


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")


def text_from_name(value: Any) -> Any:
    """Turn the one-string forms of the module docstring into a mapping.

    One that only selects, as `{dedup: exact}`, selects from the standard library.
    """
    if isinstance(value, dict) and of_no_kind(value):
        return {"kind": "stdlib"} | value
    if not isinstance(value, str):
        return value
    name, _, rest = value.partition(":")
    if name == "stdlib":
        return {"kind": "stdlib", "part": rest} if rest else {"kind": "stdlib"}
    if name == "hub":
        return {"kind": "hub", "source": rest}
    if _HUB_ID.fullmatch(value) and not value.endswith(SUFFIXES) and not Path(value).exists():
        return {"kind": "hub", "source": value}
    return {"kind": "files", "path": str(PurePath(value)) if value else ""}


def of_no_kind(value: dict[str, Any]) -> bool:
    """Whether a mapping names no text of its own, but says something about the default."""
    return value.keys() <= StandardLibrary.model_fields.keys() - {"kind"}


Text = Annotated[
    Annotated[StandardLibrary | Files | Hub, Field(discriminator="kind")],
    BeforeValidator(text_from_name),
]


def _refuse_selected(text: Any) -> Any:
    if isinstance(text, Selected) and text.selects:
        raise ValueError(
            "filter, dedup and order say what is trained on; only the data of pretrain and"
            " finetune takes them"
        )
    return text


WholeText = Annotated[Text, AfterValidator(_refuse_selected)]
"""Text that is prompted with or scored, of which nothing is left out."""
