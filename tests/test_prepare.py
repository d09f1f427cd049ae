"""From a case to its work, in this process: one tiny model through all stages of its life."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllm.assembly import Assembly
from efficientllm.describe import build_facts
from efficientllm.device import Device
from efficientllm.journal import Task
from efficientllm.matching import residual
from efficientllm.models.checkpoint import save_checkpoint
from efficientllm.models.decoder import Decoder
from efficientllm.pin import pin
from efficientllm.prepare import assemble, work_for
from efficientllm.record import PointResult, Unsupported
from efficientllm.scoring import evaluate
from efficientllm.spec.case import Case
from efficientllm.techniques.peft import merge_adapters
from efficientllm.workloads import compiling, graphs
from efficientllm.workloads.generate import Generate
from efficientllm.workloads.probe import Probe
from efficientllm.workloads.train import Train
from tests import tiny
from tests.graphs import stand_in

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

FLOAT32 = {"params": "float32", "compute": "float32"}
GRAPHS = tiny.CPU._replace(graphs=True)
"""A device that says it can capture steps."""

EMPTY = PointResult(point_id="0", batch=1, context=1)


class Home:
    """A folder with a tokenizer, running text, pairs, and what training leaves behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.product = folder / "product"
        tiny.byte_vocabulary().save(folder)
        lines = [{"text": f"{i} plus {i} is {i + i}. " * 4} for i in range(200)]
        (folder / "running.jsonl").write_text("\n".join(map(json.dumps, lines)))
        pairs = [{"question": f"{i} plus {i}?", "answer": f"{i + i}"} for i in range(200)]
        (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))

    def backbone(self, **changes: Any) -> dict[str, Any]:
        fields = {"kind": "backbone", "preset": "tiny", "layers": 2, "vocab": 272}
        return fields | {"tokenizer": str(self.folder)} | changes

    def training(self, kind: str, *, pairs: bool = False, **changes: Any) -> dict[str, Any]:
        fields = {"kind": kind, "sequence_length": 32, "batch": 4, "steps": 3}
        data = str(self.folder / ("pairs.jsonl" if pairs else "running.jsonl"))
        return fields | {"data": data, "precision": FLOAT32} | changes

    def llama(self) -> str:
        """A checkpoint that both implementations take."""
        folder = self.folder / "llama"
        tiny.llama().save_pretrained(folder)
        tiny.byte_vocabulary().save(folder)
        return str(folder)

    def generate(self, **changes: Any) -> dict[str, Any]:
        points = {"batch": [2], "context": [24]}
        fields = {"kind": "generate", "points": points, "new_tokens": 4}
        return fields | {"data": str(self.folder / "running.jsonl")} | changes

    def task(self, case: Case, seed: int = 0) -> Task:
        return Task(
            case=case.model_dump(mode="json"),
            protocol={"profile": "smoke"},
            seed=seed,
            points=(0,),
            parent_weights=str(self.product),
            product_folder=str(self.product),
            cache_folder=str(self.folder / "cache"),
            device="cpu",
            sits_idle=False,
        )

    def assemble(
        self, seed: int = 0, device: Device = tiny.CPU, **parts: Any
    ) -> tuple[Assembly, Task]:
        case = Case.model_validate(parts)
        task = self.task(case, seed)
        return assemble(case, task, device), task

    def keep(self, assembly: Assembly) -> None:
        assert assembly.build is not None
        merge_adapters(assembly.build)
        save_checkpoint(assembly.build.model, self.product)
        assembly.save_vocabulary(self.product)

    def pretrain(self) -> None:
        """Leave a trained backbone behind."""
        assembly, task = self.assemble(model=self.backbone(), workload=self.training("pretrain"))
        run(assembly, task, "step", 3)
        self.keep(assembly)


PRODUCT = {"kind": "product", "of": "parent", "parent": "0" * 64}


def run(assembly: Assembly, task: Task, window: str, units: int) -> Any:
    work = work_for(assembly, assembly.case.points[0], task)
    for _ in range(units):
        work.unit(window)
    work.check()
    return work


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_pretraining_trains_every_weight_of_our_decoder_in_fused_layers(home: Home) -> None:
    assembly, task = home.assemble(model=home.backbone(), workload=home.training("pretrain"))
    build = assembly.build
    assert build is not None
    assert type(build.model) is Decoder
    assert all(p.requires_grad for p in build.model.parameters())
    work = run(assembly, task, "step", 3)
    assert isinstance(work, Train)
    assert len(work.losses()) == 3
    resolved = assembly.resolved
    assert resolved["implementation"] == "decoder"
    assert resolved["fused_groups"] == 4
    assert resolved["compile"] == "none"
    assert resolved["layout"] == "stream"
    assert resolved["loss"] == "plain"
    assert resolved["tokenizer_sha256"] == tiny.byte_vocabulary().sha256
    assert len(resolved["text_sha256"]) == 64


def test_a_small_step_is_captured_where_the_device_can_and_the_record_says_so(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = stand_in(monkeypatch)
    for wanted in ("auto", "none"):
        workload = home.training("pretrain", steps=24, cuda_graph=wanted)
        assembly, task = home.assemble(device=GRAPHS, model=home.backbone(), workload=workload)
        assert assembly.resolved["graph"] is (wanted == "auto")
        run(assembly, task, "step", 5)
    assert captured == [0]


@pytest.mark.parametrize(
    ("wanted", "most", "names"),
    [("auto", 48, ("prefill",)), ("auto", 47, ()), ("none", 48, ())],
)
def test_a_small_prompt_is_captured_where_the_device_can_and_the_record_says_so(
    home: Home, monkeypatch: pytest.MonkeyPatch, wanted: str, most: int, names: tuple[str, ...]
) -> None:
    captured = stand_in(monkeypatch)
    monkeypatch.setattr(graphs, "most_tokens", lambda shape: most)
    workload = home.generate(cuda_graph=wanted, compile="none")  # 2 prompts of 24 tokens
    assembly, task = home.assemble(device=GRAPHS, model=home.backbone(), workload=workload)
    work = run(assembly, task, "prefill", 2)
    assert isinstance(work, Generate)
    assert work.result(EMPTY).captured == names
    assert len(captured) == len(names)


def test_what_matching_left_over_is_told_of_a_matched_backbone_only(home: Home) -> None:
    workload = home.training("pretrain", sequence_length=128)
    model = home.backbone(attention="mqa", match="flops", match_context=64)
    assembly, _ = home.assemble(model=model, workload=workload)
    assert assembly.resolved["match_residual"] == residual(assembly.case)
    plain, _ = home.assemble(model=home.backbone(attention="mqa"), workload=workload)
    assert "match_residual" not in plain.resolved


def test_what_was_selected_and_how_often_it_is_read_is_told(home: Home) -> None:
    data = {"kind": "files", "path": str(home.folder / "running.jsonl")}
    selected = data | {"filter": {"min_chars": 80}, "dedup": "exact", "order": "short_first"}
    told = []
    for rules in (data, selected):
        workload = home.training("pretrain", data=rules, steps=500)
        assembly, task = home.assemble(model=home.backbone(), workload=workload)
        work_for(assembly, assembly.case.points[0], task)
        told.append(assembly.resolved)
    plain, chosen = told
    assert plain["text_sha256"] == chosen["text_sha256"]
    assert "selection" not in plain
    selection = chosen["selection"]
    gone = selection["dropped"]["min_chars"]["documents"]
    assert selection["kept"]["documents"] + gone == selection["read"]["documents"]
    assert 90 < gone < 200  # those with numbers of one and two digits
    rows = selection["read"]["bytes"] + selection["read"]["documents"] - 1  # a token a byte
    assert plain["epochs"] == round(2000 / (rows // 32), 3)
    assert chosen["epochs"] > plain["epochs"]


def test_variants_read_the_same_batches_in_the_same_order(home: Home) -> None:
    found = []
    for attention in ("mha", "mqa"):
        workload = home.training("pretrain", steps=20)
        model = home.backbone(attention=attention)
        assembly, task = home.assemble(seed=3, model=model, workload=workload)
        work = work_for(assembly, assembly.case.points[0], task)
        assert isinstance(work, Train)
        found.append([work._batches.batch(i).tokens for i in range(20)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len(list((home.folder / "cache").glob("tokens-*.npy"))) == 1


def test_training_weights_are_held_in_the_type_of_the_case(home: Home) -> None:
    for params in ("float32", "bf16"):
        precision = {"params": params, "compute": "bf16", "optimizer_state": params}
        workload = home.training("pretrain", precision=precision)
        assembly, _ = home.assemble(model=home.backbone(), workload=workload)
        assert assembly.build is not None
        facts = build_facts(assembly.build, assembly.logical_params)
        assert facts.dtypes == {params: facts.total_params}
        assert facts.trainable_params == facts.total_params


@pytest.mark.parametrize(
    ("technique", "held"),
    [
        ("full", {"float32"}),
        ("freeze", {"float32"}),
        ("lora", {"float32"}),
        ("bf16+lora", {"bf16", "float32"}),
        ("int8+lora", {"Int8Tensor", "bf16", "float32"}),
    ],
)
@pytest.mark.parametrize("pairs", [False, True], ids=["running text", "pairs"])
def test_every_way_to_finetune_learns_is_scored_and_is_kept(
    technique: str, held: set[str], pairs: bool, home: Home
) -> None:
    home.pretrain()
    workload = home.training("finetune", pairs=pairs, steps=10, optimizer={"lr": 1e-2})
    assembly, task = home.assemble(model=PRODUCT, technique=technique, workload=workload)
    build = assembly.build
    assert build is not None
    assert set(build_facts(build, assembly.logical_params).dtypes) == held
    work = run(assembly, task, "step", 10)
    assert work.losses()[-1] < work.losses()[0]
    layout = "packed documents" if pairs else "stream"
    assert assembly.resolved["layout"] == layout
    work.close()
    scores, reason = evaluate(assembly, task)
    assert reason == ""
    assert scores is not None

    home.keep(assembly)
    again, task = home.assemble(model=PRODUCT, workload=home.generate())
    rescored, _ = evaluate(again, task)
    if not pairs:  # the same held-out text: merging kept what was learned
        assert rescored is not None
        tolerance = 1e-3 if held == {"float32"} else 0.02
        assert sum(rescored.nll) == pytest.approx(sum(scores.nll), rel=tolerance)


@pytest.mark.parametrize("technique", ["int8-dynamic+lora", "int4+lora"])
def test_adapters_on_weights_that_pass_no_gradient_are_unsupported(
    technique: str, home: Home
) -> None:
    home.pretrain()
    with pytest.raises(Unsupported, match="lora: no gradient passes through"):
        home.assemble(model=PRODUCT, technique=technique, workload=home.training("finetune"))


@pytest.mark.parametrize(
    ("technique", "activations", "held"),
    [
        (None, "float32", {"float32"}),
        ("float32", "float32", {"float32"}),
        ("bf16", "bf16", {"bf16"}),
        ("fp16", "fp16", {"fp16"}),
        ("int8", "bf16", {"Int8Tensor", "bf16"}),
        ("int8-dynamic", "bf16", {"Int8Tensor", "bf16"}),
        ("int4", "bf16", {"Int4OpaqueTensor", "bf16"}),
    ],
)
def test_every_way_to_hold_weights_generates_and_is_scored(
    technique: str | None, activations: str, held: set[str], home: Home
) -> None:
    home.pretrain()
    assembly, task = home.assemble(model=PRODUCT, technique=technique, workload=home.generate())
    build = assembly.build
    assert build is not None
    facts = build_facts(build, assembly.logical_params)
    assert set(facts.dtypes) == held
    assert facts.trainable_params == 0
    work = run(assembly, task, "request", 2)
    assert isinstance(work, Generate)
    assert len(work.result(EMPTY).output_sha256) == 64
    assert assembly.resolved["activations"] == activations
    assert assembly.resolved["fused_groups"] == 4
    assert assembly.resolved["graph"] is False
    scores, _ = evaluate(assembly, task)
    assert scores is not None
    assert sum(scores.bytes) > 0


def test_scoring_in_the_middle_leaves_the_model_training_and_its_steps_the_same(
    home: Home,
) -> None:
    """Adapters with dropout: a model left in the wrong mode, or a draw of its own, would show."""
    home.pretrain()
    technique = [{"kind": "lora", "dropout": 0.5}]
    losses = []
    for scored in (False, True):
        workload = home.training("finetune", steps=6)
        assembly, task = home.assemble(model=PRODUCT, technique=technique, workload=workload)
        work = work_for(assembly, assembly.case.points[0], task)
        assert isinstance(work, Train)
        for step in range(6):
            if scored and step == 3:
                scores, _ = evaluate(assembly, task)
                assert scores is not None
                assert assembly.build is not None
                assert assembly.build.model.training
            work.unit("step")
        losses.append(work.losses())
    assert losses[0] == losses[1]


def test_a_trial_repeats_from_its_seed(home: Home) -> None:
    losses = []
    for seed in (0, 0, 1):
        assembly, task = home.assemble(
            seed, model=home.backbone(), workload=home.training("pretrain")
        )
        losses.append(run(assembly, task, "step", 3).losses())
    assert losses[0] == losses[1] != losses[2]


def test_a_shape_without_training_has_no_quality_and_says_why(home: Home) -> None:
    assembly, task = home.assemble(model=home.backbone(), workload=home.generate())
    assert evaluate(assembly, task) == (None, "random weights: cost only")
    unbudgeted = home.training("pretrain", steps=None)
    assembly, task = home.assemble(model=home.backbone(), workload=unbudgeted)
    scores, reason = evaluate(assembly, task)
    assert scores is None
    assert reason.startswith("NOT_TRAINED")
    assembly, task = home.assemble(
        model=home.backbone(), workload=home.training("pretrain"), quality=None
    )
    assert evaluate(assembly, task) == (None, "not asked for")


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(home: Home) -> None:
    with pytest.raises(Unsupported, match="knows 257 tokens, the model has 256 embedding rows"):
        home.assemble(model=home.backbone(vocab=256), workload=home.training("pretrain"))


def test_what_is_captured_of_another_implementation_is_the_decode_step_alone(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache counts in Python too."""
    stand_in(monkeypatch)
    captured = {}
    for arm in ("decoder", "transformers"):
        model = {"kind": "checkpoint", "source": home.llama(), "implementation": arm}
        workload = home.generate(compile="none")
        assembly, task = home.assemble(device=GRAPHS, model=model, workload=workload)
        work = run(assembly, task, "request", 1)
        assert isinstance(work, Generate)
        captured[arm] = work.result(EMPTY).captured
    assert captured == {"decoder": ("prefill", "decode"), "transformers": ("decode",)}


def test_transformers_own_model_gets_one_document_a_row(home: Home) -> None:
    found = {}
    for arm in ("decoder", "transformers"):
        model = {"kind": "checkpoint", "source": home.llama(), "implementation": arm}
        workload = home.training("finetune", pairs=True, batch=3, sequence_length=64)
        assembly, task = home.assemble(model=model, technique="full", workload=workload)
        work = run(assembly, task, "step", 1)
        assert assembly.resolved["implementation"] == arm
        found[assembly.resolved["layout"]] = work.counts("step", 1)["samples"]
    assert found["one document a row"] == 3
    assert found["packed documents"] > 3


def test_all_that_inductor_writes_of_a_step_is_chained(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers and ends; what tunes products is for one sequence, and for layers alone."""
    told: dict[str, Any] = {}
    chain = {"triton.enable_pdl": True}
    monkeypatch.setattr(compiling, "chained", lambda _: dict(chain))
    for name in ("compile_layers", "compile_ends"):
        keep = lambda *_, name=name, **options: told.update({name: options})  # noqa: E731
        monkeypatch.setattr(compiling, name, keep)
    workload = home.generate(points={"batch": [1, 2], "context": [24]}, compile="layer")
    assembly, task = home.assemble(model=home.backbone(), technique="bf16", workload=workload)
    for point in assembly.case.points:
        told.clear()
        work_for(assembly, point, task)
        layers = compiling.VECTOR_OPTIONS if point.batch == 1 else {}
        layers = {"options": layers, "step": chain}
        assert told == {"compile_layers": layers, "compile_ends": {"options": chain}}
    assert assembly.resolved["inductor"] == chain | compiling.VECTOR_OPTIONS
    assert assembly.resolved["inductor_many"] == chain


@pytest.mark.parametrize("generating", [True, False])
def test_gates_join_a_product_with_biases_where_nothing_is_trained(
    home: Home, generating: bool
) -> None:
    workload = home.generate() if generating else home.training("pretrain")
    assembly, _ = home.assemble(model=home.backbone(attention="nsa", heads=16), workload=workload)
    build = assembly.build
    assert build is not None
    assert assembly.resolved["fused_groups"] == 4
    names = {name for name, _ in build.model.named_parameters()}
    assert any(".g_proj." in name for name in names) != generating
    assert any("qkvg_proj.bias" in name for name in names) == generating


def test_a_technique_of_ones_own_finds_weights_that_can_have_gradients(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As calibration wants them, also where nothing is trained; and what it replaced is fused."""
    file = home.folder / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "def mine(model):\n"
        "    assert all(p.requires_grad for p in model.parameters())\n"
        "    for layer in model.model.layers:\n"
        "        key = layer.self_attn.k_proj\n"
        "        key.weight = nn.Parameter(key.weight.detach() / 2)\n"
    )
    given = {
        "model": home.backbone(),
        "technique": {"kind": "custom", "file": str(file), "function": "mine"},
        "workload": home.generate(compile="layer"),
    }
    case = pin(Case.model_validate(given), allow_code=True)
    task = home.task(case)
    assembly = assemble(case, task, tiny.CPU)
    assert assembly.build is not None
    assert assembly.resolved["fused_groups"] == 4
    assert not any(p.requires_grad for p in assembly.build.model.parameters())
    # Nor is anything that Inductor writes of its code chained.
    monkeypatch.setattr(compiling, "chained", lambda _: {"triton.enable_pdl": True})
    work_for(assembly, case.points[0], task)
    assert "inductor_many" not in assembly.resolved


def test_a_probe_needs_no_model(home: Home) -> None:
    case = Case.model_validate({"model": "backbone-tiny", "workload": {"kind": "probe"}})
    task = home.task(case)
    assembly = assemble(case, task, tiny.CPU)
    assert assembly.build is None
    assert isinstance(work_for(assembly, case.points[0], task), Probe)
    assert evaluate(assembly, task) == (None, "not asked for")


def test_scoring_happens_without_dropout_and_without_gradients(home: Home) -> None:
    home.pretrain()
    technique = {"kind": "lora", "dropout": 0.5}
    assembly, task = home.assemble(
        model=PRODUCT, technique=technique, workload=home.training("finetune")
    )
    assert assembly.build is not None
    assert assembly.build.model.training
    first, _ = evaluate(assembly, task)
    again, _ = evaluate(assembly, task)
    assert first is not None
    assert again is not None
    assert first.nll == again.nll
    assert all(p.grad is None for p in assembly.build.model.parameters())
    assert torch.is_grad_enabled()
