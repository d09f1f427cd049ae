"""One graph serves every layer, and a decode step that moves on compiles nothing anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from efficientllm.device import Device
from efficientllm.models.decoder import Decoder
from efficientllm.models.fuse import fuse
from efficientllm.models.language_model import face
from efficientllm.spec.case import Point
from efficientllm.spec.workload import AdamW, Precision, Pretrain
from efficientllm.spec.workload import Generate as GenerateSpec
from efficientllm.workloads import compiling
from efficientllm.workloads.batches import Stream
from efficientllm.workloads.generate import Generate
from efficientllm.workloads.train import Train
from tests import tiny
from tests.graphs import write_no_kernels

CUDA = Device(torch.device("cuda", 0), graphs=True)


@pytest.fixture
def dynamo() -> Iterator[None]:
    """A compiler that has seen nothing yet, and forgets what it saw."""
    import torch._dynamo.utils

    compiling.reset()
    torch._dynamo.utils.counters.clear()
    yield
    compiling.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize(
    ("wanted", "device", "ours", "decode", "expected"),
    [
        ("auto", tiny.CPU, True, False, "none"),
        ("auto", CUDA, True, False, "layer"),
        ("auto", CUDA, True, True, "layer"),
        ("auto", CUDA, False, True, "model"),
        ("layer", tiny.CPU, True, False, "layer"),
        ("none", CUDA, True, False, "none"),
    ],
)
def test_auto_is_eager_on_a_cpu_and_by_layer_elsewhere(
    wanted: str, device: Device, ours: bool, decode: bool, expected: str
) -> None:
    assert compiling.resolve(wanted, device, ours=ours, decode=decode) == expected


@pytest.mark.parametrize(
    ("capability", "hip", "able"),
    [((9, 0), None, True), ((8, 0), None, False), ((9, 0), "7", False)],
)
def test_inductor_is_told_to_chain_kernels_where_it_would(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None, able: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert compiling.chained(CUDA.torch) == ({"triton.enable_pdl": True} if able else {})
    assert compiling.chained(tiny.CPU.torch) == {}


def generated(model: Decoder) -> bytes:
    """The tokens of one request of two prompts."""
    spec, point = GenerateSpec(new_tokens=4), Point(2, 16)
    options = {"compile_model": False, "graph": False}
    work = Generate(face(model), tiny.tokens(2, 16), spec, point, tiny.CPU, **options)
    work.unit("request")
    return torch.cat(work._generated).numpy().tobytes()


def test_only_decode_steps_have_the_options_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []

    def compiled(layer: Callable[..., Tensor], *, options: Any, **_: Any) -> Callable[..., Tensor]:
        def run(*given: Any) -> Tensor:
            used.append(options)
            return layer(*given)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    model = tiny.decoder(tiny.shape(layers=1)).eval()
    expected = generated(model)
    for options, step, prompts, steps in (
        ({}, {"step": 1}, None, {"step": 1}),
        ({"all": 2}, {"step": 1}, {"all": 2}, {"all": 2, "step": 1}),
        ({"all": 2}, {}, {"all": 2}, {"all": 2}),
        (None, None, None, None),
    ):
        used.clear()
        compiling.compile_layers(model.model.layers, options=options, step=step)
        assert generated(model) == expected
        assert used == [prompts, steps, steps, steps]


@pytest.mark.slow
@pytest.mark.usefixtures("dynamo")
def test_layers_share_one_graph_of_prompts_and_one_of_steps_with_options_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_no_kernels(monkeypatch)
    model = tiny.decoder(tiny.shape(layers=3)).eval()
    expected = generated(model)
    compiling.compile_layers(model.model.layers, step={"triton.enable_pdl": True})
    assert generated(model) == expected
    assert compiling.report() == {"graphs": 2, "graph_breaks": 0}


@pytest.mark.slow
@pytest.mark.usefixtures("dynamo")
def test_layers_share_one_graph_in_training_and_one_each_in_prefill_and_decode() -> None:
    spec = Pretrain(
        sequence_length=16,
        batch=2,
        steps=10,
        precision=Precision(params="float32", compute="float32"),
        optimizer=AdamW(lr=1e-3),
    )
    found = []
    for compiled in (False, True):
        model = tiny.decoder(tiny.shape(layers=3)).train()
        fuse(model)
        if compiled:
            compiling.compile_layers(model.model.layers)
        stream = Stream(
            tiny.corpus("text to learn from " * 20),
            tiny.byte_vocabulary(),
            rows=2,
            length=16,
            seed=0,
            batches=10,
        )
        work = Train(model, face(model), stream, spec, tiny.CPU)
        for _ in range(3):
            work.unit("step")
        found.append(work.losses())
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert compiling.report() == {"graphs": 1, "graph_breaks": 0}

    model.eval().requires_grad_(False)
    point = Generate(
        face(model),
        tiny.tokens(2, 16),
        GenerateSpec(new_tokens=8),
        Point(2, 16),
        tiny.CPU,
        compile_model=False,
        graph=False,
    )
    point.unit("prefill")
    point.unit("decode")
    after_one_step = compiling.compilations()
    assert after_one_step == 3  # training, prefill, decode
    for _ in range(9):  # past the end and around again
        point.unit("decode")
    point.unit("prefill")
    assert compiling.compilations() == after_one_step


@pytest.mark.parametrize(
    ("wanted", "device", "started"),
    [
        ("auto", CUDA, 1),
        ("layer", CUDA, 1),
        ("none", CUDA, 0),
        ("auto", tiny.CPU, 0),
        ("layer", tiny.CPU, 0),
    ],
)
def test_compiling_processes_start_where_kernels_will_be_compiled(
    wanted: str, device: Device, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[bool] = []
    monkeypatch.setattr(
        "torch._inductor.async_compile.maybe_warm_pool", lambda: starts.append(True)
    )
    compiling.start_compilers(wanted, device)
    assert len(starts) == started
