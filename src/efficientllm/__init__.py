"""EfficientLLM: what an efficiency technique for language models really costs and buys.

    import efficientllm as ell

    ell.run("generate", "model=Llama-3.1-8B", "technique=bf16,int4")
    results = ell.load("efficientllm-results")
    for row in results.rows():
        print(row.name, row.point, row.cell("it_tokens_per_s").interval)
    print(results.compare("generate-bf16", "generate-int4"))

Names are imported when they are first used, so `import efficientllm` costs nothing and
never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efficientllm.analysis.compare import Comparison, compare
    from efficientllm.analysis.table import Row
    from efficientllm.api import run
    from efficientllm.metrics import METRICS
    from efficientllm.record import Record
    from efficientllm.results import Results, load
    from efficientllm.spec.case import Case
    from efficientllm.spec.document import SpecError
    from efficientllm.spec.protocol import Protocol
    from efficientllm.spec.suite import Suite, load_suite

__version__ = "0.1.0"

__all__ = [
    "METRICS",
    "Case",
    "Comparison",
    "Protocol",
    "Record",
    "Results",
    "Row",
    "SpecError",
    "Suite",
    "compare",
    "load",
    "load_suite",
    "run",
]

_HOMES = {
    "METRICS": "metrics",
    "Case": "spec.case",
    "Comparison": "analysis.compare",
    "Protocol": "spec.protocol",
    "Record": "record",
    "Results": "results",
    "Row": "analysis.table",
    "SpecError": "spec.document",
    "Suite": "spec.suite",
    "compare": "analysis.compare",
    "load": "results",
    "load_suite": "spec.suite",
    "run": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'efficientllm' has no attribute {name!r}")
    return getattr(import_module(f"efficientllm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
