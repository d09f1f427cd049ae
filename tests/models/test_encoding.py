"""Encodings of position against their papers' definitions, and against transformers'."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from efficientllm.catalog.shape import Relative
from efficientllm.models.encoding import (
    LearnedBias,
    Sinusoidal,
    alibi_slopes,
    bucket,
    encoding_of,
)
from tests import tiny


@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (16, 128), (8, 20), (8, 5)])
def test_buckets_of_distances_are_t5_s(buckets: int, most: int) -> None:
    back = torch.arange(0, 3 * most)
    theirs = T5Attention._relative_position_bucket(
        -back, bidirectional=False, num_buckets=buckets, max_distance=most
    )
    ours = bucket(back, Relative(buckets=buckets, max_distance=most))
    assert ours.tolist() == theirs.tolist()
    assert ours.max() == buckets - 1


def test_everything_beyond_the_largest_distance_shares_the_last_bias() -> None:
    encoding = LearnedBias(2, Relative(buckets=8, max_distance=20))
    bias = encoding.bias()
    assert bias.shape == (2, 21)
    assert torch.equal(bias[:, 20], encoding.table.weight[7])
    assert torch.equal(bias[:, 0], encoding.table.weight[0])


def test_slopes_are_those_of_the_alibi_paper() -> None:
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(16)[:2] == pytest.approx([2**-0.5, 2**-1])
    # 12 heads: those of 8, then every second of 16
    assert alibi_slopes(12)[8:] == pytest.approx([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])


def test_waves_are_those_of_the_transformer_paper() -> None:
    waves = Sinusoidal(6)
    x = waves.embed(torch.zeros(1, 3, 6), torch.tensor([0, 1, 5]))
    assert x[0, 0].tolist() == [0, 1, 0, 1, 0, 1]
    expected = [math.sin(5), math.cos(5)]
    expected += [f(5 / 10_000 ** (2 / 6)) for f in (math.sin, math.cos)]
    assert x[0, 2, :4].tolist() == pytest.approx(expected, abs=1e-6)
    scaled = waves.embed(torch.ones(1, 3, 6), torch.tensor([0, 1, 5])) - x
    assert scaled.flatten().tolist() == pytest.approx([math.sqrt(6)] * 18, abs=1e-5)


@pytest.mark.parametrize("position", ["rope", "sinusoidal", "alibi"])
def test_buffers_of_a_model_made_on_the_meta_device_can_be_computed_later(position: str) -> None:
    shape = tiny.shape(position=position)
    with torch.device("meta"):
        empty = encoding_of(shape)
    empty = empty.to_empty(device="cpu")
    empty.reset()
    expected = dict(encoding_of(shape).named_buffers())
    assert expected
    for name, buffer in empty.named_buffers():
        assert torch.equal(buffer, expected[name])
