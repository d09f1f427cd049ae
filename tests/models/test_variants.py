"""Every attention with every encoding it can have: causal, and decoded as it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllm.catalog.backbone import backbone_shape
from efficientllm.catalog.shape import Shape
from efficientllm.cost import cache_bytes
from efficientllm.device import tensor_bytes
from efficientllm.models.attend import _attend_flex, attend, attend_masked
from efficientllm.models.checkpoint import build_model, save_checkpoint
from efficientllm.models.decoder import Decoder
from efficientllm.models.encoding import alibi_slopes
from efficientllm.models.position import Documents, Positions
from efficientllm.parameters import parameters
from efficientllm.record import Unsupported
from efficientllm.spec.model import Backbone, Checkpoint
from tests import tiny

SIZES = {
    "layers": 2,
    "hidden": 64,
    "heads": 4,
    "head_dim": 16,
    "ffn": 96,
    "vocab": 272,
}
ATTENTION: dict[str, Any] = {
    "mha": "mha",
    "gqa": {"kind": "gqa", "kv_heads": 2},
    "mqa": "mqa",
    "sliding": {"kind": "sliding", "window": 8, "kv_heads": 2},
    "mla": "mla",
    "nsa": {"kind": "nsa", "kv_heads": 1, "block": 4, "selected": 3, "window": 6},
}
POSITION: dict[str, Any] = {
    "rope": "rope",
    "sinusoidal": "sinusoidal",
    "learned": {"kind": "learned", "max_positions": 128},
    "t5": {"kind": "t5", "buckets": 8, "max_distance": 20},
    "alibi": "alibi",
    "none": "none",
}
PAIRS = [
    (attention, position)
    for attention in ATTENTION
    for position in POSITION
    if attention not in ("mla", "nsa") or position not in ("t5", "alibi")
]


def variant(attention: str, position: str, **more: Any) -> Shape:
    parts = {"attention": ATTENTION[attention], "position": POSITION[position]}
    return backbone_shape(Backbone.model_validate({"preset": "tiny"} | SIZES | parts | more))


@pytest.mark.parametrize(("attention", "position"), PAIRS)
def test_what_comes_later_changes_nothing_before(attention: str, position: str) -> None:
    model = tiny.decoder(variant(attention, position))
    tokens = tiny.tokens(2, 30)
    other = tokens.clone()
    other[:, 20:] = (other[:, 20:] + 1) % 256
    with torch.inference_mode():
        a, b = model.hidden(tokens), model.hidden(other)
    torch.testing.assert_close(a[:, :20], b[:, :20], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(a[:, 20:], b[:, 20:], atol=1e-2)


@pytest.mark.parametrize(("attention", "position"), PAIRS)
@pytest.mark.parametrize("prompt", [5, 21], ids=["inside the window", "beyond it"])
def test_decoding_step_by_step_gives_the_logits_of_the_whole_row(
    attention: str, position: str, prompt: int
) -> None:
    model = tiny.decoder(variant(attention, position))
    tokens = tiny.tokens(2, 30)
    with torch.inference_mode():
        whole = model(tokens).logits
        cache = model.new_cache(2, 64)
        found = [model.prefill(tokens[:, :prompt], cache)]
        for i in range(prompt, 30):
            found.append(model.decode(tokens[:, i : i + 1], torch.tensor([i]), cache))
    torch.testing.assert_close(torch.stack(found, 1), whole[:, prompt - 1 :], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("attention", "position"), PAIRS)
def test_every_parameter_learns_and_is_counted(attention: str, position: str) -> None:
    shape = variant(attention, position)
    model = tiny.decoder(shape).train()
    model(tiny.tokens(2, 24), labels=tiny.tokens(2, 24, seed=1)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or name.endswith("k_proj.bias"), name
    assert parameters(shape).total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("slots", [4, 64])
def test_the_cache_holds_as_many_bytes_as_the_formula_says(attention: str, slots: int) -> None:
    model = tiny.decoder(variant(attention, "rope"))
    held = sum(tensor_bytes(t) for layer in model.new_cache(3, slots) for t in layer)
    assert held == 3 * cache_bytes(model.shape, slots, element_bytes=4)


def test_positions_are_told_by_every_encoding_but_none() -> None:
    """Two rows whose last token sees the same tokens in another order."""
    tokens = tiny.tokens(1, 12)
    swapped = tokens.clone()
    swapped[:, [3, 7]] = tokens[:, [7, 3]]
    for position in POSITION:
        model = tiny.decoder(variant("mha", position, layers=1))
        with torch.inference_mode():
            a, b = model.hidden(tokens)[:, -1], model.hidden(swapped)[:, -1]
        assert torch.allclose(a, b, atol=1e-5) == (position == "none"), position


def by_definition(q: torch.Tensor, k: torch.Tensor, window: int, slope: float) -> torch.Tensor:
    """Attention weights of one head, one score at a time."""
    length = q.shape[0]
    weights = torch.zeros(length, length, dtype=torch.float64)
    for i in range(length):
        seen = range(max(0, i - window + 1), i + 1)
        scores = torch.stack([q[i] @ k[j] / q.shape[1] ** 0.5 - slope * (i - j) for j in seen])
        weights[i, seen.start : i + 1] = scores.softmax(0)
    return weights


def test_a_window_and_slopes_are_what_they_are_defined_as() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 9, 4, generator=generator, dtype=torch.float64) for _ in "qkv")
    slopes = torch.tensor(alibi_slopes(2), dtype=torch.float64)
    found = attend(q, k, v, Positions(slopes=slopes), window=4)
    for head in range(2):
        weights = by_definition(q[0, head], k[0, head], 4, float(slopes[head]))
        expected = weights @ v[0, head]
        torch.testing.assert_close(found[0, head], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [100, 128, 300, 500])
@pytest.mark.parametrize("window", [None, 1, 60, 128, 129, 200, 256])
def test_what_a_gpu_is_told_of_windows_and_biases_is_the_reference(
    length: int, window: int | None
) -> None:
    """Without a compiler FlexAttention runs on a CPU too; which tiles it walks is test_band's."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, length, 16, generator=generator)
    k, v = (torch.randn(1, 2, length, 16, generator=generator) for _ in "kv")
    told = (
        Positions(),
        Positions(slopes=torch.rand(4, generator=generator)),
        Positions(bias=torch.randn(4, 129, generator=generator)),
    )
    for positions in told:
        found = _attend_flex(q, k, v, positions, window)
        torch.testing.assert_close(found, attend_masked(q, k, v, positions, window))


def test_the_masked_reference_without_window_or_bias_is_plain_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 9, 8, generator=generator)
    k, v = (torch.randn(2, 2, 9, 8, generator=generator) for _ in "kv")
    torch.testing.assert_close(attend_masked(q, k, v, Positions(), None), attend(q, k, v))


@pytest.mark.parametrize("position", ["rope", "alibi", "t5", "learned", "sinusoidal"])
def test_packed_documents_do_not_see_each_other_under_any_encoding(position: str) -> None:
    model = tiny.decoder(variant("sliding", position))
    tokens = tiny.tokens(1, 20)
    documents = Documents(torch.tensor([0, 7, 20], dtype=torch.int32), 13, (7, 13))
    with torch.inference_mode():
        together = model.hidden(tokens, documents)
        alone = torch.cat([model.hidden(tokens[:, :7]), model.hidden(tokens[:, 7:])], dim=1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_more_positions_than_were_learned_are_refused() -> None:
    model = tiny.decoder(variant("mha", "learned"))
    with pytest.raises(Unsupported, match="128 learned positions and 129 are asked for"):
        model.hidden(tiny.tokens(1, 129))
    with pytest.raises(Unsupported, match="max_positions"):
        model.refuse_beyond(129)
    model.refuse_beyond(128)
    assert model.new_cache(1, 192)[0][0].shape[2] == 192, "slots are rounded up; not all are filled"


@pytest.mark.parametrize(
    ("attention", "position"), [("mla", "rope"), ("sliding", "t5"), ("nsa", "none")]
)
def test_a_variant_saved_is_the_variant_loaded(
    attention: str, position: str, tmp_path: Path
) -> None:
    model = tiny.decoder(variant(attention, position))
    save_checkpoint(model, tmp_path)
    loaded, shape = build_model(
        Checkpoint(source=str(tmp_path)), tiny.CPU.torch, torch.float32, 0, ""
    )
    assert isinstance(loaded, Decoder)
    assert shape == model.shape
    tokens = tiny.tokens(1, 16)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)
