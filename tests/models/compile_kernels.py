"""Compiles our kernels for cards that are not here, with the arguments that models give them.

Run as a program of its own, because Triton is told once whether it interprets. What an
interpreter takes may still have types that no compiler does. Prints a line for each kernel:
its name, the card's capability and the bytes of shared memory that a program takes.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from efficientllm.models.merge_kernel import merge
from efficientllm.models.sparse_chosen_kernel import chosen_gradients
from efficientllm.models.sparse_means_kernel import means_gradients
from efficientllm.models.sparse_rows_kernel import attend_branches, attend_rows
from efficientllm.models.sparse_split_kernel import attend_sparse
from efficientllm.models.split_kernel import attend_parts
from efficientllm.models.swiglu_kernel import gate, gate_gradient
from efficientllm.models.vector_kernel import multiply, multiply_each
from efficientllm.workloads.cross_kernel import turn_into_gradient

HALF = {"dtype": torch.bfloat16}
SLOT = torch.zeros(1, dtype=torch.long)


def compiled(kernel: JITFunction[Any], grid: object) -> Callable[..., None]:
    """Stands where a kernel is launched: compiles it, and tells what it takes."""

    def compile_only(*args: Any, **options: Any) -> None:
        made = kernel.run(*args, grid=grid, warmup=True, **options)
        chained = options.get("chained", False)
        in_order(made.asm["ptx"], chained, early="weight" in kernel.arg_names)
        card = driver.active.get_current_device()
        # Written as one, also where Python buffers nothing: lines of processes must not mix.
        sys.stdout.write(f"{kernel.fn.__name__} {card} {made.metadata.shared}\n")
        sys.stdout.flush()

    return compile_only


def in_order(ptx: str, chained: bool, *, early: bool) -> None:
    """Hold the rules of `chain_kernel.py` against what a kernel was compiled to.

    A chain's kernels wait once and let the next one start after that; nothing is written
    before, and nothing read but weights (`early`). No other kernel does any of it.
    """
    before, *after = ptx.split("griddepcontrol.wait")
    assert len(after) == chained
    assert ptx.count("griddepcontrol.launch_dependents") == chained
    assert "griddepcontrol.launch_dependents" not in before
    if chained:
        assert "st.global" not in before
        assert ("ld.global" in before) == early
        assert "cp.async" not in before


def decode(batch: int, kv_heads: int, group: int, size: int, chunk: int) -> None:
    """One token over a cache and over chosen blocks, on tensors whose numbers do not matter."""
    q = torch.empty((batch, kv_heads, group, size), **HALF)
    k = torch.empty((batch, kv_heads, 640, size), **HALF)
    found = attend_parts(q, k, k, SLOT, None, None, chunk, size, 0.1)
    merge(*found, None, (found[0].shape[2],), torch.bfloat16)
    new, means = k[:, :, 0], torch.empty((batch, kv_heads, 10, size), **HALF)
    gates = torch.empty((batch, 3 * kv_heads * group), **HALF)
    attend_sparse(q, new, new, gates, (k, k, means, means), SLOT, 64, 4, 100)


def distances() -> None:
    """One token with what depends on distance."""
    q, k = (torch.empty((1, 4, n, 64), **HALF) for n in (4, 640))
    for bias, slopes in ((torch.empty((33, 16)).T, None), (None, torch.empty(16))):
        attend_parts(q, k, k, SLOT, bias, slopes, 128, 64, 0.1)


def latents(group: int, rank: int, rest: int) -> None:
    """One token over latents, whose first numbers are the values."""
    q, latent = (torch.empty((1, 1, n, rank + rest), **HALF) for n in (group, 640))
    found = attend_parts(q, latent, None, SLOT, None, None, 128, rank, 0.1)
    merge(*found, None, (found[0].shape[2],), torch.bfloat16)


def rows(group: int, size: int) -> None:
    """A prompt's sparse attention, as a model lays it out."""
    q, k = (torch.empty((1, 640, n, size), **HALF).transpose(1, 2) for n in (2 * group, 2))
    means, gates = torch.empty((1, 2, 10, size), **HALF), torch.empty((1, 640, 6 * group), **HALF)
    attend_rows(q, k, k, (means, means), q, gates, 64, 4)


def branches(group: int, size: int) -> None:
    """Sparse attention as training lays it out, and its gradients."""
    q, means = torch.empty((1, 640, 2 * group, size), **HALF), torch.empty((1, 10, 2, size), **HALF)
    k = torch.empty((1, 640, 2, size), **HALF)
    compressed, out, looked, lse, _ = attend_branches(q, k, k, (means, means), 64, 16)
    means_gradients(q, means, means, compressed, looked, q, 64)
    chosen = torch.zeros((1, 640, 2, 16), dtype=torch.int32)
    chosen_gradients(q, k, k, out, lse, q, chosen, 64, q)


def vector(columns: int) -> None:
    """A product with one row, with and without a bias."""
    x, weight = torch.empty((1, 1, columns), **HALF), torch.empty((7, columns), **HALF)
    multiply(x, weight, torch.empty(7, **HALF))
    multiply(x, weight, None)


def heads() -> None:
    """A head's own matrix times its row, along its rows and across them."""
    x, weight = torch.empty((1, 16, 1, 512), **HALF), torch.empty((16, 128, 512), **HALF)
    multiply_each(x, weight)
    multiply_each(x[..., :128], weight.transpose(1, 2))


def training() -> None:
    """What every training step does between products, at widths with and without a rest."""
    for width in (8960, 37):
        both, down = torch.empty((1, 2, 2 * width), **HALF), torch.empty((1, 2, width), **HALF)
        gate(both)
        gate_gradient(both, down)
    for vocab in (151_936, 50_257):
        turn_into_gradient(torch.empty((2, vocab), **HALF), torch.zeros(2, dtype=torch.long), -100)


LARGEST = (
    partial(branches, 128, 128),
    partial(rows, 128, 128),
    partial(decode, 2, 4, 4, 128, 128),
    distances,
    partial(latents, 16, 512, 64),
    training,
    heads,
    partial(vector, 4096),
)
"""Every kernel, at the largest sizes that are tried: for both cards."""

OTHERS = (
    partial(branches, 7, 64),
    partial(rows, 16, 64),
    partial(decode, 1, 1, 16, 64, 640),
    *(partial(vector, columns) for columns in (896, 96)),
)
"""Sizes in use that take no more: for the newer card, whose code is held to more rules."""


def compile_for(capability: int, part: Callable[[], None]) -> None:
    """Compile one part for a card that Triton takes for the one that is here."""
    card = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: capability,
        get_current_stream=lambda _: 0,
    )
    driver.set_active(card)
    part()


def main() -> None:
    """Everything, for each card, on at most four cores, as `scripts/check` takes them."""
    JITFunction.__getitem__ = compiled  # type: ignore[method-assign]
    # Forked, or each process would import torch and Triton again.
    workers = min(4, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        work = [*itertools.product(OTHERS, (90,)), *itertools.product(LARGEST, (80, 90))]
        for done in [pool.submit(compile_for, card, part) for part, card in work]:
            done.result()


if __name__ == "__main__":
    main()
