"""The tables of the scorecard: what counts there, and what chance and a player without memory get."""

import csv
import math
import re
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import pytest
from rliable import metrics

from harness.input_error import InputError
from study import figures, measure_blind, measure_chance, plot_scorecard
from study.plot_scorecard import with_soon
from study.scorecard import ABLATIONS, AGENTS, TASKS

REPOSITORY = Path(__file__).resolve().parent.parent
CHANCES = {"repeat_previous_medium": -0.5, "pendulum": -1257.0}
AT = {
    "palmer": 0.9,
    "palmer_fixed_gate": 0.6,
    "palmer_no_age": 0.5,
    "lstm": 0.2,
    "trxl": 0.6,
}


def read(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """Stands in for results/, with what chance gets."""
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "BOOTSTRAP_REPETITIONS", 50)
    folder = tmp_path / "results/scorecard"
    folder.mkdir(parents=True)
    rows = [{"task": name, "return": CHANCES.get(name, 0.0)} for name in TASKS if TASKS[name].measure != "success"]
    pd.DataFrame(rows).to_csv(folder / "chance.csv", index=False)
    return folder


def card(tasks=("parity_25", "repeat_previous_medium", "pendulum"), seeds=(11, 12, 13)):
    """Runs of all agents: success as in AT, return a little less, by the seed; greedy return -157 at 1."""
    rows = []
    for task in tasks:
        for agent, at in AT.items():
            for seed in seeds:
                row = {"experiment": f"{task}/{agent}", "algo": AGENTS[agent][0], "seed": seed, "length": 20.0}
                row["steps"] = TASKS[task].steps + 64 * seed  # a run ends with a whole rollout
                rows.append(
                    row | {"success": at, "return": at - seed / 1000, "greedy_return": -1000 * (1 - at) - 157}
                )
    return plot_scorecard.with_scores(pd.DataFrame(rows))


def trained(returns):
    """Curves of repeat_previous_medium, seeds 11 to 13: agent -> its returns after 10,000 steps, 20,000 and so on."""
    columns = ["experiment", "seed", "step", "success", "return"]
    rows = [
        (f"repeat_previous_medium/{agent}", seed, 10_000 * (i + 1), math.nan, value)
        for agent, values in returns.items()
        for seed in (11, 12, 13)
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=columns)


def test_a_score_lies_between_chance_and_the_best_possible():
    runs = card().set_index(["task", "agent", "seed"])["score"]
    assert runs["parity_25", "palmer", 11] == pytest.approx((0.9 - 0.5) / 0.5), "success beyond a coin flip"
    assert runs["parity_25", "lstm", 11] == 0, "no less than chance"
    assert runs["repeat_previous_medium", "palmer", 12] == pytest.approx((0.888 + 0.5) / 1.5), "sampled actions"
    assert runs["pendulum", "trxl", 12] == pytest.approx(1 - 400 / 1100), "greedy ones, from -1257 to -157"


def test_the_card_gives_medians_and_says_whether_the_goal_is_met():
    table = plot_scorecard.card_table(with_soon(card(), trained({"palmer": (0.2, 0.96, 0.99)})))
    by_task = {row[0]: dict(zip(table[0], row, strict=True)) for row in table[1:]}
    medium, pendulum = by_task["RepeatPreviousMedium"], by_task["Pendulum without velocities"]
    assert (medium["steps"], medium["seeds"], medium["chance"], medium["goal"]) == ("600k", "3", "-0.500", "0.950")
    assert medium["after"] == "0.02M" and pendulum["after"] == "", "greedy actions are not those of training"
    assert medium["PALMER"] == "0.888 (0.887)" and medium["PPO-TrXL"] == "0.588 (0.587)" and medium["met"] == "no"
    assert "0.789" in medium["published"]
    assert pendulum["PALMER"] == "-257 (-257)" and pendulum["steps"] == "300k" and pendulum["met"] == "no"
    assert by_task["parity of up to 25 bits"]["met"] == "no" and len(by_task) == 3
    solved = card(("parity_25",)).assign(measured=1.0)
    assert plot_scorecard.card_table(with_soon(solved, trained({})))[1][-2:] == ["yes", "never"]


def test_an_agent_without_a_run_has_an_empty_cell():
    runs = card(("parity_25", "pendulum"))
    lacking = (runs["agent"] == "palmer") & (runs["task"] == "parity_25")
    head, _, row = plot_scorecard.card_table(with_soon(runs[(runs["agent"] != "trxl") & ~lacking], trained({})))
    assert head[6:-2] == [plot_scorecard.LABELS[agent] for agent in AGENTS if agent != "trxl"], "no empty column"
    assert row[2] == row[6] == "" and row[-2:] == ["", ""] and all(row[7:-2])


def test_the_short_card_has_the_command_of_each_task_and_the_medians():
    runs = card(("parity_25", "repeat_previous_medium"))
    runs = runs[~((runs["agent"] == "trxl") & (runs["task"] == "parity_25"))]
    row, parity = plot_scorecard.short_table(runs)[1:]
    assert row[0] == "RepeatPreviousMedium" and row[3] == "best of 13 models 0.789, GRU -0.315"
    assert row[1].startswith("`popgym:popgym-RepeatPreviousMedium-v0 --num-steps 64") and "  " not in row[1]
    assert row[4:] == ["3", "0.888", "0.188", "0.588"]
    assert parity[4:] == ["3", "0.900", "0.200", ""]
    fewer = runs[~((runs["agent"] == "lstm") & (runs["seed"] == 13))]
    assert plot_scorecard.short_table(fewer)[1][4] == "2", "of the agent with the fewest"


def test_only_what_all_agents_have_is_compared():
    runs, three = card(), ("palmer", "lstm", "trxl")
    scores = plot_scorecard.complete(runs, three)
    assert {agent: values.shape for agent, values in scores.items()} == {agent: (3, 3) for agent in three}
    # In the order of TASKS.
    assert scores["palmer"][0] == pytest.approx([(0.889 + 0.5) / 1.5, 1 - 100 / 1100, 0.8])
    lacking = runs[~((runs["agent"] == "trxl") & (runs["task"] == "pendulum") & (runs["seed"] == 13))]
    assert plot_scorecard.complete(lacking, three)["lstm"].shape == (3, 2), "a task with two seeds is left out"
    assert plot_scorecard.complete(lacking, ("palmer", "lstm"))["lstm"].shape == (3, 3), "which the others have"
    more = pd.concat([runs, card(("parity_25",), seeds=(14, 15))])
    assert plot_scorecard.complete(more, three)["lstm"].shape == (3, 3), "a task's further seeds are left out"
    assert plot_scorecard.complete(card(seeds=(11, 12)), three) == {}
    assert plot_scorecard.complete(runs[runs["agent"] != "palmer"], three) == {}


def test_aggregates_know_who_is_better():
    runs = card()
    few = (runs["agent"] == "palmer_no_age") & (runs["seed"] > 11)
    other = (runs["agent"] == "palmer_fixed_gate") & (runs["task"] == "pendulum")
    head, *table = plot_scorecard.card_aggregates_table(with_soon(runs[~few & ~other], trained({})))
    by_name = {row[0]: dict(zip(head, row, strict=True)) for row in table}
    assert list(by_name) == [plot_scorecard.LABELS[agent] for agent in AGENTS if agent != "palmer_no_age"]
    assert [row["tasks"] for row in by_name.values()] == ["3", "2", "3", "3"]
    mean = {name: float(row["interquartile mean of scores"].split()[0]) for name, row in by_name.items()}
    assert mean["PALMER"] > mean["PPO-TrXL"] > mean["PPO-LSTM"], "the scores of AT"
    two = plot_scorecard.card_aggregates_table(with_soon(runs[runs["task"] != "pendulum"], trained({})))
    (trxl,) = (float(row[2].split()[0]) for row in two if row[0] == "PPO-TrXL")
    assert mean["gate held at 0.5"] == trxl, "as high in AT, on the two tasks that it has"
    assert all(row["PALMER better"].startswith("1.00") for name, row in by_name.items() if name != "PALMER")
    ours = [float(row["PALMER's on the same"].split()[0]) for name, row in by_name.items() if name != "PALMER"]
    assert ours[1:] == [mean["PALMER"]] * 2 and ours[0] != mean["PALMER"], "without pendulum"
    assert list(by_name["PALMER"].values())[3:] == ["", "", ""]


def test_aggregates_know_who_is_sooner():
    curves = trained(
        {"palmer": (0.2, 0.96), "lstm": (0.2, 0.2), "trxl": (0.2, 0.96), "palmer_fixed_gate": (0.96, 0.96)}
    )
    table = plot_scorecard.card_aggregates_table(with_soon(card(("repeat_previous_medium", "pendulum")), curves))
    sooner = {row[0]: row[-1].split(" ")[0] for row in table[1:]}
    assert sooner["PPO-LSTM"] == "1.00", "which never comes there"
    assert sooner["PPO-TrXL"] == "0.50" and sooner["gate held at 0.5"] == "0.00" and sooner["PALMER"] == ""
    greedy = plot_scorecard.card_aggregates_table(with_soon(card(("pendulum",)), curves))
    assert all(row[-1] == "" for row in greedy[1:]), "greedy actions are not those of training"


def test_less_than_a_thousandth_is_a_tie():
    runs = card()
    ours = runs[runs["agent"] == "palmer"]["score"].to_numpy()
    for agent, less in (("palmer_fixed_gate", 1e-4), ("lstm", 2e-3)):
        runs.loc[runs["agent"] == agent, "score"] = ours.round(3) - less
    better = {row[0]: row[4] for row in plot_scorecard.card_aggregates_table(with_soon(runs, trained({})))[1:]}
    assert better["gate held at 0.5"].startswith("0.50 ") and better["PPO-LSTM"].startswith("1.00 ")


def test_differences_are_of_scores_task_by_task():
    runs = card(("parity_25", "pendulum"))
    runs = runs[(runs["agent"] != "palmer_no_age") | (runs["seed"] == 11)]
    runs.loc[(runs["task"] == "parity_25") & (runs["agent"] == "lstm") & (runs["seed"] == 12), "score"] = 0.9
    head, pendulum, parity = plot_scorecard.card_differences_table(runs)
    assert head == ["task", "seeds", *(plot_scorecard.LABELS[agent] for agent in AGENTS if agent != "palmer")]
    assert parity[:2] == ["parity of up to 25 bits", "3"] and parity[3] == "", "one seed tells nothing"
    ours, theirs = (
        runs[(runs["task"] == "parity_25") & (runs["agent"] == agent)]["score"] for agent in ("palmer", "lstm")
    )
    mean, low, _, high = re.fullmatch(r"(\S+) \((\S+) (to) (\S+)\)", parity[4]).groups()
    assert float(mean) == pytest.approx(ours.mean() - theirs.mean(), abs=1e-3)
    assert float(low) < float(mean) < float(high), "as one of the three is unlike the others"
    assert pendulum[0] == "Pendulum without velocities"
    assert len(plot_scorecard.card_differences_table(card(seeds=(11, 12)))) == 1


def test_parts_are_compared_by_when_the_goal_is_reached(monkeypatch):
    runs = card(("parity_25", "pendulum"), seeds=(11, 12))
    ablated = runs[(runs["task"] == "parity_25") & (runs["agent"] == "palmer")]
    ablated = ablated.assign(agent="no_fading", experiment="parity_25/no_fading", measured=[1.0, 0.7], length=22.0)
    reach = {"parity_25/palmer": {11: 20_000, 12: 40_000}, "parity_25/no_fading": {11: 30_000}}
    curves = pd.DataFrame(
        {
            "experiment": experiment,
            "seed": seed,
            "step": step,
            "success": 0.99 if step >= reach[experiment].get(seed, math.inf) else 0.5,
            "return": 1.0,  # success is what counts
        }
        for experiment in reach
        for seed in (11, 12)
        for step in range(10_000, 60_000, 10_000)
    )
    parts = runs["agent"].isin(["palmer_no_age", "palmer_fixed_gate"])
    ablated = pd.concat([runs[(runs["task"] != "pendulum") | ~parts], ablated])
    table = plot_scorecard.parts_table(with_soon(ablated, curves))
    assert all(row[6] == "" for row in table[1:]), "two seeds tell nothing"
    monkeypatch.setattr(plot_scorecard, "LEAST_SEEDS", 2)
    table = plot_scorecard.parts_table(with_soon(ablated, curves))
    assert [row[:2] for row in table[1:]] == [
        ["parity of up to 25 bits", plot_scorecard.PARTS[agent]]
        for agent in ("palmer", "palmer_no_age", "no_fading", "palmer_fixed_gate")
    ], "pendulum has no ablation"
    (greedy,) = [row for row in plot_scorecard.parts_table(with_soon(runs, curves)) if row[1] == "recall by age"][:1]
    assert greedy[0] == "Pendulum without velocities" and greedy[4] == greedy[6] == ""
    assert table[1][2:] == ["0 of 2", "0.900 (0.900)", "0.03M (0.04M)", "20.0", ""]
    assert table[3][2:6] == ["1 of 2", "0.850 (0.700)", "never (never)", "22.0"]
    assert table[3][6].startswith("0.75 "), "20k before 30k and never, 40k before never but after 30k"


def test_the_worth_of_a_part_is_told_over_all_tasks_that_lack_it():
    runs = card(("s17random", "repeat_previous_medium", "pendulum"))
    maze, order = runs["task"] == "s17random", runs["task"] == "repeat_previous_medium"
    runs.loc[maze, "measured"] = 0.99
    runs.loc[maze & (runs["agent"] == "palmer"), "length"] = 18.0
    runs.loc[order & (runs["agent"] == "palmer"), "measured"] = 0.96
    guessing = runs[runs["agent"] == "palmer_fixed_gate"].assign(agent="no_fading")
    guessing.loc[(guessing["task"] == "s17random") & (guessing["seed"] == 12), "measured"] = 0.5
    more = runs[maze & runs["agent"].isin(["palmer", "palmer_fixed_gate"]) & (runs["seed"] == 11)].assign(seed=14)
    runs = pd.concat([runs, more])
    few = (runs["agent"] == "palmer_no_age") & (runs["seed"] == 11)
    curves = trained({"palmer": (0.2, 0.96), "palmer_fixed_gate": (0.96, 0.96)})
    head, *table = plot_scorecard.worth_table(with_soon(pd.concat([runs[~few], guessing]), curves))
    rows = {row[0]: dict(zip(head, row, strict=True)) for row in table}
    assert list(rows) == ["fading by success", "learned gate (held at 0.5)"], "two seeds tell nothing"
    held, faded = rows["learned gate (held at 0.5)"], rows["fading by success"]
    assert (held["tasks"], held["seeds"], held["runs at the goal"]) == ("3", "3", "3 of 9")
    assert held["of the unchanged"] == "6 of 9" and held["unchanged better"].startswith("1.00 ")
    assert held["unchanged sooner"].startswith("0.25 "), "later on one, on the other never; greedy does not count"
    assert (held["seeds on mazes"], faded["seeds on mazes"]) == ("4", "3")
    assert held["unchanged sooner on mazes"].startswith("0.50 "), "never, with either"
    solved = curves.assign(experiment="s17random/palmer", success=1.0)
    head, *table = plot_scorecard.worth_table(with_soon(runs, pd.concat([curves, solved])))
    sooner = dict(zip(head, table[-1], strict=True))["unchanged sooner on mazes"]
    assert sooner.startswith("0.88 "), "three seeds of four solve it, with the gate held none"
    assert held["unchanged has shorter ways on mazes"].startswith("1.00 ")
    assert faded["unchanged has shorter ways on mazes"] == "", "one of its runs guesses, which is short"


def looks():
    """What measure_memory writes, of two seeds."""
    of = [{"task": "parity_25", "agent": "palmer", "seed": seed} for seed in (11, 12)]
    worth = {"none": 0.9, "alone lstm": 0.7, "alone transformer": 0.6, "cut lstm": 0.5, "cut transformer": 0.8}
    cuts = [run | {"change": change, "success": worth[change], "return": 0} for run in of for change in worth]
    gates = [
        run | {"fifth": fifth, "mean": fifth / 10, "transformer": 0.1, "lstm": 0.3}
        for run in of
        for fifth in range(1, 6)
    ]
    ages = [
        run | {"agent": agent, "age": age, "attention": 1 / age, "evenly": 0.1, "recall": 0.9, "guess": 0.3}
        for run in of
        for agent in ("palmer", "trxl")
        for age in (1, 2, 4)
    ]
    return [pd.DataFrame(rows) for rows in (cuts, gates, ages)]


def test_what_each_memory_is_worth_and_where_the_gate_turns():
    cuts, gates, _ = looks()
    row = ["parity of up to 25 bits", "2", "0.900", "0.700", "0.600", "0.500", "0.800", "0.10", "0.50", "10%", "30%"]
    assert plot_scorecard.why_table(cuts, gates)[1:] == [row]


DOCUMENT = """<!-- table a -->
| task | agent | success: median (least) | steps | twice | twice |
|---|---|---|---|---|---|
| one | PALMER | 0.900 (0.800) | 0.12M | 1 | 2 |
| one | PPO-LSTM | 0.700 | never | 1 | 2 |
<!-- end -->
It ends at <!-- n a / one / PALMER / success: median (least) -->{}<!-- . -->, the least at
<!-- n a / PALMER / success: median (least) / ( -->{}<!-- . -->; PPO-LSTM
gets there <!-- n a / PPO-LSTM / steps -->{}<!-- . -->.
"""


def test_numbers_in_sentences_are_those_of_the_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    for name in ("REPORT.md", "README.md"):
        (tmp_path / name).write_text(DOCUMENT.format(1, 2, 3))
    figures.replace_numbers()
    for name in ("REPORT.md", "README.md"):
        assert (tmp_path / name).read_text() == DOCUMENT.format("0.900", "0.800", "never")


@pytest.mark.parametrize("name", ["b / PALMER / steps", "a / one / steps", "a / PALMER / x", "a / PALMER / twice"])
def test_a_mark_names_one_number(name):
    with pytest.raises(InputError, match=f"<!-- n {name} -->: must name one row and one column"):
        figures.number_of(figures.tables_of(DOCUMENT), name)


def test_numbers_of_single_runs_are_those_of_their_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    (tmp_path / "results/search").mkdir(parents=True)
    lines = ["changed,steps to 0.99,steps_to_0.99,success,length", '"a, b",262144,,0.9996,17.25', ",,1e6,-340.2,"]
    (tmp_path / "results/search/some.csv").write_text("\n".join(lines))
    names = [
        "2 / steps to 0.99",
        "3 / steps to 0.99",
        "3 / steps_to_0.99",
        "2 / success",
        "2 / length",
        "3 / success",
    ]
    numbers = [figures.number_of({}, f"some.csv / {name}") for name in names]
    assert numbers == ["0.26M", "never", "1.00M", "1.000", "17.2", "-340"]
    for name in ("other.csv / 2 / success", "some.csv / 4 / success", "some.csv / 2 / x", "some.csv / 3 / length"):
        with pytest.raises(InputError, match=f"<!-- n {name} -->: must name a line and a column"):
            figures.number_of({}, name)
    for name in (
        "some.csv / success",
        "some.csv / 2 / 3 / success",
        "some.csv / 1 / success",
        "some.csv / x / success",
    ):
        with pytest.raises(InputError, match="must name a line and a column"):
            figures.number_of({}, name)


@pytest.mark.parametrize("name", ["REPORT.md", "README.md"])
def test_what_sentences_say_is_what_the_tables_say(name, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", REPOSITORY)
    tables, marks = figures.tables_of(read("REPORT.md")), figures.NUMBER.findall(read(name))
    assert marks and all(text == figures.number_of(tables, of) for _, of, text, _ in marks)


@pytest.mark.parametrize("name", ["REPORT.md", "README.md"])
def test_no_line_begins_with_a_mark(name):
    """Markdown takes such a line for HTML: it ends the paragraph, and the PDF lacks it."""
    lines = read(name).splitlines()
    assert any("<!-- n " in line for line in lines)
    assert [line for line in lines if re.match(r"\s*([-*] +)?<!-- n ", line)] == []


def test_all_tasks_and_agents_have_names():
    palmers = {agent for agent in AGENTS if agent.startswith("palmer")}
    assert set(plot_scorecard.PARTS) == palmers | set(ABLATIONS)
    assert list(plot_scorecard.NAMES) == list(TASKS)
    assert set(plot_scorecard.LABELS) == set(plot_scorecard.SHADES) == set(AGENTS)


def test_settings_are_those_of_the_runner():
    rows = {row[0]: row[1:] for row in plot_scorecard.settings_table()[1:]}
    assert rows["RepeatPreviousHard"] == [
        "`popgym:popgym-RepeatPreviousHard-v0`",
        "`--num-steps 128 --gamma 0`",
        "`--memory-length 128`",
    ]
    assert len(rows) == len(TASKS)


def test_tables_and_figures_are_made_of_what_there_is(results, tmp_path):
    document = tmp_path / "REPORT.md"
    marks = [f"<!-- table {name} -->\n<!-- end -->\n" for name in ("settings", "card", "card aggregates", "why")]
    document.write_text("".join(marks))
    plot_scorecard.main()
    assert "RepeatPreviousHard" in document.read_text() and "PALMER" not in document.read_text()
    card().to_csv(results / "runs.csv", index=False)
    curves = [
        {"experiment": f"{task}/{agent}", "seed": seed, "step": step, "success": 0.5, "return": math.nan}
        for task in ("parity_25", "pendulum")
        for agent in AGENTS
        for seed in (11, 12)
        for step in (10_000, 20_000)
    ]
    pd.DataFrame(curves).to_csv(results / "curves.csv", index=False)
    for name, table in zip(("cuts", "gates", "ages"), looks(), strict=True):
        table.to_csv(results / f"{name}.csv", index=False)
    plot_scorecard.main()
    text = document.read_text()
    assert "interquartile" in text and "| parity of up to 25 bits | 2M | 3 |" in text
    drawn = sorted(file.name for file in (tmp_path / "results/figures").iterdir())
    assert drawn == [f"scorecard_{name}.png" for name in ("ages", "curves", "parts", "profiles", "scores")]
    assert "| 0.900 | 0.700 | 0.600 | 0.500 | 0.800 |" in text


def test_the_card_at_a_glance_has_medians_and_ranges(results, monkeypatch):
    figures = []
    monkeypatch.setattr(plot_scorecard, "save", lambda figure, name: figures.append(figure))
    runs = card(("parity_25", "pendulum"))
    runs.loc[runs["agent"] == "trxl", "score"] = [0.1, 0.3, 0.8] * 2
    plot_scorecard.plot_card_scores(runs)
    (ax,) = figures[0].axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "Pendulum without velocities",
        "parity of up to 25 bits",
    ]
    points = {line.get_label(): line for line in ax.lines}
    assert list(points) == ["PALMER", "PPO-LSTM", "PPO-TrXL"], "and none without a part of it"
    assert points["PPO-TrXL"].get_xdata().tolist() == [0.3, 0.3]
    # pandas sorts tasks by name: parity, whose line is the second, comes first
    assert points["PPO-LSTM"].get_ydata().tolist() == [1, 0]
    ranges = ax.collections[2].get_segments()
    assert [segment[:, 0].tolist() for segment in ranges] == [[0.1, 0.8]] * 2


def test_the_legend_names_the_agents_that_are_drawn(results, monkeypatch):
    figures = []
    monkeypatch.setattr(plot_scorecard, "save", lambda figure, name: figures.append(figure))
    points = [{"step": step, "success": 0.5, "return": math.nan, "seed": 11} for step in (10_000, 20_000)]
    curves = [{"experiment": f"parity_25/{agent}", **point} for agent in ("lstm", "palmer") for point in points]
    plot_scorecard.plot_card_curves(pd.DataFrame(curves))
    (legend,) = (ax.get_legend() for ax in figures[0].axes if ax.get_legend())
    assert [text.get_text() for text in legend.get_texts()] == ["PALMER", "PPO-LSTM"]


def test_parts_are_drawn_where_they_were_asked(monkeypatch):
    figures = []
    monkeypatch.setattr(plot_scorecard, "save", lambda figure, name: figures.append(figure))
    curves = pd.DataFrame(
        {
            "experiment": f"{task}/{agent}",
            "seed": seed,
            "step": step,
            "success": success + seed / 100,
            "return": math.nan,
        }
        for task, agent, success in (
            ("parity_25", "palmer", 0.8),
            ("parity_25", "no_recall", 0.5),
            ("s13", "palmer", 0.9),
            ("s13", "lstm", 0.9),
        )
        for seed in (1, 2, 6)
        for step in (10_000, 20_000)
    )
    plot_scorecard.plot_parts(curves[curves["experiment"] != "parity_25/no_recall"])
    assert figures == [], "nothing was asked"
    plot_scorecard.plot_parts(curves)
    panel, names = figures[0].axes
    assert panel.get_title() == "parity of up to 25 bits", "of S13 there is the unchanged agent alone"
    unchanged, without = panel.lines
    np.testing.assert_allclose(unchanged.get_ydata(), [0.82, 0.82])
    np.testing.assert_allclose(without.get_ydata(), [0.52, 0.52])
    np.testing.assert_allclose(without.get_xdata(), [0.01, 0.02])
    legend = names.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["nothing changed", "recall"]
    assert [line.get_color() for line in legend.get_lines()] == [line.get_color() for line in panel.lines]


def test_longer_streams_have_a_column_each():
    rows = [
        {"task": "parity_25", "agent": agent, "seed": seed, "length": length, "success": success + seed / 1000}
        for agent, success in (("lstm", 0.9), ("palmer", 0.5))
        for seed in (11, 12, 13)
        for length in (100, 25)
    ]
    table = plot_scorecard.lengths_table(pd.DataFrame(rows))
    assert table == [
        ["agent", "seeds", "25 bits", "100 bits"],
        ["PALMER", "3", "0.512", "0.512"],
        ["PPO-LSTM", "3", "0.912", "0.912"],
    ]


def test_chance_is_that_of_random_actions(tmp_path):
    out = tmp_path / "chance.csv"
    measure_chance.main(measure_chance.Options(("repeat_and_parity", "cartpole"), out, episodes=40))
    rows = {row["task"]: float(row["return"]) for row in csv.DictReader(out.open())}
    assert abs(rows["repeat_and_parity"]) < 0.1, "mean of 40 times 96 coin flips"
    assert 10 < rows["cartpole"] < 40


def test_chance_is_that_of_a_known_task(tmp_path):
    with pytest.raises(InputError, match="--tasks s99: must be of .*s13"):
        measure_chance.main(measure_chance.Options(("s99",), tmp_path / "chance.csv"))


def test_chance_is_written_somewhere(tmp_path):
    with pytest.raises(InputError, match="--out .*: must be a file that can be written"):
        measure_chance.main(measure_chance.Options(("parity_25",), tmp_path))


class TwoCards(gymnasium.Env):
    """Two cards, each turned up for good: a card that already lies face up costs 10, its turning earns 1."""

    observation_space = gymnasium.spaces.MultiDiscrete([3, 3])
    action_space = gymnasium.spaces.Discrete(2)
    seeds = []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.cards = np.array([2, 2])
        return self.cards.copy(), {}

    def step(self, action):
        reward = 1.0 if self.cards[action] == 2 else -10.0
        self.cards[action] = 0
        return self.cards.copy(), reward, not (self.cards == 2).any(), False, {}


def test_a_player_without_memory_turns_each_card_that_lies_face_down_and_no_other(tmp_path, monkeypatch):
    rng, observation = np.random.default_rng(0), np.array([0, 2, 1, 2])
    assert {measure_blind.turn(observation, np.full(4, 2), rng) for _ in range(100)} == {1, 3}
    monkeypatch.setattr(gymnasium, "make", lambda env_id: TwoCards())
    measure_blind.main(measure_blind.Options(tmp_path / "blind.csv", episodes=3))
    assert (tmp_path / "blind.csv").read_text().split() == ["task,episodes,return", "concentration_easy,3,2.0"]
    assert TwoCards.seeds == [0, 1, 2]


@pytest.mark.parametrize("seeds, others, tasks", [(5, 5, 7), (3, 5, 2), (1, 1, 1)])
def test_probability_of_improvement_is_that_of_rliable(seeds, others, tasks):
    random = np.random.default_rng(0)
    ours, theirs = (random.integers(0, 4, (number, tasks)) / 4 for number in (seeds, others))
    given = figures.probability_of_improvement(ours, theirs)
    assert given == pytest.approx(metrics.probability_of_improvement(ours, theirs), abs=1e-12)
    assert given == pytest.approx(1 - figures.probability_of_improvement(theirs, ours), abs=1e-12)


def test_who_never_gets_there_ties_with_who_never_does():
    late = np.array([[np.inf], [1.0]])
    assert figures.probability_of_improvement(late, late) == 0.5
    assert figures.probability_of_improvement(late, np.array([[np.inf]])) == 0.25
