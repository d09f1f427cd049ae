"""Work in one CUDA graph: which work is small enough to wait for Python, and its capture.

A small pass takes longer to launch than to compute. On an H200 Python needs 0.4 ms for a layer's
prompt with sliding windows, 0.7 with NSA and 0.8 with MLA, where the card needs half of that at
0.5B and 4,096 tokens. So it is Python that is measured, and more of it the more kernels a variant
has. A graph launches all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable

from efficientllm.catalog.shape import Shape
from efficientllm.device import CAPTURE_CALLS, capture, is_lost, is_out_of_memory, run_aside
from efficientllm.parameters import parameters
from efficientllm.record import Unsupported

LARGEST_PROMPT = 2.3e11
"""Multiply-adds of one layer with a prompt up to which a graph is taken: 0.8 ms at 600 TFLOP/s.

All variants of a controlled shape are on one side of it: those of 0.5B and 1.5B below at 4,096
tokens, all of them above at 16,384.
"""


def most_tokens(shape: Shape | None, multiply_adds: float = LARGEST_PROMPT) -> int:
    """Tokens of one pass of our decoder up to which a layer has so many multiply-adds.

    None with attentions other than ours: what a user's does while it is captured is not known.
    """
    if shape is None or shape.custom:
        return 0
    return int(multiply_adds * shape.layers / parameters(shape).products)


def captured(step: Callable[[], None], what: str, calls: int = CAPTURE_CALLS) -> Callable[[], None]:
    """A step, called `what`, as the replay of a graph, after so many calls that do not count.

    None of those for a step that was run before and must not be repeated. Raises RuntimeError
    where recording fails, and says how to do without.
    """
    if calls:
        run_aside(step, calls)
    try:
        return capture(step)
    except RuntimeError as error:
        if isinstance(error, Unsupported) or is_out_of_memory(error) or is_lost(error):
            raise
        raise RuntimeError(
            f"{what} could not be captured in a CUDA graph"
            f" (workload.cuda_graph=none does without one): {error}"
        ) from error
