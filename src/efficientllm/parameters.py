"""How many parameters a shape has: in all, by part, multiplied by each token, in adapters.

Equal to the built model's, which the tests hold on the meta device. No torch: `plan`
counts on a laptop.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from efficientllm.catalog.shape import Experts, Latent, Shape, State
from efficientllm.spec.technique import Lora


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
    position: int
    layers: tuple[Layer, ...]

    @property
    def products(self) -> int:
        """Weights multiplied per token in the layers, the head not counted."""
        return sum(layer.products for layer in self.layers)


@lru_cache(maxsize=256)
def parameters(shape: Shape) -> Parameters:
    """Parameter counts of a shape; equal to the built model's (tested on the meta device).

    A user's own attention counts nothing here: only the built model knows what it holds.
    """
    layers = tuple(_layer(shape, index) for index in range(shape.layers))
    table = shape.vocab * shape.hidden
    head = 0 if shape.tied else table
    final_norm = shape.hidden * (2 if shape.arch == "gpt-neox" else 1)
    position = _position_parameters(shape)
    rest = table + head + position + final_norm
    return Parameters(
        total=rest + sum(layer.attention + layer.feedforward + layer.other for layer in layers),
        active=rest + sum(layer.active for layer in layers),
        embedding=table,
        head=head,
        position=position,
        layers=layers,
    )


def _position_parameters(shape: Shape) -> int:
    if shape.position == "learned":
        return shape.max_positions * shape.hidden
    return 0 if shape.relative is None else shape.relative.buckets * shape.heads


def _layer(shape: Shape, index: int) -> Layer:
    if shape.state is not None:
        return _mamba(shape, shape.state)
    if shape.arch == "gpt-neox":
        return _neox(shape)
    attention, extra = _attention(shape)
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
    """Weights that tokens are multiplied by; and what is held beside them (biases, norms)."""
    if shape.custom:
        return 0, 0
    if shape.latent is not None:
        return _latent(shape, shape.latent)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = shape.hidden * (2 * queries + 2 * keys)
    if shape.sparse is not None:
        weights += shape.hidden * 3 * shape.heads  # a gate for each head and branch
    biases = (queries + 2 * keys) if shape.qkv_bias else 0
    norms = 2 * shape.head_dim if shape.qk_norm else 0
    return weights, biases + norms


def _latent(shape: Shape, latent: Latent) -> tuple[int, int]:
    qk = latent.qk_nope_dim + latent.qk_rope_dim
    queries = shape.hidden * shape.heads * qk
    if latent.q_rank:
        queries = shape.hidden * latent.q_rank + latent.q_rank * shape.heads * qk
    weights = (
        queries
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


def lora_parameters(shape: Shape, lora: Lora) -> int | None:
    """Weights of rank-r adapters on every linear layer but the head.

    None where the targets are named one by one, or the layers are not ours to count.
    """
    fused = shape.family == "Phi" and not shape.gated_decoder  # one layer for q, k, v
    if lora.targets != ("all-linear",) or shape.arch != "dense" or fused or shape.custom:
        return None
    return shape.layers * lora.r * sum(a + b for a, b in linears(shape))


def linears(shape: Shape) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of a dense layer's linear layers; `readers` first."""
    hidden, ffn = shape.hidden, shape.ffn
    return (
        *readers(shape),
        *_behind_readers(shape),
        *((hidden, ffn), (hidden, ffn), (ffn, hidden)),
    )


def readers(shape: Shape) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of what attention reads its layer's input by: q, k and v.

    With latents q, or what compresses it, and the latent; with sparse branches their gates too.
    """
    hidden, latent = shape.hidden, shape.latent
    if latent is not None:
        queries = latent.q_rank or shape.heads * (latent.qk_nope_dim + latent.qk_rope_dim)
        return (hidden, queries), (hidden, latent.kv_rank + latent.qk_rope_dim)
    keys = hidden, shape.kv_heads * shape.head_dim
    gates = ((hidden, 3 * shape.heads),) if shape.sparse is not None else ()
    return (hidden, shape.heads * shape.head_dim), keys, keys, *gates


def _behind_readers(shape: Shape) -> tuple[tuple[int, int], ...]:
    """The rest of attention: o; with latents what queries, keys and values are made by too."""
    heads, latent = shape.heads, shape.latent
    if latent is None:
        return ((heads * shape.head_dim, shape.hidden),)
    made = heads * (latent.qk_nope_dim + latent.qk_rope_dim)
    queries = ((latent.q_rank, made),) if latent.q_rank else ()
    keys_values = latent.kv_rank, heads * (latent.qk_nope_dim + latent.v_dim)
    return *queries, keys_values, (heads * latent.v_dim, shape.hidden)
