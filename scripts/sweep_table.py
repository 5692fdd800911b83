"""Table of a sweep: one row per finished run and the median over the seeds of each algorithm and environment.

    python scripts/sweep_table.py runs/sweep

reads runs/sweep/*/summary.json, prints the table and writes it to runs/sweep/summary.csv.
"""

import argparse
import csv
import json
import math
import os
import platform
import statistics
import sys
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

# column: decimals in the printed table, or None for text
COLUMNS = {
    "algo": None,
    "env": None,
    "seed": None,
    "steps": 0,
    "seconds": 0,
    "success": 3,
    "success_low": 3,
    "success_high": 3,
    "length": 1,
    "return": 3,
    "greedy_success": 3,
    "greedy_length": 1,
    "greedy_return": 3,
    "steps_to_0.95": 0,
    "steps_to_0.99": 0,
    "seconds_to_0.95": 0,
    "seconds_to_0.99": 0,
}


def refuse(sentence: str) -> NoReturn:
    """As harness.flags.run_script does, without its imports, which take seconds."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    """Refuses a command line in one sentence."""

    def error(self, message: str) -> NoReturn:
        refuse(f"{message}; --help tells what is allowed.")


def read_json(file: Path) -> dict[str, Any]:
    """Ends the program where the file cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse(f"{file}: must be a JSON file of a finished run ({' '.join(str(error).split())}).")


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """One row for each finished run in `folder`, by environment, algorithm and seed.

    Success with its 95% interval, length and return are those of the final evaluation on held-out episodes, with
    sampled actions and with greedy ones; steps and seconds to a level are those of training.
    """
    runs = []
    for file in folder.glob("*/summary.json"):
        summary = read_json(file)
        lacking = [name for name in ("algo", "env_id", "seed", "evaluation") if name not in summary]
        if lacking:
            refuse(f"{file}: must be the summary of a finished run, and has no {lacking[0]}.")
        sampled, greedy = summary["evaluation"] or {}, summary.get("greedy_evaluation") or {}
        runs.append(
            {
                "folder": file.parent,
                "env": summary["env_id"],
                "success": sampled.get("success_rate"),
                "success_low": sampled.get("success_ci_low"),
                "success_high": sampled.get("success_ci_high"),
                "length": sampled.get("mean_length"),
                "return": sampled.get("mean_return"),
                "greedy_success": greedy.get("success_rate"),
                "greedy_length": greedy.get("mean_length"),
                "greedy_return": greedy.get("mean_return"),
                **{name: summary[name] for name in COLUMNS if name in summary},
            }
        )
    return sorted(runs, key=lambda run: (run["env"], run["algo"], run["seed"]))


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
    parser = Parser(description="Table of a sweep.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="folder of the sweep's run folders")
    folder = parser.parse_args().folder
    if not folder.is_dir():
        refuse(f"{folder}: must be the folder of a sweep.")
    rows = with_medians(read_runs(folder))
    if not rows:  # what may lie there as summary.csv stays
        refuse(f"{folder}: holds no finished run (no */summary.json).")
    print_table(rows)
    table = folder / "summary.csv"
    unfinished = folder / f"summary.csv.{platform.node()}.{os.getpid()}.tmp"  # several runs may end at once
    try:
        with open(unfinished, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(COLUMNS), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(unfinished, table)
    except OSError as error:
        refuse(f"{table}: must be a file that can be written ({error.strerror}).")


if __name__ == "__main__":
    main()
