"""The device as the worker sees it: where tensors live, and what it can do.

With `clock`, `meters` and `machine` this is the bottom where vendors are named; the rest
asks for capabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

CAPTURE_CALLS = 3
"""How often a step runs aside before it is captured."""


class Device(NamedTuple):
    """A torch device and its capabilities."""

    torch: torch.device
    graphs: bool
    """Whether a step can be captured once and replayed without Python."""

    @property
    def is_cpu(self) -> bool:
        return self.torch.type == "cpu"


def open_device(kind: str) -> Device:
    """The CPU, or the accelerator that is visible; creates its context."""
    if kind == "cpu":
        return Device(torch.device("cpu"), graphs=False)
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        raise RuntimeError("torch sees no accelerator here")
    device = torch.device(accelerator.type, 0)
    torch.accelerator.set_device_index(0)
    torch.zeros(1, device=device)
    return Device(device, graphs=device.type == "cuda")


def run_aside(step: Callable[[], None], calls: int) -> None:
    """Run a step so often on a side stream, as capturing asks: it compiles, chooses kernels."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(calls):
            step()
    torch.cuda.current_stream().wait_stream(side)


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """Capture a step that was run before in a CUDA graph; what comes back replays it.

    Captured by hand: torch.compile's own graphs are skipped as soon as the cache is mutated.
    cuBLAS keeps a workspace of 32 MiB for every stream that it was ever called on. Those are let
    go before, or the record would hold one for each graph, and after, as what the graph needs of
    them is its own.
    """
    graph = torch.cuda.CUDAGraph()
    torch._C._cuda_clearCublasWorkspaces()
    with torch.cuda.graph(graph):
        step()
    torch._C._cuda_clearCublasWorkspaces()
    return graph.replay


def pin_attention(
    wanted: str, device: Device, dtype: torch.dtype, length: int, *, grouped: bool
) -> str:
    """Allow one back-end of scaled-dot-product attention, process-wide; its name.

    `auto` takes cuDNN on CUDA for half precision at lengths that are multiples of 128
    (measured on an H200: 1.6 times FlashAttention-2), else flash; float32 has only the
    memory-efficient kernel, and that one takes no grouped heads.
    """
    if device.torch.type != "cuda":
        return "cpu" if device.is_cpu else "default"
    if wanted == "auto":
        if dtype in (torch.bfloat16, torch.float16):
            hopper = compute_capability(device.torch) >= (9, 0)
            wanted = "cudnn" if hopper and length % 128 == 0 else "flash"
        else:
            wanted = "math" if grouped else "efficient"
    torch.backends.cuda.enable_cudnn_sdp(wanted == "cudnn")
    torch.backends.cuda.enable_flash_sdp(wanted == "flash")
    torch.backends.cuda.enable_mem_efficient_sdp(wanted == "efficient")
    torch.backends.cuda.enable_math_sdp(wanted == "math")
    return wanted


def in_half_on_gpu(device: torch.device, dtype: torch.dtype) -> bool:
    """Where kernels of ours run at all; elsewhere their references do."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def chains_kernels(device: torch.device) -> bool:
    """Whether a kernel may start before the one before it has ended (from Hopper on)."""
    return compute_capability(device) >= (9, 0)


def compute_capability(device: torch.device) -> tuple[int, int]:
    """An NVIDIA GPU's, as (9, 0) for Hopper; (0, 0) of anything else."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 0, 0
    return torch.cuda.get_device_capability(device)


def leave_attention_open(device: Device) -> None:
    """Allow every back-end but cuDNN's, for calls that are not ours.

    A dense mask differentiated through cuDNN gives NaN gradients at some lengths
    (pytorch#196678), and what a user's own attention passes is not known.
    """
    if device.torch.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


@contextmanager
def every_attention() -> Iterator[None]:
    """Undo the pinning for a while: scoring has lengths that a pinned kernel may not take."""
    if not torch.cuda.is_available():
        yield
        return
    backends = torch.backends.cuda
    switches = {
        backends.enable_cudnn_sdp: backends.cudnn_sdp_enabled(),
        backends.enable_flash_sdp: backends.flash_sdp_enabled(),
        backends.enable_mem_efficient_sdp: backends.mem_efficient_sdp_enabled(),
        backends.enable_math_sdp: backends.math_sdp_enabled(),
    }
    for switch in switches:
        switch(True)
    try:
        yield
    finally:
        for switch, before in switches.items():
            switch(before)


def random_states(device: Device) -> dict[str, Tensor]:
    """States of torch's random number generators: the host's, and the device's if it has one."""
    states = {"host": torch.get_rng_state()}
    if not device.is_cpu:
        states["device"] = torch.get_device_module(device.torch).get_rng_state(device.torch)
    return states


def restore_random_states(device: Device, states: dict[str, Tensor]) -> None:
    """Put the generators where `random_states` saw them."""
    torch.set_rng_state(states["host"])
    if not device.is_cpu:
        torch.get_device_module(device.torch).set_rng_state(states["device"], device.torch)


def free_cached() -> None:
    """Give memory that no tensor holds back to the device."""
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def to_device(tensor: Tensor, device: Device) -> Tensor:
    """Move a host tensor without waiting for what the device is doing."""
    if device.is_cpu:
        return tensor
    return tensor.pin_memory().to(device.torch, non_blocking=True)


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor holds; a quantized one with its scales and zero points."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(tensor_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "CUDA out of memory" in text or "alloc_cpu" in text
    )


def is_lost(error: BaseException) -> bool:
    """Whether an exception says that the device is gone."""
    text = str(error).lower()
    return any(sign in text for sign in ("gpu is lost", "device lost", "fallen off the bus"))
