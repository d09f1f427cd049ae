"""Native sparse attention against its definition, one query at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from efficientllm.catalog.shape import Sparse
from efficientllm.cost import attended_pairs, cache_bytes
from efficientllm.models import sparse_reference as reference
from efficientllm.models.attend import attend
from efficientllm.models.position import Documents, Positions
from efficientllm.models.sparse import SparseAttention
from efficientllm.models.sparse_cached import SparseCache
from efficientllm.models.sparse_reference import block_means, means_of, sparse_reference
from efficientllm.parameters import parameters
from efficientllm.record import Unsupported
from tests import tiny

SIZES = Sparse(block=4, selected=3, window=6)


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(heads: int, kv_heads: int, length: int, batch: int = 1) -> tuple[torch.Tensor, ...]:
    """q, k and v of head size 8, in float64."""
    q = random(batch, heads, length, 8)
    return q, *(random(batch, kv_heads, length, 8, seed=seed) for seed in (1, 2))


def one_query(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, t: int, sizes: Sparse
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int, int]]:
    """Both branches of the query heads q [G, D] of one key head at t; what each branch reads."""
    scale = q.shape[1] ** -0.5
    whole, own = (t + 1) // sizes.block, t // sizes.block
    blocks = [slice(i * sizes.block, (i + 1) * sizes.block) for i in range(own + 1)]
    compressed = torch.zeros_like(q)
    share = [0.0] * (own + 1)
    if whole:
        means_k = torch.stack([k[b].mean(0) for b in blocks[:whole]])
        means_v = torch.stack([v[b].mean(0) for b in blocks[:whole]])
        weights = (q @ means_k.T * scale).softmax(-1)
        compressed = weights @ means_v
        share[:whole] = weights.sum(0).tolist()
    always = list(dict.fromkeys([own, max(0, own - 1), 0]))
    rest = sorted((b for b in range(own) if b not in always), key=lambda b: -share[b])
    picked = [*always, *rest][: sizes.selected]
    where = [j for b in sorted(picked) for j in range(b * sizes.block, (b + 1) * sizes.block)]
    where = [j for j in where if j <= t]
    selected = (q @ k[where].T * scale).softmax(-1) @ v[where]
    return compressed, selected, (whole, len(where), min(t + 1, sizes.window))


def by_formula(t: int, sizes: Sparse) -> tuple[int, int, int]:
    """What the module says each branch reads at position t."""
    whole = min(t // sizes.block + 1, sizes.selected) - 1
    selected = sizes.block * whole + t % sizes.block + 1
    return (t + 1) // sizes.block, selected, min(t + 1, sizes.window)


@pytest.mark.parametrize("rows", [5, 512], ids=["five queries at a time", "all at once"])
@pytest.mark.parametrize("selected", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [3, 4, 17, 40])
def test_the_reference_is_its_definition_and_reads_as_many_keys_as_are_counted(
    length: int, selected: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "QUERIES", rows)
    sizes = SIZES.model_copy(update={"selected": selected})
    q, k, v = inputs(4, 2, length)
    found_compressed, found_selected = sparse_reference(q, k, v, means_of(k, v, sizes), sizes)
    read = 0
    for head in range(2):
        group = slice(2 * head, 2 * head + 2)
        for t in range(length):
            a, b, keys = one_query(q[0, group, t], k[0, head], v[0, head], t, sizes)
            torch.testing.assert_close(found_compressed[0, group, t], a)
            torch.testing.assert_close(found_selected[0, group, t], b)
            assert keys == by_formula(t, sizes)
            read += sum(keys)
    assert read == 2 * attended_pairs(tiny.shape(sparse=sizes), length)


def test_when_every_block_is_selected_and_the_window_is_whole_both_are_plain_attention() -> None:
    q, k, v = inputs(4, 1, 30, batch=2)
    sizes = Sparse(block=4, selected=16, window=30)
    _, selected = sparse_reference(q, k, v, means_of(k, v, sizes), sizes)
    whole = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(selected, whole)
    torch.testing.assert_close(attend(q, k, v, window=30), whole)


def test_an_unfinished_block_is_padded_with_zeros() -> None:
    x = random(1, 1, 5, 2)
    means = block_means(x, SIZES)
    assert means.shape == (1, 1, 2, 2)
    torch.testing.assert_close(means[0, 0, 0], x[0, 0, :4].mean(0))
    torch.testing.assert_close(means[0, 0, 1], x[0, 0, 4] / 4)


def test_gradients_are_finite_differences() -> None:
    """Choosing has none: a step too small to choose another block changes nothing by it."""
    q, k, v = (x.requires_grad_() for x in inputs(2, 1, 18))

    sizes = Sparse(block=2, selected=4, window=2)

    def both(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.cat(sparse_reference(q, k, v, means_of(k, v, sizes), sizes))

    assert torch.autograd.gradcheck(both, (q, k, v))


def layer(sizes: Sparse = SIZES) -> SparseAttention:
    made = SparseAttention(64, 4, 2, 16, sizes, bias=True, qk_norm=False, eps=1e-6)
    tiny.randomize(made)
    return made


def turned(length: int) -> Positions:
    """Rotary angles of positions 0..length for heads of 16."""
    half = torch.arange(length)[:, None] * 100.0 ** (-torch.arange(8) / 8)
    angles = torch.cat((half, half), dim=-1)
    return Positions(angles.cos(), angles.sin())


def at(positions: Positions, slot: int) -> Positions:
    assert positions.cos is not None
    assert positions.sin is not None
    one = slice(slot, slot + 1)
    return Positions(positions.cos[one], positions.sin[one], torch.tensor([slot]))


def prefilled(made: SparseAttention, x: torch.Tensor, prompt: int, slots: int) -> SparseCache:
    cache = made.new_cache(x.shape[0], slots, x.device, x.dtype)
    made(x[:, :prompt], turned(prompt), cache)
    return cache


@pytest.mark.parametrize("selected", [1, 3, 5])
@pytest.mark.parametrize(
    ("prompt", "slots"), [(1, 48), (3, 42), (4, 41), (7, 64), (8, 44), (33, 41)]
)
def test_decoding_after_a_prompt_is_the_whole_row(prompt: int, slots: int, selected: int) -> None:
    made = layer(SIZES.model_copy(update={"selected": selected}))
    x, positions = random(2, 41, 64).float(), turned(41)
    with torch.inference_mode():
        whole = made(x, positions)
        cache = prefilled(made, x, prompt, slots)
        steps = [made(x[:, i : i + 1], at(positions, i), cache) for i in range(prompt, 41)]
    torch.testing.assert_close(torch.cat(steps, 1), whole[:, prompt:], rtol=1e-5, atol=1e-5)


def test_what_comes_later_changes_nothing_before() -> None:
    made = layer()
    x = random(2, 30, 64).float()
    other = x.clone()
    other[:, 22] += 1
    a, b = made(x, turned(30)), made(other, turned(30))
    assert torch.equal(a[:, :22], b[:, :22])
    assert not torch.allclose(a[:, 22], b[:, 22], atol=1e-2)


def test_decoding_reads_chosen_blocks_and_the_window_and_nothing_else() -> None:
    """All three that are selected are those that always are, so the rest may be anything."""
    made, slot = layer(), 37
    x, positions = random(2, 38, 64).float(), turned(38)
    with torch.inference_mode():
        expected = made(x, positions)[:, slot:]
        cache = prefilled(made, x, slot, 64)
        read = {*range(4), *range(32, 40), *range(slot - SIZES.window + 1, slot + 1)}
        unread = [i for i in range(64) if i not in read]
        cache.k[:, :, unread] = cache.v[:, :, unread] = float("nan")
        found = made(x[:, slot:], at(positions, slot), cache)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_step_of_decoding_is_one_graph_for_every_position() -> None:
    made, graphs = layer(), []

    def counted(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(made, fullgraph=True, backend=counted)
    x, positions = random(2, 30, 64).float(), turned(30)
    with torch.inference_mode():
        cache, plain = prefilled(made, x, 5, 32), prefilled(made, x, 5, 32)
        for i in range(5, 30):
            step = x[:, i : i + 1].clone(), at(positions, i)
            torch.testing.assert_close(compiled(*step, cache), made(*step, plain))
    assert len(graphs) == 1


def test_packed_documents_are_refused() -> None:
    documents = Documents(torch.tensor([0, 3, 8], dtype=torch.int32), 5, (3, 5))
    with pytest.raises(Unsupported, match="no kernel for packed documents"):
        layer()(torch.zeros(1, 8, 64), Positions(documents=documents))


def test_its_weights_and_its_cache_are_counted() -> None:
    shape = tiny.shape(sparse=SIZES)
    model = tiny.decoder(shape)
    assert parameters(shape).total == sum(p.numel() for p in model.parameters())
    cache = layer().new_cache(3, 64, torch.device("cpu"), torch.float32)
    held = sum(t.numel() * t.element_size() for t in cache) * shape.layers
    assert held == 3 * cache_bytes(shape, 64, element_bytes=4)
