"""Who may take attention's place in a case: the class, and what examining it found.

A user's own attention is examined every time it is used, just before it is built, so that no
record is without its findings and no state has to be kept of what passed when.
"""

from __future__ import annotations

import torch

from efficientllm.catalog.backbone import backbone_shape
from efficientllm.models.decoder import Mixer
from efficientllm.models.own import load_module
from efficientllm.models.soundness import examine
from efficientllm.models.subject import own_work
from efficientllm.record import Examined, Unsupported
from efficientllm.spec.architecture import CustomAttention
from efficientllm.spec.case import Case
from efficientllm.spec.model import Backbone
from efficientllm.spec.workload import Probe

_NOBODY: tuple[None, None] = (None, None)


def admit(case: Case, device: torch.device) -> tuple[Mixer | None, Examined | None]:
    """The class of a user's own attention, and its findings; ours is examined for a probe only.

    A probe wants every finding, thoroughly. Anybody else wants a layer, examined at the
    lengths it will work at: raises Unsupported where nothing of the right shape comes out.
    """
    model, probing = case.model, isinstance(case.workload, Probe)
    if not isinstance(model, Backbone):
        return _NOBODY
    shape, spec = backbone_shape(model), model.attention
    if not isinstance(spec, CustomAttention):
        findings = examine(shape, device, thorough=True) if probing else ()
        return None, Examined(name=spec.kind, findings=findings) if probing else None
    code = load_module(spec.file, spec.name, spec.sha256)
    findings = examine(shape, device, code.found, thorough=probing, own=own_work(case))
    first = findings[0]
    if first.verdict == "failed" and not probing:
        raise Unsupported(f"{spec.name}: {first.seen}; {first.advice}")
    return code.found, Examined(
        name=spec.name, sha256=spec.sha256, source=code.source, findings=findings
    )
