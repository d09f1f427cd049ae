"""Generation is greedy and reproducible, in both arms, and counts what it reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from efficientllm.cost import kv_bytes_per_token
from efficientllm.device import CAPTURE_CALLS, Device
from efficientllm.models.language_model import face
from efficientllm.record import PointResult, Unsupported
from efficientllm.spec.case import Point
from efficientllm.spec.workload import Generate as Spec
from efficientllm.workloads.generate import Generate, most_likely
from tests import tiny
from tests.graphs import stand_in

EMPTY = PointResult(point_id="0", batch=1, context=1)


def work(
    model: Any,
    *,
    batch: int = 2,
    context: int = 5,
    new_tokens: int = 4,
    graph: bool = False,
    prefill_graph: bool = False,
) -> Generate:
    return Generate(
        face(model),
        tiny.tokens(batch, context),
        Spec(new_tokens=new_tokens),
        Point(batch, context),
        tiny.CPU,
        compile_model=False,
        graph=graph,
        prefill_graph=prefill_graph,
    )


def digest(of: Generate) -> str:
    """Of a request made now, whatever was kept of an earlier one."""
    of._generated.clear()
    of.unit("request")
    return of.result(EMPTY).output_sha256


def greedy(model: Any, prompts: torch.Tensor, new_tokens: int) -> str:
    """The digest of what whole forward passes choose, token by token."""
    tokens = prompts
    with torch.inference_mode():
        for _ in range(new_tokens):
            best = model(input_ids=tokens).logits[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, best], dim=1)
    return hashlib.sha256(tokens[:, prompts.shape[1] :].numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("make", [tiny.decoder, tiny.llama], ids=["decoder", "transformers"])
def test_every_token_is_the_most_likely_one_of_a_whole_forward_pass(
    make: Callable[[], Any],
) -> None:
    model = make()
    found = digest(work(model, batch=3, context=7, new_tokens=20))
    assert found == greedy(model, tiny.tokens(3, 7), 20)


def test_both_arms_choose_the_same_tokens() -> None:
    theirs = tiny.llama()
    ours = tiny.decoder(tiny.shape(qkv_bias=False, tied=False, rope_theta=10_000.0))
    ours.load_state_dict(theirs.state_dict())
    assert digest(work(ours, new_tokens=24)) == digest(work(theirs, new_tokens=24))


def test_what_was_measured_before_does_not_change_the_text() -> None:
    fresh = work(tiny.decoder())
    used = work(tiny.decoder())
    for _ in range(3):
        used.unit("prefill")
    for _ in range(7):
        used.unit("decode")
    used.unit("request")
    kept = used.result(EMPTY).output_sha256
    assert kept == digest(used) == digest(fresh) == digest(fresh)
    fresh.unit("request")
    assert len(fresh._generated) == 4, "the second request keeps nothing"


def test_other_weights_give_other_text() -> None:
    assert digest(work(tiny.decoder(seed=0))) != digest(work(tiny.decoder(seed=1)))


def test_counts_of_prefill_are_prompt_tokens_and_one_token_each() -> None:
    of = work(tiny.decoder(), batch=2, context=5)
    for _ in range(3):
        of.unit("prefill")
    assert of.counts("prefill", 3) == {"prompt_tokens": 2 * 5 * 3, "tokens": 2 * 3}


def test_a_decode_step_reads_its_cache_and_starts_over_at_the_requested_length() -> None:
    of = work(tiny.decoder(), batch=2, context=5, new_tokens=4)
    of.unit("prefill")
    for _ in range(8):
        of.unit("decode")
    # A request of 4 tokens has 3 decode steps, which see 6, 7 and 8 tokens, then again.
    assert of._visible == [6, 7, 8, 6, 7, 8, 6, 7]
    assert of.counts("decode", 5) == {"tokens": 2 * 5, "cache_reads": 2 * (6 + 7 + 8 + 6 + 7)}
    assert of.counts("decode", 8)["cache_reads"] == 2 * (6 + 7 + 8 + 6 + 7 + 8 + 6 + 7)


def test_a_request_is_a_prefill_and_one_step_less_than_its_tokens() -> None:
    of = work(tiny.decoder(), batch=2, context=5, new_tokens=4)
    of.unit("request")
    of.unit("request")
    assert of._visible == [6, 7, 8, 6, 7, 8]
    assert of.counts("request", 2) == {
        "prompt_tokens": 2 * 5 * 2,
        "tokens": 2 * 4 * 2,
        "requests": 2 * 2,
    }


@pytest.mark.parametrize("make", [tiny.decoder, tiny.llama], ids=["decoder", "transformers"])
@pytest.mark.parametrize(("context", "slots"), [(5, 64), (60, 64), (61, 128), (100, 128)])
def test_the_cache_weighs_what_the_formula_says(
    make: Callable[[], Any], context: int, slots: int
) -> None:
    of = work(make(), batch=3, context=context, new_tokens=4)
    of.unit("prefill")
    per_token = kv_bytes_per_token(tiny.shape(), element_bytes=4)
    assert per_token == 2 * 2 * 2 * 16 * 4  # layers x (k, v) x heads x head_dim x bytes
    assert of.holdings() == {"kv_cache": per_token * 3 * slots}


def test_models_without_a_static_cache_say_so() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=272, hidden_size=64, num_hidden_layers=1))
    with pytest.raises(Unsupported, match="MambaForCausalLM has no static cache"):
        work(model)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The calls before each capture; a replay runs the step."""
    return stand_in(monkeypatch)


@pytest.mark.parametrize("prefill_graph", [False, True])
@pytest.mark.parametrize(("context", "new_tokens"), [(5, 4), (62, 2)], ids=["room", "no room"])
def test_capturing_a_step_stays_inside_the_cache_and_changes_no_token(
    context: int, new_tokens: int, prefill_graph: bool, captured: list[int]
) -> None:
    sizes = {"context": context, "new_tokens": new_tokens}
    graphed = work(tiny.decoder(), **sizes, graph=True, prefill_graph=prefill_graph)
    if prefill_graph:
        graphed.unit("prefill")
    for _ in range(5):
        graphed.unit("decode")
    graphed.unit("request")
    plain = work(tiny.decoder(), **sizes)
    assert digest(graphed) == digest(plain)
    assert captured == [CAPTURE_CALLS] * (1 + prefill_graph)


def test_the_graphs_are_let_go_with_the_work(captured: list[int]) -> None:
    of = work(tiny.decoder(), graph=True, prefill_graph=True)
    of.unit("request")
    assert of.result(EMPTY).captured == ("prefill", "decode")
    assert len(captured) == 2
    of.close()
    assert of._replay is None
    assert of._replay_prefill is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures a graph of a GPU")
def test_a_real_graph_of_a_prefill_changes_no_token() -> None:
    model, device = tiny.decoder().cuda(), Device(torch.device("cuda", 0), graphs=True)
    made = [
        Generate(
            *(face(model), tiny.tokens(2, 5), Spec(new_tokens=4), Point(2, 5), device),
            compile_model=False,
            graph=graph,
            prefill_graph=graph,
        )
        for graph in (True, False)
    ]
    assert digest(made[0]) == digest(made[1])


def test_closing_frees_the_cache() -> None:
    of = work(tiny.decoder())
    of.close()
    assert not hasattr(of, "_cache")


def test_prompts_go_to_the_device_of_the_model() -> None:
    of = work(tiny.decoder())
    assert of._prompts.device == tiny.CPU.torch
    assert isinstance(tiny.CPU, Device)


@pytest.mark.parametrize("vocab", [50, 257, 151_936, 128_256, 1031])
def test_the_most_likely_token_is_found_in_two_steps(vocab: int) -> None:
    """Wherever it stands, and the first among equals; 1,031 is prime."""
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(0))
    places = (0, vocab - 1, vocab // 2)
    for row, place in enumerate(places):
        logits[row, [place, vocab - 1]] = 9.0
    assert most_likely(logits).flatten().tolist() == list(places)
    assert torch.equal(most_likely(logits), logits.argmax(-1, keepdim=True))


@pytest.mark.parametrize("new_tokens", [2, 4, 8])
def test_learned_positions_are_needed_for_tokens_and_not_for_slots(
    captured: list[int], new_tokens: int
) -> None:
    """Neither by decoding nor by capturing a step, which goes a few slots further."""
    model = tiny.decoder(tiny.shape(position="learned", max_positions=64 + new_tokens))
    plain, graphed = (
        work(model, context=64, new_tokens=new_tokens, graph=graph) for graph in (False, True)
    )
    for of in (plain, graphed):
        of.unit("request")
    assert digest(plain) == digest(graphed)
    assert len(captured) == 1
    with pytest.raises(Unsupported, match=f"{64 + new_tokens} learned positions and"):
        work(model, context=64, new_tokens=new_tokens + 1)
