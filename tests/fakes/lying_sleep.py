"""A `sitecustomize` under which every sleep lasts a tenth longer than it was asked to."""

from __future__ import annotations

import time

_real = time.sleep
time.sleep = lambda seconds: _real(seconds * 1.1)
