"""`make bench`: the benchmarks, as a table on the terminal and in var/bench/PART.json.

A row: name, params, unit, ours, peer, ratio, ratio_min, ratio_max, runs. A ratio above 1 means that ours is better; peer and ratios
are null where nothing stands beside.
"""

import argparse
import json
import sys

from tests.bench import labeling
from tests.loop.site import ROOT

PARTS = {"labeling": labeling.run}


def main() -> int:
    """Run the parts asked for, all by default."""
    parser = argparse.ArgumentParser(prog="make bench", description="benchmarks")
    parser.add_argument("part", nargs="?", choices=PARTS, help="default: all")
    parser.add_argument("--tasks", type=int, default=2000, help="ranking tasks in the database (default 2000)")
    parser.add_argument("--runs", type=int, default=3, help="how often each bulk figure is taken (default 3)")
    options = parser.parse_args()
    folder = ROOT / "var" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    for part in [options.part] if options.part else PARTS:
        rows = PARTS[part](folder / "site", options.tasks, options.runs)
        (folder / f"{part}.json").write_text(json.dumps(rows, indent=1) + "\n")
        print_table(rows)
    return 0


def print_table(rows: list[dict]) -> None:
    """One line per row."""
    for row in rows:
        params = ", ".join(f"{name} {value:,}" for name, value in row["params"].items())
        ratio = "" if row["ratio"] is None else f"{row['ratio']:>8.1f} × {row['peer']:.1f}"
        print(f"{row['name']:<34}{row['ours']:>12,.1f} {row['unit']:<16}{ratio}  ({params}; {row['runs']} runs)")


if __name__ == "__main__":
    sys.exit(main())
