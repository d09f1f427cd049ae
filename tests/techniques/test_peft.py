"""What learns, counted by hand, and adapters that change nothing until they have learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllm.models.checkpoint import build_model, save_checkpoint
from efficientllm.parameters import lora_parameters
from efficientllm.record import Unsupported
from efficientllm.spec.model import Checkpoint
from efficientllm.spec.technique import (
    Cast,
    Freeze,
    Full,
    Int4WeightOnly,
    Int8Dynamic,
    Int8WeightOnly,
    Lora,
)
from efficientllm.techniques import apply
from efficientllm.techniques.build import Build
from efficientllm.techniques.peft import decoder_layers, merge_adapters
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

# One layer of `tiny.shape()`: q and o 64 x 64, k and v 64 x 32, biases 64 + 32 + 32;
# gate, up and down 64 x 96; two norms of 64. The table holds 272 rows and is tied.
ATTENTION = 2 * 64 * 64 + 2 * 64 * 32 + 128
FEEDFORWARD = 3 * 64 * 96
NORMS = 2 * 64
TOTAL = 272 * 64 + 64 + 2 * (ATTENTION + FEEDFORWARD + NORMS)


def trained(build: Build) -> set[str]:
    return {name for name, p in build.model.named_parameters() if p.requires_grad}


def logits(build: Build) -> torch.Tensor:
    with torch.inference_mode():
        return build.model(tiny.tokens(2, 12)).logits.float()


def randomize_adapters(build: Build) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in build.model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def test_full_trains_every_parameter() -> None:
    build = tiny.build()
    build.model.requires_grad_(False)
    reach = apply(build, Full())
    assert trained(build) == {name for name, _ in build.model.named_parameters()}
    assert reach.parameters == TOTAL
    assert reach.by_kind == {
        "attention": 2 * ATTENTION,
        "embedding": 272 * 64,
        "feedforward": 2 * FEEDFORWARD,
        "norm": 64 + 2 * NORMS,
    }
    assert reach.bytes_before == reach.bytes_after == 4 * TOTAL


def test_freeze_trains_the_last_layers_and_nothing_else() -> None:
    build = tiny.build(tiny.shape(layers=3))
    reach = apply(build, Freeze(last_layers=2))
    assert {name.split(".")[2] for name in trained(build)} == {"1", "2"}
    assert reach.by_kind == {
        "attention": 2 * ATTENTION,
        "feedforward": 2 * FEEDFORWARD,
        "norm": 2 * NORMS,
    }


def test_freezing_more_layers_than_there_are_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="last_layers 3 of a model with 2 layers"):
        apply(tiny.build(), Freeze(last_layers=3))


@pytest.mark.parametrize("rank", [4, 16])
def test_lora_trains_as_many_weights_as_the_formula_and_the_hand_count(rank: int) -> None:
    build, technique = tiny.build(), Lora(r=rank)
    reach = apply(build, technique)
    # in + out of q, k, v, o, gate, up, down
    ends = 128 + 96 + 96 + 128 + 160 + 160 + 160
    assert reach.parameters == 2 * rank * ends
    assert reach.parameters == lora_parameters(tiny.shape(), technique)
    assert reach.by_kind == {"adapter": reach.parameters}
    assert all("lora_" in name for name in trained(build))
    assert reach.bytes_after - reach.bytes_before == 4 * reach.parameters


LATENT = {"kv_rank": 24, "qk_nope_dim": 8, "qk_rope_dim": 8, "v_dim": 16}


@pytest.mark.parametrize(
    "attention",
    [
        {"latent": LATENT | {"q_rank": 0}, "kv_heads": 4},
        {"latent": LATENT | {"q_rank": 40}, "kv_heads": 4},
        {"sparse": {"block": 16, "selected": 2, "window": 16}, "qkv_bias": False},
    ],
    ids=["latents", "latents of queries too", "sparse, with gates"],
)
def test_lora_trains_what_the_formula_counts_in_every_attention(attention: dict[str, Any]) -> None:
    build, technique = tiny.build(tiny.shape(**attention)), Lora(r=4)
    reach = apply(build, technique)
    assert reach.parameters == lora_parameters(build.shape, technique)


def test_lora_leaves_the_head_alone() -> None:
    build = tiny.build(tiny.shape(tied=False))
    apply(build, Lora())
    assert not any("lm_head" in name or "embed" in name for name in trained(build))


def test_lora_reaches_the_named_layers_only() -> None:
    build = tiny.build()
    reach = apply(build, Lora(r=8, targets=("q_proj", "v_proj")))
    assert reach.parameters == 2 * 8 * (128 + 96)
    assert {name.split(".")[4] for name in trained(build)} == {"q_proj", "v_proj"}


def test_lora_on_layers_that_are_not_there_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="Target modules"):
        apply(tiny.build(), Lora(targets=("c_attn",)))


def test_fresh_adapters_change_no_logit() -> None:
    build = tiny.build()
    before = logits(build)
    apply(build, Lora())
    assert torch.equal(logits(build), before)


def test_learned_adapters_merge_into_the_weights() -> None:
    build = tiny.build()
    plain = logits(build)
    apply(build, Lora(r=4))
    randomize_adapters(build)
    adapted = logits(build)
    assert (adapted - plain).abs().max() > 0.1
    merge_adapters(build)
    assert build.adapted is None
    assert sum(p.numel() for p in build.model.parameters()) == TOTAL
    torch.testing.assert_close(logits(build), adapted, rtol=1e-4, atol=1e-4)


def test_merging_without_adapters_changes_nothing() -> None:
    build = tiny.build()
    model = build.model
    merge_adapters(build)
    assert build.model is model


def test_adapters_on_a_bf16_model_learn_in_float32() -> None:
    build = tiny.build()
    apply(build, Cast(kind="bf16"))
    apply(build, Lora())
    kinds = {"lora_" in n: p.dtype for n, p in build.model.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_adapters_beside_int8_weights_get_the_gradients_of_the_dequantized_model() -> None:
    quantized, plain = tiny.build(), tiny.build()
    for build in (quantized, plain):
        apply(build, Int8WeightOnly())
    with torch.no_grad():  # the same values, multiplied by torch itself
        for module in plain.model.modules():
            if isinstance(module, torch.nn.Linear) and hasattr(module.weight, "dequantize"):
                module.weight = torch.nn.Parameter(module.weight.dequantize())
    found = []
    for build in (quantized, plain):
        torch.manual_seed(0)
        apply(build, Lora(r=4))
        randomize_adapters(build)
        build.model.hidden(tiny.tokens(2, 8)).float().pow(2).sum().backward()
        grads = [p.grad.flatten() for n, p in build.model.named_parameters() if "lora_" in n]
        found.append(torch.cat(grads))
    cosine = torch.nn.functional.cosine_similarity(found[0], found[1], dim=0)
    assert cosine > 0.995
    assert found[0].norm() / found[1].norm() == pytest.approx(1.0, abs=0.05)


def test_adapters_beside_int8_weights_merge_into_a_plain_checkpoint(tmp_path: Path) -> None:
    build = tiny.build()
    apply(build, Int8WeightOnly())
    apply(build, Lora(r=4, targets=("q_proj", "down_proj")))
    randomize_adapters(build)
    adapted = logits(build)
    merge_adapters(build)
    save_checkpoint(build.model, tmp_path)
    spec = Checkpoint(source=str(tmp_path))
    again, _ = build_model(spec, tiny.CPU.torch, None, 0, "")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        found = again.eval()(tiny.tokens(2, 12)).logits.float()
    error = (found - adapted).pow(2).mean() / adapted.pow(2).mean()
    assert error < 1e-3  # two roundings to bf16, 2**-8 each, through two layers


@pytest.mark.parametrize("biases", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize(
    ("technique", "reason"),
    [
        (Int8Dynamic(), "no gradient passes through Int8Tensor weights here .*drops the gradient"),
        (Int4WeightOnly(), "no gradient passes through Int4OpaqueTensor weights here .*derivative"),
    ],
    ids=["int8-dynamic", "int4"],
)
def test_adapters_beside_weights_that_pass_no_gradient_are_unsupported(
    technique: Int8Dynamic | Int4WeightOnly, reason: str, biases: bool
) -> None:
    build = tiny.build(tiny.shape(hidden=128, ffn=256, head_dim=32, qkv_bias=biases))
    apply(build, technique)
    with pytest.raises(Unsupported, match=reason):
        apply(build, Lora())


def test_quantizing_after_adapting_is_unsupported() -> None:
    build = tiny.build()
    apply(build, Lora())
    with pytest.raises(Unsupported, match=r"int8 would quantize the adapters: int8\+lora"):
        apply(build, Int8WeightOnly())


def test_the_decoder_layers_are_the_longest_list_of_modules() -> None:
    model = tiny.decoder(tiny.shape(layers=3))
    assert decoder_layers(model) is model.model.layers
    with pytest.raises(Unsupported, match="no list of decoder layers"):
        decoder_layers(torch.nn.Linear(2, 2))
