"""Compilation: once for a layer, not once for a model.

Whole-model compilation of a 28-layer model took 74 to 121 s on an H200, the layer alone
11 s, at higher speed. All layers share one graph because they get their cache and their
positions as tensors. What was compiled, and how often, is told to the record: a layer that
silently runs eager is a different measurement.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from efficientllm.device import Device, chains_kernels
from efficientllm.models.decoder import Decoder
from efficientllm.models.position import Positions

P = ParamSpec("P")
R = TypeVar("R")


def resolve(wanted: str, device: Device, *, ours: bool, decode: bool) -> str:
    """What `auto` means here. A CPU runs eagerly: compiling costs it more than it gives."""
    if wanted != "auto":
        return wanted
    if device.is_cpu:
        return "none"
    return "model" if decode and not ours else "layer"


def start_compilers(wanted: str, device: Device) -> None:
    """Start the processes that Inductor compiles kernels in, where any will be.

    They take seconds to import torch. Started with the trial they do so while it
    loads; started by the first compilation, it compiles most of its kernels alone.
    """
    if device.is_cpu or wanted == "none":
        return
    from torch._inductor.async_compile import maybe_warm_pool

    maybe_warm_pool()


def be_loud() -> None:
    """Fail when a recompile limit is hit instead of falling back to eager without a word."""
    import torch._dynamo

    torch._dynamo.config.fail_on_recompile_limit_hit = True


VECTOR_OPTIONS: dict[str, Any] = {"coordinate_descent_tuning": True, "realize_reads_threshold": 1}
"""How Inductor is told to write products with one vector itself, and to tune them.

With the first, a product of one row becomes a reduction that takes stored int8 weights as
they are; the second keeps a norm or an activation before it from being computed again for
every row of the weights. Tuning takes some 10 s where the cache does not know the products.
Plain linear layers of our decoder have a kernel of their own (`models/vector.py`).
"""


def chained(device: torch.device) -> dict[str, Any]:
    """Let Inductor's kernels start while the one before ends (`models/chain_kernel.py`).

    For decode steps of our own layers alone, in which every kernel reads what one before wrote.
    Nothing where Inductor has no such option, or would ignore it.
    """
    from torch._inductor import config

    able = chains_kernels(device) and hasattr(config.triton, "enable_pdl")
    return {"triton.enable_pdl": True} if able else {}


def compile_layers(
    layers: nn.ModuleList,
    *,
    whole: bool = True,
    options: dict[str, Any] | None = None,
    step: dict[str, Any] | None = None,
) -> None:
    """Compile every layer in place; they share code, so the first pays for all.

    `whole` insists on one graph a layer. Layers that adapters have replaced parts of may
    break into several; the breaks are counted and flagged. `step` are options beside
    `options` that our own layers have in a decode step, and not for a prompt.
    """
    be_loud()
    for layer in layers:
        layer.compile(fullgraph=whole, dynamic=False, options=options or None)
        if step:
            prompt, both = layer._compiled_call_impl, (options or {}) | step
            assert prompt is not None
            one = torch.compile(layer._call_impl, fullgraph=whole, dynamic=False, options=both)
            layer._compiled_call_impl = partial(_prompt_or_step, prompt, one)


def _prompt_or_step(
    prompt: Callable[..., Tensor],
    step: Callable[..., Tensor],
    x: Tensor,
    positions: Positions,
    cache: Any = None,
) -> Tensor:
    """A layer of our decoder, by whichever was compiled for what it is given."""
    return (prompt if positions.slot is None else step)(x, positions, cache)


def compile_ends(model: Decoder, *, options: dict[str, Any] | None = None) -> None:
    """Compile what a decode step does before and after its layers: a dozen small kernels."""
    model.enter = compiled(model.enter, options=options)  # type: ignore[method-assign]
    model.leave = compiled(model.leave, options=options)  # type: ignore[method-assign]


def reset() -> None:
    """Forget compiled code, so that the next point compiles for its own shapes."""
    if "torch._dynamo" in sys.modules:
        import torch._dynamo

        torch._dynamo.reset()


def compilations() -> int:
    """Graphs compiled so far in this process."""
    return int(_counters("stats").get("unique_graphs", 0))


def compiled(step: Callable[P, R], *, options: dict[str, Any] | None = None) -> Callable[P, R]:
    """A whole step compiled as one graph."""
    be_loud()
    options = options or None
    made: Callable[P, R] = torch.compile(step, fullgraph=True, dynamic=False, options=options)
    return made


@contextmanager
def eagerly() -> Iterator[None]:
    """Run without compiled code: scoring sees many shapes, and compiling each helps nobody."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def report() -> dict[str, int]:
    """What dynamo did: graphs, breaks; empty where nothing was compiled."""
    if not compilations():
        return {}
    return {
        "graphs": compilations(),
        "graph_breaks": int(sum(_counters("graph_break").values())),
    }


def _counters(group: str) -> dict[str, int]:
    utils = sys.modules.get("torch._dynamo.utils")
    return dict(utils.counters[group]) if utils is not None else {}
