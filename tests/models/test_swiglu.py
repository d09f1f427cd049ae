"""SwiGLU by its kernels: numbers, gradients, and which layers take it when."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from efficientllm.models import swiglu as room
from efficientllm.models.decoder import Decoder
from efficientllm.models.feedforward import FeedForward, gated
from efficientllm.models.fuse import fuse
from efficientllm.models.swiglu import swiglu, takes
from tests import tiny
from tests.models.kernels import DEVICE, DTYPE, agree, drawn, with_triton


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """As on a GPU in half precision; what the kernels were asked is kept."""
    from efficientllm.models import swiglu_kernel

    asked: list[Tensor] = []
    real = swiglu_kernel.gate

    def watched(both: Tensor) -> Tensor:
        asked.append(both)
        return real(both)

    monkeypatch.setattr(room, "in_half_on_gpu", lambda *_: True)
    monkeypatch.setattr(swiglu_kernel, "gate", watched)
    torch._dynamo.reset()
    yield asked
    torch._dynamo.reset()


@with_triton
@pytest.mark.parametrize("width", [1, 96, 1024, 1025])
@pytest.mark.parametrize("rows", [(), (3,), (2, 2, 3)])
def test_the_kernels_gate_and_give_gradients(rows: tuple[int, ...], width: int) -> None:
    both = (3 * drawn(*rows, 2 * width, seed=0)).requires_grad_()
    exact = both.detach().float().requires_grad_()
    found, right = swiglu(both), gated(*exact.chunk(2, dim=-1))
    assert found.dtype == both.dtype
    assert found.shape == right.shape
    agree(found, right)
    down = 3.0 * drawn(*rows, width, seed=1)
    found.backward(down)
    right.backward(down.float())
    assert both.grad is not None
    assert exact.grad is not None
    agree(both.grad, exact.grad)


@with_triton
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # infinite, as on a card
def test_far_gates_are_open_or_shut_and_have_finite_gradients() -> None:
    both = torch.tensor([[-200.0, -80.0, 0.0, 80.0, 200.0] + 5 * [2.0]], device=DEVICE)
    both = both.to(DTYPE).requires_grad_()
    out = swiglu(both)
    out.sum().backward()
    assert both.grad is not None
    assert out[0].tolist() == pytest.approx([0.0, 0.0, 0.0, 160.0, 400.0], abs=1e-6)
    assert both.grad[0, :5].tolist() == pytest.approx([0.0, 0.0, 1.0, 2.0, 2.0], abs=1e-6)


@with_triton
def test_numbers_that_lie_apart_and_none_at_all_are_taken() -> None:
    both, down = drawn(3, 12, 2, seed=0)[..., 0], drawn(6, 3, seed=1).T
    apart = both.detach().requires_grad_()
    out = swiglu(apart)
    out.backward(down)
    alone = both.contiguous().requires_grad_()
    swiglu(alone).backward(down.contiguous())
    assert apart.grad is not None
    assert alone.grad is not None
    assert torch.equal(apart.grad, alone.grad)
    assert swiglu(both[:0]).shape == (0, 6)
    assert room._backward(both[:0], down[:0]).shape == (0, 12)


@with_triton
def test_the_operators_are_what_their_fakes_say() -> None:
    both, down = drawn(2, 3, 14, seed=0), drawn(2, 3, 7, seed=1)
    torch.library.opcheck(swiglu, (both.requires_grad_(),))
    torch.library.opcheck(room._backward, (both.detach(), down))
    torch.library.opcheck(swiglu, (drawn(14, 6, seed=0).T.requires_grad_(),))


@with_triton
def test_a_fused_layer_that_learns_takes_them_and_is_the_same(anywhere: list[Tensor]) -> None:
    model = Decoder.from_shape(tiny.shape()).to(DEVICE)
    fuse(model)
    other = copy.deepcopy(model)
    for block in other.model.layers:
        block.mlp.__class__ = Plain
    tokens = torch.tensor([[3, 1, 4, 1, 5]], device=DEVICE)
    values = []
    for each in (model, other):
        value = each.hidden(tokens).square().sum()
        value.backward()
        values.append(value)
    torch.testing.assert_close(*values)
    assert len(anywhere) == len(model.model.layers)
    for (name, one), (_, two) in zip(
        model.named_parameters(), other.named_parameters(), strict=True
    ):
        if two.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-4, msg=name)


class Plain(FeedForward):
    """The same layer as it is where no kernel is."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gated(*self.gate_up_proj(x).split(self.fused_sizes, dim=-1)))


@with_triton
def test_a_compiled_layer_stays_one_graph_and_makes_h_once(anywhere: list[Tensor]) -> None:
    """In autocast, with parameters in float32, whether the layer's input learns or not."""
    layer = FeedForward(16, 24).to(DEVICE)
    fuse(layer)
    by_hand = copy.deepcopy(layer)
    by_hand.__class__ = Plain
    layer.compile(fullgraph=True, dynamic=False, backend="aot_eager_decomp_partition")
    for calls, learns in enumerate((True, False), start=1):
        grads = []
        for each in (layer, by_hand):
            x = drawn(2, 5, 16, seed=1).float().requires_grad_(learns)
            with torch.autocast(DEVICE.type, torch.bfloat16):
                out = each(x)
            assert out.dtype == torch.bfloat16
            each.zero_grad()
            out.float().square().sum().backward()
            grads.append([p.grad for p in each.parameters()] + [x.grad] * learns)
        for one, two in zip(*grads, strict=True):
            agree(one, two, 0.02)
        assert len(anywhere) == calls, "kept for the backward pass"
    assert {x.dtype for x in anywhere} == {torch.bfloat16}


@with_triton
def test_everything_else_keeps_its_path(anywhere: list[Tensor]) -> None:
    fused, x = FeedForward(16, 24).to(DEVICE), drawn(2, 5, 16, seed=0).float()
    apart = copy.deepcopy(fused)
    fuse(fused)
    right = apart(x)
    assert not anywhere, "products that are not fused, as beside adapters"
    with torch.no_grad():
        torch.testing.assert_close(fused(x), right)
    with torch.inference_mode():
        fused(x)
    frozen = copy.deepcopy(fused).requires_grad_(False)
    frozen(x)
    assert not anywhere, "without gradients"
    frozen(x.requires_grad_())
    assert len(anywhere) == 1, "frozen, below something that learns"

    class Other(nn.Linear):
        pass

    fused.gate_up_proj.__class__ = Other
    fused(x)
    assert len(anywhere) == 1, "changed since"


def test_the_kernels_are_for_half_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        layer = nn.Linear(4, 8, dtype=dtype)
        assert not takes(layer, layer(torch.ones(1, 4, dtype=dtype)))
    monkeypatch.setattr(room, "in_half_on_gpu", lambda *_: True)
    monkeypatch.setattr(room, "INSTALLED", False)
    assert not takes(layer, layer(torch.ones(1, 4, dtype=dtype)))
