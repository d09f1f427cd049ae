"""Attention against its definition, written out one query at a time."""

from __future__ import annotations

import math

import pytest
import torch

from efficientllm.models import attend as attend_module
from efficientllm.models.attend import attend, attend_masked, attend_scored, scored_only
from efficientllm.models.attend_cached import attend_cache
from efficientllm.models.encoding import Rotary
from efficientllm.models.position import Documents, Positions, rotate


def by_hand(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: int, last: int
) -> list[float]:
    """One query [D] against keys first..last [S, D], in Python numbers."""
    scores = [
        sum(a * b for a, b in zip(q.tolist(), k[j].tolist(), strict=True)) / math.sqrt(len(q))
        for j in range(first, last + 1)
    ]
    weights = [math.exp(s - max(scores)) for s in scores]
    return [
        sum(w * v[first + i, d].item() for i, w in enumerate(weights)) / sum(weights)
        for d in range(v.shape[1])
    ]


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_each_query_sees_itself_and_what_came_before(kv_heads: int) -> None:
    q, k, v = (
        random(1, 4, 5, 8),
        random(1, kv_heads, 5, 8, seed=1),
        random(1, kv_heads, 5, 8, seed=2),
    )
    out = attend(q, k, v)
    for head in range(4):
        shared = head // (4 // kv_heads)
        for t in range(5):
            expected = by_hand(q[0, head, t], k[0, shared], v[0, shared], 0, t)
            assert out[0, head, t].tolist() == pytest.approx(expected, abs=1e-12)


SCORED = {
    "none": Positions(),
    "learned": Positions(bias=random(4, 9, seed=9).float()),
    "slopes": Positions(slopes=torch.tensor([0.5, 0.25, 0.125, 0.0625])),
}


@pytest.mark.parametrize(("length", "window"), [(5, 1), (37, 8), (130, 128), (37, None)])
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("biases", SCORED)
def test_windows_and_biases_by_a_mask_are_what_they_are(
    biases: str, kv_heads: int, length: int, window: int | None
) -> None:
    q, k, v = (random(2, n, length, 8, seed=n) for n in (4, kv_heads, kv_heads))
    found = attend_scored(q, k, v, SCORED[biases], window)
    whole = attend_masked(q, k, v, SCORED[biases], window)  # its scores are float32
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("biases", SCORED)
def test_under_autocast_queries_and_values_may_differ_in_type(biases: str) -> None:
    """As where queries and keys are normed, which autocast does in float32."""
    q, k, v = (random(1, 4, 40, 8, seed=n).float() for n in (1, 2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        found = attend_scored(q, k, v.bfloat16(), SCORED[biases], 9)
    torch.testing.assert_close(
        found.float(), attend_masked(q, k, v, SCORED[biases], 9), rtol=0.03, atol=0.03
    )


def test_biases_are_added_in_float32_under_autocast_too() -> None:
    """In bf16 a penalty of 2.57 is 2.5625."""
    q, k, v = (random(1, 4, 300, 8, seed=n).bfloat16() for n in (1, 2, 3))
    steep = Positions(slopes=torch.tensor([0.02, 0.011, 0.007, 0.003]))
    with torch.autocast("cpu", torch.bfloat16):
        found = attend_scored(q, k, v, steep, None)
    whole = attend_masked(*(x.double() for x in (q, k, v)), steep, None)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), whole, rtol=5e-3, atol=1e-4)


def test_windows_are_masked_only_while_nothing_is_but_scored() -> None:
    def fail() -> None:
        with scored_only():
            raise KeyError(attend_module._scored_only)

    with pytest.raises(KeyError, match="True"):
        fail()
    assert not attend_module._scored_only


def test_on_a_gpu_what_is_only_scored_takes_the_mask() -> None:
    chosen = [attend_module._written_or_flex(on_gpu=True)]
    with scored_only():
        chosen += [attend_module._written_or_flex(on_gpu) for on_gpu in (True, False)]
    assert chosen == [attend_module._attend_flex, attend_scored, attend_masked]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="chooses between kernels of a GPU")
@pytest.mark.parametrize("length", [300, 301, 1024])
@pytest.mark.parametrize("biases", SCORED)
def test_scoring_windows_and_biases_on_a_gpu_is_the_reference(biases: str, length: int) -> None:
    q, k, v = (random(2, n, length, 32, seed=n).cuda().bfloat16() for n in (4, 1, 1))
    on = Positions(*(x if x is None else x.cuda() for x in SCORED[biases]))
    window = 256 if biases == "none" else None
    whole = attend_masked(*(x.float() for x in (q, k, v)), on, window)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16), scored_only():
        found = attend(q, k, v, on, window)
    assert (found.float() - whole).norm() < 0.01 * whole.norm()


def test_no_query_sees_another_document() -> None:
    q, k, v = (random(1, 2, 6, 8, seed=i) for i in range(3))
    documents = Documents(torch.tensor([0, 2, 6], dtype=torch.int32), 4, (2, 4))
    out = attend(q, k, v, Positions(documents=documents))
    for head in range(2):
        for t in range(6):
            first = 0 if t < 2 else 2
            expected = by_hand(q[0, head, t], k[0, head], v[0, head], first, t)
            assert out[0, head, t].tolist() == pytest.approx(expected, abs=1e-12)


def test_a_decode_step_sees_the_visible_slots_only() -> None:
    q = random(2, 4, 1, 8)
    keys, values = random(2, 2, 9, 8, seed=1), random(2, 2, 9, 8, seed=2)
    values[:, :, 6:] = 1e9  # stale or unused slots
    out = attend_cache(q, keys, values, Positions(slot=torch.tensor([5])))
    for row in range(2):
        for head in range(4):
            k, v = keys[row, head // 2], values[row, head // 2]
            expected = by_hand(q[row, head, 0], k, v, 0, 5)
            # softmax is taken in float32 there
            assert out[row, head, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_rotation_turns_pairs_by_position_times_frequency() -> None:
    rotary = Rotary(4, 100.0, None)  # frequencies 1 and 1/10
    positions = Positions(*rotary.angles(torch.tensor([3]), torch.float32))
    turned = rotate(torch.tensor([[1.0, 0.0, 0.0, 2.0]]), positions)[0].tolist()
    # Pairs are (0, 2) and (1, 3): halves, not neighbours.
    expected = [math.cos(3), -2 * math.sin(0.3), math.sin(3), 2 * math.cos(0.3)]
    assert turned == pytest.approx(expected, abs=1e-6)


def test_scores_of_rotated_heads_depend_on_distance_only() -> None:
    rotary = Rotary(16, 10_000.0, None)
    q, k = random(1, 16), random(1, 16, seed=1)

    def score(i: int, j: int) -> float:
        at = [Positions(*rotary.angles(torch.tensor([n]), torch.float64)) for n in (i, j)]
        return float((rotate(q, at[0]) * rotate(k, at[1])).sum())

    assert score(7, 4) == pytest.approx(score(103, 100), abs=1e-4)
    assert abs(score(7, 4) - score(7, 5)) > 1e-3
