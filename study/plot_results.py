"""Make the report's figures and tables out of results/*/*.csv.

    python -m study.plot_results

Figures go to results/figures/. Tables replace what stands between <!-- table NAME --> and <!-- end --> in REPORT.md
and README.md, so that no number there is typed by hand. A part of the study that has no results yet is left out.
"""

import functools
from collections.abc import Iterator

import numpy as np
import pandas as pd
from rliable import library as rly
from rliable import metrics

from harness.input_error import InputError
from scripts.sweep_table import Parser, refuse
from study import figures, plot_scorecard
from study.figures import (
    AGENTS,
    COLORS,
    band,
    by_seed,
    interval,
    markdown,
    median,
    number,
    panels,
    probability_of_improvement,
    read,
    replace_numbers,
    replace_table,
    save,
)
from study.plot_scorecard import LABELS, PARTS, is_maze
from study.scorecard import TASKS

ENVS = {
    f"MiniGrid-Memory{name}-v0": name
    for name in ("S11", "S13", "S13Random", *(f"S{size}Random" for size in (17, 21, 25, 33, 49, 65)))
}
ORIGINAL = {"plain_ppo": "as published: plain PPO", "with_aids": "with recall and visit bonus"}
LEAST_SEEDS = 3  # fewer tell nothing about which agent is better
GUESSING = 0.5
WHOLE_EPISODE = 400  # memory length, in steps, with which benchmark.sh lets the Transformer see all of an episode


# ------------------------------------------------------------------------------------------------ reading


@functools.cache
def shortest() -> dict[str, float]:
    """Mean episode length of the best possible policy on each environment, from study/shortest_ways.py."""
    table = read("shortest", "runs")
    return {} if table is None else dict(zip(table["env"], table["length"], strict=True))


def of_mazes(name: str) -> pd.DataFrame:
    """The rows of results/scorecard/{name}.csv that are the maze study's: all three agents, nothing changed."""
    table = read("scorecard", name)
    return table[table["experiment"].isin([f"{maze}/{agent}" for maze in TASKS if is_maze(maze) for agent in AGENTS])]


# ------------------------------------------------------------------------------------------------ figures


def plot_training(curves: pd.DataFrame, column: str, label: str, name: str) -> None:
    """One panel for each environment, one line for each agent."""
    envs = [env for env in ENVS if env in set(curves["env"])]
    figure, axes = panels(len(envs))
    for ax, env in zip(axes, envs, strict=True):
        for algo, agent in AGENTS.items():
            rows = curves[(curves["env"] == env) & (curves["algo"] == algo)]
            if len(rows) and rows[column].notna().any():
                band(ax, *by_seed(rows, column), agent, COLORS[algo])
        if column == "success":
            ax.axhline(GUESSING, color="grey", lw=0.8, ls=":")
        elif column == "length" and env in shortest():
            ax.axhline(shortest()[env], color="grey", lw=0.8, ls=":")
        ax.set(title=ENVS[env], xlabel="environment steps (millions)")
    axes[0].set_ylabel(label)
    if column == "length":
        axes[0].set_ylim(0, 60)
    axes[-1].legend(frameon=False)
    save(figure, name)


def plot_gate(curves: pd.DataFrame) -> None:
    """Counterpart of the original's figure 5: mean of the gate against steps, and its spread over elements."""
    rows = curves[curves["algo"] == "palmer"]
    envs = [env for env in ENVS if env in set(rows["env"])]
    figure, axes = panels(len(envs))
    for ax, env in zip(axes, envs, strict=True):
        here = rows[rows["env"] == env]
        for column, label, color in (
            ("gate_mean", "mean", COLORS["palmer"]),
            ("gate_min", "least", "#999999"),
            ("gate_max", "largest", "#444444"),
        ):
            band(ax, *by_seed(here, column), label, color)
        ax.set(title=ENVS[env], xlabel="environment steps (millions)", ylim=(0, 1))
    axes[0].set_ylabel("gate (1: Transformer, 0: LSTM)")
    axes[-1].legend(frameon=False)
    save(figure, "gate")


# ------------------------------------------------------------------------------------------------ statistics


def complete_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of those seeds with which every agent was trained on every environment."""
    combinations = runs.groupby(["algo", "env"]).ngroups
    return runs.groupby("seed").filter(lambda group: len(group) == combinations)


def scores(runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """(seeds, environments) for each agent: the share of the budget that was left when 0.99 success was reached.

    0 for a run that never reached it. Final success says nothing between agents that all solve everything.
    """
    result = {}
    for algo in AGENTS:
        table = runs[runs["algo"] == algo].copy()
        table["score"] = (1 - table["steps_to_0.99"] / table["steps"]).fillna(0).clip(lower=0)
        result[algo] = table.pivot(index="seed", columns="env", values="score").dropna().to_numpy()
    return result


def negated(runs: pd.DataFrame, column: str) -> np.ndarray:
    """(seeds, environments) of one agent: a column of which less is better, negated; never is 1e9."""
    return -runs.pivot(index="seed", columns="env", values=column).fillna(1e9).to_numpy()


def better(ours: pd.DataFrame, theirs: pd.DataFrame, column: str) -> str:
    """Probability that a run of ours has less of a column than one of theirs, ties counting half, with interval."""
    pair = {"pair": (negated(ours, column), negated(theirs, column))}
    probability, bounds = interval(probability_of_improvement, pair)
    low, high = bounds["pair"].ravel()
    return f"{float(probability['pair']):.2f} ({low:.2f} to {high:.2f})"


def aggregates_table(runs: pd.DataFrame) -> list[list[str]]:
    iqm, iqm_interval = interval(lambda x: np.array([metrics.aggregate_iqm(x)]), scores(runs))
    compared = {"steps to 0.99": "steps_to_0.99", "seconds to 0.99": "seconds_to_0.99", "final length": "length"}
    rows = [
        ["", "runs at 0.99", "IQM of the budget left at 0.99", *(f"PALMER better, by {name}" for name in compared)]
    ]
    for algo, agent in AGENTS.items():
        ours = runs[runs["algo"] == algo]["success"]
        left = f"{iqm[algo][0]:.3f} ({iqm_interval[algo][0, 0]:.3f} to {iqm_interval[algo][1, 0]:.3f})"
        row = [agent, f"{(ours >= 0.99).sum()} of {len(ours)}", left]
        for column in compared.values():
            if algo == "palmer":
                row.append("")
                continue
            row.append(better(runs[runs["algo"] == "palmer"], runs[runs["algo"] == algo], column))
        rows.append(row)
    return rows


def plot_profiles(runs: pd.DataFrame) -> None:
    """Share of runs that had reached 0.99 success after so many steps, and after so many seconds."""
    figure, axes = panels(2)
    for ax, column, scale, label in (
        (axes[0], "steps_to_0.99", 1e6, "environment steps (millions)"),
        (axes[1], "seconds_to_0.99", 1, "seconds (one thread)"),
    ):
        largest = 1.05 * runs[column].max()  # a run counts only right of its own threshold
        tau = np.linspace(0, largest, 60)
        # rliable's profiles count scores above a threshold: less is better here, so both are negated.
        values = {algo: negated(runs[runs["algo"] == algo], column) for algo in AGENTS}
        profile, bounds = interval(lambda scores, tau=-tau[::-1]: rly.score_distributions(scores, tau), values)
        for algo, agent in AGENTS.items():
            ax.plot(tau / scale, profile[algo][::-1], color=COLORS[algo], label=agent)
            low, high = (bound[::-1] for bound in bounds[algo])
            ax.fill_between(tau / scale, low, high, color=COLORS[algo], alpha=0.15, lw=0)
        ax.set(xlabel=label, ylim=(0, 1.02))
    axes[0].set_ylabel("share of runs at 0.99")
    axes[1].legend(frameon=False, loc="lower right")
    save(figure, "profiles")


# ------------------------------------------------------------------------------------------------ tables


def main_table(runs: pd.DataFrame) -> list[list[str]]:
    header = ["environment", "shortest", "agent", "runs at 0.99", "success: median (least)", "greedy success"]
    header += ["length", "greedy length", "steps to 0.95", "steps to 0.99", "seconds to 0.99", "minutes of a run"]
    rows = [header]
    for (env, algo), group in groups(runs):
        rows.append(
            [
                ENVS[env],
                f"{shortest()[env]:.1f}" if env in shortest() else "",
                AGENTS[algo],
                f"{(group['success'] >= 0.99).sum()} of {len(group)}",
                f"{group['success'].median():.3f} ({group['success'].min():.3f})",
                f"{group['greedy_success'].median():.3f} ({group['greedy_success'].min():.3f})",
                f"{group['length'].median():.1f}",
                f"{group['greedy_length'].median():.1f}",
                number(median(group["steps_to_0.95"]) / 1e6, "{:.2f}M"),
                number(median(group["steps_to_0.99"]) / 1e6, "{:.2f}M"),
                number(median(group["seconds_to_0.99"]), "{:.0f}"),
                f"{group['seconds'].median() / 60:.1f}",
            ]
        )
    return rows


def ends_table(runs: pd.DataFrame, curves: pd.DataFrame) -> list[list[str]]:
    """Each agent over all mazes: how its runs end, and how soon they learned. What a maze has one of, a median or a
    share, is given from the least to the largest maze."""
    runs = runs.assign(longer=100 * (runs["length"] / runs["env"].map(shortest()) - 1))
    clock = runs.groupby(["algo", "env"])["seconds"].median()
    early = curves[curves["step"] <= 200_000].groupby(["algo", "env", "seed"])[["recall_loss", "success"]].last()
    rows = []
    for algo, agent in {**AGENTS, "": "all"}.items():
        ours = runs[runs["algo"] == algo] if algo else runs
        mazes, again = ours.groupby("env"), ours["least_success_after_0.99"]
        row = {
            "agent": agent,
            "runs": str(len(ours)),
            "at 0.99": str((ours["success"] >= 0.99).sum()),
            "at 1.000": str((ours["success"] >= 0.9995).sum()),
            "least success": f"{ours['success'].min():.3f}",
            "least greedy": f"{ours['greedy_success'].min():.3f}",
            "steps to 0.99": between(mazes["steps_to_0.99"].agg(median) / 1e6, "{:.2f}M") if algo else "",
            "longer than the shortest": between(mazes["longer"].median(), "{:.0f}%") if algo else "",
            "runs within 10%": str((ours["longer"] <= 10).sum()),
            "below 0.95 again": str((again < 0.95).sum()),
            "at the lowest": f"{again.min():.2f}",
            "PPO-LSTM's steps in its time": "",
        }
        if algo not in ("", "lstm"):
            row["PPO-LSTM's steps in its time"] = between(100 * clock["lstm"] / clock[algo], "{:.0f}%")
        for column, name in (("recall_loss", "recall loss at 0.2M"), ("success", "success at 0.2M")):
            row[name] = f"{early.loc[algo][column].median():.2f}" if algo else ""
        rows.append(row)
    return [list(rows[0]), *(list(row.values()) for row in rows)]


def between(values: pd.Series, text: str) -> str:
    return f"{number(values.min(), text)} to {number(values.max(), text)}"


def pairs_table(runs: pd.DataFrame) -> list[list[str]]:
    """Of how many pairs of runs, of the same maze and seed, PALMER's is the better; a tie is not."""
    rows = [["beside", "pairs", "sooner by steps", "sooner by seconds", "shorter ways"]]
    runs = runs.set_index(["env", "seed"])
    palmer = runs[runs["algo"] == "palmer"]
    for algo, agent in AGENTS.items():
        theirs = runs[runs["algo"] == algo]
        both = palmer.index.intersection(theirs.index)
        if algo == "palmer" or not len(both):
            continue
        ours, theirs = palmer.loc[both], theirs.loc[both]
        won = [
            (ours[column].fillna(np.inf) < theirs[column].fillna(np.inf)).sum()
            for column in ("steps_to_0.99", "seconds_to_0.99", "length")
        ]
        rows.append([agent, str(len(both)), *map(str, won)])
    return rows


def alone_table(runs: pd.DataFrame) -> list[list[str]]:
    """When was training at 0.99, with the machine to itself, and what does the agent of that moment solve?"""
    rows = [["environment", "runs at 0.99", "threads", "seconds to 0.99: median (least to most)", "steps to 0.99"]]
    rows[0].append("held-out episodes solved then: median (least)")
    for (env, _), group in groups(runs):
        seconds = group["seconds_to_0.99"]
        rows.append(
            [
                ENVS[env],
                f"{seconds.notna().sum()} of {len(group)}",
                str(group["threads"].iloc[0]),
                f"{number(median(seconds), '{:.0f}')} ({seconds.min():.0f} to {seconds.max():.0f})",
                number(median(group["steps_to_0.99"]) / 1e6, "{:.2f}M"),
                f"{group['success'].median():.3f} ({group['success'].min():.3f})",
            ]
        )
    return rows


def original_table(runs: pd.DataFrame) -> list[list[str]]:
    rows = [["", "environment", "agent", "seeds", "runs at 0.99", "success: median (least)"]]
    rows[0] += ["length", "steps to 0.95", "steps to 0.99"]
    for experiment, label in ORIGINAL.items():
        for (env, algo), group in groups(runs[runs["experiment"] == experiment]):
            rows.append(
                [
                    label,
                    ENVS[env],
                    AGENTS[algo],
                    str(len(group)),
                    str((group["success"] >= 0.99).sum()),
                    f"{group['success'].median():.3f} ({group['success'].min():.3f})",
                    f"{group['length'].median():.1f}",
                    number(median(group["steps_to_0.95"]) / 1e6, "{:.2f}M"),
                    number(median(group["steps_to_0.99"]) / 1e6, "{:.2f}M"),
                ]
            )
    return rows


def gate_table(gate: pd.DataFrame) -> list[list[str]]:
    """Mean of the gate by phase of the episode, and in brackets the share of its elements that moved."""
    phases = list(dict.fromkeys(gate["phase"]))
    rows = [["environment", *phases]]
    for env in ENVS:
        here = gate[gate["env"] == env].set_index("phase")
        if len(here):
            means = [f"{here.loc[p, 'mean']:.3f} ({100 * here.loc[p, 'elements_moved']:.0f}%)" for p in phases]
            rows.append([ENVS[env], *means])
    return rows


def played_larger() -> dict[str, pd.DataFrame]:
    """Label -> its evaluations on larger mazes; with the gate held, too, where that was played."""
    folder = figures.ROOT / "results" / "generalise"
    if not (folder / "runs.jsonl").exists():
        return {}
    runs = pd.read_json(folder / "runs.jsonl", lines=True)
    played = {agent: runs[runs["algo"] == algo] for algo, agent in AGENTS.items()}
    if (held := folder / "fixed_gate.jsonl").exists():
        played[LABELS["palmer_fixed_gate"]] = pd.read_json(held, lines=True)
    return played


def generalise_table(played: dict[str, pd.DataFrame]) -> list[list[str]]:
    """Label -> its evaluations; success and length on each size, median (least) over the checkpoints."""
    rows = []
    for label, games in played.items():
        games = games[games["memory_length"] != WHOLE_EPISODE]
        sizes = [env for env in ENVS if env in set(games["env_id"])]
        cells = []
        for env in sizes:
            group = games[games["env_id"] == env]
            success, length = group["success_rate"], group["mean_length"]
            cells.append(f"{success.median():.3f} ({success.min():.3f}), {length.median():.1f} steps")
        rows.append([f"{label}, {len(group)} seeds", *cells])
    return [["trained on S17Random, playing", *(ENVS[env] for env in sizes)], *rows]


def failures_table(played: pd.DataFrame) -> list[list[str]]:
    """How the episodes of the largest maze end, with the window of training and with one over the whole episode."""
    largest = max(set(played["env_id"]), key=list(ENVS).index)
    played = played[played["env_id"] == largest]
    played = played.assign(wrong=(1 - played["success_rate"] - played["timeout_rate"]).clip(lower=0))
    rows = [["agent", "steps that the Transformer sees", "wrong object: median (most)", "out of time: median (most)"]]
    for algo, agent in AGENTS.items():
        for window, group in played[played["algo"] == algo].groupby("memory_length", dropna=False):
            ends = [f"{group[end].median():.3f} ({group[end].max():.3f})" for end in ("wrong", "timeout_rate")]
            rows.append([f"{agent}, {len(group)} seeds", f"{window:.0f}" if np.isfinite(window) else "", *ends])
    return rows


def looks_table(starts: pd.DataFrame) -> list[list[str]]:
    """Without each part, over all runs and starts: did the agent look at the cue, and what did it make of it?"""
    rows = [["without", "environment", "runs", "cue in view", "of these wrong", "of the others wrong", "out of time"]]
    counts = ["saw_cue", "wrong_object", "wrong_without_cue", "out_of_time"]
    agents = starts["checkpoint"].str.split("/").str[-3]  # .../TASK/AGENT/RUN/checkpoint.pt
    for agent, label in PARTS.items():
        for (env, _), group in groups(starts[agents == agent]):
            episodes = group["episodes"].sum()
            saw, wrong, guessed, late = (group[counts].mul(group["episodes"], axis=0).sum() / episodes).to_list()
            rows.append(
                [
                    label,
                    ENVS[env],
                    str(group["checkpoint"].nunique()),
                    f"{saw:.3f}",
                    f"{(wrong - guessed) / saw:.3f}" if saw > 0 else "",
                    f"{guessed / (1 - saw):.3f}" if saw < 1 else "",
                    f"{late:.3f}",
                ]
            )
    return rows


def groups(runs: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Runs by environment and agent, in the order of ENVS and AGENTS."""
    for env in ENVS:
        for algo in AGENTS:
            group = runs[(runs["env"] == env) & (runs["algo"] == algo)]
            if len(group):
                yield (env, algo), group


def check_inputs() -> None:
    """Ends the program, before anything is drawn, where a table that is needed is missing."""
    for part in ("scorecard", "original", "larger"):
        files = [figures.ROOT / "results" / part / f"{name}.csv" for name in ("runs", "curves")]
        missing = [file for file in files if not file.is_file()]
        if missing and (part == "scorecard" or len(missing) == 1):
            name = missing[0].relative_to(figures.ROOT).as_posix()
            refuse(f"{name} is missing; results/README.md says what makes it")


def maze_study(runs: pd.DataFrame, curves: pd.DataFrame) -> None:
    """All tables and figures of the maze study."""
    plot_training(curves, "success", "success of the last 500 episodes", "success")
    plot_training(curves, "length", "episode length", "length")
    plot_training(curves, "return", "episode return", "return")
    plot_gate(curves)
    replace_table("main", markdown(main_table(runs)))
    replace_table("ends", markdown(ends_table(runs, curves)))
    replace_table("pairs", markdown(pairs_table(runs)))
    complete = complete_seeds(runs)
    if complete["seed"].nunique() >= LEAST_SEEDS:
        plot_profiles(complete)
        replace_table("aggregates", markdown(aggregates_table(complete)))


def main() -> None:
    Parser(description="Make the report's figures and tables out of results/.").parse_args()
    check_inputs()
    maze_study(of_mazes("runs"), of_mazes("curves"))

    if (gate := read("gate", "runs")) is not None:
        replace_table("gate", markdown(gate_table(gate)))

    if (alone := read("alone", "runs")) is not None:
        replace_table("alone", markdown(alone_table(alone)))

    if (original := read("original", "runs")) is not None:
        replace_table("original", markdown(original_table(original)))
        for experiment in ORIGINAL:
            rows = read("original", "curves")
            rows = rows[rows["experiment"] == experiment]
            if len(rows):
                plot_training(rows, "success", "success of the last 500 episodes", f"original_{experiment}")

    if played := played_larger():
        replace_table("generalise", markdown(generalise_table(played)))
        replace_table("failures", markdown(failures_table(pd.concat([played[agent] for agent in AGENTS.values()]))))

    if (larger := read("larger", "runs")) is not None:
        replace_table("larger", markdown(main_table(larger)))
        plot_training(read("larger", "curves"), "success", "success of the last 500 episodes", "larger")

    if (looks := read("starts", "runs")) is not None:
        replace_table("looks", markdown(looks_table(looks)))

    plot_scorecard.main()
    try:
        replace_numbers()
    except InputError as error:
        refuse(str(error))


if __name__ == "__main__":
    main()
