"""Text: what models are trained on, prompted with and scored against.

`stdlib` is carried by every CPython, so a first run needs no network: `prose` is the
language reference of `pydoc_data.topics` with the docstrings of the standard library,
`code` is the standard library's source. `files` is a user's own folder or file.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from efficientllm.spec.canonical import Spec, local


class StandardLibrary(Spec):
    """Text that came with this Python; its digest is in the record, as versions differ."""

    kind: Literal["stdlib"] = "stdlib"
    part: Literal["prose", "code"] = "prose"


class Files(Spec):
    """A file or a folder of .txt, .md, .jsonl, .jsonl.zst or .parquet.

    Rows hold either running text (`text_field`) or a prompt and its response. A row's
    `split`, or a file called test*, valid*, dev*, heldout* or held_out*, marks what is held
    out; without either, every twentieth document (by digest) is held out.
    """

    kind: Literal["files"] = "files"
    path: str = local("", description="where to look; what is found there enters as `sha256`")
    sha256: str = Field("", pattern="^([0-9a-f]{64})?$")
    text_field: str = "text"
    prompt_field: str | None = None
    response_field: str | None = None


def _from_name(value: Any) -> Any:
    """`stdlib:code` and `path/to/text` for short."""
    if not isinstance(value, str):
        return value
    name, _, part = value.partition(":")
    if name == "stdlib":
        return {"kind": "stdlib", "part": part} if part else {"kind": "stdlib"}
    return {"kind": "files", "path": str(PurePath(value))}


Text = Annotated[
    Annotated[StandardLibrary | Files, Field(discriminator="kind")], BeforeValidator(_from_name)
]
