"""Which launches may overlap the kernel before them; that they compile is tested with the rest."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.models.kernels import with_triton

CHAINED, PLAIN = {"chained": True, "launch_pdl": True}, {"chained": False}


@with_triton
@pytest.mark.parametrize(
    ("backend", "arch", "expected"),
    [("cuda", 90, CHAINED), ("cuda", 100, CHAINED), ("cuda", 80, PLAIN), ("hip", "gfx942", PLAIN)],
)
def test_only_cards_that_can_are_asked_to(
    monkeypatch: pytest.MonkeyPatch, backend: str, arch: int | str, expected: dict[str, bool]
) -> None:
    from efficientllm.models import chain_kernel

    card = SimpleNamespace(get_current_target=lambda: SimpleNamespace(backend=backend, arch=arch))
    monkeypatch.setattr(chain_kernel.driver, "_active", card)
    for interpret, links in ((True, PLAIN), (False, expected)):
        knobs = SimpleNamespace(runtime=SimpleNamespace(interpret=interpret))
        monkeypatch.setattr(chain_kernel, "triton", SimpleNamespace(knobs=knobs))
        assert chain_kernel.links() == links, "an interpreter has no chain"
