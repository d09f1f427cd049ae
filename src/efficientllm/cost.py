"""What a model costs on paper: parameters, FLOPs and bytes, as pure functions of a shape.

Conventions (METHODOLOGY.md, section "Compute"):

* 2 FLOPs per multiply-add. Norms, activations, softmax and biases count 0: they are
  not what a matrix peak is a peak of.
* An embedding lookup is 0 FLOPs; the output head is a product and counts, tied or not.
* Attention counts *effective* pairs: a causal document of n tokens has n(n+1)/2 (query,
  key) pairs per head, each costing 2 FLOPs per element of the head for the scores and 2
  for the values.
* A backward pass costs one product for the gradient of the input and one for the
  gradient of the weight. Frozen weights have no weight gradient, and nothing below the
  lowest trained layer has any (so LoRA is about 4N per token, not 6N).
* A mixture counts the experts a token visits.

No torch: `plan` predicts on a laptop with the same functions that `metrics` divides by.
"""

from __future__ import annotations

from dataclasses import dataclass

from efficientllm.catalog.shape import Experts, Latent, Shape, State
from efficientllm.spec.technique import Custom, Freeze, Full, Lora, Techniques

DTYPE_BYTES = {"float32": 4, "bf16": 2, "fp16": 2, "int8": 1}


@dataclass(frozen=True)
class Layer:
    """Parameters of one decoder layer. `products` are weights that a token is multiplied by."""

    attention: int
    feedforward: int
    other: int
    products: int
    active: int


@dataclass(frozen=True)
class Parameters:
    """Counts for a whole model. `active` is what one token passes through."""

    total: int
    active: int
    embedding: int
    head: int
    layers: tuple[Layer, ...]

    @property
    def products(self) -> int:
        """Weights multiplied per token in the layers, the head not counted."""
        return sum(layer.products for layer in self.layers)


def parameters(shape: Shape) -> Parameters:
    """Parameter counts of a shape; equal to the built model's (tested on the meta device)."""
    layers = tuple(_layer(shape, index) for index in range(shape.layers))
    table = shape.vocab * shape.hidden
    head = 0 if shape.tied else table
    final_norm = shape.hidden * (2 if shape.arch == "gpt-neox" else 1)
    rest = table + head + final_norm
    return Parameters(
        total=rest + sum(layer.attention + layer.feedforward + layer.other for layer in layers),
        active=rest + sum(layer.active for layer in layers),
        embedding=table,
        head=head,
        layers=layers,
    )


def _layer(shape: Shape, index: int) -> Layer:
    if shape.state is not None:
        return _mamba(shape, shape.state)
    if shape.arch == "gpt-neox":
        return _neox(shape)
    attention, extra = (
        _latent(shape, shape.latent) if shape.latent is not None else _attention(shape)
    )
    norms = 2 * shape.hidden
    dense = 3 * shape.hidden * shape.ffn
    experts = shape.experts
    if experts is None or index < experts.first_dense_layers:
        return Layer(
            attention=attention + extra,
            feedforward=dense,
            other=norms,
            products=attention + dense,
            active=attention + extra + dense + norms,
        )
    held, visited = _mixture(shape, experts)
    # DeepSeek-V3 corrects each router score by a bias that balances load, not by gradient.
    balance = experts.count if shape.latent is not None else 0
    return Layer(
        attention=attention + extra,
        feedforward=held,
        other=norms + balance,
        products=attention + visited,
        active=attention + extra + visited + norms + balance,
    )


def _attention(shape: Shape) -> tuple[int, int]:
    """Weights of q, k, v, o; and what is held beside them (biases, q and k norms)."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = shape.hidden * (2 * queries + 2 * keys)
    biases = (queries + 2 * keys) if shape.qkv_bias else 0
    norms = 2 * shape.head_dim if shape.qk_norm else 0
    return weights, biases + norms


def _latent(shape: Shape, latent: Latent) -> tuple[int, int]:
    qk = latent.qk_nope_dim + latent.qk_rope_dim
    weights = (
        shape.hidden * latent.q_rank
        + latent.q_rank * shape.heads * qk
        + shape.hidden * (latent.kv_rank + latent.qk_rope_dim)
        + latent.kv_rank * shape.heads * (latent.qk_nope_dim + latent.v_dim)
        + shape.heads * latent.v_dim * shape.hidden
    )
    return weights, latent.q_rank + latent.kv_rank


def _mixture(shape: Shape, experts: Experts) -> tuple[int, int]:
    """Feed-forward weights held, and those that one token visits (router in both)."""
    one = 3 * shape.hidden * experts.ffn
    router = shape.hidden * experts.count
    return (
        router + one * (experts.count + experts.shared),
        router + one * (experts.per_token + experts.shared),
    )


def _neox(shape: Shape) -> Layer:
    h = shape.hidden
    attention, feedforward = 4 * h * h, 2 * h * shape.ffn
    biases = 3 * h + h + shape.ffn + h
    products = attention + feedforward
    other = biases + 4 * h
    return Layer(attention, feedforward, other, products, products + other)


def _mamba(shape: Shape, state: State) -> Layer:
    h, inner = shape.hidden, state.inner
    if shape.arch == "mamba1":
        mixed = inner
        products = (
            h * 2 * inner
            + inner * (state.dt_rank + 2 * state.state)
            + state.dt_rank * inner
            + inner * h
        )
        other = inner + inner * state.state + inner
    else:
        mixed = inner + 2 * state.groups * state.state
        products = h * (inner + mixed + shape.heads) + inner * h
        other = 3 * shape.heads + inner
    other += mixed * state.conv + mixed + h
    return Layer(0, products, other, products, products + other)


def attention_flops(shape: Shape, pairs: float) -> float | None:
    """FLOPs of all layers' attention for `pairs` (query, key) pairs per head and layer.

    None for mixers that have no pairs to count (Mamba): their scan has no formula here.
    """
    if shape.state is not None:
        return None
    if shape.latent is not None:
        width = shape.latent.qk_nope_dim + shape.latent.qk_rope_dim + shape.latent.v_dim
        return 2.0 * pairs * shape.heads * width * shape.layers
    return 4.0 * pairs * shape.heads * shape.head_dim * shape.layers


def causal_pairs(tokens: int, window: int | None = None) -> int:
    """(query, key) pairs of one causal document; a window bounds the keys that a query sees."""
    hidden = max(0, tokens - window) if window is not None else 0
    return (tokens * (tokens + 1) - hidden * (hidden + 1)) // 2


def lora_parameters(shape: Shape, lora: Lora) -> int | None:
    """Weights of rank-r adapters on every linear layer but the head.

    None where the targets are named one by one, or the layers are not ours to count.
    """
    fused = shape.family == "Phi" and not shape.gated_decoder  # one layer for q, k, v
    if lora.targets != ("all-linear",) or shape.arch != "dense" or fused:
        return None
    return shape.layers * lora.r * sum(a + b for a, b in linears(shape))


def linears(shape: Shape) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of a dense layer's linear layers: q, k, v, o, gate, up, down."""
    hidden, ffn = shape.hidden, shape.ffn
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = ((hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden))
    return (*attention, (hidden, ffn), (hidden, ffn), (ffn, hidden))


def training_flops(
    shape: Shape, techniques: Techniques, tokens: float, pairs: float
) -> float | None:
    """Forward and backward FLOPs that the algorithm needs for `tokens` with `pairs` in all."""
    attention = attention_flops(shape, pairs)
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
            # Below the first layer's q, k and v nothing learns: no gradient goes through them.
            ends = (shape.heads + 2 * shape.kv_heads) * shape.head_dim + 3 * lora.r
            trained, through = adapters, counts.products + head + adapters - shape.hidden * ends
            forward += 2.0 * tokens * adapters
    return forward + 2.0 * tokens * (through + trained) + 2.0 * attention * reached


def prefill_flops(shape: Shape, batch: int, context: int) -> float | None:
    """FLOPs to fill a cache with `batch` prompts of `context` tokens and give one logit row."""
    attention = attention_flops(shape, batch * causal_pairs(context, shape.sliding_window))
    if attention is None:
        return None
    layers = 2.0 * batch * context * parameters(shape).products
    return layers + attention + 2.0 * batch * shape.vocab * shape.hidden


def decode_flops(shape: Shape, batch: int, context: float) -> float | None:
    """FLOPs of one decode step when `context` tokens (the new one included) are visible."""
    attention = attention_flops(shape, batch * min(context, shape.sliding_window or context))
    if attention is None:
        return None
    head = shape.vocab * shape.hidden
    return 2.0 * batch * (parameters(shape).products + head) + attention


def kv_bytes_per_token(shape: Shape, element_bytes: int = 2) -> int:
    """Bytes that the cache keeps for one token of one sequence; 0 for recurrent mixers."""
    if shape.state is not None:
        return 0
    if shape.latent is not None:
        width = shape.latent.kv_rank + shape.latent.qk_rope_dim
    else:
        width = 2 * shape.kv_heads * shape.head_dim
    return shape.layers * width * element_bytes
