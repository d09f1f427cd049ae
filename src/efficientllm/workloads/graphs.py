"""Work in one CUDA graph: which work is small enough to wait for Python, and its capture.

A small pass takes longer to launch than to compute. On an H200 Python needs 0.4 ms for a layer's
prompt with multi-head attention, 0.7 with NSA and 0.8 with MLA. At 0.5B and 4,096 tokens, where
the card needs half of that, it is Python that is measured, and more of it the more kernels a
variant has. A graph launches all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable

from efficientllm.catalog.shape import Shape
from efficientllm.device import CAPTURE_CALLS, capture, is_lost, is_out_of_memory
from efficientllm.parameters import parameters

LARGEST_PASS = 2.3e11
"""Multiply-adds of one layer in one pass up to which a graph is taken.

About 0.8 ms of a prompt at 600 TFLOP/s, and 3 ms of forward and backward at 400; a layer's
training takes Python 3 ms with multi-head attention, 5 with NSA. All variants of the controlled
shapes are on one side of it: at 4,096 tokens up to 1.5B below, at 16,384 from 0.5B on above.
"""


def most_tokens(shape: Shape | None) -> int:
    """Tokens of one pass of our decoder up to which it is captured.

    With our own attentions alone: what a user's does while it is captured is not known.
    """
    if shape is None or shape.custom:
        return 0
    return int(LARGEST_PASS * shape.layers / parameters(shape).products)


def captured(step: Callable[[], None], what: str, calls: int = CAPTURE_CALLS) -> Callable[[], None]:
    """`device.capture`, and an error that says how to do without; `what` names the step."""
    try:
        return capture(step, calls)
    except RuntimeError as error:
        if is_out_of_memory(error) or is_lost(error):
            raise
        raise RuntimeError(
            f"{what} could not be captured in a CUDA graph"
            f" (workload.cuda_graph=none does without one): {error}"
        ) from error
