"""A training under way as a file: whole or absent, and what is no such file is told apart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from efficientllm.workloads import snapshot
from efficientllm.workloads.snapshot import Snapshot, Unreadable, load, save

FIRST = Snapshot(
    {"weights/a": torch.tensor([1.0, -0.0, 1e-40]), "random/host": torch.arange(9).byte()},
    {"step": 3, "tokens": 96.0, "curve": [{"nll": 0.1}], "scaler": {}},
)
SECOND = Snapshot({"weights/a": torch.zeros(3)}, {"step": 6})


def same(a: Snapshot | None, b: Snapshot) -> bool:
    assert a is not None
    assert a.tensors.keys() == b.tensors.keys()
    bits = all(
        a.tensors[k].dtype == b.tensors[k].dtype
        and torch.equal(a.tensors[k].view(torch.uint8), b.tensors[k].view(torch.uint8))
        for k in a.tensors
    )
    return bits and a.facts == b.facts


def test_what_is_saved_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "case" / "env.safetensors"
    assert load(path) is None
    save(FIRST, path)
    assert same(load(path), FIRST)
    save(SECOND, path)
    assert same(load(path), SECOND)
    assert [file.name for file in path.parent.iterdir()] == ["env.safetensors"]


def test_a_part_of_a_larger_tensor_and_another_dtype_are_kept_as_they_are(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    found = Snapshot({"a": whole.t(), "b": torch.ones(2, dtype=torch.bfloat16)}, {})
    save(found, tmp_path / "s")
    again = load(tmp_path / "s")
    assert again is not None
    assert torch.equal(again.tensors["a"], whole.t())
    assert again.tensors["b"].dtype == torch.bfloat16


@pytest.mark.parametrize("fails", ["_write", "flush"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    save(FIRST, path)

    def full(*_: object) -> None:
        (tmp_path / ".s.part").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot, fails, full)
    with pytest.raises(OSError, match="No space left"):
        save(SECOND, path)
    assert same(load(path), FIRST)
    assert os.listdir(tmp_path) == ["s"]  # noqa: PTH208


def test_what_is_no_checkpoint_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "s"
    save(FIRST, path)
    content = path.read_bytes()
    for broken in (b"", b"half", content[:-1], content[:40]):
        path.write_bytes(broken)
        with pytest.raises(Unreadable, match="s: no checkpoint of a training"):
            load(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(Unreadable):
        load(path)
