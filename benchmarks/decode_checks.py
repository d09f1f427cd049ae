"""What `gradients.py` checks of generation: a prompt, and one new token.

These have no gradients; their outputs are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from check import Check, draw
from efficientllm.catalog.shape import Sparse
from efficientllm.models.attend_cached import (
    SPLIT,
    attend_cache,
    attend_latents,
    attend_products,
    decoding,
)
from efficientllm.models.position import Positions
from efficientllm.models.sparse_cached import (
    CHOSEN_SPLIT,
    SparseCache,
    attend_sparse_cache,
    attend_sparse_products,
    gated,
    sparse_decoding,
)
from efficientllm.models.sparse_reference import block_means, means_of, sparse_reference
from efficientllm.models.sparse_rows import attend_sparse_rows, rows_fit
from efficientllm.models.vector import multiply_heads, take_vectors
from efficientllm.record import Unsupported


def prefilled_sparse(device: torch.device, dtype: torch.dtype, *, d: int = 128) -> Check:
    """NSA for whole rows under its gates, as a prefill has it.

    Every block is selected, more than one go looks at; the window's output is given.
    """
    sizes = Sparse(block=16, selected=128, window=64)
    if not rows_fit(device, dtype, 16, d, sizes):
        raise Unsupported("these kernels run in half precision on a GPU")
    length = 256 if device.type == "cpu" else 2048
    wanted = {"q": (2, 32, length, d), "k": (2, 2, length, d), "v": (2, 2, length, d)}
    wanted |= {"near": (2, 32, length, d), "gates": (2, length, 96)}
    inputs = {name: x.detach() for name, x in draw(device, dtype, **wanted).items()}

    def fast(q: Tensor, k: Tensor, v: Tensor, near: Tensor, gates: Tensor) -> Tensor:
        means = means_of(k, v, sizes)
        return attend_sparse_rows(q, k, v, means, near, gates, sizes)

    def reference(q: Tensor, k: Tensor, v: Tensor, near: Tensor, gates: Tensor) -> Tensor:
        # Rounded once for both: means in float32 are looked at otherwise.
        block_k, block_v = (x.float() for x in means_of(k, v, sizes))
        branches = sparse_reference(q.float(), k.float(), v.float(), (block_k, block_v), sizes)
        return gated(gates.float(), (*branches, near.float()))

    return Check(fast, reference, inputs, f"2 x {length}, heads 32/2, D {d}, block 16")


def decoded(
    device: torch.device,
    dtype: torch.dtype,
    *,
    kv: int,
    d: int = 128,
    rest: int = 0,
    adds: str = "",
) -> Check:
    """One new token over a cache in parts; over latents (a rest); with slopes or biases."""
    if decoding(device, dtype, 16 // kv, d, d, rest) != SPLIT:
        raise Unsupported("these sizes go by two products here")
    sizes = {"q": (2, 16, 1, d + rest), "k": (2, kv, 4096, d + rest), "v": (2, kv, 4096, d)}
    inputs = draw(device, dtype, **sizes, **({"bias": (129, 16)} if adds == "bias" else {}))
    inputs = {name: x.detach() for name, x in inputs.items()}
    slopes = torch.logspace(-1, -8, 16, base=2.0, device=device) if adds == "slopes" else None
    at, scale = torch.tensor([4000], device=device), (d + rest) ** -0.5

    def told(bias: Tensor | None) -> Positions:
        return Positions(slot=at, bias=None if bias is None else bias.T, slopes=slopes)

    def fast(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        if rest:
            return attend_latents(q, k, d, told(bias), scale)
        return attend_cache(q, k, v, told(bias))

    def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        values = k[..., :d] if rest else v
        exact = told(None if bias is None else bias.float())
        return attend_products(q.float(), k.float(), values.float(), exact, scale)

    return Check(fast, reference, inputs, f"2 x 4096 slots, heads 16/{kv}, D {d}+{rest}")


def decoded_sparse(device: torch.device, dtype: torch.dtype, *, d: int = 128) -> Check:
    """NSA for one new token over a cache of 4,096."""
    sizes, slot = Sparse(block=64, selected=16, window=512), torch.tensor([4000], device=device)
    if sparse_decoding(device, dtype, 16, d, sizes) != CHOSEN_SPLIT:
        raise Unsupported("these sizes go by products here")
    wanted = {"q": (2, 16, 1, d), "k": (2, 1, 4096, d), "v": (2, 1, 4096, d), "gates": (2, 1, 48)}
    inputs = {name: x.detach() for name, x in draw(device, dtype, **wanted).items()}
    # Rounded once for both, so that both choose the same blocks.
    inputs |= {f"block_{name}": block_means(inputs[name], sizes) for name in ("k", "v")}

    def by(way: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attend_one(q: Tensor, gates: Tensor, **cached: Tensor) -> Tensor:
            cache = SparseCache(**{name: x.clone() for name, x in cached.items()})
            new = (x[:, :, 4000:4001] for x in cache[:2])
            return way(q, *new, gates, cache, slot, sizes)

        return attend_one

    fast, reference = by(attend_sparse_cache), by(attend_sparse_products)
    return Check(fast, reference, inputs, f"2 x 4096 slots, heads 16/1, D {d}, block 64")


def one_row(device: torch.device, dtype: torch.dtype, *, rows: int, columns: int) -> Check:
    """A linear layer with one row, as decoding has it."""
    layer = nn.Linear(columns, rows, device=device, dtype=dtype).requires_grad_(False)
    if not take_vectors(layer):
        raise Unsupported("only half precision on a GPU has a kernel for one row")
    inputs = {"x": draw(device, dtype, x=(1, 1, columns))["x"].detach()}

    def fast(x: Tensor) -> Tensor:
        out = layer(x)
        assert isinstance(out, Tensor)
        return out

    def reference(x: Tensor) -> Tensor:
        return F.linear(x.float(), layer.weight.float(), layer.bias.float())

    return Check(fast, reference, inputs, f"{rows} x {columns}")


def one_row_each(device: torch.device, dtype: torch.dtype, *, across: bool) -> Check:
    """A matrix for each of 16 heads with one row each, as absorbed latents have it."""
    layer = nn.Linear(512, 16 * 128, bias=False, device=device, dtype=dtype).requires_grad_(False)
    if not take_vectors(layer):
        raise Unsupported("only half precision on a GPU has a kernel for one row")
    weight = layer.weight.view(16, 128, 512)
    weight = weight.transpose(1, 2) if across else weight
    _, rows, columns = weight.shape
    inputs = {"x": draw(device, dtype, x=(1, 16, 1, columns))["x"].detach()}

    def reference(x: Tensor) -> Tensor:
        return torch.einsum("bhtk,hnk->bhtn", x.float(), weight.float())

    fast = partial(multiply_heads, weight=weight, layer=layer)
    return Check(fast, reference, inputs, f"16 heads, {rows} x {columns}")
