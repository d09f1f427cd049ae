"""FlashAttention-4, from the package flash-attn-4, for whole rows on Hopper: both directions.

On an H200 it takes 6 to 25 % less time than cuDNN (`results/h200-benchmarks.md`). torch has a hook
that makes it SDPA's flash back-end; that unpacks as many results as the package gave when torch
was released (a ValueError with torch 2.11 and 4.0.0b36), and knows neither windows nor values of
another size than keys. So both directions are operators of their own here, opaque to the compiler.

Only what was compared with float32 there is taken: bf16, and the sizes and groups of heads
below. Its two kernels are made when they are first called, some 2 s each, in every process.

Legend: as in `attend.py`; the kernels want [B, T, heads, size].
"""

from __future__ import annotations

import importlib
from importlib import metadata

import torch
from torch import Tensor

from efficientllm.catalog.shape import Shape
from efficientllm.device import compute_capability
from efficientllm.record import Unsupported

KERNEL = "flash4"
PACKAGE = "flash-attn-4"
SIZES = ((64, 64), (128, 128), (96, 64), (192, 128))
"""Of a head's keys and values."""

GROUPS = (1, 4, 6, 16)
"""How many heads share keys and values."""

WINDOW_PAYS = 1 << 15
"""Head size times window from which on FlexAttention is slower."""

_INTERFACE = "flash_attn.cute.interface"

_pinned = False


def chosen(wanted: str, device: torch.device, dtype: torch.dtype, shape: Shape) -> bool:
    """Whether whole rows are attended to by it: asked for, or `auto` where it can run.

    Raises Unsupported where it is asked for and cannot, with the reason.
    """
    if wanted not in ("auto", KERNEL):
        return False
    why = _unchecked(dtype, shape) or absence(device)
    if why and wanted == KERNEL:
        raise Unsupported(f"attention: {KERNEL} {why}")
    return not why


def _unchecked(dtype: torch.dtype, shape: Shape) -> str:
    """What of a model's attention has not been compared with float32."""
    if dtype != torch.bfloat16:
        return f"was checked in bf16 only, and this is {dtype}"
    latent, group = shape.latent, shape.heads // shape.kv_heads
    sizes = (shape.head_dim, shape.head_dim)
    if latent is not None:  # every head has keys and values of its own then
        sizes, group = (latent.qk_nope_dim + latent.qk_rope_dim, latent.v_dim), 1
    if sizes not in SIZES or group not in GROUPS:
        checked = ", ".join(f"{d}/{e}" for d, e in SIZES)
        return (
            f"was checked with heads of {checked} that share keys by"
            f" {', '.join(map(str, GROUPS))}, and these are {sizes[0]}/{sizes[1]} by {group}"
        )
    return ""


def absence(device: torch.device) -> str:
    """Why it cannot run on a device with what is installed; empty where it can.

    The package is imported here, which takes 2 to 7 s, opens CUDA, and may fail.
    """
    if compute_capability(device)[0] != 9:
        return "is for NVIDIA GPUs of compute capability 9 (Hopper)"
    try:  # by its metadata: the folder `flash_attn` is shared with the package flash-attn
        metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return f"needs the package {PACKAGE}: pip install 'efficientllm[flash4]'"
    try:
        importlib.import_module(_INTERFACE)
    except Exception as error:
        return f"cannot be imported ({type(error).__name__}: {error})"
    return ""


def pin(on: bool) -> None:
    """Let it attend, or not, process-wide, as SDPA's back-ends are pinned."""
    global _pinned
    _pinned = on


def attends(size: int, window: int | None) -> bool:
    """Whether it is pinned and attends with heads of this size: with a window where it is faster.

    Milliseconds forward and backward of 2 x 16,384 tokens and 16 heads on an H200, FlexAttention
    and this: size 64, window 256: 1.03, 1.06; 64, 512: 1.37, 1.06; 128, 256: 1.75, 1.58.
    """
    return _pinned and (window is None or size * window >= WINDOW_PAYS)


def attend_flash4(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Causal attention: q [B, H, T, D], k [B, K, T, D], v [B, K, T, E] -> [B, H, T, E]."""
    if torch.is_autocast_enabled(q.device.type):  # of which an operator of ours knows nothing
        kind = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(kind), k.to(kind), v.to(kind)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    back = -1 if window is None else window - 1
    return _forward(q, k, v, back)[0].transpose(1, 2)


@torch.library.custom_op("efficientllm::flash4_forward", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, back: int) -> tuple[Tensor, Tensor]:
    """The output and the scores' log-sum-exp; a query sees `back` keys before its own, -1 all."""
    forward = importlib.import_module(_INTERFACE)._flash_attn_fwd
    out, lse, *_ = forward(q, k, v, causal=True, return_lse=True, window_size_left=_left(back))
    return out, lse


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, back: int) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q.shape
    lse = q.new_empty((batch, heads, length), dtype=torch.float32)
    return q.new_empty((batch, length, heads, v.shape[-1])), lse


@torch.library.custom_op("efficientllm::flash4_backward", mutates_args=())
def _backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, d_out: Tensor, back: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    backward = importlib.import_module(_INTERFACE)._flash_attn_bwd
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    told = {"causal": True, "window_size_left": _left(back)}
    backward(q, k, v, out, d_out, lse, dq=dq, dk=dk, dv=dv, **told)
    return dq, dk, dv


@_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, d_out: Tensor, back: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _left(back: int) -> int | None:
    """An operator's number as the package says it."""
    return None if back < 0 else back


def _keep(ctx: object, inputs: tuple[object, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.back = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(*tensors, *output)  # type: ignore[attr-defined]
    ctx.mark_non_differentiable(output[1])  # type: ignore[attr-defined]


def _gradients(ctx: object, d_out: Tensor, _: object) -> tuple[Tensor | None, ...]:
    kept = ctx.saved_tensors  # type: ignore[attr-defined]
    return (*_backward(*kept, d_out, ctx.back), None)  # type: ignore[attr-defined]


_forward.register_autograd(_gradients, setup_context=_keep)
