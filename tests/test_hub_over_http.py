"""The hub's own client against a server of ours: what the other tests' stand-ins leave out."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pyarrow
import pytest
from pyarrow import parquet

from efficientllm.results import load

COMMIT = "0123456789" * 4
NAME = "org/web-text"


class Handler(BaseHTTPRequestHandler):
    """One dataset of the hub: what its name means, the names of its files, and these."""

    files: Path
    asked: list[str]

    def do_GET(self) -> None:
        self._answer(whole=True)

    def do_HEAD(self) -> None:
        self._answer(whole=False)

    def _answer(self, *, whole: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if path in (f"/api/datasets/{NAME}", f"/api/datasets/{NAME}/revision/main"):
            self._send(json.dumps({"id": NAME, "sha": COMMIT, "private": False}).encode())
        elif path.startswith(f"/api/datasets/{NAME}/tree/{COMMIT}"):
            self._send(json.dumps([self._entry(p) for p in sorted(self.files.rglob("*"))]).encode())
        elif path.startswith(f"/datasets/{NAME}/resolve/{COMMIT}/"):
            name = path.split(f"/{COMMIT}/")[1]
            self.asked += [name] if whole else []
            self._send((self.files / name).read_bytes(), whole=whole)
        else:
            self.send_error(404)

    def _entry(self, path: Path) -> dict[str, object]:
        kind = "directory" if path.is_dir() else "file"
        name = path.relative_to(self.files).as_posix()
        return {"type": kind, "path": name, "size": path.stat().st_size, "oid": "0" * 40}

    def _send(self, content: bytes, *, whole: bool = True) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if whole:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: tests are quiet."""


def _of_networks(name: str) -> bool:
    """Whether a variable sends clients elsewhere, or tells them that there is no network."""
    return name.lower().endswith("_proxy") or name.startswith(("HF_", "TRANSFORMERS_"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    files = tmp_path / "files"
    for part in range(3):
        texts = [f"document {part} {i} " + "of some words " * 40 for i in range(400)]
        path = files / f"sample/10BT/{part:03}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table({"text": texts, "score": [1.0] * 400}), path)
    handler = type("Bound", (Handler,), {"files": files, "asked": []})
    made = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_text_of_the_hub_is_fetched_in_part_and_trained_on_without_a_network(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    asked = server.RequestHandlerClass.asked
    environment = {k: v for k, v in os.environ.items() if not _of_networks(k)} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
    }

    def ours(*words: str) -> str:
        command = [sys.executable, "-m", "efficientllm", *words]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    case = (
        "pretrain",
        "model=backbone-tiny",
        f"data={NAME}",
        "data.files=sample/10BT/*.parquet",
        "data.max_bytes=300000",  # a file has some 230,000
        "sequence_length=32",
        "precision.compute=float32",
        "compile=none",
        "batch=2",
        "steps=6",
        "protocol=smoke",
    )
    assert "2 of 3 files are in the hub's cache" in ours("fetch", *case)
    assert asked == ["sample/10BT/000.parquet", "sample/10BT/001.parquet"]
    server.shutdown()
    server.server_close()
    ours("run", *case, "--no-page", "--store", "store")
    (trial,) = load(tmp_path / "store").records
    assert trial.outcome.status == "ok", trial.outcome.reason
