"""What the report's figures and tables have in common: results/ is read, drawn, and put into the documents."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from rliable import library as rly

from harness.input_error import InputError
from study.files import whole

ROOT = Path(__file__).resolve().parent.parent
AGENTS = {"palmer": "PALMER", "lstm": "PPO-LSTM", "trxl": "PPO-TrXL"}
COLORS = {"palmer": "#d1495b", "lstm": "#2e86ab", "trxl": "#6a994e"}
BOOTSTRAP_REPETITIONS = 2_000
TABLE = re.compile(r"<!-- table ([^>]+?) -->\n(.*?)<!-- end -->", re.DOTALL)
NUMBER = re.compile(r"(<!-- n ([^>]+?) -->)(.*?)(<!-- \. -->)")


def read(part: str, name: str) -> pd.DataFrame | None:
    """results/{part}/{name}.csv, or None if it is not there."""
    file = ROOT / "results" / part / f"{name}.csv"
    if not file.exists():
        return None
    table = pd.read_csv(file, keep_default_na=True)
    if "experiment" in table:
        table["experiment"] = table["experiment"].fillna("")
    return table


def by_seed(curves: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (P,) and values (seeds, P) of one agent on one environment; rows that not all seeds have are left out."""
    table = curves.pivot(index="step", columns="seed", values=column).dropna()
    return table.index.to_numpy(), table.to_numpy().T


def band(ax: Axes, steps: np.ndarray, values: np.ndarray, label: str, color: str | None = None) -> None:
    """The median over seeds as a line, from the least to the largest seed shaded."""
    (line,) = ax.plot(steps / 1e6, np.median(values, 0), color=color, label=label, lw=1.6)
    ax.fill_between(steps / 1e6, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, lw=0)


def panels(count: int, height: float = 3.0) -> tuple[plt.Figure, np.ndarray]:
    figure, axes = plt.subplots(1, count, figsize=(3.1 * count, height), sharey=True, squeeze=False)
    return figure, axes[0]


def save(figure: plt.Figure, name: str) -> None:
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with whole(ROOT / "results" / "figures" / f"{name}.png") as temporary:
        figure.savefig(temporary, dpi=130)
    plt.close(figure)
    print(f"results/figures/{name}.png")


def interval(function, values: dict) -> tuple[dict, dict]:
    """rliable's estimates with 95% stratified bootstrap intervals; the same at every call."""
    np.random.seed(0)  # rliable draws from NumPy's global generator, whatever random_state it is given
    return rly.get_interval_estimates(values, function, reps=BOOTSTRAP_REPETITIONS)


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How probably one of ours (seeds, tasks) is larger than one of theirs (seeds, tasks) on a task drawn at random,
    ties half (Agarwal et al. 2021, https://arxiv.org/abs/2108.13264).

    What rliable's function of this name gives, which asks SciPy for a whole test of every task of every draw of the
    bootstrap: most of the report's time went there.
    """
    ours, theirs = ours[:, None], theirs[None]  # (our seeds, their seeds, tasks)
    return float(((ours > theirs) + (ours == theirs) / 2).mean((0, 1)).mean())


def median(values: pd.Series) -> float:
    """Missing values, of runs that never got there, count as infinitely late."""
    return float(values.fillna(np.inf).median())


def number(value: float, text: str) -> str:
    return text.format(value) if np.isfinite(value) else "never"


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def rewrite(pattern: re.Pattern[str], replacement: Callable[[re.Match[str]], str]) -> None:
    """Replace every match of the pattern in REPORT.md and README.md."""
    for document in ("REPORT.md", "README.md"):
        file = ROOT / document
        if file.exists():
            new_text = pattern.sub(replacement, file.read_text(encoding="utf-8"))
            with whole(file) as temporary:
                temporary.write_text(new_text, encoding="utf-8")


def replace_table(name: str, table: str) -> None:
    """Put the table between its marks."""
    pattern = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    rewrite(pattern, lambda match: match[1] + table + "\n" + match[2])


def replace_numbers() -> None:
    """Put each number between its marks in a sentence, <!-- n NAME -->0.99<!-- . -->, out of REPORT.md's tables."""
    file = ROOT / "REPORT.md"
    tables = tables_of(file.read_text(encoding="utf-8")) if file.exists() else {}
    rewrite(NUMBER, lambda mark: mark[1] + number_of(tables, mark[2]) + mark[4])


def tables_of(document: str) -> dict[str, list[list[str]]]:
    """The tables between marks by name: rows of cells, the first with the columns' names."""
    return {
        name: [cells(line) for line in text.splitlines() if line[:2] != "|-"]
        for name, text in TABLE.findall(document)
    }


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def number_of(tables: dict[str, list[list[str]]], name: str) -> str:
    """The number that a mark names; raises InputError where there is no such one, or more than one.

    TABLE / CELL / CELL / COLUMN           of the one row with these cells, what stands before a bracket
    TABLE / CELL / CELL / COLUMN / (       what stands in the bracket
    FILE.csv / LINE / COLUMN               of a run in results/search/FILE.csv
    """
    table, *row, column = name.removesuffix(" / (").split(" / ")
    if table.endswith(".csv"):
        try:
            return number_in(table, *row, column)
        except (OSError, TypeError, KeyError, ValueError) as error:
            raise InputError(f"<!-- n {name} -->: must name a line and a column of results/search/.") from error
    head, *rows = tables.get(table) or [[]]
    found = [cells for cells in rows if set(row) <= set(cells)]
    if len(found) != 1 or head.count(column) != 1:
        raise InputError(f"<!-- n {name} -->: must name one row and one column of a table in REPORT.md.")
    outside, _, inside = found[0][head.index(column)].partition(" (")
    return inside.partition(")")[0] if name.endswith(" / (") else outside


def number_in(file: str, line: str, column: str) -> str:
    """A number of one run in results/search/: steps in millions, a length with one digit, shares with three.

    Lines are counted as editors do, the first has the columns' names. Raises OSError, KeyError or ValueError where
    there is no such number.
    """
    with open(ROOT / "results" / "search" / file, newline="", encoding="utf-8") as opened:
        value = dict(enumerate(csv.DictReader(opened), 2))[int(line)][column]
    if column.startswith("steps"):
        return number(float(value or "inf") / 1e6, "{:.2f}M")
    digits = 1 if "length" in column else 3 if abs(float(value)) < 10 else 0
    return f"{float(value):.{digits}f}"
