"""What the bottom of the house says about a machine without an accelerator."""

from __future__ import annotations

import pytest
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from efficientllm import device
from efficientllm.device import (
    Device,
    every_attention,
    is_lost,
    is_out_of_memory,
    open_device,
    pin_attention,
    tensor_bytes,
    to_device,
)

CPU = Device(torch.device("cpu"), graphs=False)


def test_a_cpu_opens_without_graphs() -> None:
    opened = open_device("cpu")
    assert opened.is_cpu
    assert not opened.graphs


def test_an_accelerator_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.torch.accelerator, "current_accelerator", lambda: None)
    with pytest.raises(RuntimeError, match="no accelerator"):
        open_device("accelerator")


def test_attention_on_a_cpu_has_nothing_to_pin() -> None:
    assert pin_attention("auto", CPU, torch.bfloat16, 1024, grouped=True) == "cpu"


def test_every_attention_is_allowed_for_a_while_and_then_what_was_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backends = torch.backends.cuda
    names = ("cudnn", "flash", "mem_efficient", "math")

    def allowed() -> dict[str, bool]:
        return {name: getattr(backends, f"{name}_sdp_enabled")() for name in names}

    before = allowed()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        for name in names:
            getattr(backends, f"enable_{name}_sdp")(name == "flash")
        pinned = allowed()
        with every_attention():
            assert all(allowed().values())
        assert allowed() == pinned
        with pytest.raises(KeyError), every_attention():
            raise KeyError
        assert allowed() == pinned
    finally:
        for name in names:
            getattr(backends, f"enable_{name}_sdp")(before[name])


def test_tensors_stay_where_they_are_on_a_cpu() -> None:
    tensor = torch.zeros(3)
    assert to_device(tensor, CPU) is tensor


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: "), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
        (ValueError("CUDA out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_told_apart(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_a_real_allocation_that_fails_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVML: GPU is lost", True),
        ("CUDA error: device lost", True),
        ("The GPU has fallen off the bus", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_a_lost_device_is_told_apart(text: str, expected: bool) -> None:
    assert is_lost(RuntimeError(text)) == expected


def test_bytes_of_a_tensor_are_those_of_what_it_is_made_of() -> None:
    assert tensor_bytes(torch.zeros(3, 5, dtype=torch.bfloat16)) == 30
    linear = torch.nn.Linear(64, 32, bias=False).to(torch.bfloat16)
    model = torch.nn.Sequential(linear)
    quantize_(model, Int8WeightOnlyConfig())
    # a byte a weight; a float32 scale and an int8 zero a row
    assert tensor_bytes(model[0].weight) == 64 * 32 + 32 * (4 + 1)
