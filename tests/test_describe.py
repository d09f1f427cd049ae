"""The model in numbers, as the record keeps it."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.serialization import get_crc32_options

from efficientllm.catalog.shape import Experts
from efficientllm.describe import _blank, _serialized_bytes, build_facts
from efficientllm.models.fuse import fuse
from efficientllm.spec.technique import Cast, Int4WeightOnly, Int8WeightOnly, Lora
from efficientllm.techniques import apply
from efficientllm.techniques.build import Build
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOTAL = 79_424  # by hand in tests/techniques/test_peft.py


def facts(build: Build) -> object:
    return build_facts(build, TOTAL)


def test_parameters_and_bytes_are_those_of_the_model() -> None:
    found = build_facts(tiny.build(), TOTAL)
    assert found.total_params == found.active_params == found.trainable_params == TOTAL
    assert sum(found.bytes_by_kind.values()) == 4 * TOTAL
    assert found.dtypes == {"float32": TOTAL}
    assert found.reference_bytes == 2 * TOTAL
    assert found.weights == "random"
    assert found.shape is not None
    assert found.shape["hidden"] == 64


def test_adapters_count_beside_the_model() -> None:
    build = tiny.build()
    build.reach.append(apply(build, Lora(r=4)))
    found = build_facts(build, TOTAL)
    assert found.total_params == found.active_params == TOTAL + 7424
    assert found.trainable_params == 7424
    assert found.reference_bytes == 2 * TOTAL
    assert [reach.technique for reach in found.reach] == ["lora"]


def test_a_mixture_is_active_in_part() -> None:
    build = tiny.build()
    experts = Experts(count=8, per_token=2, ffn=32)
    build.shape = tiny.shape(arch="moe", experts=experts, qkv_bias=False)
    found = build_facts(build, TOTAL)
    # the table; and per layer attention, router, two experts of three 64 x 32, two norms; a norm
    assert found.active_params == 272 * 64 + 2 * (12288 + 64 * 8 + 2 * 3 * 64 * 32 + 128) + 64


@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
def test_the_file_holds_each_weight_once(fused: bool) -> None:
    build = tiny.build()
    apply(build, Cast(kind="bf16"))
    if fused:
        fuse(build.model)
    found = build_facts(build, TOTAL)
    assert found.disk_bytes is not None
    overhead = found.disk_bytes - 2 * TOTAL
    assert 0 < overhead < 25_000  # names and alignment of 27 tensors, whatever the model's size
    file = io.BytesIO()
    torch.save(build.model.state_dict(), file)
    assert found.disk_bytes == len(file.getvalue())


def test_a_description_leaves_the_check_sums_of_files_on() -> None:
    build_facts(tiny.build(), TOTAL)
    assert get_crc32_options()


def test_a_quantized_file_is_smaller_and_holds_its_scales() -> None:
    shape = tiny.shape(hidden=256, ffn=512, head_dim=64, tied=False)
    sizes = {}
    for name, technique in (
        ("bf16", Cast(kind="bf16")),
        ("int8", Int8WeightOnly()),
        ("int4", Int4WeightOnly()),
    ):
        build = tiny.build(shape)
        apply(build, technique)
        found = build_facts(build, TOTAL)
        held = sum(found.bytes_by_kind.values())
        assert found.disk_bytes is not None
        assert held < found.disk_bytes < held + 60_000
        sizes[name] = found.disk_bytes
    assert sizes["bf16"] > 1.5 * sizes["int8"] > 1.5 * 1.2 * sizes["int4"]


class Held(nn.Module):
    """Buffers of every kind that shares, skips or lacks memory."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.zeros(4096)
        self.weight = nn.Parameter(torch.zeros(33, 31))
        self.tied = self.weight
        kinds = {
            "view": whole[1024:2048],
            "turned": whole.view(64, 64).t(),
            "wide": torch.zeros(1).expand(500),
            "nothing": torch.zeros(0),
            "nothing_else": torch.zeros(0),
            "few": torch.eye(50).to_sparse(),
            "rows": torch.eye(50).to_sparse_csr(),
            "eighths": torch.quantize_per_tensor(torch.rand(40), 0.1, 3, torch.quint8),
            "elsewhere": torch.zeros(70, device="meta"),
        }
        for name, buffer in kinds.items():
            self.register_buffer(name, buffer)

    def get_extra_state(self) -> dict[str, str]:
        return {"made": "by hand"}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*")
def test_lengths_are_those_of_torch_whatever_is_held() -> None:
    file = io.BytesIO()
    torch.save(Held().state_dict(), file)
    assert _serialized_bytes(Held()) == len(file.getvalue())


def test_no_weight_is_read_for_its_length() -> None:
    """A blank has memory of its own, the same for all that shared it."""
    one, blanks = torch.zeros(64), dict[int, torch.Tensor]()
    first, second = (_blank(x, blanks) for x in (one[:32], one[32:]))
    assert first.untyped_storage().data_ptr() != one.untyped_storage().data_ptr()
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert second.storage_offset() == 32
    assert list(blanks) == [one.untyped_storage()._cdata]
