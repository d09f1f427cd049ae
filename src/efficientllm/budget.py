"""A budget in tokens per parameter, made a number of tokens.

`tokens: 20x` trains 20 tokens for each parameter of the model, about what a compute-optimal
training takes (Hoffmann et al. 2022, arXiv 2203.15556). All parameters count, a tied table
once and embeddings with the rest, as in the metric `tokens_per_param`. This is settled before
any id is taken, so `20x` and the number that it means are one case.
"""

from __future__ import annotations

from pydantic import ValidationError

from efficientllm.parameters import parameters
from efficientllm.predict import shape_of
from efficientllm.seal import first_problem
from efficientllm.spec.case import Case
from efficientllm.spec.document import SpecError
from efficientllm.spec.suite import Suite
from efficientllm.spec.workload import MAX_TOKENS, Training


def with_tokens(case: Case, suite: Suite) -> Case:
    """The case with its budget as a number; SpecError where the model's size is not known."""
    spec = case.workload
    if not isinstance(spec, Training) or not isinstance(spec.tokens, str):
        return case
    shape = shape_of(case, suite)
    if shape is None:
        raise SpecError(
            f"{case.name}: workload.tokens: {spec.tokens} needs a model whose parameters are"
            " known before it is loaded; give a number of tokens"
        )
    tokens = round(float(spec.tokens.removesuffix("x")) * parameters(shape).total)
    if not 1 <= tokens <= MAX_TOKENS:
        raise SpecError(f"{case.name}: workload.tokens: {spec.tokens} of this model are {tokens}")
    workload = spec.model_dump() | {"tokens": tokens}
    try:
        return Case.model_validate(case.model_dump() | {"workload": workload})
    except ValidationError as error:
        raise SpecError(f"{case.name}: {first_problem(error)}") from error
