"""Gather finished runs into the tables that the report is made of.

    python -m study.collect_results runs/larger results/larger
    python -m study.collect_results --add runs/scorecard results/scorecard     beside the runs that are there already

Every folder with a summary.json at any depth below the first folder is a run; the folders between them name its
experiment ("" for runs/larger/RUN, "s13/lstm" for runs/scorecard/s13/lstm/RUN). Writes, into the second folder,

    runs.csv    a row for each run: the columns of sweep_table.py, the least training success after 0.99 was reached,
                threads, commit and command
    curves.csv  a row for every STRIDE steps of each run: what training logged, averaged since the row before
"""

import csv
import json
import math
from pathlib import Path
from typing import Any

from harness.input_error import InputError
from scripts import sweep_table
from study.files import cannot_write, with_kept, write_csv

STRIDE = 10_000  # environment steps
KEY = ("experiment", "algo", "env", "seed")  # tells runs apart
CURVES = {  # column: logged name
    "success": "train/success_rate",
    "length": "charts/episodic_length",
    "return": "charts/episodic_return",
    "recall_loss": "losses/recall_loss",
    "entropy": "losses/entropy",
    "gate_mean": "gates/agf_value",
    "gate_min": "gates/min_gate_value",
    "gate_max": "gates/max_gate_value",
    "gate_std": "gates/std_gate_value",
    "ratio_error": "losses/first_minibatch_ratio_error",
}


def logged(metrics: Path) -> list[dict[str, Any]]:
    """The rows of one run's metrics.jsonl, without those of evaluations alone."""
    try:
        rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        sweep_table.refuse(f"{metrics}: must be what a finished run logged ({error}).")
    return [row for row in rows if "charts/SPS" in row]


def least_success_since(rows: list[dict[str, Any]], step: int | None) -> float | None:
    """How far did training success fall after `step`? None where there is no step to count from."""
    if step is None:
        return None
    return min(
        (row["train/success_rate"] for row in rows if row["step"] >= step and "train/success_rate" in row),
        default=None,
    )


def curve(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The logged rows averaged over every STRIDE steps; of the ratio error the largest."""
    points, pending = [], []
    for row in rows:
        pending.append(row)
        if row["step"] // STRIDE > (points[-1]["step"] if points else 0) // STRIDE or row is rows[-1]:
            point = {"step": row["step"], "seconds": round(row["step"] / row["charts/SPS"], 1)}
            for column, name in CURVES.items():
                values = [value for r in pending if (value := r.get(name)) is not None]
                average = max if column == "ratio_error" else lambda values: math.fsum(values) / len(values)
                point[column] = f"{average(values):.4g}" if values else ""
            points.append(point)
            pending = []
    return points


def tell_replaced(file: Path, runs: list[dict[str, Any]]) -> None:
    """Print which rows of the table another code's run takes the place of: it may be the older one."""
    if not file.exists():
        return
    with open(file, newline="", encoding="utf-8") as opened:
        there = {tuple(row.get(name) for name in KEY): row.get("commit") for row in csv.DictReader(opened)}
    for run in runs:
        before = there.get(tuple(str(run[name]) for name in KEY), run["commit"])
        if before != run["commit"]:
            print(f"{run['experiment'] or run['algo']}, seed {run['seed']}: {run['commit']} replaces {before}")


def main() -> None:
    description = "Gather finished runs into the tables that the report is made of."
    parser = sweep_table.Parser(description=description, allow_abbrev=False)
    parser.add_argument("source", type=Path, help="folder in which finished runs lie, at any depth")
    parser.add_argument("target", type=Path, help="folder for runs.csv and curves.csv")
    parser.add_argument("--add", action="store_true", help="keep the rows there of runs that are not in source")
    options = parser.parse_args()
    source, target = options.source, options.target
    if not source.is_dir():
        sweep_table.refuse(f"{source}: must be a folder in which finished runs lie.")
    if trouble := cannot_write(target / "runs.csv"):
        sweep_table.refuse(f"{target}: must be a folder that can be written ({trouble}).")
    runs, curves = [], []
    for folder in sorted({file.parent.parent for file in source.rglob("summary.json")}):
        experiment = folder.relative_to(source).as_posix().removeprefix(".")
        for row in sweep_table.read_runs(folder):
            config = sweep_table.read_json(row["folder"] / "config.json")
            key = {"experiment": experiment} | {name: row[name] for name in KEY[1:]}
            made_by = {"threads": config["threads"], "commit": config["versions"]["commit"]}
            made_by["command"] = config["command"]
            rows = logged(row["folder"] / "metrics.jsonl")
            dip = {"least_success_after_0.99": least_success_since(rows, row.get("steps_to_0.99"))}
            runs.append(key | {name: row.get(name) for name in sweep_table.COLUMNS} | dip | made_by)
            curves += [key | point for point in curve(rows)]
    if not runs:
        sweep_table.refuse(f"{source}: holds no finished run (no summary.json).")
    tables = {target / "runs.csv": runs, target / "curves.csv": curves}
    if options.add:
        tell_replaced(target / "runs.csv", runs)
        try:
            tables = {file: with_kept(file, rows, KEY) for file, rows in tables.items()}
        except InputError as error:
            sweep_table.refuse(str(error))
    for file, rows in tables.items():
        write_csv(file, rows)


if __name__ == "__main__":
    main()
