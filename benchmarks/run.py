"""Run the workloads, print one table, and write _build/bench.json.

python benchmarks/run.py [WORKLOAD …]
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from harness import Row, digits

HERE = Path(__file__).resolve().parent
HEADER = ("workload", "contender", "metric", "value", "ratio", "threads", "quality")


def cells(row: Row) -> tuple[str, ...]:
    """Format a row for the table."""
    value = "-" if row.value is None else digits(row.value)
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    return row.workload, row.contender, row.metric, value, ratio, str(row.threads), row.quality


def table(rows: list[Row]) -> str:
    """Align the rows under their header."""
    lines = [HEADER, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main() -> int:
    """Measure what was asked for, or everything."""
    known = {
        p.stem.removeprefix("bench_").replace("_", "-"): p.stem for p in HERE.glob("bench_*.py")
    }
    names = sys.argv[1:] or sorted(known)
    if unknown := set(names) - set(known):
        print(f"no such workload: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        return 1
    rows: list[Row] = []
    for name in names:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            rows += import_module(known[name]).measure()
        except ModuleNotFoundError as missing:
            reason = f"not installed: {missing.name}"
            rows.append(Row(name, missing.name or "?", "-", None, None, reason))
    print(table(rows))
    target = HERE.parent / "_build" / "bench.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    print(f"written to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
