"""Generation made ready: how a point is compiled, what is captured, and its prompts.

Everything here happens outside the clock. What a case left to `auto` is settled here and
told in `resolved`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from efficientllm.assembly import Assembly, ours, pinned
from efficientllm.models.decoder import Decoder
from efficientllm.models.decoding import decoding_of, prefill_of
from efficientllm.models.vector import take_vectors
from efficientllm.spec.case import Point
from efficientllm.spec.technique import Custom
from efficientllm.spec.workload import Generate
from efficientllm.techniques.build import DTYPE_NAMES
from efficientllm.techniques.peft import decoder_layers
from efficientllm.techniques.quantize import refuse_few_rows
from efficientllm.workloads import compiling, graphs
from efficientllm.workloads.batches import prompts
from efficientllm.workloads.generate import Generate as GenerateWork
from efficientllm.workloads.text import read_corpus


def generation(assembly: Assembly, spec: Generate, point: Point, seed: int) -> GenerateWork:
    """The work of one point of generation, ready for its cold call."""
    build, device, vocabulary = assembly.build, assembly.device, assembly.vocabulary
    assert build is not None
    assert vocabulary is not None
    refuse_few_rows(assembly.case.technique, device.torch, point.batch)
    dtype = build.model.get_input_embeddings().weight.dtype
    attention = pinned(build, spec.attention, device, dtype, point.context)
    how = compiling.resolve(spec.compile, device, ours=ours(build), decode=True)
    compiled = how != "none" and not device.is_cpu
    one = point.batch == 1 and how != "none"
    our_layers = how == "layer" and ours(build)
    chain = compiling.chained(device.torch) if our_layers and _all_ours(assembly) else {}
    options = _one_row(assembly, our_layers) if one else {}
    if chain | options:
        assembly.resolved["inductor" if one else "inductor_many"] = chain | options
    if how == "layer":
        compiling.compile_layers(decoder_layers(build.model), options=options, step=chain)
        if isinstance(build.model, Decoder):
            compiling.compile_ends(build.model, options=chain)
    graph = device.graphs and spec.cuda_graph == "auto"
    small = ours(build) and point.batch * point.context <= graphs.most_tokens(build.shape)
    corpus = read_corpus(spec.data, "train")
    if build.shape is not None and ours(build):
        attention = prefill_of(build.shape, device.torch, dtype, attention)
        assembly.resolved["decode_attention"] = decoding_of(build.shape, device.torch, dtype)
    elif compiled:
        assembly.resolved["choice"] = "compiled"  # of the next token; it was eager once
    assembly.resolved |= {
        "attention": attention,
        "compile": how,
        "graph": graph,
        "activations": DTYPE_NAMES.get(dtype, str(dtype)),
        "text_sha256": corpus.sha256,
    }
    tokens = prompts(corpus, vocabulary, point.batch, point.context, seed)
    return GenerateWork(
        *(assembly.face, tokens, spec, point, device),
        compile_model=how == "model",
        graph=graph,
        prefill_graph=graph and small,
        compile_choice=compiled,
        options=options,
    )


def _all_ours(assembly: Assembly) -> bool:
    """Whether no code of a user's is in the layers: what its kernels read is not known."""
    build = assembly.build
    assert build is not None
    own = any(isinstance(technique, Custom) for technique in assembly.case.technique)
    return not own and not (build.shape is not None and build.shape.custom)


def _one_row(assembly: Assembly, our_layers: bool) -> dict[str, Any]:
    """Make products with one row fast; Inductor's settings for those that it writes.

    Products of bare parameters (a user's own) are the library's.
    """
    build = assembly.build
    assert build is not None
    taken = take_vectors(build.model) if our_layers else 0
    linear = sum(isinstance(module, nn.Linear) for module in build.model.modules())
    assembly.resolved["vector_products"] = taken
    return compiling.VECTOR_OPTIONS if taken < linear else {}
