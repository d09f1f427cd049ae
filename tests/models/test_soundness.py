"""Examining attention: ours pass, and every way to be wrong is found by the check for it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from efficientllm.catalog.backbone import backbone_shape
from efficientllm.models.own import load_module
from efficientllm.models.soundness import examine
from efficientllm.models.subject import own_work
from efficientllm.record import Finding
from efficientllm.spec.architecture import Attention, Position
from efficientllm.spec.case import Case
from efficientllm.spec.model import Backbone
from tests import tiny
from tests.models.own_modules import LOOKS_AHEAD, RAISES, SOUND, WRONG_SHAPE, spoiled, written

CPU = torch.device("cpu")
OURS = [
    kind.model_fields["kind"].default
    for kind in get_args(get_args(Attention)[0])
    if kind.model_fields["kind"].default != "custom"
]
POSITIONS = [kind.model_fields["kind"].default for kind in get_args(get_args(Position)[0])]


def findings(folder: Path, text: str, *, thorough: bool = False) -> dict[str, Finding]:
    file, sha256 = written(folder, text)
    mixer = load_module(file, "Mine", sha256).found
    found = examine(tiny.shape(custom="Mine"), CPU, mixer, thorough=thorough)
    return {finding.name: finding for finding in found}


def failed(found: dict[str, Finding]) -> list[str]:
    return [name for name, finding in found.items() if finding.verdict == "failed"]


def test_the_union_has_the_kinds_that_are_examined_here() -> None:
    assert {"mha", "gqa", "mqa", "sliding", "mla", "nsa"} <= set(OURS)


@pytest.mark.parametrize(
    ("kind", "position"),
    [
        (kind, position)
        for kind in OURS
        for position in POSITIONS
        if not (kind in ("mla", "nsa") and position in ("t5", "alibi"))
    ],
)
def test_every_attention_of_ours_passes_under_every_encoding(kind: str, position: str) -> None:
    """Thoroughly once for all encodings that tell a layer nothing: to it they are one."""
    spec = {"preset": "tiny", "attention": kind, "position": position}
    again = position in ("sinusoidal", "learned")
    found = examine(backbone_shape(Backbone.model_validate(spec)), CPU, thorough=not again)
    assert [f for f in found if f.verdict == "failed"] == []
    told = {f.name: f.seen for f in found if f.verdict == "told"}
    more = set() if again else {"compile"}
    assert told.keys() == {"positions"} | more, "the stated cost is checked, not only told"
    assert ("uses" in told["positions"]) == (position in ("rope", "t5", "alibi"))


@pytest.mark.parametrize("position", ["rope", "alibi", "t5", "sinusoidal", "learned", "none"])
@pytest.mark.parametrize("blind", [True, False])
def test_positions_that_a_layer_is_told_and_ignores_are_found(
    tmp_path: Path, position: str, blind: bool
) -> None:
    """Those that enter at the embedding, and none at all, need nothing of a layer."""
    ours = backbone_shape(Backbone.model_validate({"preset": "tiny", "position": position}))
    uses = examine(ours, CPU)
    assert not [f for f in uses if f.verdict in ("failed", "unused")]
    without = spoiled(("q, k = rotate(q, positions), rotate(k, positions)", "pass"))
    file, sha256 = written(tmp_path, without if blind else SOUND)
    shape = backbone_shape(
        Backbone.model_validate(
            {"preset": "tiny", "position": position}
            | {"attention": {"kind": "custom", "file": file, "name": "Mine", "sha256": sha256}}
        )
    )
    found = examine(shape, CPU, load_module(file, "Mine", sha256).found)
    (about,) = [f for f in found if f.name == "positions"]
    ignored = {"rope"} if not blind else set()
    told = {"rope", "alibi", "t5"} - ignored
    assert (about.verdict == "unused") == (position in told)
    if about.verdict == "unused":
        assert about.seen.startswith(f"does not use what position {position} tells it")
        assert "model.position=none" in about.advice


def test_a_users_attention_passes_the_same_checks(tmp_path: Path) -> None:
    found = findings(tmp_path, SOUND, thorough=True)
    assert failed(found) == []
    assert found["FLOPs"].verdict == found["cache bytes"].verdict == "passed"
    assert "196608" not in found["cache bytes"].seen
    assert "98304 bytes stated for 192 tokens" in found["cache bytes"].seen  # 2 x 64 x 192 x 4


@pytest.mark.parametrize(
    ("text", "check", "seen"),
    [
        (LOOKS_AHEAD, "causality", "tokens from 1 on change outputs before them"),
        (
            spoiled(("(y.transpose", "((y - y.mean(2, True)).transpose")),
            "causality",
            "change outputs before them",
        ),
        (
            spoiled(("k = cache[0].index_copy_(2, at, k)", "k = cache[0]")),
            "cache",
            "decode differs",
        ),
        (
            spoiled((", : x.shape[1]].copy_(k)", ", : x.shape[1]].add_(k)")),
            "cache",
            "in a cache that was used before",
        ),
        (spoiled(("size = (batch, self.heads", "size = (self.heads, batch")), "cache", "rows come"),
        (spoiled(("return tuple(", "return list(")), "cache", "gives a list, not a tuple"),
        (spoiled(("def new_cache", "def other_cache")), "cache", "new_cache"),
        (spoiled(("* self.scale", "")), "gradients", "no gradient for scale"),
        (
            spoiled(("y.transpose", "F.dropout(y, 0.5).transpose")),
            "repeatable",
            "gives another output",
        ),
        (
            spoiled(("y.transpose", "(y if self.training else y / 2).transpose")),
            "repeatable",
            "eval() gives another output than train(), by",
        ),
        (spoiled(("(y.transpose", "((y + y.mean(0)).transpose")), "rows", "a row alone differs"),
        (
            spoiled(("<= at[:, None]", "<= at[:, None]\n        q = q.float()")),
            "bfloat16",
            "dtype",
        ),
        (spoiled(("8 * new", "16 * new")), "FLOPs", "stated"),
        (spoiled(("8 * new", "4 * new")), "FLOPs", "stated"),
        (spoiled(("4 * pairs", "40 * pairs")), "FLOPs", "decode"),
        (spoiled(("Cost(flops, 2 *", "Cost(flops, 1 *")), "cache bytes", "49152 bytes stated"),
        (
            spoiled(("element_size())", "element_size(), 1e6)")),
            "cache bytes",
            "1000000 bytes stated as read, 98304 allocated",
        ),
        (spoiled(("Cost(flops,", "Cost(-flops,")), "FLOPs", "0 or more"),
        (spoiled(("return Cost(", "raise SystemExit(")), "FLOPs", "gives no Cost: SystemExit"),
        (spoiled(("return Cost(", "return len(")), "FLOPs", "gives no Cost: TypeError"),
    ],
)
def test_each_way_to_be_wrong_is_found(tmp_path: Path, text: str, check: str, seen: str) -> None:
    found = findings(tmp_path, text)
    assert check in failed(found), found
    assert seen in found[check].seen


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (WRONG_SHAPE, "an input of [2, 1, 64] gives an output of [2, 1, 192]"),
        (RAISES, "KeyError: 'no such head' (its line 28)"),
        (spoiled(("def __init__(self, shape)", "def __init__(self)")), "TypeError"),
        (spoiled(("seen = torch", "raise SystemExit(3)\n        seen = torch")), "SystemExit: 3"),
        (spoiled(("super().__init__()", "super().__init__()\n        exit()")), "SystemExit"),
        (spoiled(("return self.out(", "return x, self.out(")), "gives a tuple, not a tensor"),
        (spoiled(("return self.out(", "return x.double() * self.out(")), "of torch.float64"),
        (spoiled(("* self.scale", "/ 0.0 * self.scale")), "not all of the output is finite"),
    ],
)
def test_what_gives_no_layer_is_examined_no_further(tmp_path: Path, text: str, seen: str) -> None:
    found = findings(tmp_path, text)
    assert failed(found) == list(found) == ["output"]
    assert seen in found["output"].seen
    assert found["output"].advice


def test_a_backward_that_is_not_the_forwards_is_found_by_differences(tmp_path: Path) -> None:
    wrong = (
        "\n\nclass Doubled(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, x):\n        return x.clone()\n\n"
        "    @staticmethod\n    def backward(ctx, g):\n        return 2 * g\n"
    )
    text = spoiled(("(y.transpose", "(Doubled.apply(y).transpose")) + wrong
    found = findings(tmp_path, text)
    assert failed(found) == ["differences"]
    assert "its input, qkv.weight" in found["differences"].seen


def test_an_attention_that_chooses_its_keys_has_right_gradients(tmp_path: Path) -> None:
    """A large step crosses the border between two choices; the derivative does not."""
    best = spoiled(
        ("y = F.scaled_dot_product_attention(", "y = chosen("),
    )
    best += (
        "\n\ndef chosen(q, k, v, attn_mask, scale=None, **_):\n"
        "    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~attn_mask, float('-inf'))\n"
        "    kept = scores.topk(min(4, scores.shape[-1]), -1).values[..., -1:]\n"
        "    return scores.masked_fill(scores < kept, float('-inf')).softmax(-1) @ v\n"
    )
    assert "differences" not in failed(findings(tmp_path, best))


def test_a_gradient_from_the_future_without_a_value_is_found(tmp_path: Path) -> None:
    ahead = "((y + y.flip(2) - y.flip(2).detach()).transpose"
    text = spoiled(("(y.transpose", ahead))
    found = findings(tmp_path, text)
    assert failed(found) == ["causality", "differences"]
    assert found["causality"].seen == "output 0 has a gradient from later tokens"


def test_a_window_is_seen_by_the_long_rows_only(tmp_path: Path) -> None:
    forgets = spoiled(
        ("<= at[:, None]", "<= at[:, None] if x.shape[1] < 199 else (at < 0)[:, None]")
    )
    assert failed(findings(tmp_path, forgets)) == []
    assert "cache" in failed(findings(tmp_path, forgets, thorough=True))


IN_BLOCKS = spoiled(
    ("seen = torch.arange(", "whole = x.shape[1] % 64 == 0\n        seen = torch.arange("),
    ("<= at[:, None]", "<= at[:, None] + 64 * whole"),
)
"""Causal at every length that does not fill blocks of 64."""


def test_rows_of_whole_blocks_are_examined_too(tmp_path: Path) -> None:
    found = findings(tmp_path, IN_BLOCKS)
    assert {"causality", "cache"} <= set(failed(found))


def case_of(**workload: object) -> Case:
    model = {"kind": "backbone", "preset": "tiny"}
    return Case.model_validate({"model": model, "workload": workload})


def test_the_cases_own_length_is_examined_too(tmp_path: Path) -> None:
    text = IN_BLOCKS.replace("x.shape[1] % 64 == 0", "x.shape[1] == 192")
    file, sha256 = written(tmp_path, text)
    mixer, shape = load_module(file, "Mine", sha256).found, tiny.shape(custom="Mine")
    at = {
        kind: own_work(case_of(kind=kind, **sizes))
        for kind, sizes in (
            ("pretrain", {"sequence_length": 192}),
            ("generate", {"points": {"context": [64, 192]}, "new_tokens": 8}),
        )
    }
    assert at["pretrain"] == (((192, 188),), ((192, 0),))
    costs = ((64, 0), (1, 64), (1, 70), (192, 0), (1, 192), (1, 198))
    assert at["generate"] == (((196, 192),), costs)
    for kind, check in (("pretrain", "causality"), ("generate", "cache")):
        found = examine(shape, CPU, mixer, own=at[kind])
        assert check in [f.name for f in found if f.verdict == "failed"], kind
    assert not [f for f in examine(shape, CPU, mixer) if f.verdict == "failed"]


def test_a_long_row_is_examined_as_far_as_its_scores_fit() -> None:
    long = own_work(case_of(kind="pretrain", sequence_length=1 << 20))
    assert long == (((2048, 2044),), ((1 << 20, 0),))
    assert own_work(case_of(kind="pretrain", sequence_length=2)).rows == ((2, 1),)


def test_a_cost_that_fails_at_the_cases_own_length_is_found(tmp_path: Path) -> None:
    change = (
        "width = self.heads * self.dim\n        pairs",
        "width = 64 // (new < 300)\n        pairs",
    )
    file, sha256 = written(tmp_path, spoiled(change))
    mixer, shape = load_module(file, "Mine", sha256).found, tiny.shape(custom="Mine")
    for length, verdict in ((256, "passed"), (4096, "failed")):
        own = own_work(case_of(kind="pretrain", sequence_length=length))._replace(rows=())
        found = {f.name: f for f in examine(shape, CPU, mixer, own=own)}
        assert found["FLOPs"].verdict == verdict
    assert "Mine.cost(4096, 0) gives no Cost: ZeroDivisionError" in found["FLOPs"].seen


STATE = spoiled(
    (
        "y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)",
        """q, k = F.elu(q) + 1, F.elu(k) + 1
        if cache is not None and positions.slot is not None:
            cache[0].add_(k[:, :, -1:].transpose(-1, -2) @ v[:, :, -1:])
            y = q @ cache[0]
        else:
            y = (q @ k.transpose(-1, -2)).tril() @ v
            if cache is not None:
                cache[0].copy_(k.transpose(-1, -2) @ v)
        y = y / self.dim""",
    ),
    (
        """at = positions.slot
            k = cache[0].index_copy_(2, at, k)
            v = cache[1].index_copy_(2, at, v)
        elif cache is not None:
            cache[0][:, :, : x.shape[1]].copy_(k)
            cache[1][:, :, : x.shape[1]].copy_(v)
""",
        "at = positions.slot\n",
    ),
    (
        "size = (batch, self.heads, slots, self.dim)",
        "size = (batch, self.heads, self.dim, self.dim)",
    ),
    ('for _ in "kv")', 'for _ in "s")'),
    ("+ 4 * pairs * width", "+ 4 * new * width * self.dim"),
    ("2 * (seen + new) * width", "width * self.dim"),
)
"""Linear attention: rows in their parallel form, decode by a state of head_dim x head_dim."""


def test_a_state_may_be_stated_by_what_a_step_of_it_takes(tmp_path: Path) -> None:
    """Its first token is a pair in one form and a whole state in the other."""
    found = findings(tmp_path, STATE)
    assert failed(found) == []
    assert found["FLOPs"].verdict == "passed"
    dearer = findings(tmp_path, STATE.replace("+ 4 * new", "+ 6 * new"))
    assert failed(dearer) == ["FLOPs"]
    assert "decode" in dearer["FLOPs"].seen


def test_without_a_cost_nothing_is_stated_and_nothing_fails(tmp_path: Path) -> None:
    found = findings(tmp_path, spoiled(("def cost", "def price")))
    assert failed(found) == []
    assert found["FLOPs"].verdict == found["cache bytes"].verdict == "told"
    assert "mfu, mbu and roofline_share stay null" in found["FLOPs"].seen


HIDDEN_KERNEL = (
    "\n\n@torch.library.custom_op('own_modules::hidden', mutates_args=())\n"
    "def hidden(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor)"
    " -> torch.Tensor:\n"
    "    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)\n"
    "\n\nhidden.register_autograd(lambda ctx, g: (g, g, g, None),"
    " setup_context=lambda ctx, inputs, output: None)\n"
)


def hidden(*changes: tuple[str, str]) -> str:
    """The sound module with its products inside a kernel that nobody can look into."""
    plain = "F.scaled_dot_product_attention(q, k, v, attn_mask=seen)"
    return spoiled((plain, "hidden(q, k, v, seen)"), *changes) + HIDDEN_KERNEL


def test_a_kernel_that_cannot_be_counted_is_told(tmp_path: Path) -> None:
    found = findings(tmp_path, hidden())
    assert found["FLOPs"].verdict == "told"
    assert "cannot be counted" in found["FLOPs"].seen


@pytest.mark.parametrize("change", [("8 * new", "16 * new"), ("4 * pairs", "400 * pairs")])
def test_what_no_kernel_could_take_is_not_believed(tmp_path: Path, change: tuple[str, str]) -> None:
    found = findings(tmp_path, hidden(change))
    assert "FLOPs" in failed(found)


def test_positions_that_are_not_used_are_told(tmp_path: Path) -> None:
    text = spoiled(("q, k = rotate(q, positions), rotate(k, positions)\n", "\n"))
    found = findings(tmp_path, text)
    assert failed(found) == []
    assert "does not use what position rope tells it" in found["positions"].seen
