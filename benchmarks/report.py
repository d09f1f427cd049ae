"""How long a report over many records takes, and how large its page is.

    python benchmarks/report.py [records=10000]

The records are samples of the tests with real numbers of readings. Targets: 10 s for
10,000 records, a page under 2 MB. Loading, table and page are timed apart.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import samples

from efficientllm.report.html import page
from efficientllm.results import load
from efficientllm.store import Store


def main() -> None:
    """Fill a store, then time what `efficientllm report` does."""
    count = next((int(w.split("=")[1]) for w in sys.argv[1:] if "=" in w), 10_000)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for number in range(count):
            spec = {"kind": "generate", "new_tokens": 2 + number // 3}
            case = samples.case(name=f"generate-{number // 3}", workload=spec)
            store.put(samples.record(of=case, round_=number % 3))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.json"))
        times = {}
        start = time.perf_counter()
        results = load(folder)
        times["load"] = time.perf_counter() - start
        start = time.perf_counter()
        rows = results.rows()
        times["rows"] = time.perf_counter() - start
        start = time.perf_counter()
        text = page(results)
        times["page"] = time.perf_counter() - start
    print(f"{count} records, {size / 1e6:.0f} MB, {len(rows)} rows, page {len(text) / 1e6:.2f} MB")
    for name, seconds in times.items():
        print(f"{name:6} {seconds:6.2f} s   {seconds / count * 1e3:.3f} ms a record")
    print(json.dumps({"records": count, "bytes": size, **times, "page_bytes": len(text)}))


if __name__ == "__main__":
    main()
