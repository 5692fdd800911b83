"""Table of a sweep: one row per finished run and the median over the seeds of each algorithm and environment.

    python scripts/sweep_table.py runs/sweep

reads runs/sweep/*/summary.json, prints the table and writes it to runs/sweep/summary.csv.
"""

import csv
import json
import math
import statistics
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

# column: (decimals in the printed table, or None for text)
COLUMNS = {
    "algo": None,
    "env": None,
    "seed": None,
    "steps": 0,
    "minutes": 1,
    "success_rate": 3,
    "success_ci_low": 3,
    "success_ci_high": 3,
    "mean_length": 1,
    "steps_to_0.95": 0,
    "steps_to_0.99": 0,
    "minutes_to_0.99": 1,
}


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """One row for each finished run in `folder`, by environment, algorithm and seed."""
    runs = []
    for file in folder.glob("*/summary.json"):
        summary = json.loads(file.read_text(encoding="utf-8"))
        evaluation = summary["evaluation"] or {}
        runs.append(
            {
                "algo": summary["algo"],
                "env": summary["env_id"],
                "seed": summary["seed"],
                "steps": summary["steps"],
                "minutes": minutes(summary["seconds"]),
                "success_rate": evaluation.get("success_rate"),
                "success_ci_low": evaluation.get("success_ci_low"),
                "success_ci_high": evaluation.get("success_ci_high"),
                "mean_length": evaluation.get("mean_length"),
                "steps_to_0.95": summary["steps_to_0.95"],
                "steps_to_0.99": summary["steps_to_0.99"],
                "minutes_to_0.99": minutes(summary["seconds_to_0.99"]),
            }
        )
    return sorted(runs, key=lambda run: (run["env"], run["algo"], run["seed"]))


def minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 60


def with_medians(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with, after each algorithm and environment, their median; its "seed" tells of how many."""
    rows = []
    for (env, algo), group in groupby(runs, key=lambda run: (run["env"], run["algo"])):
        seeds = list(group)
        numeric = [name for name, decimals in COLUMNS.items() if decimals is not None]
        medians = {name: median([run[name] for run in seeds], name) for name in numeric}
        rows += [*seeds, {"algo": algo, "env": env, "seed": f"median of {len(seeds)}", **medians}]
    return rows


def median(values: list[float | None], name: str) -> float | None:
    """A level that was never reached counts as infinitely late; other missing values are left out."""
    if "_to_" in name:
        values = [math.inf if value is None else value for value in values]
    known = [value for value in values if value is not None]
    middle = statistics.median(known) if known else math.inf
    return middle if math.isfinite(middle) else None


def print_table(rows: list[dict[str, Any]]) -> None:
    def text(name: str, value: Any) -> str:
        decimals = COLUMNS[name]
        if value is None:
            return "-"
        return str(value) if decimals is None else f"{value:,.{decimals}f}"

    lines = [list(COLUMNS), *([text(name, row[name]) for name in COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def main() -> None:
    folder = Path(sys.argv[1])
    rows = with_medians(read_runs(folder))
    print_table(rows)
    with open(folder / "summary.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(COLUMNS))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
