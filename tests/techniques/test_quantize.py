"""Quantization reaches what it says, weighs what it says, and errs as little as it must."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from efficientllm.record import Unsupported
from efficientllm.spec.technique import Int4WeightOnly, Int8Dynamic, Int8WeightOnly
from efficientllm.techniques import apply
from efficientllm.techniques.build import Build, bytes_by_kind, dtypes_of
from efficientllm.techniques.quantize import Quantization, refuse_few_rows
from tests import tiny

# Widths that groups of 128 divide.
SHAPE = tiny.shape(hidden=128, ffn=256, head_dim=32, tied=False)
ATTENTION = 2 * 128 * 128 + 2 * 128 * 64
FEEDFORWARD = 3 * 128 * 256
LINEAR = 2 * (ATTENTION + FEEDFORWARD)
ROWS = 2 * (128 + 64 + 64 + 128 + 256 + 256 + 128)  # outputs of all linear layers
REST = 2 * (272 * 128 * 2 + 128 + 2 * (256 + 256))  # bytes of tables, norms, biases in bf16

ALL = [Int8WeightOnly(), Int8Dynamic(), Int4WeightOnly()]


def held(tensor: torch.Tensor) -> int:
    """Bytes of the plain tensors that a tensor is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(held(getattr(tensor, name)) for name in names)


@pytest.mark.parametrize("technique", ALL, ids=lambda t: t.kind)
def test_every_linear_layer_but_the_head_is_reached(technique: Quantization) -> None:
    build = tiny.build(SHAPE)
    reach = apply(build, technique)
    assert reach.technique == technique.kind
    assert reach.parameters == LINEAR
    assert reach.by_kind == {"attention": 2 * ATTENTION, "feedforward": 2 * FEEDFORWARD}
    assert type(build.model.lm_head.weight.data) is torch.Tensor
    assert build.model.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("technique", ALL, ids=lambda t: t.kind)
def test_bytes_are_those_of_every_tensor_that_is_held(technique: Quantization) -> None:
    build = tiny.build(SHAPE)
    reach = apply(build, technique)
    real = sum(held(p) for p in build.model.parameters())
    assert reach.bytes_after == real
    assert reach.bytes_after == sum(bytes_by_kind(build.model).values())
    assert reach.bytes_before == 2 * sum(p.numel() for p in build.model.parameters())
    assert reach.bytes_after < reach.bytes_before


@pytest.mark.parametrize("technique", [Int8WeightOnly(), Int8Dynamic()], ids=lambda t: t.kind)
def test_int8_holds_a_byte_a_weight_and_a_scale_and_a_zero_a_row(technique: Quantization) -> None:
    # torchao: float32 scale and int8 zero point for each output
    reach = apply(tiny.build(SHAPE), technique)
    assert reach.bytes_after == LINEAR + ROWS * (4 + 1) + REST


@pytest.mark.parametrize(("group", "bits"), [(32, 5.0), (64, 4.5), (128, 4.25)])
def test_int4_holds_four_bits_a_weight_and_a_scale_and_a_zero_a_group(
    group: int, bits: float
) -> None:
    build = tiny.build(SHAPE)
    reach = apply(build, Int4WeightOnly(group_size=group))
    assert 8 * (reach.bytes_after - REST) / LINEAR == bits
    layer = build.model.model.layers[0].mlp.gate_proj.weight
    assert 8 * held(layer) / (128 * 256) == bits


@pytest.mark.parametrize(
    ("technique", "decibel"),
    [(Int8WeightOnly(), 40), (Int8Dynamic(), 30), (Int4WeightOnly(), 15)],
    ids=lambda x: getattr(x, "kind", x),
)
def test_a_product_of_a_random_layer_errs_no_more_than_its_bits_must(
    technique: Quantization, decibel: float
) -> None:
    build = tiny.build(tiny.shape(hidden=512, ffn=256, head_dim=128, layers=1))
    plain = copy.deepcopy(build.model.model.layers[0].mlp.gate_proj).float()
    apply(build, technique)
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.inference_mode():
        expected = plain(x.float()).double()
        found = build.model.model.layers[0].mlp.gate_proj(x).double()
    noise = (found - expected).pow(2).sum()
    assert 10 * torch.log10(expected.pow(2).sum() / noise) > decibel
    assert noise > 0, "nothing was quantized"


def test_layers_whose_width_does_not_divide_are_left_and_seen_in_the_reach() -> None:
    build = tiny.build(tiny.shape(hidden=128, ffn=192, head_dim=32))
    reach = apply(build, Int4WeightOnly(group_size=128))
    # down takes 192 inputs, which groups of 128 do not divide; gate and up stay in
    assert reach.by_kind["feedforward"] == 2 * 2 * 128 * 192
    assert type(build.model.model.layers[0].mlp.down_proj.weight.data) is torch.Tensor
    assert dtypes_of(build.model)["Int4OpaqueTensor"] == reach.parameters


def test_a_model_with_no_layer_that_fits_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="no linear layer of this model could be quantized"):
        apply(tiny.build(), Int4WeightOnly(group_size=128))  # 64 wide


@pytest.mark.parametrize(
    ("technique", "backend"),
    [(Int8WeightOnly(), "torchao"), (Int4WeightOnly(), "tinygemm (CPU layout)")],
    ids=lambda x: getattr(x, "kind", x),
)
def test_what_multiplies_is_told(technique: Quantization, backend: str) -> None:
    build = tiny.build(SHAPE)
    apply(build, technique)
    assert build.resolved == {f"{technique.kind}_backend": backend}


def test_the_head_of_a_transformers_model_is_left_alone_too() -> None:
    config = GPTNeoXConfig(
        vocab_size=272,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
    )
    model = GPTNeoXForCausalLM(config).eval()
    build = Build(model, None, tiny.CPU.torch, weights_random=True)
    reach = apply(build, Int8WeightOnly())
    # per layer: q-k-v 64 x 192, dense 64 x 64, up and down 64 x 96
    assert reach.by_kind == {
        "attention": 2 * (64 * 192 + 64 * 64),
        "feedforward": 2 * (2 * 64 * 96),
    }
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    assert type(head.weight.data) is torch.Tensor
    held_by_kind = bytes_by_kind(model)
    assert held_by_kind["head"] == held_by_kind["embedding"] == 2 * 272 * 64


@pytest.mark.parametrize(
    ("technique", "device", "batch", "refused"),
    [
        (Int8Dynamic(), "cuda", 1, True),
        (Int8Dynamic(), "cuda", 16, True),
        (Int8Dynamic(), "cuda", 17, False),
        (Int8Dynamic(), "cpu", 1, False),
        (Int8WeightOnly(), "cuda", 1, False),
    ],
)
def test_a_product_that_takes_no_few_rows_says_so_before_it_runs(
    technique: Quantization, device: str, batch: int, refused: bool
) -> None:
    if not refused:
        refuse_few_rows((technique,), torch.device(device), batch)
        return
    with pytest.raises(Unsupported, match=f"more than 16 sequences.*this point has {batch}"):
        refuse_few_rows((technique,), torch.device(device), batch)
