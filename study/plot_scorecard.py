"""The scorecard's tables and figures, out of results/scorecard; called by study.plot_results.

A run's score is its measure, success or return over its final held-out episodes, between chance (0) and the best
possible (1), and no less than 0: chance is a coin flip where success counts, else what a random agent gets.
"""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from rliable import library as rly
from rliable import metrics

from study.figures import (
    COLORS,
    band,
    by_seed,
    interval,
    markdown,
    median,
    number,
    probability_of_improvement,
    read,
    replace_table,
    save,
)
from study.scorecard import AGENTS, TASKS, Task

LABELS = {
    "palmer": "PALMER",
    "palmer_fixed_gate": "gate held at 0.5",
    "palmer_no_age": "no recall by age",
    "lstm": "PPO-LSTM",
    "trxl": "PPO-TrXL",
}
SHADES = COLORS | {"palmer_fixed_gate": "#e8a33d", "palmer_no_age": "#8d6a9f"}
NAMES = {
    "s11": "MiniGrid-MemoryS11",
    "s13": "MiniGrid-MemoryS13",
    "s13random": "MiniGrid-MemoryS13Random",
    "s17random": "MiniGrid-MemoryS17Random",
    "noisy_s17random": "the same with noise on every picture",
    "repeat_first_medium": "RepeatFirstMedium",
    "repeat_previous_medium": "RepeatPreviousMedium",
    "repeat_previous_hard": "RepeatPreviousHard",
    "repeat_and_parity": "repeat and parity",
    "autoencode_easy": "AutoencodeEasy",
    "count_recall_easy": "CountRecallEasy",
    "count_recall_medium": "CountRecallMedium",
    "concentration_easy": "ConcentrationEasy",
    "noisy_cartpole_hard": "NoisyPositionOnlyCartPoleHard",
    "cartpole": "CartPole without velocities",
    "pendulum": "Pendulum without velocities",
    "tmaze_passive_100": "passive T-maze, 100 steps",
    "tmaze_passive_250": "passive T-maze, 250 steps",
    "tmaze_passive_500": "passive T-maze, 500 steps",
    "tmaze_active_50": "active T-maze, 50 steps",
    "parity_25": "parity of up to 25 bits",
    "recall_xor_parity": "recall xor parity",
}
# What the table of parts shows, in its order.
PARTS = {
    "palmer": "nothing changed",
    "plain_ppo": "recall, recall by age, visit bonus",
    "no_recall_at_all": "recall, recall by age",
    "no_recall": "recall",
    "palmer_no_age": "recall by age",
    "no_visit_bonus": "visit bonus",
    "no_visit_budget": "the bonus's budget",
    "no_rarity_beside": "rarity beside what the episode has shown",
    "no_fading": "fading by success",
    "no_solved_entropy": "the least entropy of a solved agent",
    "palmer_fixed_gate": "learned gate (held at 0.5)",
    "no_memory": "memory",
}
# What evaluation changes of a trained PALMER, and its name in the table.
CHANGES = {
    "alone lstm": "its LSTM alone",
    "alone transformer": "its Transformer alone",
    "cut lstm": "LSTM cut off",
    "cut transformer": "Transformer cut off",
}
BASELINES = ("palmer", "lstm", "trxl")  # PALMER and they
PANELS = 4  # in a row of a figure
LEAST_SEEDS = 3  # fewer tell nothing about which agent is better


def chances() -> dict[str, float]:
    """What an agent gets that guesses where success counts, and elsewhere a random one."""
    measured = read("scorecard", "chance").set_index("task")["return"]
    return {name: 0.5 if task.measure == "success" else measured[name] for name, task in TASKS.items()}


def with_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns task and agent, which its experiment names."""
    names = table["experiment"].str.split("/", expand=True)
    return table.assign(task=names[0], agent=names[1])


def with_scores(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with the columns task, agent, measured and score."""
    runs = with_tasks(runs)
    runs = runs[runs["task"].isin(TASKS)]
    chance = chances()
    runs["measured"] = [row[TASKS[row["task"]].measure] for _, row in runs.iterrows()]
    low = runs["task"].map(chance)
    best = runs["task"].map({name: task.best for name, task in TASKS.items()})
    runs["score"] = ((runs["measured"] - low) / (best - low)).clip(lower=0)
    return runs


def complete(runs: pd.DataFrame, agents: tuple[str, ...], column: str = "score") -> dict[str, np.ndarray]:
    """A column (seeds, tasks) of each of the agents, of tasks and seeds that all of them have; {} where few are."""
    table = runs[runs["agent"].isin(agents)]
    table = table.pivot_table(index=["seed", "task"], columns="agent", values=column).reindex(columns=list(agents))
    table = table.dropna().reset_index()
    seeds = table.groupby("task")["seed"].agg(frozenset)
    whole = [task for task in TASKS if task in seeds.index and len(seeds[task]) >= LEAST_SEEDS]
    common = sorted(frozenset.intersection(*seeds[whole])) if whole else []
    if len(common) < LEAST_SEEDS:
        return {}
    table = table[table["task"].isin(whole) & table["seed"].isin(common)]
    return {agent: table.pivot(index="seed", columns="task", values=agent)[whole].to_numpy() for agent in agents}


def with_runs(runs: pd.DataFrame) -> list[str]:
    """The agents that a table has columns for, in the order of AGENTS."""
    return [agent for agent in AGENTS if agent in set(runs["agent"])]


def digits(task: Task, value: float) -> str:
    return f"{value:.0f}" if abs(task.best) > 10 else f"{value:.3f}"


def steps(count: float) -> str:
    """The count in hundreds of thousands: a run ends with a whole rollout, a little later."""
    count = round(count, -5)
    return f"{count / 1e6:g}M" if count >= 1e6 else f"{count / 1e3:g}k"


def card_table(runs: pd.DataFrame) -> list[list[str]]:
    """A row for each task: median (least) over seeds of each agent, whether PALMER's median reaches the goal, and the
    median of the steps after which its training first did (greedy actions are not those of training)."""
    agents = with_runs(runs)
    rows = [["task", "steps", "seeds", "chance", "published", "goal", *(LABELS[agent] for agent in agents)]]
    rows[0] += ["met", "after"]
    chance = chances()
    for name, task in TASKS.items():
        here = runs[runs["task"] == name]
        if not len(here):
            continue
        cells = []
        for agent in agents:
            values = here[here["agent"] == agent]["measured"]
            least = f" ({digits(task, values.min())})" if len(values) > 1 else ""
            cells.append(digits(task, values.median()) + least if len(values) else "")
        ours = here[here["agent"] == "palmer"]
        seeds = "" if not len(ours) else str(len(ours))
        met = "" if not len(ours) else "yes" if ours["measured"].median() >= task.goal else "no"
        after = millions(median(ours["soon"]), task) if ours["soon"].notna().any() else ""
        about = [steps(here["steps"].median()), seeds, digits(task, chance[name]), task.published or "none"]
        rows.append([NAMES[name], *about, digits(task, task.goal), *cells, met, after])
    return rows


def short_table(runs: pd.DataFrame) -> list[list[str]]:
    """The card for the README: medians of the three agents, with the command that trains them. Seeds are those of the
    agent with the fewest."""
    rows = [["task", "`--env-id` and settings", "steps", "best published"]]
    rows[0] += ["seeds", *(LABELS[agent] for agent in BASELINES)]
    for name, task in TASKS.items():
        here = runs[runs["task"] == name]
        values = [here[here["agent"] == agent]["measured"] for agent in BASELINES]
        seeds = [len(measured) for measured in values if len(measured)]
        if seeds:
            settings = f"`{' '.join(text for text in (task.env_id, task.flags, task.window) if text)}`"
            published = task.published.partition(";")[0] or "none"
            medians = [digits(task, measured.median()) if len(measured) else "" for measured in values]
            rows.append([NAMES[name], settings, steps(task.steps), published, str(min(seeds)), *medians])
    return rows


def with_soon(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The runs with the column soon: budgets after which training first was at its task's goal, inf if never.

    None where greedy actions count, which are not those of training.
    """
    goal = curves["experiment"].str.split("/").str[0].map({name: task.goal for name, task in TASKS.items()})
    there = curves[curves["success"].fillna(curves["return"]) >= goal]
    first = there.groupby(["experiment", "seed"])["step"].min()
    rows = zip(runs["experiment"], runs["seed"], runs["task"], strict=True)
    soon = [first.get((run, seed), np.inf) / TASKS[task].steps for run, seed, task in rows]
    tells = [TASKS[task].measure == TASKS[task].tells for task in runs["task"]]
    return runs.assign(soon=pd.Series(soon, runs.index, dtype=float).where(tells))


def millions(budgets: float, task: Task) -> str:
    return number(budgets * task.steps / 1e6, "{:.2f}M")


def parts_table(runs: pd.DataFrame) -> list[list[str]]:
    """PALMER without one part of its recipe, on the tasks for which that was asked: medians, the worst in brackets.

    Unchanged is sooner: how probably a run with nothing changed comes to the goal first, ties half.
    """
    rows = [["task", "without", "runs at the goal", "measured", "steps to the goal", "length", "unchanged is sooner"]]
    for name, task in TASKS.items():
        here = runs[runs["task"] == name]
        if not (set(here["agent"]) & set(PARTS)) - {"palmer"}:
            continue
        whole = here[here["agent"] == "palmer"]
        for agent, label in PARTS.items():
            ours = here[here["agent"] == agent]
            if not len(ours):
                continue
            measured, sooner = ours["measured"], ""
            trained = task.measure == task.tells
            if agent != "palmer" and min(len(ours), len(whole)) >= LEAST_SEEDS and trained:
                sooner = probably(*(these["soon"].to_numpy()[:, None] for these in (ours, whole)))
            usual, latest = (millions(budgets, task) for budgets in (median(ours["soon"]), ours["soon"].max()))
            cells = [f"{(measured >= task.goal).sum()} of {len(ours)}"]
            cells.append(f"{digits(task, measured.median())} ({digits(task, measured.min())})")
            cells.append(f"{usual} ({latest})" if trained else "")
            rows.append([NAMES[name], label, *cells, f"{ours['length'].median():.1f}", sooner])
    return rows


def worth_table(runs: pd.DataFrame) -> list[list[str]]:
    """PALMER without one part of its recipe beside the unchanged, over the tasks and seeds that both have, and again
    over the mazes, of which they may have more seeds.

    Ways are compared on mazes that all runs of both solve, as a guess is short.
    """
    rows = [["without", "tasks", "seeds", "runs at the goal", "of the unchanged", "unchanged better"]]
    rows[0] += ["unchanged sooner", "seeds on mazes", "unchanged sooner on mazes"]
    rows[0] += ["unchanged has shorter ways on mazes"]
    mazes = runs["task"].map(is_maze)
    runs = runs.assign(there=runs["measured"] >= runs["task"].map({name: task.goal for name, task in TASKS.items()}))
    for agent, label in PARTS.items():
        pair = ("palmer", agent)
        scores = complete(runs, pair) if agent != "palmer" else {}
        if not scores:
            continue
        there, late = complete(runs, pair, "there"), complete(runs, pair, "soon")
        late_there = complete(runs[mazes], pair, "soon")
        solved = runs[mazes & runs["agent"].isin(pair)].groupby("task")["there"].transform("all")
        ways = complete(runs.loc[solved.index[solved]], pair, "length")
        seeds, tasks = scores[agent].shape
        row = [label, str(tasks), str(seeds)]
        row += [f"{int(there[which].sum())} of {seeds * tasks}" for which in (agent, "palmer")]
        row.append(probably(scores["palmer"].round(3), scores[agent].round(3)))
        row.append(probably(late[agent], late["palmer"]) if late else "")
        row.append(str(len(late_there[agent])) if late_there else "")
        row.append(probably(late_there[agent], late_there["palmer"]) if late_there else "")
        row.append(probably(-ways["palmer"], -ways[agent]) if ways else "")
        rows.append(row)
    return rows


def is_maze(task: str) -> bool:
    return TASKS[task].env_id.startswith("MiniGrid-")


def card_aggregates_table(runs: pd.DataFrame) -> list[list[str]]:
    """Each agent beside PALMER on the tasks and seeds that both have: interquartile means of the scores, and how
    probably a run of PALMER is better, or in training sooner at the goal, with 95% bootstrap intervals.

    Scores that differ by less than a thousandth are ties: 1,000 episodes tell no more.
    """
    rows = [["", "tasks", "interquartile mean of scores", "PALMER's on the same", "PALMER better", "PALMER sooner"]]
    for agent in AGENTS:
        scores = complete(runs, BASELINES if agent == "palmer" else ("palmer", agent))
        if not scores:
            continue
        iqm, bounds = interval(lambda x: np.array([metrics.aggregate_iqm(x)]), scores)
        means = {}
        for which in scores:
            low, high = bounds[which].ravel()
            means[which] = f"{iqm[which][0]:.3f} ({low:.3f} to {high:.3f})"
        row = [LABELS[agent], str(scores["palmer"].shape[1]), means[agent], "", "", ""]
        if agent != "palmer":
            late = complete(runs, ("palmer", agent), "soon")
            row[3] = means["palmer"]
            row[4] = probably(scores["palmer"].round(3), scores[agent].round(3))
            row[5] = probably(late[agent], late["palmer"]) if late else ""
        rows.append(row)
    return rows


def probably(larger: np.ndarray, smaller: np.ndarray) -> str:
    """How probably one of the first (seeds, tasks) is larger than one of the others on a task drawn at random.

    Of scores, or of budgets, which are infinite where training was never there.
    """
    better, bounds = interval(probability_of_improvement, {"": (larger, smaller)})
    low, high = bounds[""].ravel()
    return f"{float(better['']):.2f} ({low:.2f} to {high:.2f})"


def card_differences_table(runs: pd.DataFrame) -> list[list[str]]:
    """Task by task, PALMER's mean score less that of each other agent, with 95% bootstrap intervals over seeds."""
    others = [agent for agent in with_runs(runs) if agent != "palmer"]
    rows = [["task", "seeds", *(LABELS[agent] for agent in others)]]
    for name in TASKS:
        here = runs[runs["task"] == name]
        scores = {agent: here[here["agent"] == agent]["score"].to_numpy()[:, None] for agent in AGENTS}
        scores = {agent: score for agent, score in scores.items() if len(score) >= LEAST_SEEDS}
        pairs = {agent: (scores["palmer"], scores[agent]) for agent in others if {"palmer", agent} <= set(scores)}
        if not pairs:
            continue
        more, bounds = interval(lambda ours, theirs: np.array([ours.mean() - theirs.mean()]), pairs)
        cells = dict.fromkeys(others, "")
        for agent in pairs:
            low, high = bounds[agent].ravel()
            cells[agent] = f"{more[agent][0]:+.3f} ({low:+.3f} to {high:+.3f})"
        rows.append([NAMES[name], str(len(scores["palmer"])), *cells.values()])
    return rows


def why_table(cuts: pd.DataFrame, gates: pd.DataFrame) -> list[list[str]]:
    """What each memory of PALMER is worth, and where its gate turns: medians over seeds."""
    rows = [["task", "seeds", "whole", *CHANGES.values()]]
    rows[0] += ["gate, first fifth", "last fifth", "elements of the Transformer", "of the LSTM"]
    for name, task in TASKS.items():
        cut, gate = (table[(table["task"] == name) & (table["agent"] == "palmer")] for table in (cuts, gates))
        if not len(cut) or not len(gate):
            continue
        worth = [cut[cut["change"] == change][task.tells].median() for change in ("none", *CHANGES)]
        worth = [digits(task, value) for value in worth]
        first, last = (gate[gate["fifth"] == fifth]["mean"].median() for fifth in (1, 5))
        shares = [gate.groupby("seed")[side].mean().median() for side in ("transformer", "lstm")]
        seeds = str(cut["seed"].nunique())
        rows.append(
            [NAMES[name], seeds, *worth, f"{first:.2f}", f"{last:.2f}", *(f"{share:.0%}" for share in shares)]
        )
    return rows


def lengths_table(lengths: pd.DataFrame) -> list[list[str]]:
    """Success of parity's agents on streams that all have one length: median over seeds."""
    columns = sorted(lengths["length"].unique())
    rows = [["agent", "seeds", *(f"{length} bits" for length in columns)]]
    for agent in AGENTS:
        here = lengths[lengths["agent"] == agent]
        if len(here):
            medians = [here[here["length"] == length]["success"].median() for length in columns]
            rows.append([LABELS[agent], str(here["seed"].nunique()), *(f"{value:.3f}" for value in medians)])
    return rows


def task_panels(table: pd.DataFrame, spare: int = 0) -> tuple[plt.Figure, dict[str, plt.Axes]]:
    """A figure with a panel for each task that the table has rows of, by the task's name, and `spare` empty ones."""
    names = [name for name in TASKS if name in set(table["task"])]
    needed = len(names) + spare
    rows = -(-needed // PANELS)
    figure, axes = plt.subplots(rows, PANELS, figsize=(13, 2.6 * rows))
    for ax in axes.ravel()[len(names) : needed]:
        ax.axis("off")
    for ax in axes.ravel()[needed:]:
        ax.remove()
    panels = dict(zip(names, axes.ravel(), strict=False))
    for name, ax in panels.items():
        ax.set_title(NAMES[name], fontsize=8)
        ax.tick_params(labelsize=7)
    return figure, panels


def plot_ages(ages: pd.DataFrame) -> None:
    """By how many steps back: attention of the agents with a Transformer, and PALMER's recall by age."""
    figure, panels = task_panels(ages)
    for name, ax in panels.items():
        for agent, column, style, label in (
            ("palmer", "recall", "--", "PALMER recalls the frame"),
            ("palmer", "guess", ":", "a guess"),
            ("palmer", "attention", "-", "PALMER looks there"),
            ("trxl", "attention", "-", "PPO-TrXL looks there"),
        ):
            rows = ages[(ages["task"] == name) & (ages["agent"] == agent)].groupby("age")[column].median().dropna()
            color = "grey" if column == "guess" else SHADES[agent]
            ax.plot(rows.index, rows, style, color=color, lw=1.4, label=label, marker="." if style == "-" else None)
        ax.set(xscale="log", ylim=(-0.02, 1.02))
    next(iter(panels.values())).legend(frameon=False, fontsize=6)
    figure.supxlabel("steps back", fontsize=8)
    save(figure, "scorecard_ages")


def settings_table() -> list[list[str]]:
    rows = [["task", "`--env-id`", "settings of all agents", "of those with a Transformer"]]
    for name, task in TASKS.items():
        cells = (f"`{text}`" if text else "" for text in (task.env_id, task.flags, task.window))
        rows.append([NAMES[name], *cells])
    return rows


def plot_card_scores(runs: pd.DataFrame) -> None:
    """The card at a glance: on each task the median score of each of the three agents, and its least and largest."""
    names = [name for name in TASKS if name in set(runs["task"])]
    figure, ax = plt.subplots(figsize=(8, 0.3 * len(names) + 0.9))
    for row, agent in enumerate(BASELINES):
        scores = runs[runs["agent"] == agent].groupby("task")["score"]
        # Side by side within a task's line, PALMER above.
        heights = np.array([names.index(name) for name in scores.groups]) + 0.22 * (row - 1)
        ax.hlines(heights, scores.min(), scores.max(), color=SHADES[agent], lw=1.2)
        ax.plot(scores.median(), heights, "o", color=SHADES[agent], ms=5, label=LABELS[agent])
    ax.set_yticks(range(len(names)), [NAMES[name] for name in names], fontsize=8)
    ax.invert_yaxis()
    ax.grid(axis="x", lw=0.4, alpha=0.6)
    ax.set(xlabel="score (0: chance, 1: best possible)", xlim=(-0.03, 1.03))
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.4, 1))
    save(figure, "scorecard_scores")


def plot_card_profiles(scores: dict[str, np.ndarray]) -> None:
    """Share of runs whose score is above each threshold."""
    figure, ax = plt.subplots(figsize=(5.5, 3.6))
    thresholds = np.linspace(0, 1, 101)
    profile, bounds = interval(lambda x: rly.score_distributions(x, thresholds), scores)
    for agent in scores:
        ax.plot(thresholds, profile[agent], color=SHADES[agent], label=LABELS[agent])
        ax.fill_between(thresholds, *bounds[agent], color=SHADES[agent], alpha=0.12, lw=0)
    ax.set(xlabel="score (0: chance, 1: best possible)", ylabel="share of runs with more", ylim=(0, 1.02))
    ax.legend(frameon=False, fontsize=8)
    save(figure, "scorecard_profiles")


def plot_card_curves(curves: pd.DataFrame) -> None:
    """Training success or return against steps: a panel for each task, a line for each agent."""
    curves = with_tasks(curves)
    chance = chances()
    figure, panels = task_panels(curves)
    for name, ax in panels.items():
        column = TASKS[name].tells
        for agent in AGENTS:
            rows = curves[(curves["task"] == name) & (curves["agent"] == agent)]
            if rows[column].notna().any():
                band(ax, *by_seed(rows, column), LABELS[agent], SHADES[agent])
        ax.axhline(chance[name], color="grey", lw=0.8, ls=":")
    there = [agent for agent in AGENTS if agent in set(curves["agent"])]
    handles = [plt.Line2D([], [], color=SHADES[agent], label=LABELS[agent]) for agent in there]
    next(iter(panels.values())).legend(handles=handles, frameon=False, fontsize=6)
    figure.supxlabel("environment steps (millions)", fontsize=8)
    save(figure, "scorecard_curves")


def plot_parts(curves: pd.DataFrame) -> None:
    """Training success or return without each part, on the tasks where that was asked: the median over seeds."""
    curves = with_tasks(curves)
    curves = curves[curves["agent"].isin(PARTS)]
    asked = set(curves.loc[curves["agent"] != "palmer", "task"])
    if not asked:
        return
    figure, panels = task_panels(curves[curves["task"].isin(asked)], spare=1)
    tab = plt.get_cmap("tab20").colors  # the dark ones first, but for red and orange, which SHADES has
    shades = dict(zip(PARTS, tab[8::2] + tab[0:5:4] + tab[1::4], strict=False)) | SHADES
    lines = {}
    for name, ax in panels.items():
        for agent, label in PARTS.items():
            here = curves[(curves["task"] == name) & (curves["agent"] == agent)]
            if len(here):
                count, values = by_seed(here, TASKS[name].tells)
                (lines[label],) = ax.plot(count / 1e6, np.median(values, 0), color=shades[agent], lw=1.3)
    labels = [label for label in PARTS.values() if label in lines]
    figure.axes[-1].legend([lines[label] for label in labels], labels, frameon=False, fontsize=8, title="without")
    figure.supxlabel("environment steps (millions)", fontsize=8)
    save(figure, "scorecard_parts")


def main() -> None:
    """All tables and figures of the scorecard, as far as there are runs."""
    replace_table("settings", markdown(settings_table()))
    runs, curves = read("scorecard", "runs"), read("scorecard", "curves")
    if runs is None:
        return
    runs = with_soon(with_scores(runs), curves)
    tables = {
        "card": card_table(runs),
        "card in short": short_table(runs),
        "worth": worth_table(runs),
        "parts": parts_table(runs),
        "card differences": card_differences_table(runs),
        "card aggregates": card_aggregates_table(runs),
    }
    cuts, gates, ages, lengths = (read("scorecard", name) for name in ("cuts", "gates", "ages", "lengths"))
    if cuts is not None and gates is not None:
        tables["why"] = why_table(cuts, gates)
    if lengths is not None:
        tables["lengths"] = lengths_table(lengths)
    for name, table in tables.items():
        replace_table(name, markdown(table))
    if ages is not None:
        plot_ages(ages)
    plot_card_curves(curves)
    plot_parts(curves)
    plot_card_scores(runs)
    if scores := complete(runs, BASELINES):
        plot_card_profiles(scores)
