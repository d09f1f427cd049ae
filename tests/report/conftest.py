"""What the tests of pages share: a chart that several pages hold is drawn once.

Drawing takes half of a page's time. It is a function of the chart's description alone, which
each page still makes for itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def drawn_once() -> Iterator[None]:
    try:
        import vl_convert
    except ImportError:  # then there are no charts
        yield
        return
    draw, svgs = vl_convert.vegalite_to_svg, dict[str, str]()

    def once(description: dict[str, Any]) -> str:
        key = json.dumps(description)
        if key not in svgs:
            svgs[key] = draw(description)
        return svgs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vl_convert, "vegalite_to_svg", once)
        yield
