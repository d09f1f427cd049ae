"""What `gradients.py` checks: every fast kernel beside its plain formula.

A further check is one function from (device, dtype) to a `Check`, and its line in CHECKS. It
draws its inputs with `draw` and raises Unsupported where its kernel is not. References read
the same inputs in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from check import Check, Inputs, draw
from decode_checks import decoded, decoded_sparse, one_row, one_row_each, prefilled_sparse
from efficientllm.catalog.shape import Sparse
from efficientllm.device import in_half_on_gpu
from efficientllm.models import flash4
from efficientllm.models.attend import attend, attend_masked
from efficientllm.models.attend_cached import INSTALLED
from efficientllm.models.feedforward import gated
from efficientllm.models.position import Documents, Positions
from efficientllm.models.sparse_branches import sparse_branches
from efficientllm.models.sparse_reference import masked, means_of, sparse_reference
from efficientllm.models.sparse_rows import obstacle
from efficientllm.models.swiglu import swiglu
from efficientllm.record import Unsupported
from efficientllm.workloads import loss
from efficientllm.workloads.batches import IGNORED
from efficientllm.workloads.compiling import compiled


def _heads(
    device: torch.device,
    dtype: torch.dtype,
    heads: int = 12,
    kv: int = 2,
    d: int = 128,
    dv: int = 0,
) -> tuple[Inputs, str]:
    """q [B, H, T, D], k [B, K, T, D], v [B, K, T, E]: 2,048 tokens on a GPU, 256 on a CPU."""
    if device.type != "cpu" and dtype == torch.float32:
        raise Unsupported("these kernels multiply in half precision")
    batch, length = (1, 256) if device.type == "cpu" else (2, 2048)
    sizes = {"q": (heads, d), "k": (kv, d), "v": (kv, dv or d)}
    inputs = draw(device, dtype, **{n: (batch, h, length, w) for n, (h, w) in sizes.items()})
    return inputs, f"{batch} x {length}, heads {heads}/{kv}, D {d}/{dv or d}"


def _only_on_gpu(device: torch.device) -> None:
    if device.type == "cpu":
        raise Unsupported("a CPU has no such kernel")


def _plain(q: Tensor, k: Tensor, v: Tensor, window: int | None = None, **told: Any) -> Tensor:
    """Attention with every score written out."""
    return attend_masked(q, k, v, Positions(**told), window)


def sdpa(device: torch.device, dtype: torch.dtype, *, by: SDPBackend, **sizes: int) -> Check:
    """Causal attention by one back-end of SDPA; `sizes` as in `_heads`."""
    if by is not SDPBackend.FLASH_ATTENTION:
        _only_on_gpu(device)
    inputs, shape = _heads(device, dtype, **sizes)
    return Check(sdpa_kernel(by)(attend), _plain, inputs, shape)


def by_flash4(
    device: torch.device, dtype: torch.dtype, *, window: int | None = None, **sizes: int
) -> Check:
    """Causal attention by FlashAttention-4, in a compiled function; `sizes` as in `_heads`."""
    if why := flash4.absence(device):
        raise Unsupported(f"FlashAttention-4 {why}")
    inputs, shape = _heads(device, dtype, **sizes)
    fast = compiled(partial(flash4.attend_flash4, window=window))
    return Check(fast, partial(_plain, window=window), inputs, f"{shape}, window {window}")


def packed(device: torch.device, dtype: torch.dtype) -> Check:
    """Documents of uneven lengths in one row: the variable-length kernel; on a CPU, one by one."""
    inputs, shape = _heads(device, dtype)
    row = {name: x.detach()[:1].requires_grad_() for name, x in inputs.items()}
    length = row["q"].shape[2]
    cuts = [0, length // 8, length // 8 + 1, length // 2 + 3, length]
    lengths = tuple(b - a for a, b in itertools.pairwise(cuts))
    offsets = torch.tensor([*cuts, length], dtype=torch.int32, device=device)  # padded
    documents = Documents(offsets, max(lengths), lengths)

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(torch.split(x, list(lengths), dim=2) for x in (q, k, v)), strict=True)
        return torch.cat([_plain(*part) for part in parts], dim=2)

    fast = partial(attend, positions=Positions(documents=documents))
    return Check(fast, reference, row, f"{shape}, one row, {len(lengths)} documents")


def flex(
    device: torch.device, dtype: torch.dtype, *, adds: str = "", window: int = 0, d: int = 128
) -> Check:
    """FlexAttention with a window, slopes (ALiBi) or learned biases (T5), compiled."""
    _only_on_gpu(device)
    inputs, shape = _heads(device, dtype, kv=12 if adds else 2, d=d)
    if adds == "bias":
        inputs |= draw(device, torch.float32, bias=(12, 129))
    if adds == "slopes":
        inputs["slopes"] = torch.logspace(-1, -8, 12, base=2.0, device=device)

    def fast(q: Tensor, k: Tensor, v: Tensor, **told: Any) -> Tensor:
        return attend(q, k, v, Positions(**told), window or None)

    reference = partial(_plain, window=window or None)
    return Check(compiled(fast), reference, inputs, f"{shape}, window {window or 'none'}")


def sparse(device: torch.device, dtype: torch.dtype, *, d: int = 128) -> Check:
    """NSA's two branches, side by side, on rows so short that every block is selected.

    Which blocks are chosen near a tie is no question of a gradient.
    """
    sizes = Sparse(block=32, selected=16, window=64)
    inputs = _sparse_inputs(device, dtype, sizes, 512, d)

    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        means = means_of(k, v, sizes)
        return torch.cat(sparse_branches(q, k, v, *means, sizes))

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        means = means_of(k, v, sizes)
        return torch.cat(sparse_reference(q, k, v, means, sizes))

    return Check(fast, reference, inputs, f"2 x 512, heads 16/1, D {d}, block 32")


def compressed(device: torch.device, dtype: torch.dtype, *, d: int = 128) -> Check:
    """NSA's compressed branch alone, on rows long enough for several tiles of means.

    The first queries' gradients are left out: where there is one mean to see they are rounding.
    """
    sizes = Sparse(block=64, selected=16, window=512)
    inputs = _sparse_inputs(device, dtype, sizes, 8192, d)

    def later(q: Tensor) -> Tensor:
        first, rest = q.split((4 * sizes.block, q.shape[2] - 4 * sizes.block), dim=2)
        return torch.cat((first.detach(), rest), dim=2)

    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_branches(later(q), k, v, *means_of(k, v, sizes), sizes)[0]

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, means = later(q), means_of(k, v, sizes)
        at = torch.arange(q.shape[2], device=device)[:, None]
        seen = torch.arange(means[0].shape[2], device=device) < (at + 1) // sizes.block
        return masked(q.unsqueeze(1), *means, seen)[0].flatten(1, 2)

    return Check(fast, reference, inputs, f"2 x 8192, heads 16/1, D {d}, block 64")


def _sparse_inputs(
    device: torch.device, dtype: torch.dtype, sizes: Sparse, length: int, d: int
) -> dict[str, Tensor]:
    """Queries of 16 heads over one key/value head, where the kernels of NSA run."""
    _only_on_gpu(device)
    if not in_half_on_gpu(device, dtype):
        raise Unsupported("these kernels run in half precision")
    if why := obstacle(16, d, sizes):
        raise Unsupported(why)
    return draw(device, dtype, q=(2, 16, length, d), k=(2, 1, length, d), v=(2, 1, length, d))


def gated_linear(device: torch.device, dtype: torch.dtype, *, width: int) -> Check:
    """SwiGLU of a fused product."""
    if not in_half_on_gpu(device, dtype) or not INSTALLED:
        raise Unsupported("this kernel runs in half precision on a GPU")
    inputs = draw(device, dtype, both=(2, 2048, 2 * width))

    def reference(both: Tensor) -> Tensor:
        return gated(*both.chunk(2, dim=-1))

    return Check(swiglu, reference, inputs, f"2 x 2048 x {width}")


def sliced(device: torch.device, dtype: torch.dtype, *, kind: loss.Kind, slices: int = 2) -> Check:
    """Loss and gradients slice by slice against cross-entropy of all logits in float32."""
    if kind == "liger":
        _only_on_gpu(device)
    rows, width, vocab = (512, 128, 2048) if device.type == "cpu" else (8192, 1536, 151_936)
    inputs = draw(device, dtype, hidden=(rows, width), weight=(vocab, width))
    inputs["weight"].data.mul_(width**-0.5)
    targets = torch.randint(vocab, (rows,), device=device)
    targets[::7] = IGNORED
    by_slices = loss.loss_of(kind)

    def fast(hidden: Tensor, weight: Tensor) -> Tensor:
        loss.CHUNK_BYTES = rows * vocab * dtype.itemsize // slices
        return by_slices(hidden, weight, targets)

    def reference(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = F.linear(hidden, weight)
        return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")

    return Check(fast, reference, inputs, f"{rows} x {width} x {vocab}")


CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
CHECKS: dict[str, Callable[[torch.device, torch.dtype], Check]] = {
    "sdpa cudnn, D 64": partial(sdpa, by=CUDNN, d=64),
    "sdpa cudnn, D 128": partial(sdpa, by=CUDNN, d=128),
    "sdpa cudnn, latent": partial(sdpa, by=CUDNN, kv=12, d=192, dv=128),
    "sdpa cudnn, latent, small": partial(sdpa, by=CUDNN, kv=12, d=96, dv=64),
    "sdpa flash, D 64": partial(sdpa, by=FLASH, d=64),
    "sdpa flash, D 128": partial(sdpa, by=FLASH, d=128),
    "flash4, D 32": partial(by_flash4, heads=16, kv=4, d=32),
    "flash4, D 64": partial(by_flash4, d=64),
    "flash4, groups of 7": partial(by_flash4, heads=14, d=64),
    "flash4, groups of 8": partial(by_flash4, heads=16),
    "flash4, groups of 16": partial(by_flash4, heads=16, kv=1, d=64),
    "flash4, latent, smallest": partial(by_flash4, kv=12, d=48, dv=32),
    "flash4, D 128": partial(by_flash4, d=128),
    "flash4, latent": partial(by_flash4, kv=12, d=192, dv=128),
    "flash4, latent, small": partial(by_flash4, kv=12, d=96, dv=64),
    "flash4, window": partial(by_flash4, window=512),
    "flash4, window, D 64": partial(by_flash4, window=512, d=64),
    "packed documents": packed,
    "flex, window": partial(flex, window=512),
    "flex, window, D 64": partial(flex, window=512, d=64),
    "flex, slopes": partial(flex, adds="slopes"),
    "flex, slopes, window": partial(flex, adds="slopes", window=512),
    "flex, bias": partial(flex, adds="bias"),
    "flex, bias, D 64": partial(flex, adds="bias", d=64),
    "flex, bias, D 32": partial(flex, adds="bias", d=32),
    "nsa": sparse,
    "nsa, D 64": partial(sparse, d=64),
    "nsa, compressed": compressed,
    "nsa, compressed, D 64": partial(compressed, d=64),
    "nsa, prefill": prefilled_sparse,
    "nsa, prefill, D 64": partial(prefilled_sparse, d=64),
    "nsa, decode": decoded_sparse,
    "nsa, decode, D 64": partial(decoded_sparse, d=64),
    "decode, split, groups of 16": partial(decoded, kv=1),
    "decode, split, groups of 4": partial(decoded, kv=4, d=64),
    "decode, split, each its own": partial(decoded, kv=16, d=64),
    "decode, split, latents": partial(decoded, kv=1, d=512, rest=64),
    "decode, split, bias": partial(decoded, kv=4, d=64, adds="bias"),
    "decode, split, slopes": partial(decoded, kv=4, d=64, adds="slopes"),
    "one row": partial(one_row, rows=9728, columns=896),
    "one row, long": partial(one_row, rows=1536, columns=8960),
    "one row a head": partial(one_row_each, across=False),
    "one row a head, across": partial(one_row_each, across=True),
    "swiglu": partial(gated_linear, width=8960),
    "swiglu, odd": partial(gated_linear, width=1111),
    "loss, chunked": partial(sliced, kind="chunked"),
    "loss, chunked, one slice": partial(sliced, kind="chunked", slices=1),
    "loss, liger": partial(sliced, kind="liger"),
}
