"""What a model costs on paper: FLOPs and bytes, as pure functions of a shape.

Conventions (METHODOLOGY.md, section "Compute"):

* 2 FLOPs per multiply-add. Norms, activations, softmax and biases count 0: they are
  not what a matrix peak is a peak of.
* An embedding lookup is 0 FLOPs; the output head is a product and counts, tied or not.
* Attention counts *effective* pairs: a causal document of n tokens has n(n+1)/2 (query,
  key) pairs per head, each costing 2 FLOPs per element of the head for the scores and 2
  for the values.
* A window bounds the keys that a query sees. Native sparse attention has three kinds of
  pairs: with whole blocks that lie behind, with the tokens of the selected blocks, and
  with those of the window. Latent attention decodes in its absorbed form: a pair costs the
  latent's width, not the head's.
* A backward pass costs one product for the gradient of the input and one for the
  gradient of the weight. Frozen weights have no weight gradient, and nothing below the
  lowest trained layer has any (so LoRA is about 4N per token, not 6N).
* A mixture counts the experts a token visits.

No torch: `plan` predicts on a laptop with the same functions that `metrics` divides by.
"""

from __future__ import annotations

from functools import cache

from efficientllm.catalog.shape import Shape, Sparse
from efficientllm.parameters import lora_parameters, parameters, readers
from efficientllm.spec.technique import Custom, Freeze, Full, Lora, Techniques

PREFILL_TOKENS = 1 << 17
"""Prompt tokens that go through the model at once; more fill no GPU better."""

DTYPE_BYTES = {"float32": 4, "bf16": 2, "fp16": 2, "int8": 1}


def attention_flops(shape: Shape, pairs: float) -> float | None:
    """FLOPs of all layers' attention for `pairs` (query, key) pairs per head and layer.

    None for mixers that have no pairs to count (Mamba: their scan has no formula here; a
    user's own: it counts itself).
    """
    if shape.state is not None or shape.custom:
        return None
    if shape.latent is not None:
        width = shape.latent.qk_nope_dim + shape.latent.qk_rope_dim + shape.latent.v_dim
        return 2.0 * pairs * shape.heads * width * shape.layers
    return 4.0 * pairs * shape.heads * shape.head_dim * shape.layers


def causal_pairs(tokens: int, window: int | None = None) -> int:
    """(query, key) pairs of one causal document; a window bounds the keys that a query sees."""
    hidden = max(0, tokens - window) if window is not None else 0
    return (tokens * (tokens + 1) - hidden * (hidden + 1)) // 2


def attended_pairs(shape: Shape, tokens: int) -> int:
    """Pairs of one whole row under a shape's attention, per head and layer."""
    if shape.sparse is not None:
        return _sparse_row(shape.sparse, tokens)
    return causal_pairs(tokens, shape.sliding_window)


def visible_pairs(shape: Shape, context: float) -> float:
    """Pairs of one new token when `context` tokens (itself included) are visible.

    A whole number is one context, a float the mean of many: of its own block a token then
    sees half.
    """
    if shape.sparse is not None:
        block = shape.sparse.block
        unseen = -context % block if isinstance(context, int) else (block - 1) / 2
        return _sparse_token(shape.sparse, context, unseen)
    return min(context, shape.sliding_window or context)


def _sparse_token(sparse: Sparse, context: float, unseen: float = 0) -> float:
    """Keys of all three branches for one new token, less those of its own block behind it."""
    selected = min(context, sparse.selected * sparse.block - unseen)
    return context // sparse.block + selected + min(context, sparse.window)


@cache
def _sparse_row(sparse: Sparse, tokens: int) -> int:
    """Pairs of all three branches. A query selects its own block too, of which it sees a part."""
    behind = sum(t // sparse.block for t in range(1, tokens + 1))
    own = (t % sparse.block or sparse.block for t in range(1, tokens + 1))
    whole = (min(-(-t // sparse.block), sparse.selected) - 1 for t in range(1, tokens + 1))
    selected = sum(own) + sparse.block * sum(whole)
    return behind + selected + causal_pairs(tokens, sparse.window)


def training_flops(
    shape: Shape,
    techniques: Techniques,
    tokens: float,
    pairs: float,
    stated: float | None = None,
) -> float | None:
    """Forward and backward FLOPs that the algorithm needs for `tokens` with `pairs` in all.

    `stated` are the forward FLOPs of a user's own attention, its projections included.
    """
    attention = stated if shape.custom else attention_flops(shape, pairs)
    if attention is None or any(isinstance(t, Custom) for t in techniques):
        return None
    counts = parameters(shape)
    head = shape.vocab * shape.hidden
    forward = 2.0 * tokens * (counts.products + head) + attention
    tuning = next((t for t in techniques if isinstance(t, Full | Freeze | Lora)), Full())
    reached = 1.0
    match tuning:
        case Full():
            trained = through = counts.products + head
        case Freeze(last_layers=last):
            layers = counts.layers[-min(last, shape.layers) :]
            trained, reached = sum(layer.products for layer in layers), len(layers) / shape.layers
            through = trained + head  # down to the lowest layer's own norm, which learns too
        case Lora() as lora:
            adapters = lora_parameters(shape, lora)
            if adapters is None:
                return None
            # Below what reads the first layer's input nothing learns: no gradient goes through.
            ends = sum(outputs + lora.r for _, outputs in readers(shape))
            trained, through = adapters, counts.products + head + adapters - shape.hidden * ends
            forward += 2.0 * tokens * adapters
    return forward + 2.0 * tokens * (through + trained) + 2.0 * attention * reached


def prefill_flops(
    shape: Shape, batch: int, context: int, stated: float | None = None
) -> float | None:
    """FLOPs to fill a cache with `batch` prompts of `context` tokens and give one logit row.

    `stated` are those of a user's own attention, its projections included.
    """
    pairs = batch * attended_pairs(shape, context)
    attention = stated if shape.custom else attention_flops(shape, pairs)
    if attention is None:
        return None
    layers = 2.0 * batch * context * parameters(shape).products
    return layers + attention + 2.0 * batch * shape.vocab * shape.hidden


def prefill_rows(batch: int, context: int) -> int:
    """Prompts that one forward pass takes: the largest divisor of the batch within a limit."""
    divisors = (n for n in range(batch, 0, -1) if batch % n == 0)
    return next((n for n in divisors if n * context <= PREFILL_TOKENS), 1)


def decode_flops(shape: Shape, batch: int, context: float) -> float | None:
    """FLOPs of one decode step when `context` tokens (the new one included) are visible."""
    pairs = batch * visible_pairs(shape, context)
    attention = attention_flops(shape, pairs)
    if attention is None:
        return None
    if shape.latent is not None:  # absorbed: every head reads the latent itself, twice
        width = 2 * shape.latent.kv_rank + shape.latent.qk_rope_dim
        attention = 2.0 * pairs * shape.heads * width * shape.layers
    head = shape.vocab * shape.hidden
    return 2.0 * batch * (parameters(shape).products + head) + attention


def kv_bytes_per_token(shape: Shape, element_bytes: int = 2) -> int:
    """Bytes by which one more token lets the cache of a sequence grow; 0 for recurrent mixers.

    A window stops growing when it is full (`cache_bytes`).
    """
    if shape.state is not None:
        return 0
    return shape.layers * _kept(shape) * element_bytes


def _kept(shape: Shape) -> int:
    """Values that one layer keeps for one token."""
    if shape.latent is not None:
        return shape.latent.kv_rank + shape.latent.qk_rope_dim
    return 2 * shape.kv_heads * shape.head_dim


def cache_bytes(shape: Shape, slots: int, element_bytes: int = 2) -> int:
    """Bytes that the cache of one sequence holds when it is made for `slots` tokens."""
    if shape.sparse is not None:  # beside the tokens, each block's mean
        slots += -(-slots // shape.sparse.block)
    elif shape.sliding_window is not None:
        slots = min(slots, shape.sliding_window)
    return slots * kv_bytes_per_token(shape, element_bytes)


def cache_read_bytes(shape: Shape, context: float, element_bytes: int = 2) -> float:
    """Bytes of the cache that one decode step of one sequence has to read.

    A selected block is read whole, also what is not seen of the token's own.
    """
    sparse = shape.sparse
    read = visible_pairs(shape, context) if sparse is None else _sparse_token(sparse, context)
    return read * kv_bytes_per_token(shape, element_bytes)
