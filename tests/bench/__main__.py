"""`make bench`: the benchmarks, as a table on the terminal and in var/bench/PART.json.

A row: name, params, unit, ours, peer, ratio, ratio_min, ratio_max, runs. A ratio above 1 means that ours is better; peer and ratios
are null where nothing stands beside.
"""

import argparse
import json
import sys
from pathlib import Path

from tests.loop.site import ROOT

PARTS = ("labeling", "training")


def main() -> int:
    """Run the parts asked for, all by default."""
    parser = argparse.ArgumentParser(prog="make bench", description="benchmarks")
    parser.add_argument("part", nargs="?", choices=PARTS, help="default: all")
    parser.add_argument("--tasks", type=int, default=2000, help="ranking tasks in the database (default 2000)")
    parser.add_argument(
        "--submissions",
        type=int,
        nargs="*",
        default=[1000, 10_000, 100_000],
        help="sizes at which every page is opened (labeling; default 1000 10000 100000)",
    )
    parser.add_argument(
        "--rows",
        type=int,
        nargs="*",
        default=[1000, 10_000, 100_000],
        help="rows of bulk imports and exports (labeling; default 1000 10000 100000; 1000000 takes an hour)",
    )
    parser.add_argument(
        "--open-tasks",
        type=int,
        nargs="*",
        default=[1000, 10_000],
        help="open tasks of the rows next, submit and rps (labeling; default 1000 10000; beside Label Studio where one runs)",
    )
    parser.add_argument(
        "--own-open-tasks", type=int, nargs="*", default=[], help="further sizes of these rows, Heed alone, as 1000000"
    )
    parser.add_argument("--runs", type=int, default=3, help="how often each bulk figure is taken (default 3)")
    parser.add_argument("--quick", action="store_true", help="one small cell of each stage (training)")
    options = parser.parse_args()
    folder = ROOT / "var" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    for part in [options.part] if options.part else PARTS:
        rows = measure(part, folder, options)
        (folder / f"{part}.json").write_text(json.dumps(rows, indent=1) + "\n")
        print_table(rows)
    return 0


def measure(part: str, folder: Path, options: argparse.Namespace) -> list[dict]:
    """The rows of a part. Only its own imports: one needs no torch, the other no Django."""
    if part == "labeling":
        from tests.bench import bulk, labeling, serving

        rows = bulk.run(folder / "bulk", options.rows, options.runs) if options.rows else []
        if options.open_tasks or options.own_open_tasks:
            rows += serving.run(folder / "serving", options.open_tasks, options.own_open_tasks)
        return rows + labeling.run(folder / "site", options.tasks, options.runs, options.submissions)
    from tests.bench import training

    return training.run(folder / "models", options.runs, options.quick)


def print_table(rows: list[dict]) -> None:
    """One line per row."""
    for row in rows:
        params = ", ".join(f"{name} {value}" for name, value in row["params"].items())
        ratio = ""
        if row["ratio"] is not None:
            ratio = f"{row['ratio']:>6.2f} × {row['peer']:,.1f} [{row['ratio_min']:.2f}, {row['ratio_max']:.2f}]"
        print(f"{row['name']:<34}{row['ours']:>12,.1f} {row['unit']:<16}{ratio}  ({params}; {row['runs']} runs)")


if __name__ == "__main__":
    sys.exit(main())
