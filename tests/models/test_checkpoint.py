"""Weights come from safetensors, as what they are, or not at all."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torchao.quantization import Int8WeightOnlyConfig
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    TorchAoConfig,
)

from efficientllm.models.checkpoint import (
    build_model,
    save_checkpoint,
    tokenizer_folder,
    weights_sha256,
)
from efficientllm.models.decoder import Decoder
from efficientllm.record import Unsupported
from efficientllm.spec.model import Backbone, Checkpoint, Product
from efficientllm.techniques.build import bytes_by_kind, dtypes_of
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

SIZES: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def qwen2(**changes: Any) -> Qwen2ForCausalLM:
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES | changes)).eval()
    tiny.randomize(model)
    return model


def load(folder: Path, **fields: Any) -> PreTrainedModel:
    spec = Checkpoint(source=str(folder), **fields)
    return build_model(spec, tiny.CPU.torch, None, 0, "")[0]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=tiny.tokens(2, 12)).logits


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_checkpoint_of_a_known_family_loads_into_our_decoder(tmp_path: Path) -> None:
    theirs = qwen2()
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert type(ours) is Decoder
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-5)


def test_the_other_arm_is_a_choice(tmp_path: Path) -> None:
    qwen2().save_pretrained(tmp_path)
    assert type(load(tmp_path, implementation="transformers")) is Qwen2ForCausalLM


def test_weights_keep_the_type_they_are_stored_in_unless_another_is_asked_for(
    tmp_path: Path,
) -> None:
    qwen2().to(torch.bfloat16).save_pretrained(tmp_path)
    assert set(dtypes_of(load(tmp_path))) == {"bf16"}
    spec = Checkpoint(source=str(tmp_path))
    wider, _ = build_model(spec, tiny.CPU.torch, torch.float32, 0, "")
    assert set(dtypes_of(wider)) == {"float32"}


def test_weights_in_several_files_load_whole(tmp_path: Path) -> None:
    theirs = qwen2()
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    torch.testing.assert_close(logits(load(tmp_path)), logits(theirs), rtol=1e-4, atol=1e-5)


def test_a_second_set_of_weights_beside_the_named_one_is_passed_over(tmp_path: Path) -> None:
    theirs = qwen2()
    theirs.save_pretrained(tmp_path)
    save_file(
        {"layers.0.attention.wq.weight": torch.zeros(4)}, tmp_path / "consolidated.safetensors"
    )
    torch.testing.assert_close(logits(load(tmp_path)), logits(theirs), rtol=1e-4, atol=1e-5)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    qwen2().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(Unsupported, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        load(tmp_path)


def test_weights_that_the_decoder_has_no_place_for_are_named(tmp_path: Path) -> None:
    qwen2().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["model.layers.0.self_attn.o_proj.bias"] = torch.ones(64)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        Unsupported, match=r"no place for model\.layers\.0\.self_attn\.o_proj\.bias"
    ):
        load(tmp_path)


def test_weights_of_another_shape_are_refused_and_never_broadcast(tmp_path: Path) -> None:
    qwen2().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"] = torch.ones(1, 64)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(Unsupported, match=r"stored as \(1, 64\); .* asks for \(96, 64\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attention_bias": True}, "a bias behind attention"),
        ({"mlp_bias": True}, "biases in the feed-forward"),
        ({"hidden_act": "gelu"}, "another activation"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rotary"),
    ],
    ids=["attention bias", "mlp bias", "activation", "rope"],
)
def test_a_llama_with_parts_that_ours_has_not_goes_to_transformers(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    theirs = LlamaForCausalLM(LlamaConfig(**SIZES | changes)).eval()
    tiny.randomize(theirs)
    theirs.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is LlamaForCausalLM
    torch.testing.assert_close(logits(loaded), logits(theirs), rtol=1e-4, atol=1e-5)
    with pytest.raises(Unsupported, match=reason):
        load(tmp_path, implementation="decoder")


class Payload:
    """What a malicious pickle holds: loading it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickles_are_refused_and_not_run(name: str, tmp_path: Path) -> None:
    folder, touched = tmp_path / "model", tmp_path / "touched"
    qwen2().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Payload(touched)))
    with pytest.raises(Unsupported, match=f"{name} is a pickle"):
        load(folder)
    assert not touched.exists()
    pickle.loads((folder / name).read_bytes())
    assert touched.exists(), "the payload would not have worked, so the test shows nothing"


def test_an_adapter_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    folder, touched = adapter(tmp_path), tmp_path / "touched"
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(touched)))
    # A safetensors file of another name must not open the door for the pickle.
    save_file({"x": torch.zeros(1)}, folder / "other.safetensors")
    with pytest.raises(Unsupported, match=r"adapter_model\.bin is a pickle"):
        load(folder)
    assert not touched.exists()


def test_code_that_a_checkpoint_brings_is_refused_unless_allowed(tmp_path: Path) -> None:
    folder, touched = tmp_path / "model", tmp_path / "touched"
    qwen2().save_pretrained(folder)
    edit_config(folder, model_type="stranger", auto_map={"AutoConfig": "code.Stranger"})
    (folder / "code.py").write_text(f"open({str(touched)!r}, 'w').close()\n")
    with pytest.raises(Unsupported, match=r"brings its own Python code.*allow_code=true"):
        load(folder)
    assert not touched.exists()


def test_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    qwen2().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(Unsupported, match=r"no \*\.safetensors there"):
        load(tmp_path)


def test_a_hub_id_that_was_never_fetched_names_the_command(tmp_path: Path) -> None:
    spec = Checkpoint(source="nobody/nothing-at-all", commit="0" * 40)
    with pytest.raises(Unsupported, match=r"efficientllm fetch model=nobody/nothing-at-all"):
        build_model(spec, tiny.CPU.torch, None, 0, "")


def adapter(tmp_path: Path, **changes: Any) -> Path:
    """A folder that peft saved a LoRA adapter to, beside the base model it was made for."""
    base, folder = tmp_path / "base", tmp_path / "adapter"
    qwen2().save_pretrained(base)
    tiny.byte_vocabulary().save(base)
    config = LoraConfig(**{"r": 4, "target_modules": "all-linear"} | changes)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    tiny.randomize(adapted, seed=3)
    adapted.base_model.model.load_state_dict(
        {k.replace("_proj.", "_proj.base_layer."): v for k, v in qwen2().state_dict().items()},
        strict=False,
    )
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("implementation", ["auto", "transformers"])
def test_an_adapter_folder_loads_as_the_merged_model(implementation: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), folder
    )
    expected = logits(theirs)
    loaded = load(folder, implementation=implementation)
    assert type(loaded) is (Decoder if implementation == "auto" else Qwen2ForCausalLM)
    assert not any("lora_" in name for name, _ in loaded.named_parameters())
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-3, atol=1e-4)
    plain = logits(load(tmp_path / "base"))
    assert (expected - plain).abs().max() > 0.1, "an adapter that does nothing shows nothing"


def test_an_adapter_takes_the_tokenizer_of_its_base(tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    assert tokenizer_folder(Checkpoint(source=str(folder))) == tmp_path / "base"
    tiny.byte_vocabulary().save(folder)
    assert tokenizer_folder(Checkpoint(source=str(folder))) == folder


@pytest.mark.parametrize(
    ("base", "reason"),
    [("", "names no base model"), ("itself", "an adapter for an adapter"), (None, "no base model")],
)
def test_an_adapter_without_a_base_model_says_so(
    base: str | None, reason: str, tmp_path: Path
) -> None:
    folder = adapter(tmp_path)
    path = folder / "adapter_config.json"
    named = str(folder) if base == "itself" else base
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": named}))
    with pytest.raises(Unsupported, match=reason):
        load(folder)


def test_a_quantized_checkpoint_loads_as_what_it_is(tmp_path: Path) -> None:
    plain, folder = tmp_path / "plain", tmp_path / "quantized"
    qwen2().to(torch.bfloat16).save_pretrained(plain)
    config = TorchAoConfig(quant_type=Int8WeightOnlyConfig())
    quantized = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.bfloat16, quantization_config=config
    )
    quantized.save_pretrained(folder)

    spec = Checkpoint(source=str(folder))
    loaded, shape = build_model(spec, tiny.CPU.torch, None, 0, "")
    # q, o 64 x 64; k, v 64 x 32; gate, up, down 64 x 96; two layers
    assert dtypes_of(loaded)["Int8Tensor"] == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    assert torch.equal(logits(loaded), logits(quantized))
    assert shape is not None
    assert shape.hidden == 64
    assert bytes_by_kind(loaded)["head"] == 2 * 272 * 64  # the head stays in bf16
    with pytest.raises(Unsupported, match="quantized weights"):
        load(folder, implementation="decoder")


def test_saving_and_loading_a_product_brings_the_same_weights_back(tmp_path: Path) -> None:
    model = tiny.decoder()
    sha256 = save_checkpoint(model, tmp_path)
    assert sha256 == weights_sha256(tmp_path)
    product = Product(of="parent", parent="0" * 64)
    again, _ = build_model(product, tiny.CPU.torch, None, 0, str(tmp_path))
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_digest_of_a_product_changes_with_one_weight(tmp_path: Path) -> None:
    model = tiny.decoder()
    first = save_checkpoint(model, tmp_path / "a")
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-3
    assert save_checkpoint(model, tmp_path / "b") != first
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    assert weights_sha256(tmp_path / "c") == first


def test_random_weights_are_the_same_for_the_same_seed_and_no_other() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        spec = Backbone(preset="tiny")
        return build_model(spec, tiny.CPU.torch, torch.float32, seed, "")[0].state_dict()

    one, same, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    matrices = [name for name in one if one[name].ndim > 1]
    assert not any(torch.equal(one[name], other[name]) for name in matrices)
    assert one["model.embed_tokens.weight"].std() == pytest.approx(0.02, rel=0.05)
