"""Costs on paper: golden numbers written out as arithmetic, and torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from efficientllm import cost
from efficientllm.catalog.shape import Experts, Latent, Shape, Sparse, shape_named
from efficientllm.parameters import lora_parameters, parameters
from efficientllm.spec.technique import Custom, Freeze, Full, Lora, Technique
from efficientllm.techniques import apply
from tests import tiny

# hidden 8, 2 query heads of 4, feed-forward 16, vocabulary 32, 3 layers, untied
H, HEADS, D, FFN, V, L = 8, 2, 4, 16, 32, 3
FEED = 3 * H * FFN  # gate, up, down
ATTENTION = {"mha": H * 8 * 4, "mqa": H * (8 + 4 + 4 + 8)}  # q, k, v, o
HEAD = V * H


def shape(**changes: Any) -> Shape:
    fields: dict[str, Any] = {
        "name": "golden",
        "family": "llama",
        "arch": "dense",
        "hidden": H,
        "layers": L,
        "heads": HEADS,
        "kv_heads": HEADS,
        "head_dim": D,
        "ffn": FFN,
        "vocab": V,
        "tied": False,
    }
    return Shape.model_validate(fields | changes)


MQA = shape(kv_heads=1)
GQA = shape(heads=4, head_dim=2, kv_heads=2)
LATENT = Latent(q_rank=4, kv_rank=6, qk_nope_dim=2, qk_rope_dim=2, v_dim=3)
MLA = shape(
    arch="moe-mla",
    latent=LATENT,
    experts=Experts(count=8, per_token=2, ffn=4, shared=1, first_dense_layers=1),
)


def test_parameters_of_a_small_decoder() -> None:
    norms = 2 * H
    counts = parameters(shape())
    assert counts.total == 2 * HEAD + H + L * (ATTENTION["mha"] + FEED + norms)
    assert counts.products == L * (ATTENTION["mha"] + FEED)
    assert parameters(MQA).products == L * (ATTENTION["mqa"] + FEED)
    # 4 query heads of 2 over 2 key heads: q and o are 8 x 8, k and v 8 x 4
    assert parameters(GQA).products == L * (2 * 64 + 2 * 32 + FEED)


def test_biases_and_norms_are_held_but_not_multiplied() -> None:
    plain, more = parameters(shape()), parameters(shape(qkv_bias=True, qk_norm=True))
    assert more.total - plain.total == L * (3 * 8 + 2 * D)
    assert more.products == plain.products


def test_a_tied_head_is_counted_once_as_parameters_and_still_as_a_product() -> None:
    tied = shape(tied=True)
    assert parameters(shape()).total - parameters(tied).total == HEAD
    assert parameters(tied).head == 0
    assert cost.decode_flops(tied, 1, 1) == cost.decode_flops(shape(), 1, 1)


def test_causal_pairs_are_half_and_the_diagonal() -> None:
    assert [cost.causal_pairs(n) for n in (1, 2, 3, 4096)] == [1, 3, 6, 4096 * 4097 // 2]


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 100])
@pytest.mark.parametrize("window", [1, 4, 200])
def test_a_window_bounds_what_every_query_sees(tokens: int, window: int) -> None:
    seen = sum(min(query + 1, window) for query in range(tokens))
    assert cost.causal_pairs(tokens, window) == seen


def test_one_pair_costs_scores_and_values_in_every_head_and_layer() -> None:
    # scores: 2 FLOPs an element of the head, values: the same
    assert cost.attention_flops(shape(), 1) == (2 + 2) * HEADS * D * L
    assert cost.attention_flops(MQA, 1) == cost.attention_flops(shape(), 1)
    # latent attention: scores over 2 + 2 elements, values over 3
    assert cost.attention_flops(MLA, 1) == (2 * 4 + 2 * 3) * HEADS * L


@pytest.mark.parametrize(
    ("of", "attention"), [(shape(), ATTENTION["mha"]), (MQA, ATTENTION["mqa"])], ids=["mha", "mqa"]
)
def test_full_training_is_three_forwards(of: Shape, attention: int) -> None:
    tokens, pairs = 10, 2 * (5 * 6 // 2)  # two documents of five
    products = L * (attention + FEED) + HEAD  # the lookup of an embedding is no product
    forward = 2 * products * tokens + 4 * HEADS * D * L * pairs
    assert cost.training_flops(of, (), tokens, pairs) == 3 * forward
    assert cost.training_flops(of, (Full(),), tokens, pairs) == 3 * forward


def test_frozen_layers_have_no_backward_below_the_lowest_trained_one() -> None:
    tokens, pairs = 10, 15
    layer = ATTENTION["mha"] + FEED
    forward = 2 * (L * layer + HEAD) * tokens + 4 * HEADS * D * L * pairs
    inputs = 2 * (2 * layer + HEAD) * tokens  # two layers and the (frozen) head
    weights = 2 * 2 * layer * tokens
    attention = 2 * 4 * HEADS * D * 2 * pairs
    expected = forward + inputs + weights + attention
    assert cost.training_flops(shape(), (Freeze(last_layers=2),), tokens, pairs) == expected


def test_freezing_nothing_is_full_training_but_the_heads_own_gradient() -> None:
    frozen = cost.training_flops(shape(), (Freeze(last_layers=L),), 10, 15)
    full = cost.training_flops(shape(), (), 10, 15)
    assert frozen is not None
    assert full is not None
    assert full - frozen == 2 * HEAD * 10
    assert cost.training_flops(shape(), (Freeze(last_layers=99),), 10, 15) == frozen


def test_adapters_take_no_gradient_of_frozen_weights() -> None:
    r, tokens, pairs = 2, 10, 15
    layer = ATTENTION["mha"] + FEED
    # an adapter beside m x n weights holds r (m + n): q, k, v, o, then gate, up, down
    adapters = L * r * (4 * (8 + 8) + 3 * (H + FFN))
    assert lora_parameters(shape(), Lora(r=r)) == adapters
    frozen = L * layer + HEAD
    forward = 2 * (frozen + adapters) * tokens + 4 * HEADS * D * L * pairs
    first = 3 * (8 * 8 + r * 8)  # q, k, v of the first layer: nothing below them learns
    inputs = 2 * (frozen + adapters - first) * tokens
    weights = 2 * adapters * tokens
    attention = 2 * 4 * HEADS * D * L * pairs
    expected = forward + inputs + weights + attention
    assert cost.training_flops(shape(), (Lora(r=r),), tokens, pairs) == expected


LATENTS = shape(latent=LATENT)
"""q: 8 to 4 to 2 x 4; latent: 8 to 6 + 2; from 6 to 2 x (2 + 3); o: 2 x 3 to 8."""


@pytest.mark.parametrize(
    ("of", "weights", "adapter", "ends"),
    [
        (LATENTS, 8 * 4 + 4 * 8 + 8 * 8 + 6 * 10 + 6 * 8, 12 + 12 + 16 + 16 + 14, (4, 8)),
        (
            shape(sparse=Sparse(block=4, selected=2, window=3)),
            4 * 8 * 8 + 8 * 6,
            4 * 16 + 14,
            (8, 8, 8, 6),
        ),
    ],
    ids=["latents", "sparse, with gates"],
)
def test_what_reads_the_first_layers_input_passes_no_gradient_on(
    of: Shape, weights: int, adapter: int, ends: tuple[int, ...]
) -> None:
    r, tokens, pairs = 2, 10, 15
    adapters = L * r * (adapter + 3 * (H + FFN))
    assert lora_parameters(of, Lora(r=r)) == adapters
    frozen = L * (weights + FEED) + HEAD
    attended = cost.attention_flops(of, pairs)
    assert attended is not None
    through = frozen + adapters - sum(H * end + r * H for end in ends)
    expected = 2 * tokens * (frozen + adapters + through + adapters) + 3 * attended
    assert cost.training_flops(of, (Lora(r=r),), tokens, pairs) == expected


def test_lora_on_a_real_shape_is_about_four_n_a_token() -> None:
    llama = shape_named("Llama-3.1-8B")
    lora, full = (cost.training_flops(llama, (t,), 1, 0) for t in (Lora(r=8), Full()))
    assert lora is not None
    assert full is not None
    assert lora / full == pytest.approx(4 / 6, rel=0.01)


def test_what_has_no_formula_has_no_number() -> None:
    mamba = shape_named("mamba-2.8b")
    assert cost.training_flops(mamba, (), 1, 1) is None
    assert cost.prefill_flops(mamba, 1, 8) is None
    assert cost.decode_flops(mamba, 1, 8) is None
    assert cost.training_flops(shape(), (Lora(targets=("q_proj",)),), 1, 1) is None
    assert cost.training_flops(MLA, (Lora(),), 1, 1) is None
    custom = Custom(file="a.py", function="prune")  # nobody knows what it leaves to multiply
    assert cost.training_flops(shape(), (custom,), 1, 1) is None
    # transformers fuses q, k and v of this one into a single linear layer
    assert lora_parameters(shape_named("Phi-4-mini-instruct"), Lora()) is None


def test_prefill_multiplies_the_head_once_a_sequence() -> None:
    batch, context = 3, 7
    layers = 2 * batch * context * L * (ATTENTION["mha"] + FEED)
    attention = 4 * HEADS * D * L * batch * (7 * 8 // 2)
    head = 2 * batch * HEAD
    assert cost.prefill_flops(shape(), batch, context) == layers + attention + head


def test_decode_sees_every_visible_slot_once() -> None:
    batch, visible = 3, 7
    products = 2 * batch * (L * (ATTENTION["mqa"] + FEED) + HEAD)
    attention = 4 * HEADS * D * L * batch * visible
    assert cost.decode_flops(MQA, batch, visible) == products + attention


def test_a_sliding_window_bounds_prefill_and_decode() -> None:
    windowed = shape(sliding_window=4)
    saved = 7 * 8 // 2 - (1 + 2 + 3 + 4 * 4)
    more, less = cost.prefill_flops(shape(), 1, 7), cost.prefill_flops(windowed, 1, 7)
    assert more is not None
    assert less is not None
    assert more - less == 4 * HEADS * D * L * saved
    assert cost.decode_flops(windowed, 1, 100) == cost.decode_flops(shape(), 1, 4)


SPARSE = shape(sparse=Sparse(block=4, selected=2, window=3))


def test_a_new_token_sees_its_own_block_up_to_itself_and_reads_all_of_it() -> None:
    # the eleventh token: two blocks lie behind; 4 of the chosen one, 3 of its own; a window of 3
    assert cost.visible_pairs(SPARSE, 11) == 2 + (4 + 3) + 3
    assert cost.visible_pairs(SPARSE, 12) == 3 + (4 + 4) + 3
    assert cost.visible_pairs(SPARSE, 6) == 1 + 6 + 3, "fewer blocks than may be chosen"
    assert cost.visible_pairs(SPARSE, 11.0) == 2 + (4 + (1 + 2 + 3 + 4) / 4) + 3, "a mean"
    token = L * 2 * HEADS * D * 2
    assert cost.cache_read_bytes(SPARSE, 11) == (2 + 8 + 3) * token
    assert cost.cache_read_bytes(SPARSE, 11.0) == (2 + 8 + 3) * token


@pytest.mark.parametrize("of", [shape(), shape(sliding_window=5), SPARSE])
def test_the_tokens_of_a_row_see_together_what_the_row_has(of: Shape) -> None:
    for tokens in range(1, 40):
        seen = sum(cost.visible_pairs(of, t) for t in range(1, tokens + 1))
        assert cost.attended_pairs(of, tokens) == seen


def test_a_mixture_counts_the_experts_that_a_token_visits() -> None:
    queries = H * 4 + 4 * HEADS * (2 + 2)
    keys = H * (6 + 2) + 6 * HEADS * (2 + 3)
    attention = queries + keys + HEADS * 3 * H
    expert, router = 3 * H * 4, H * 8
    dense = attention + FEED
    sparse = attention + router + (2 + 1) * expert
    assert parameters(MLA).products == dense + 2 * sparse
    assert cost.decode_flops(MLA, 1, 1) == (
        2 * (dense + 2 * sparse + HEAD) + 2 * (2 * 6 + 2) * HEADS * L
    )
    counts = parameters(MLA)
    assert counts.total - counts.active == 2 * (8 - 2) * expert


def test_freezing_a_mixture_counts_its_own_layers() -> None:
    tokens = 10
    head, layer = HEAD, parameters(MLA).layers[-1].products
    forward = 2 * (parameters(MLA).products + head) * tokens
    expected = forward + 2 * (layer + head) * tokens + 2 * layer * tokens
    assert cost.training_flops(MLA, (Freeze(last_layers=1),), tokens, 0) == expected


@pytest.mark.parametrize(
    ("of", "bytes_"),
    [
        (shape(), L * 2 * HEADS * D * 2),
        (MQA, L * 2 * 1 * D * 2),
        (GQA, L * 2 * 2 * 2 * 2),
        (MLA, L * (6 + 2) * 2),  # one latent and the shared rotary part
        (shape_named("Llama-3.1-8B"), 32 * 2 * 8 * 128 * 2),  # 128 KiB
        (shape_named("DeepSeek-V3"), 61 * (512 + 64) * 2),  # 68.6 KiB
        (shape_named("mamba-2.8b"), 0),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_cache_of_one_token(of: Shape, bytes_: int) -> None:
    assert cost.kv_bytes_per_token(of) == bytes_
    assert cost.kv_bytes_per_token(of, 4) == 2 * bytes_


def test_six_n_is_what_a_published_model_costs_a_token() -> None:
    """The usual rule of thumb, on a shape where attention is small."""
    llama = shape_named("Llama-3.1-70B")
    tokens = 4096
    found = cost.training_flops(llama, (), tokens, cost.causal_pairs(tokens))
    assert found is not None
    without_lookup = parameters(llama).total - llama.vocab * llama.hidden
    attention = 3 * 4 * 64 * 128 * 80 * (tokens + 1) / 2
    assert found / tokens == pytest.approx(6 * without_lookup + attention, rel=1e-4)


# torch's own counter, which counts attention without causality on the math back-end


def counted(run: Any) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_the_forward_equals_torchs_count(kv_heads: int, tied: bool) -> None:
    model = tiny.decoder(tiny.shape(kv_heads=kv_heads, tied=tied))
    tokens = tiny.tokens(2, 32)
    three = cost.training_flops(model.shape, (), 2 * 32, 2 * 32 * 32)
    assert three is not None
    assert counted(lambda: model(tokens)) * 3 == three


@pytest.mark.parametrize(
    "technique", [Full(), Freeze(last_layers=1), Freeze(last_layers=2), Lora(r=8)], ids=str
)
def test_forward_and_backward_equal_torchs_count(technique: Technique) -> None:
    build = tiny.build(tiny.shape(layers=3))
    apply(build, technique)
    build.model.train()
    tokens = tiny.tokens(2, 32)
    found = counted(lambda: build.model(tokens, labels=tokens).loss.backward())
    assert found == cost.training_flops(tiny.shape(layers=3), (technique,), 2 * 32, 2 * 32 * 32)


def test_prefill_and_decode_equal_torchs_count() -> None:
    model, slots = tiny.decoder(), 40
    tokens = tiny.tokens(2, 32)
    with torch.no_grad():
        cache = model.new_cache(2, slots)
        prefill = counted(lambda: model.prefill(tokens, cache))
        decode = counted(lambda: model.decode(tokens[:, :1], torch.tensor([32]), cache))
    above_causal = cost.attention_flops(model.shape, 2 * (32 * 32 - cost.causal_pairs(32)))
    expected = cost.prefill_flops(model.shape, 2, 32)
    assert expected is not None
    assert above_causal is not None
    assert prefill == expected + above_causal
    assert decode == cost.decode_flops(model.shape, 2, slots)
