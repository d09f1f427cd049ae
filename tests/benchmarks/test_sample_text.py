from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.outside import BENCHMARKS

SCRIPT = BENCHMARKS / "sample_text.py"


def sampled(folder: Path, out: Path, *words: str) -> list[dict[str, str]]:
    subprocess.run([sys.executable, str(SCRIPT), str(folder), str(out), *words], check=True)
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


def lengths(rows: list[dict[str, str]], split: str) -> list[int]:
    return [len(row["text"].encode()) for row in rows if row["split"] == split]


def test_each_split_has_a_limit_and_what_is_too_long_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = [{"text": "é" * n, "split": "val" if n % 3 == 0 else "train"} for n in range(1, 40)]
    (folder / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "a.txt").write_text("without a split")
    words = ("--train", "300", "--held-out", "90")
    rows = sampled(folder, tmp_path / "one.jsonl", *words)
    train, held_out = lengths(rows, "train"), lengths(rows, "val")
    assert 240 < sum(train) <= 300
    assert 60 < sum(held_out) <= 90
    sampled(folder, tmp_path / "two.jsonl", *words)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert sampled(folder, tmp_path / "three.jsonl", *words, "--seed", "1") != rows
    whole = sampled(folder, tmp_path / "all.jsonl")
    assert len(whole) == 40
    assert {"text": "without a split", "split": "train"} in whole
