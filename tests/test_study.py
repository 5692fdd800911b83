"""The study's scripts: the search, the tables of results, the report's tables, published checkpoints, the gate."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from input_error import InputError

import evaluate
import ppo_lstm
import ppo_palmer
from palmer_policy import PolicyOutput
from scripts import (
    collect_results,
    measure_gate,
    measure_starts,
    plot_results,
    publish_checkpoints,
    shortest_ways,
    tune,
)

ROOT = Path(__file__).resolve().parent.parent
SHORT = {"env_id": "MiniGrid-MemoryS5-v0", "num_envs": 8, "num_steps": 16, "num_minibatches": 2, "width": 16}
SHORT |= {"cuda": False, "eval_every": 0, "final_eval_episodes": 4, "obs_mode": "symbolic"}


# ---------------------------------------------------------------------------------------------- collecting


def write_run(folder, algo="palmer", seed=1, rows=()):
    folder.mkdir(parents=True)
    summary = {"algo": algo, "env_id": "MiniGrid-MemoryS11-v0", "seed": seed, "steps": 40_000, "seconds": 9.0}
    summary |= {"steps_to_0.95": 20_000, "seconds_to_0.95": 4.0, "steps_to_0.99": None, "seconds_to_0.99": None}
    evaluation = {"success_rate": 0.97, "success_ci_low": 0.96, "success_ci_high": 0.98, "mean_length": 15.0}
    summary["evaluation"] = evaluation | {"mean_return": 0.9}
    summary["greedy_evaluation"] = evaluation | {"success_rate": 0.99, "mean_length": 14.5}
    (folder / "summary.json").write_text(json.dumps(summary))
    config = {"threads": 1, "versions": {"commit": "abc"}, "command": "python ppo_palmer.py --seed 1"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def logged(step, success, ratio_error=1e-7):
    names = {"train/success_rate": success, "losses/first_minibatch_ratio_error": ratio_error}
    return {"step": step, "charts/SPS": 1000.0, **names}


def test_results_are_collected_by_experiment(tmp_path, monkeypatch):
    rows = [logged(4_000, 0.1), logged(8_000, 0.2, 5e-7), logged(12_000, 0.6), logged(16_000, 0.5)]
    rows.append({"step": 16_000, "evals/success_rate": 0.4})
    write_run(tmp_path / "runs/plain", rows=rows)
    write_run(tmp_path / "runs/no_recall/one", seed=2, rows=rows[:1])
    (tmp_path / "runs/unfinished").mkdir()
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "runs"), str(tmp_path / "out")])
    collect_results.main()
    runs = list(csv.DictReader((tmp_path / "out/runs.csv").open()))
    assert [(run["experiment"], run["seed"]) for run in runs] == [("", "1"), ("no_recall", "2")]
    assert (runs[0]["success"], runs[0]["greedy_success"], runs[0]["greedy_length"]) == ("0.97", "0.99", "14.5")
    assert (runs[0]["steps_to_0.95"], runs[0]["steps_to_0.99"]) == ("20000", "")
    assert runs[0]["least_success_after_0.99"] == "", "never reached"
    assert (runs[0]["command"], runs[0]["commit"]) == ("python ppo_palmer.py --seed 1", "abc")
    curves = list(csv.DictReader((tmp_path / "out/curves.csv").open()))
    # 4k, 8k and 12k are averaged: the first row after 10k steps ends them.
    assert [(row["step"], row["success"], row["seconds"]) for row in curves[:2]] == [
        ("12000", "0.3", "12.0"),
        ("16000", "0.5", "16.0"),
    ]
    assert curves[0]["ratio_error"] == "5e-07", "the largest, not the mean"
    assert len(curves) == 3


def test_a_dip_counts_from_the_step_that_reached_the_level():
    rows = [logged(4_000, 0.1), logged(8_000, 1.0), logged(12_000, 0.93), logged(16_000, 0.97)]
    assert collect_results.least_success_since(rows, 8_000) == 0.93
    assert collect_results.least_success_since(rows, 16_000) == 0.97


def test_nothing_to_collect_is_an_error(tmp_path):
    command = [sys.executable, ROOT / "scripts/collect_results.py", tmp_path, tmp_path / "out"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "holds no finished run" in result.stderr


# ---------------------------------------------------------------------------------------------- the report


def some_runs():
    rows = []
    for algo, steps in (("palmer", 200_000), ("lstm", 400_000), ("trxl", math.nan)):
        for env in ("MiniGrid-MemoryS11-v0", "MiniGrid-MemoryS17Random-v0"):
            for seed in (1, 2, 3):
                row = {"experiment": "", "algo": algo, "env": env, "seed": seed, "steps": 1_000_000, "seconds": 90.0}
                row |= {"success": 0.9 + 0.03 * seed, "greedy_success": 1.0, "length": 15.0, "greedy_length": 14.5}
                row |= {"steps_to_0.95": 150_000, "steps_to_0.99": steps + seed, "seconds_to_0.99": 10 * seed}
                rows.append(row)
    return pd.DataFrame(rows)


def test_main_table_counts_solved_runs_and_takes_medians():
    table = plot_results.main_table(some_runs())
    assert table[1][:5] == ["S11", "14.4", "PALMER", "1 of 3", "0.960 (0.930)"]
    assert table[1][-3:] == ["0.20M", "20", "1.5"]
    assert table[3][2] == "PPO-TrXL" and table[3][-3] == "never"
    assert [row[0] for row in table[1:]] == ["S11"] * 3 + ["S17Random"] * 3


def test_alone_table_gives_the_spread_of_the_clock():
    runs = some_runs().query("algo == 'palmer'").assign(threads=2)
    runs.loc[runs["env"].str.contains("S17") & (runs["seed"] == 3), ["steps_to_0.99", "seconds_to_0.99"]] = math.nan
    table = plot_results.alone_table(runs)
    assert table[1:] == [
        ["S11", "3 of 3", "2", "20 (10 to 30)", "0.20M"],
        ["S17Random", "2 of 3", "2", "20 (10 to 20)", "0.20M"],
    ]


def test_scores_are_the_budget_left_and_zero_for_never():
    scores = plot_results.scores(some_runs())
    np.testing.assert_allclose(scores["palmer"], 0.8, atol=1e-4)
    assert scores["palmer"].shape == (3, 2)
    assert (scores["trxl"] == 0).all()


def test_aggregates_know_who_is_better(monkeypatch):
    monkeypatch.setattr(plot_results, "BOOTSTRAP_REPETITIONS", 50)
    table = plot_results.aggregates_table(some_runs())
    assert table[1][1].startswith("0.800")
    assert table[2][2].startswith("1.00") and table[3][2].startswith("1.00"), "fewer steps in every run"
    assert table[2][3].startswith("0.50") and table[2][4].startswith("0.50"), "the same seconds and lengths"
    np.random.rand()
    assert plot_results.aggregates_table(some_runs()) == table, "intervals that are drawn anew"


def test_ablations_are_compared_with_the_unchanged_agent(monkeypatch):
    monkeypatch.setattr(plot_results, "BOOTSTRAP_REPETITIONS", 50)
    unchanged = some_runs().query("algo == 'palmer'").assign(success=1.0)
    slower = unchanged.assign(experiment="fixed_gate", length=14.0)
    slower["steps_to_0.99"] += 1_000
    failed = unchanged.assign(experiment="no_bonus", length=7.0)
    failed.loc[failed["seed"] == 1, ["success", "steps_to_0.99"]] = (0.5, math.nan)
    table = plot_results.ablated_better_table(pd.concat([unchanged, slower, failed]))
    assert [row[0] for row in table[1:]] == ["no visit bonus", "gate held at 0.5"], "in the order of the labels"
    (_, solved, steps, length), (_, all_solved, later, shorter) = table[1:]
    assert (solved, all_solved) == ("4 of 6", "6 of 6")
    # Steps (1, 2, 3) against (never, 2, 3): of nine pairs the unchanged has less in 3 + 2 + 1 and ties in two.
    assert steps.startswith("0.78") and later.startswith("1.00")
    assert length == "" and shorter.startswith("0.00"), "short ways of an agent that guesses are no merit"


def test_gate_table_has_a_column_for_each_phase():
    rows = [("before the cue", 0.5, 0.0), ("after the cue", 0.4, 0.25)]
    gate = pd.DataFrame([("MiniGrid-MemoryS13-v0", *row) for row in rows])
    gate.columns = ["env", "phase", "mean", "elements_moved"]
    assert plot_results.gate_table(gate) == [
        ["environment", "before the cue", "after the cue"],
        ["S13", "0.500 (0%)", "0.400 (25%)"],
    ]


def test_larger_mazes_are_told_apart_by_how_episodes_end():
    columns = ["algo", "env_id", "success_rate", "timeout_rate", "mean_length", "memory_length"]
    rows = [("palmer", "MiniGrid-MemoryS25Random-v0", 1.0, 0.0, 22.0, 64)]
    for success, timeout, length, window in ((0.9, 0.08, 60, 64), (0.8, 0.0, 70, 64), (0.7, 0.2, 80, 64)):
        rows.append(("palmer", "MiniGrid-MemoryS65Random-v0", success, timeout, length, window))
    rows.append(("palmer", "MiniGrid-MemoryS65Random-v0", 0.5, 0.5, 99, 400))
    rows.append(("lstm", "MiniGrid-MemoryS65Random-v0", 0.9, 0.1, 50, None))
    played = pd.DataFrame(rows, columns=columns)
    assert plot_results.failures_table(played)[1:] == [
        ["PALMER, 3 seeds", "64", "0.100 (0.200)", "0.080 (0.200)"],
        ["PALMER, 1 seeds", "400", "0.000 (0.000)", "0.500 (0.500)"],
        ["PPO-LSTM, 1 seeds", "", "0.000 (0.000)", "0.100 (0.100)"],
    ]
    table = plot_results.generalise_table({"PALMER": played[played["algo"] == "palmer"]})
    assert table[0][1:] == ["S25Random", "S65Random"]
    assert table[1] == ["PALMER, 3 seeds", "1.000 (1.000), 22.0 steps", "0.800 (0.700), 70.0 steps"]


def test_starts_count_as_many_times_as_episodes_began_there():
    columns = ["checkpoint", "episodes", "saw_cue", "wrong_object", "wrong_without_cue", "out_of_time"]
    rows = [("runs/larger/a/checkpoint.pt", 30, 1.0, 0.1, 0.0, 0.0, 0.5, 0.9)]
    rows += [("runs/larger/a/checkpoint.pt", 10, 0.2, 0.5, 0.5, 0.4, 0.1, 0.5)]
    starts = pd.DataFrame(rows, columns=[*columns, "first_value", "last_value"])
    assert plot_results.starts_table(starts)[1:] == [
        ["`larger/a`", "0.800", "0.200", "0.125", "0.100", "0.40", "0.80"]
    ]


def test_looks_tell_a_lack_of_looking_from_a_lack_of_memory():
    columns = ["checkpoint", "algo", "env", "episodes", "saw_cue", "wrong_object", "wrong_without_cue", "out_of_time"]
    keys = ("palmer", "MiniGrid-MemoryS11-v0")
    rows = [
        ("runs/ablations/no_recall/a/checkpoint.pt", *keys, 30, 1.0, 0.4, 0.0, 0.0),
        ("runs/ablations/no_recall/b/checkpoint.pt", *keys, 10, 1.0, 0.8, 0.0, 0.1),
        ("runs/ablations/no_bonus/a/checkpoint.pt", *keys, 40, 0.2, 0.42, 0.4, 0.0),
        ("runs/main/a/checkpoint.pt", *keys, 40, 1.0, 0.0, 0.0, 0.0),
    ]
    assert plot_results.looks_table(pd.DataFrame(rows, columns=columns))[1:] == [
        ["PALMER, nothing changed", "S11", "1", "1.000", "0.000", "", "0.000"],
        ["no recall", "S11", "2", "1.000", "0.500", "", "0.025"],
        ["no visit bonus", "S11", "1", "0.200", "0.100", "0.500", "0.000"],
    ]


def test_tables_in_documents_are_replaced_where_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(plot_results, "ROOT", tmp_path)
    (tmp_path / "REPORT.md").write_text("a\n<!-- table x -->\nold\n<!-- end -->\nb\n<!-- table y -->\n<!-- end -->\n")
    plot_results.replace_table("x", plot_results.markdown([["h", "i"], ["1", "2"]]))
    assert (tmp_path / "REPORT.md").read_text() == (
        "a\n<!-- table x -->\n| h | i |\n|---|---|\n| 1 | 2 |\n<!-- end -->\nb\n<!-- table y -->\n<!-- end -->\n"
    )


# --------------------------------------------------------------------------------------------- shortest ways


@pytest.mark.parametrize("size", [11, 13])
def test_shortest_ways_are_those_found_by_hand(size):
    """From column 1 the object is in view at once; column 2 needs a turn and 3 needs two, and as many back; from
    there on each column adds a step back and one forth, and takes one off the way to the fork. There the agent turns
    to one side, and half of the time to the other; unless it started beside the fork, where it saw while turning.
    """
    columns = size - 3
    ways = [columns + 1 - x + 2 + {1: 0, 2: 2}.get(x, 2 * x - 2) for x in range(1, columns + 1)]
    expected = sum(ways) / columns + (1 - 1 / columns)
    assert shortest_ways.shortest_length(f"MiniGrid-MemoryS{size}-v0") == pytest.approx(expected, abs=1e-6)


def test_shortest_ways_are_written_and_shown(tmp_path, monkeypatch):
    out = tmp_path / "shortest/runs.csv"
    shortest_ways.main(shortest_ways.Options(("MiniGrid-MemoryS7Random-v0",), out))
    rows = list(csv.DictReader(out.open()))
    assert [row["env"] for row in rows] == ["MiniGrid-MemoryS7Random-v0"] and 4 < float(rows[0]["length"]) < 12
    published = {
        row["env"]: float(row["length"]) for row in csv.DictReader((ROOT / "results/shortest/runs.csv").open())
    }
    assert plot_results.shortest() == published


# ---------------------------------------------------------------------------------------------- the search


def test_search_runs_all_agents_goes_on_and_gives_up_bad_trials(tmp_path, monkeypatch):
    calls = []

    def train(algo, env_id, seed, settings, total_timesteps):
        calls.append((algo, env_id, seed))
        return float(seed - tune.FIRST_SEED)  # every trial worse than the one before

    monkeypatch.setattr(tune, "train", train)
    options = tune.Options(study=tmp_path / "search/journal.log", trials=4)
    tune.main(options)
    assert len(calls) == 4 * 6 and set(calls[:6]) == {(a, e, 1000) for a in tune.ALGOS for e in tune.ENVS}
    tune.main(tune.Options(study=options.study, trials=2))
    assert len(calls) == 4 * 6 + 2, "the fifth and sixth trial end after their first run"
    storage = tune.JournalStorage(tune.JournalFileBackend(str(options.study)))
    trials = optuna.load_study(study_name=tune.STUDY_NAME, storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4 + ["PRUNED"] * 2
    assert trials[0].params == tune.DEFAULTS
    assert not {1, 2, 3, 4, 5} & {seed for _, _, seed in calls}, "the published seeds are not searched on"


def test_showing_a_search_leaves_it_alone(tmp_path, capsys):
    published = ROOT / "results/search/first.log"
    copy = tmp_path / "first.log"
    copy.write_bytes(published.read_bytes())
    tune.main(tune.Options(study=copy, show=True))
    assert "9 complete" in capsys.readouterr().out and copy.read_bytes() == published.read_bytes()
    with pytest.raises(SystemExit, match="--study .*none.log"):
        tune.main(tune.Options(study=tmp_path / "none.log", show=True))
    assert not (tmp_path / "none.log").exists()


def test_a_run_that_does_not_get_there_counts_twice_its_steps():
    flags = {"num_envs": 8, "num_steps": 16, "num_minibatches": 2, "width": 16, "obs_mode": "symbolic"}
    value = tune.train("lstm", "MiniGrid-MemoryS5-v0", 1000, flags, 2048)
    steps = math.log2(2 * 2048 / 100_000)
    seconds = 2 * value - steps  # log2 of seconds / 30
    assert 0 < 30 * 2**seconds < 60


def test_a_run_is_judged_when_it_first_gets_there(monkeypatch):
    def run(command, **_):
        flags = dict(zip(command[3::2], command[4::2], strict=True))
        assert flags["--stop-at-success"] == "0.95" and flags["--seed"] == "1000" and flags["--ent-coef"] == "0.1"
        summary = {"steps": 90_000, "seconds": 70.0, "steps_to_0.95": 50_000, "seconds_to_0.95": 60.0}
        Path(flags["--run-dir"], "summary.json").write_text(json.dumps(summary))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(tune.subprocess, "run", run)
    value = tune.train("lstm", "MiniGrid-MemoryS5-v0", 1000, {"ent_coef": 0.1}, 100_000)
    assert value == pytest.approx(0), "half the steps of the measure and twice the seconds"


# ------------------------------------------------------------------------------------- published checkpoints


def test_published_checkpoints_play_as_the_whole_ones(tmp_path, capsys):
    run = tmp_path / "runs/lstm__MiniGrid-MemoryS5-v0__s1"
    args = ppo_lstm.Args(**SHORT, total_timesteps=256, run_dir=str(run))
    expected = ppo_lstm.main(args)["evaluation"]
    publish_checkpoints.main(publish_checkpoints.Options(tmp_path / "runs", tmp_path / "pretrained"))
    file = tmp_path / "pretrained/lstm__MiniGrid-MemoryS5-v0.pt"
    assert file.stat().st_size < run.joinpath("checkpoint.pt").stat().st_size / 2
    assert str(tmp_path).encode() not in file.read_bytes(), "no word of where it was made"
    assert evaluate.main(evaluate.Args(checkpoint=str(file), episodes=4)) == expected


def test_gate_is_measured_by_phase(tmp_path):
    run = tmp_path / "run"
    ppo_palmer.main(ppo_palmer.Args(**SHORT, total_timesteps=256, run_dir=str(run), fixed_gate=0.25))
    out = tmp_path / "gate.csv"
    measure_gate.main(measure_gate.Options((run / "checkpoint.pt",), out, episodes=5))
    rows = list(csv.DictReader(out.open()))
    assert {row["phase"] for row in rows} <= set(measure_gate.PHASES)
    assert rows[0]["phase"] == "before the cue"
    assert {row["mean"] for row in rows} == {"0.25"}
    assert sum(int(row["steps"]) for row in rows) > 5


# ---------------------------------------------------------------------------------------- lost episodes


def test_lost_episodes_are_told_apart():
    def moment(reward=0.0, terminated=False, truncated=False, phase="at the fork", value=0.0):
        output = PolicyOutput(torch.zeros(1, 1, 3), torch.full((1, 1), value), torch.zeros(1, 1, 4), None)
        return measure_gate.Moment(True, 1, phase, output, reward, terminated, truncated)

    first = moment(value=0.5)
    ends = [moment(0.9, True, value=1.0), moment(terminated=True), moment(truncated=True)]
    ends += [moment(terminated=True, truncated=True, phase="before the cue")]
    assert measure_starts.summary([(first, end, 10 + i) for i, end in enumerate(ends)]) == {
        "episodes": 4,
        "success": 0.25,
        "wrong_object": 0.5,
        "out_of_time": 0.25,
        "saw_cue": 0.75,
        "wrong_without_cue": 0.25,
        "length": 11.5,
        "first_value": 0.5,
        "last_value": 0.25,
    }


def test_starts_are_those_of_the_maze(tmp_path):
    run = tmp_path / "run"
    ppo_lstm.main(ppo_lstm.Args(**SHORT, total_timesteps=256, run_dir=str(run), max_episode_steps=20))
    out = tmp_path / "starts.csv"
    measure_starts.main(measure_starts.Options((run / "checkpoint.pt",), out, episodes=40))
    rows = list(csv.DictReader(out.open()))
    assert [row["column"] for row in rows] == ["1", "2"], "the corridor of S5 has two columns before the fork's"
    assert sum(int(row["episodes"]) for row in rows) == 40
    for row in rows:
        ends = [float(row[end]) for end in ("success", "wrong_object", "out_of_time")]
        assert sum(ends) == pytest.approx(1, abs=2e-3)
        assert float(row["length"]) <= 20
    nearer, farther = (float(row["saw_cue"]) for row in rows)
    assert nearer == 1, "beside the object, whichever way the agent faces"
    assert farther > 0


@pytest.mark.parametrize("script", [measure_gate, measure_starts])
def test_measuring_refuses_what_it_cannot_measure(script, tmp_path):
    with pytest.raises(InputError, match="name at least one"):
        script.main(script.Options(out=tmp_path / "out.csv"))
    with pytest.raises(InputError, match=r"none\.pt: there is no such file"):
        script.main(script.Options((tmp_path / "none.pt",), tmp_path / "out.csv"))
    run = tmp_path / "run"
    other = SHORT | {"env_id": "CartPole-v1", "total_timesteps": 256, "run_dir": str(run)}
    ppo_palmer.main(ppo_palmer.Args(**other))
    with pytest.raises(InputError, match=r"checkpoint\.pt: was trained on CartPole-v1; must be a maze"):
        script.main(script.Options((run / "checkpoint.pt",), tmp_path / "out.csv"))
    assert not (tmp_path / "out.csv").exists()


def test_the_gate_is_measured_where_there_is_one(tmp_path):
    published = ROOT / "pretrained/lstm__MiniGrid-MemoryS11-v0.pt"
    with pytest.raises(InputError, match="holds lstm, which has no gate"):
        measure_gate.main(measure_gate.Options((published,), tmp_path / "out.csv"))


def test_shortest_ways_are_those_of_memory_mazes():
    with pytest.raises(InputError, match="--env-ids CartPole-v1: must be mazes"):
        shortest_ways.shortest_length("CartPole-v1")
