"""The hub: which commit a name means, and the files of a dataset, one at a time.

Trials never use a network, so what they read is fetched before: checkpoints whole, of a
dataset's files only as many as the text that is asked for takes. Beside the files of a
dataset the hub's cache keeps one of ours, with the names of all files at that commit (the
hub's own cache does not know what it lacks) and what was taken; copied to another machine,
the cache is all that a trial there needs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from efficientllm.documents import Document, documents_in, held_out_by_name
from efficientllm.record import Unsupported
from efficientllm.spec.canonical import digest
from efficientllm.spec.document import SpecError
from efficientllm.spec.text import Hub

_COMMIT = re.compile(r"[0-9a-f]{40}")
_READABLE = (".parquet", ".jsonl", ".jsonl.zst", ".jsonl.gz", ".json.gz", ".txt")


class Kind(NamedTuple):
    """A kind of repository: the hub's word, ours for it in a case, and how to fetch one."""

    noun: str
    key: str
    page: str
    example: str
    otherwise: str


MODEL = Kind("model", "model", "", "generate model=", "")
DATASET = Kind(
    "dataset", "data", "datasets/", "pretrain data=hub:", ", or give a local folder: data=./FOLDER"
)


def commit_of(source: str, kind: Kind) -> str:
    """The commit of `id` or `id@revision`: from the hub, or from its cache when offline."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = source.partition("@")
    if _COMMIT.fullmatch(revision):
        return revision
    asked = getattr(HfApi(), f"{kind.noun}_info")
    try:
        return str(asked(name, revision=revision or None, timeout=20).sha)
    except HFValidationError as error:
        raise SpecError(
            f"{kind.key}: {source!r} is neither a folder nor a hub id: {error}"
        ) from error
    except RevisionNotFoundError as error:
        raise SpecError(
            f"{kind.key}: {name}: the hub has no revision {revision!r} of it"
        ) from error
    except GatedRepoError as error:
        raise SpecError(_gated(name, kind)) from error
    except RepositoryNotFoundError as error:
        raise SpecError(
            f"{kind.key}: {name}: the hub has no such {kind.noun}, or not for you. If it is"
            f" private, log in with: hf auth login{_folder_hint(kind)}"
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise SpecError(_gated(name, kind)) from error
        return _cached_commit(name, revision, kind)
    except Exception:  # no network at all: every client library has its own error for it
        return _cached_commit(name, revision, kind)


def _gated(name: str, kind: Kind) -> str:
    return (
        f"{kind.key}: {name} is gated: accept its license at"
        f" https://huggingface.co/{kind.page}{name} and log in with: hf auth login"
    )


def _folder_hint(kind: Kind) -> str:
    return ". A folder or file of this name is not here either" if kind is DATASET else ""


def _cached_commit(name: str, revision: str, kind: Kind) -> str:
    try:
        commit = (_folder(name, kind) / "refs" / (revision or "main")).read_text("ascii").strip()
    except (OSError, ValueError):
        commit = ""
    if not _COMMIT.fullmatch(commit):
        raise SpecError(
            f"{kind.key}: {name}: the hub cannot be reached and it is not in the cache; fetch it"
            f" where there is a network: efficientllm fetch {kind.example}{name}{kind.otherwise}"
        )
    return commit


def keep_name(source: str, commit: str, kind: Kind) -> None:
    """Remember in the hub's cache which commit a name meant when it was fetched.

    What is fetched by commit leaves no such note, and without one a machine without a
    network would know the files and not their name.
    """
    name, _, revision = source.partition("@")
    refs = (_folder(name, kind) / "refs").resolve()
    path = (refs / (revision or "main")).resolve()
    if revision != commit and path.is_relative_to(refs):
        _write(path, commit)


def _folder(name: str, kind: Kind) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"{kind.noun}s--{name.replace('/', '--')}"


def _write(path: Path, text: str) -> None:
    """A small file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


# The files of a dataset


def names(spec: Hub) -> list[str]:
    """The dataset's readable files that `files` names, those held out by name first.

    Raises Unsupported where there are none, or where nobody has fetched anything of it.
    """
    found = _noted(spec).get("files")
    if found is None:
        raise Unsupported(_missing(spec))
    fitting = sorted(n for n in found if fnmatchcase(n, spec.files) and n.endswith(_READABLE))
    if not fitting:
        kinds = ", ".join(_READABLE)
        raise Unsupported(
            f"data: {spec.source}: none of its {len(found)} files is called {spec.files} and"
            f" ends in {kinds}; say which ones with data.files"
        )
    return sorted(fitting, key=lambda name: not held_out_by_name(name))


def documents(spec: Hub, *, download: bool = False) -> Iterator[tuple[str, Document, str | None]]:
    """Documents with their file and the split that their row states, up to `max_bytes`.

    A file is opened when the ones before it held too little. From the cache alone, unless
    `download` allows the network; raises Unsupported where a file is missing.
    """
    left = spec.max_bytes
    for name in names(spec):
        for document, stated in documents_in(_path(spec, name, download=download), name, spec):
            yield name, document, stated
            left -= document.size
            if left <= 0:
                return


def take(spec: Hub) -> str:
    """Fetch as many files as the text takes; a line about it. SpecError where that fails."""
    name = spec.source.partition("@")[0]
    keep_name(spec.source, spec.commit, DATASET)
    taken: list[str] = []
    size = 0
    try:
        _list_files(spec)
        for file, document, _ in documents(spec, download=True):
            taken += [file] if file not in taken[-1:] else []
            size += document.size
    except Unsupported as error:
        raise SpecError(str(error)) from error
    noted = _noted(spec)
    _write(
        _note(spec),
        json.dumps(noted | {"taken": noted.get("taken", {}) | {what_is_read(spec): taken}}),
    )
    return (
        f"{name}@{spec.commit[:7]}: {size / 2**20:,.1f} MiB of text from {len(taken)} of"
        f" {len(names(spec))} files are in the hub's cache"
    )


def is_here(spec: Hub) -> bool:
    """Whether all that a trial will read of a dataset lies in the hub's cache."""
    taken = _noted(spec).get("taken", {}).get(what_is_read(spec))
    return taken is not None and all(_cached(spec, name) for name in taken)


def what_is_read(spec: Hub) -> str:
    """A digest of all that decides which documents are read."""
    fields = ("commit", "files", "max_bytes", "text_field", "prompt_field", "response_field")
    return digest({name: getattr(spec, name) for name in fields})


def _cached(spec: Hub, name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    source = spec.source.partition("@")[0]
    found = try_to_load_from_cache(source, name, revision=spec.commit, repo_type="dataset")
    return isinstance(found, str)


def _path(spec: Hub, name: str, *, download: bool) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        found = hf_hub_download(
            spec.source.partition("@")[0],
            name,
            repo_type="dataset",
            revision=spec.commit,
            local_files_only=not download,
        )
    except Exception as error:  # every client library has its own error for no network
        raise Unsupported(f"{_missing(spec)} ({name}: {_first_line(error)})") from error
    return Path(found)


def _list_files(spec: Hub) -> None:
    """Ask the hub for the names of all files, unless they are noted already."""
    from huggingface_hub import HfApi

    if "files" in _noted(spec):
        return
    source = spec.source.partition("@")[0]
    try:
        found = HfApi().list_repo_files(source, repo_type="dataset", revision=spec.commit)
    except Exception as error:  # as above
        raise Unsupported(f"{_missing(spec)} ({_first_line(error)})") from error
    _write(_note(spec), json.dumps({"files": sorted(found)}))


def _note(spec: Hub) -> Path:
    folder = _folder(spec.source.partition("@")[0], DATASET)
    return folder / "efficientllm" / f"{spec.commit}.json"


def _noted(spec: Hub) -> dict[str, Any]:
    try:
        found = json.loads(_note(spec).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _missing(spec: Hub) -> str:
    return (
        f"data: {spec.source}: not on this disk; fetch it where there is a network: efficientllm"
        f" fetch {DATASET.example}{spec.source}{DATASET.otherwise}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
