"""Which passes are captured in one graph: those that would wait for Python."""

from __future__ import annotations

import pytest

from efficientllm.catalog.backbone import backbone_shape
from efficientllm.catalog.shape import presets
from efficientllm.spec.model import Backbone
from efficientllm.workloads import graphs
from tests.graphs import stand_in


@pytest.mark.parametrize(
    ("preset", "custom", "tokens"),
    [
        ("0.5B-h16", "", 15_000),
        ("1.5B-h16", "", 4_680),
        ("30M-h16", "", 81_600),
        ("0.5B-h16", "mine.py:Mine", 0),
    ],
)
def test_passes_are_captured_up_to_so_many_tokens(preset: str, custom: str, tokens: int) -> None:
    """By hand: 2.3e11 / 15.4M, 49.2M and 2.82M weights of a layer's products."""
    shape = presets()[preset].model_copy(update={"custom": custom})
    assert graphs.most_tokens(shape) == pytest.approx(tokens, rel=0.005)


def test_a_model_without_a_known_shape_is_not_captured() -> None:
    assert graphs.most_tokens(None) == 0


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa", "sliding", "mla", "nsa"])
@pytest.mark.parametrize(("size", "at_4096"), [("0.5B", True), ("1.5B", True), ("3B", False)])
def test_all_variants_of_a_size_are_on_one_side_at_the_lengths_of_the_suite(
    size: str, at_4096: bool, attention: str
) -> None:
    """Else the graph's gain would be taken for the attention's."""
    spec = Backbone.model_validate({"preset": f"{size}-h16", "attention": attention})
    most = graphs.most_tokens(backbone_shape(spec))
    assert (most >= 4096) is at_4096
    assert most < 16_384


def test_what_goes_wrong_before_recording_is_no_failed_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch)

    def step() -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match=r"^shapes cannot be multiplied$"):
        graphs.captured(step, "the decode step")
