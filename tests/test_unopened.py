"""Questions of imports are answered, and nothing opens the card meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from efficientllm import machine
from efficientllm import unopened as module
from efficientllm.machine import Gpu
from efficientllm.unopened import cuda_is_open, unopened

CARD = Gpu(0, "GPU-1", "NVIDIA H100", 80 << 30, 79 << 30, 700.0, 0.0, 0, "580", False, (9, 0))
QUESTIONS = ("current_device", "get_device_capability", "get_device_name", "get_device_properties")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Attempts to open CUDA, of which there must be none."""
    attempts: list[str] = []
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: attempts.append("opened"))
    monkeypatch.setattr(machine, "gpus", lambda: [CARD])
    return attempts


def test_what_imports_ask_is_answered_without_opening_the_card(opened: list[str]) -> None:
    with unopened():
        assert torch.cuda.get_device_capability() == (9, 0)
        assert torch.cuda.get_device_properties(0).major == 9
        assert torch.cuda.get_device_name() == "NVIDIA H100"
        assert torch.cuda.current_device() == 0
    assert opened == []


def test_another_way_to_open_the_card_is_refused_by_name(opened: list[str]) -> None:
    with unopened(), pytest.raises(RuntimeError, match="an import tried to open CUDA"):
        torch.cuda._lazy_init()
    torch.cuda._lazy_init()
    assert opened == ["opened"]


def test_afterwards_the_real_questions_are_back_also_for_who_kept_the_others(
    opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in QUESTIONS:
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: f"real {name}")
    real = {name: getattr(torch.cuda, name) for name in QUESTIONS}
    with unopened():
        kept = {name: getattr(torch.cuda, name) for name in QUESTIONS}
    for name in QUESTIONS:
        assert getattr(torch.cuda, name) is real[name]
        assert kept[name](0) == f"real {name}"


def test_what_was_answered_is_not_remembered_as_the_card_s_whole_properties(
    opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interface = ModuleType("torch._dynamo.device_interface")
    monkeypatch.setattr(interface, "caching_worker_device_properties", {}, raising=False)
    monkeypatch.setattr(interface, "caching_worker_current_devices", {"cuda": 0}, raising=False)
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    with unopened():
        answer = torch.cuda.get_device_properties(0)
        interface.caching_worker_device_properties["cuda"] = [answer]
    assert interface.caching_worker_device_properties == {}
    assert interface.caching_worker_current_devices == {}


def test_without_a_card_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", list)
    before = torch.cuda.get_device_properties
    with unopened():
        assert torch.cuda.get_device_properties is before


def test_an_import_that_fails_leaves_torch_as_it_was(opened: list[str]) -> None:
    before = torch.cuda.get_device_properties
    with pytest.raises(ImportError, match="broken"), unopened():
        raise ImportError("broken")
    assert torch.cuda.get_device_properties is before


@pytest.mark.parametrize(
    ("maps", "answer", "open_"),
    [
        ("7f00 /lib/libc.so.6", 0, False),
        ("7f00 /lib/libcuda.so.580.1", 3, False),
        ("7f00 /lib/libcuda.so.580.1", 0, True),
        ("7f00 /lib/libcuda.so.580.1", 100, True),
    ],
    ids=["no driver", "loaded", "initialized", "initialized without a card"],
)
def test_the_driver_itself_says_whether_cuda_is_open(
    maps: str, answer: int, open_: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "maps").write_text(maps)
    monkeypatch.setattr(module, "MAPS", tmp_path / "maps")
    driver = SimpleNamespace(cuDeviceGetCount=lambda _: answer)
    monkeypatch.setattr(module.ctypes, "CDLL", lambda _: driver)
    assert cuda_is_open() is open_
