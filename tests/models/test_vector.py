"""Products with one vector: which layers take the kernel, and what else stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from efficientllm.models import vector
from efficientllm.models.decoder import Decoder
from efficientllm.models.vector import VectorLinear, fits, take_vectors
from tests import tiny
from tests.models.kernels import agree, drawn, with_triton


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every layer fits; what the kernel was asked is kept."""
    asked: list[int] = []

    def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        asked.append(weight.shape[0])
        return F.linear(x, weight, bias)

    monkeypatch.setattr(vector, "fits", lambda _: True)
    monkeypatch.setattr(vector, "_multiply", multiply)
    return asked


def test_one_row_goes_to_the_kernel_and_several_do_not(rows: list[int]) -> None:
    layer = nn.Linear(6, 4)
    before = copy.deepcopy(layer)
    assert take_vectors(layer) == 1
    one, several = torch.randn(1, 1, 6), torch.randn(2, 1, 6)
    assert torch.equal(layer(one), before(one))
    assert rows == [4]
    assert torch.equal(layer(several), before(several))
    assert rows == [4]


def test_a_decoder_decodes_the_same_and_keeps_its_names(rows: list[int]) -> None:
    model = Decoder.from_shape(tiny.shape()).eval()
    plain, names = copy.deepcopy(model), list(model.state_dict())
    linear = sum(isinstance(m, nn.Linear) for m in model.modules())
    assert take_vectors(model) == linear
    assert list(model.state_dict()) == names
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tokens, slot = torch.tensor([[3, 1, 4]]), torch.tensor([3])
    logits = []
    with torch.inference_mode():
        for each in (model, plain):
            cache = each.new_cache(1, 8)
            each.prefill(tokens, cache)
            logits.append(each.decode(torch.tensor([[5]]), slot, cache))
    assert torch.equal(*logits)
    assert len(rows) == linear + 1, "all of a decode step, and the head of the prefill"


def test_layers_that_are_no_longer_plain_are_left_alone(rows: list[int]) -> None:
    class Other(nn.Linear):
        pass

    model = nn.Sequential(Other(4, 4), nn.Linear(4, 4))
    assert take_vectors(model) == 1
    assert type(model[0]) is Other
    assert type(model[1]) is VectorLinear


def test_the_kernel_is_for_half_precision_on_a_gpu() -> None:
    assert not fits(nn.Linear(4, 4))
    assert not fits(nn.Linear(4, 4, dtype=torch.bfloat16))


def test_the_operator_says_the_shape_of_what_it_gives() -> None:
    with FakeTensorMode():
        x, weight = torch.empty(1, 1, 6, dtype=torch.bfloat16), torch.empty(4, 6)
        assert vector._multiply(x, weight, None).shape == (1, 1, 4)
        assert vector._multiply(x, weight, None).dtype == torch.bfloat16


def test_each_head_has_its_own_product_and_only_one_row_goes_to_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def multiply_each(x: Tensor, weight: Tensor) -> Tensor:
        asked.append(weight.shape[1])
        return torch.einsum("bhtk,hnk->bhtn", x, weight)

    monkeypatch.setattr(vector, "fits", lambda _: True)
    monkeypatch.setattr(vector, "_multiply_each", multiply_each)
    plain, taken = nn.Linear(5, 3 * 4), nn.Linear(5, 3 * 4)
    taken.load_state_dict(plain.state_dict())
    take_vectors(taken)
    for batch, length, kernel in ((1, 1, [4]), (2, 1, []), (1, 2, [])):
        x, asked[:] = torch.randn(batch, 3, length, 5), []
        found = vector.multiply_heads(x, taken.weight.view(3, 4, 5), taken)
        exact = torch.stack([x[:, h] @ plain.weight.view(3, 4, 5)[h].T for h in range(3)], 1)
        assert torch.allclose(found, exact, atol=1e-6)
        assert asked == kernel
        assert torch.equal(found, vector.multiply_heads(x, plain.weight.view(3, 4, 5), plain))
        assert asked == kernel, "a layer that nobody has taken keeps its library's product"
    asked.clear()
    with pytest.raises(RuntimeError):  # other types are the library's to refuse
        vector.multiply_heads(torch.ones(1, 3, 1, 5).half(), taken.weight.view(3, 4, 5), taken)
    assert asked == []


@with_triton
def test_the_operator_for_heads_is_what_its_fake_says() -> None:
    x, weight = drawn(1, 3, 1, 6, seed=0), drawn(3, 4, 6, seed=1)
    torch.library.opcheck(vector._multiply_each, (x, weight))


@with_triton
@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("size", [(16, 64, 256), (3, 70, 33), (1, 5, 512)])
def test_the_kernel_multiplies_each_head(size: tuple[int, int, int], across: bool) -> None:
    """Views of a layer's weight, and rows out of a fused product, lie where they lie."""
    from efficientllm.models.vector_kernel import multiply_each

    heads, rows, columns = size
    nothing = float("nan")  # beside what is to be read
    around = drawn(heads, 2 * rows + 1, columns + 3, seed=1)
    around[:, :rows] = around[:, 2 * rows :] = around[:, :, columns:] = nothing
    weight = around[:, rows : 2 * rows, :columns]
    if across:
        around = drawn(heads, columns + 2, rows + 1, seed=1)
        around[:, columns:] = around[:, :, rows:] = nothing
        weight = around[:, :columns, :rows].transpose(1, 2)
    wide = drawn(1, 1, heads, 2 * columns + 7, seed=0)
    wide[..., 1::2] = wide[..., 2 * columns :] = nothing
    x = wide[..., : 2 * columns : 2].transpose(1, 2)
    exact = torch.einsum("bhtk,hnk->bhtn", x.float(), weight.float())
    agree(multiply_each(x, weight), exact)


@with_triton
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("size", [(96, 1100), (7, 100), (33, 2048)])
def test_the_kernel_multiplies(size: tuple[int, int], biased: bool) -> None:
    from efficientllm.models.vector_kernel import multiply

    (rows, columns), x = size, drawn(1, 1, size[1], seed=0)
    weight, bias = drawn(rows, columns, seed=1), drawn(rows, seed=2) if biased else None
    exact = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    agree(multiply(x, weight, bias), exact)


@with_triton
@pytest.mark.parametrize(("columns", "expected"), [(2048, 8), (1024, 4), (512, 2), (16, 1)])
def test_a_thread_has_as_many_weights_however_long_a_row_is(columns: int, expected: int) -> None:
    from efficientllm.models.vector_kernel import warps

    assert warps(columns) == expected
