"""Models, vocabularies and texts small enough to be checked by hand."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from efficientllm.catalog.shape import Shape
from efficientllm.device import Device
from efficientllm.documents import Document
from efficientllm.models.decoder import Decoder
from efficientllm.techniques.build import Build
from efficientllm.workloads.text import Corpus
from efficientllm.workloads.vocabulary import END, Vocabulary

CPU = Device(torch.device("cpu"), graphs=False)
BYTES = 256


def shape(**changes: object) -> Shape:
    """Two layers of 64: four query heads over two key and value heads, Qwen2's parts."""
    fields: dict[str, object] = {
        "name": "tiny",
        "family": "backbone",
        "arch": "dense",
        "hidden": 64,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "ffn": 96,
        "vocab": 272,
        "tied": True,
        "qkv_bias": True,
    }
    return Shape.model_validate(fields | changes)


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Fill every parameter, biases and norms too, so that no part can hide behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)


def decoder(of: Shape | None = None, seed: int = 0) -> Decoder:
    """Our decoder in float32 with random weights."""
    model = Decoder.from_shape(of or shape()).eval()
    randomize(model, seed)
    return model


def llama() -> LlamaForCausalLM:
    """transformers' own model, as wide and deep as `decoder`'s."""
    config = LlamaConfig(
        vocab_size=272,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    randomize(model)
    return model


def build(of: Shape | None = None, dtype: torch.dtype = torch.float32) -> Build:
    """A build of a random decoder, for techniques to edit."""
    model = decoder(of).to(dtype)
    model.model.position.reset()
    return Build(model, model.shape, CPU.torch, weights_random=True)


def tokens(rows: int, length: int, vocab: int = 256, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab, (rows, length), generator=generator)


def byte_vocabulary(merges: tuple[tuple[str, str], ...] = ()) -> Vocabulary:
    """One token a byte, in the order of byte-level alphabets, plus merges and the end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    end = tokenizer.token_to_id(END)
    assert end == len(names)
    return Vocabulary(tokenizer, end)


def corpus(*texts: str | tuple[str, str]) -> Corpus:
    """Documents from texts, or from (prompt, response) pairs."""
    documents = tuple(
        Document(text) if isinstance(text, str) else Document(text[1], prompt=text[0])
        for text in texts
    )
    return Corpus(documents, "0" * 64, "tiny text")
