"""What study/ promises: the experiments, the search, tables and figures, published checkpoints, gate and starts."""

import csv
import importlib
import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from stand_ins import make_repository, run

import evaluate
import ppo_lstm
import ppo_palmer
import ppo_trxl
from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.flags import check_args, parse_args
from harness.input_error import InputError
from palmer_policy import POLICIES, PolicyOutput
from replay.aids import load_aids
from study import (
    collect_results,
    figures,
    make_pdf,
    measure_gate,
    measure_starts,
    plot_results,
    publish_checkpoints,
    shortest_ways,
    tune,
)

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "pretrained/palmer__s11.pt"
SHORT = {"env_id": "MiniGrid-MemoryS5-v0", "num_envs": 8, "num_steps": 16, "num_minibatches": 2, "width": 16}
SHORT |= {"cuda": False, "eval_every": 0, "final_eval_episodes": 4, "obs_mode": "symbolic"}


# ------------------------------------------------------------------------------------------ benchmark.sh


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path)


def benchmark(repository, part, **environment):
    return run(repository, "study/benchmark.sh", *part.split(), PYTHON=sys.executable, **environment)


def test_benchmark_repeats_the_original_with_its_one_lstm_layer(repository):
    result = benchmark(repository, "original")
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader((repository / "results/original/runs.csv").open()))
    assert Counter((row["experiment"], row["algo"]) for row in rows) == {
        (experiment, algo): 2 for experiment in ("plain_ppo", "with_aids") for algo in ("palmer", "lstm", "trxl")
    }, "not each agent once on each of the two mazes"
    for row in rows:
        assert "--preset report" in row["command"]
        assert ("--lstm-layers 1" in row["command"]) == (row["algo"] != "trxl")
        assert ("--recall-coef 2 --age-coef 0.1 --visit-bonus 0.3" in row["command"]) == (
            row["experiment"] == "with_aids"
        )


@pytest.mark.parametrize("part", ["alone", "original", "larger"])
def test_every_run_of_the_benchmark_is_one_that_its_script_accepts(repository, part, monkeypatch):
    names = {"SEEDS": "1", "LARGER_SEEDS": "1"}
    assert benchmark(repository, part, **names).returncode == 0
    rows = list(csv.DictReader((repository / f"results/{part}/runs.csv").open()))
    for row in rows:
        words = row["command"].split()
        monkeypatch.setattr(sys, "argv", words[1:])
        script = importlib.import_module(words[1].removesuffix(".py"))
        args = parse_args(script.Args, script.PRESETS)
        check_args(args)
        assert args.num_envs % args.num_minibatches == 0
    assert {row["algo"] for row in rows} == ({"palmer"} if part == "alone" else set(POLICIES))


def test_benchmark_gives_a_run_alone_the_whole_machine(repository):
    result = benchmark(repository, "alone", ENVS="Maze-v0", SEEDS="1", JOBS="2")
    assert result.returncode == 0, result.stderr
    (row,) = csv.DictReader((repository / "results/alone/runs.csv").open())
    assert row["algo"] == "palmer" and "--stop-at-success 0.99" in row["command"]


def test_benchmark_goes_on_after_a_failure_and_tells(repository):
    settings = {"ENVS": "Maze-v0", "LARGER_SEEDS": "1 2", "ALGOS": "lstm"}
    result = benchmark(repository, "larger", **settings, FAILING_SEED="1")
    assert result.returncode == 1
    assert "1 runs are unfinished" in result.stderr
    assert len(list(csv.DictReader((repository / "results/larger/runs.csv").open()))) == 1
    assert benchmark(repository, "larger", **settings).returncode == 0


@pytest.mark.parametrize("part", ["everything", "", "larger --total-timesteps 100", "larger alone"])
def test_benchmark_refuses_an_unknown_part(repository, part):
    result = benchmark(repository, part)
    assert result.returncode == 2
    assert "must be alone, original, larger" in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (repository / "runs").exists()


@pytest.mark.parametrize(
    ("part", "settings", "sentence"),
    [
        ("alone", {"ENVS": " "}, "ENVS: is empty; must be ids of environments"),
        ("alone", {"SEEDS": "1 x"}, "SEEDS: x: must be whole numbers from 0 to 99,999,999"),
        ("larger", {"JOBS": "0"}, "JOBS=0: must be a whole number from 1 to 9999"),
        ("original", {"ALGOS": "dqn"}, "ALGOS: there is no ppo_dqn.py; use palmer, lstm or trxl"),
        ("original", {"ORIGINAL_SEEDS": "x"}, "ORIGINAL_SEEDS: x: must be whole numbers from 0 to 99,999,999"),
        ("larger", {"LARGER_SEEDS": ""}, "LARGER_SEEDS: is empty; must be whole numbers from 0 to 99,999,999"),
        ("alone", {"ALGOS": "lstm"}, "ALGOS=lstm: must be palmer, which alone trains"),
        ("generalise", {"SEEDS": "1"}, "SEEDS: must not be set, as generalise plays all agents of S17Random"),
    ],
)
def test_benchmark_refuses_wrong_settings_before_anything_starts(repository, part, settings, sentence):
    result = benchmark(repository, part, **settings)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"error: {sentence}\n")
    assert not (repository / "runs").exists() and not (repository / "results").exists()


def test_benchmark_ends_at_the_first_sweep_that_is_refused(repository):
    (repository / "scripts/check_sweep.py").write_text("import sys; print('error: no', file=sys.stderr); sys.exit(2)")
    result = benchmark(repository, "original")
    assert (result.returncode, result.stderr) == (2, "error: no\n")
    assert not (repository / "results").exists()


# Stands for evaluate.py: prints its flags, or fails when the agent is the one the test names.
EVALUATION = """
import json, os, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if flags["--checkpoint"] == os.environ.get("FAILING_AGENT"):
    sys.exit("error: evaluation fails on purpose")
print(json.dumps(flags))
"""


SCORED = "runs/scorecard/s17random"  # the agents that generalise plays


def finished_run(repository, folder):
    """-> its checkpoint, as a flag names it."""
    (repository / folder).mkdir(parents=True)
    for name in ("checkpoint.pt", "summary.json"):
        (repository / folder / name).touch()
    return f"{folder}/checkpoint.pt"


def published_tables(repository):
    """Files of results/generalise and what they hold; at first, one table."""
    folder = repository / "results/generalise"
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / "runs.jsonl").write_text("earlier\n")
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_larger_mazes_are_not_played_without_agents(repository):
    earlier = published_tables(repository)
    result = benchmark(repository, "generalise")
    assert result.returncode == 2
    assert "runs/scorecard has no agent of S17Random" in result.stderr and len(result.stderr.splitlines()) == 1
    assert published_tables(repository) == earlier


@pytest.mark.parametrize("unfinished", ["lstm/two", "palmer_fixed_gate/one"])
def test_larger_mazes_are_not_played_by_agents_that_still_train(repository, unfinished):
    earlier = published_tables(repository)
    finished_run(repository, f"{SCORED}/lstm/one")
    (repository / finished_run(repository, f"{SCORED}/{unfinished}")).with_name("summary.json").unlink()
    result = benchmark(repository, "generalise")
    assert result.returncode == 2 and f"{SCORED}/{unfinished} has not finished" in result.stderr
    assert published_tables(repository) == earlier


def test_a_failed_evaluation_leaves_the_table_as_it_was(repository):
    (repository / "evaluate.py").write_text(EVALUATION)
    earlier = published_tables(repository)
    finished_run(repository, f"{SCORED}/lstm/one")
    result = benchmark(repository, "generalise", FAILING_AGENT=finished_run(repository, f"{SCORED}/lstm/two"))
    assert result.returncode == 1 and "evaluation fails on purpose" in result.stderr
    assert result.stdout.count(f"{SCORED}/lstm/one") == 6, "nothing was played before"
    assert published_tables(repository) == earlier


def test_larger_mazes_are_played_by_all_agents(repository):
    (repository / "evaluate.py").write_text(EVALUATION)
    published_tables(repository)
    agents = [finished_run(repository, f"{SCORED}/{algo}/one") for algo in ("palmer", "lstm")]
    ablated = finished_run(repository, f"{SCORED}/palmer_fixed_gate/one")
    finished_run(repository, "runs/scorecard/s11/lstm/one")
    result = benchmark(repository, "generalise")
    assert result.returncode == 0, result.stderr
    tables = published_tables(repository)
    assert tables.keys() == {"runs.jsonl", "fixed_gate.jsonl"}
    games = [json.loads(line) for line in tables["runs.jsonl"].splitlines()]
    assert [game["--checkpoint"] for game in games] == [agents[0]] * 7 + [agents[1]] * 6
    sizes = [int(game["--env-id"].removeprefix("MiniGrid-MemoryS").removesuffix("Random-v0")) for game in games]
    assert sizes == [17, 21, 25, 33, 49, 65, 65] + [17, 21, 25, 33, 49, 65]
    assert [int(game["--max-episode-steps"]) for game in games] == [96 * size // 17 for size in sizes]
    ablated_games = [json.loads(line) for line in tables["fixed_gate.jsonl"].splitlines()]
    assert [game["--checkpoint"] for game in ablated_games] == [ablated] * 7


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


def test_runs_are_added_to_those_of_another_machine(tmp_path, monkeypatch, capsys):
    def collect(name, *words):
        monkeypatch.setattr(sys, "argv", ["", *words, str(tmp_path / name), str(tmp_path / "out")])
        collect_results.main()
        return [list(csv.DictReader((tmp_path / f"out/{table}.csv").open())) for table in ("runs", "curves")]

    write_run(tmp_path / "first/one", seed=2, rows=[logged(16_000, 0.1), logged(32_000, 0.2)])
    write_run(tmp_path / "second/one", seed=1, rows=[logged(16_000, 0.3), logged(32_000, 0.4)])
    write_run(tmp_path / "again/one", seed=2, rows=[logged(16_000, 0.5)])
    first = collect("first", "--add")
    runs, curves = collect("second", "--add")
    assert runs[1:] == first[0] and [row["success"] for row in curves] == ["0.3", "0.4", "0.1", "0.2"]
    runs, curves = collect("again", "--add")
    assert len(runs) == 2 and [row["success"] for row in curves] == ["0.3", "0.4", "0.5"], "the same run anew"
    assert "replaces" not in capsys.readouterr().out, "by the same code"
    config = tmp_path / "again/one/config.json"
    config.write_text(config.read_text().replace("abc", "def"))
    collect("again", "--add")
    assert "palmer, seed 2: def replaces abc\n" in capsys.readouterr().out
    runs, curves = collect("first")
    assert len(runs) == 1 and len(curves) == 2, "not asked to keep any"
    (tmp_path / "out/curves.csv").write_text("of,another\n1,2\n")
    before = (tmp_path / "out/runs.csv").read_bytes()
    with pytest.raises(SystemExit):
        collect("second", "--add")
    assert "curves.csv: must have the columns experiment" in capsys.readouterr().err
    assert (tmp_path / "out/runs.csv").read_bytes() == before


def test_a_dip_counts_from_the_step_that_reached_the_level():
    rows = [logged(4_000, 0.1), logged(8_000, 1.0), logged(12_000, 0.93), logged(16_000, 0.97)]
    assert collect_results.least_success_since(rows, 8_000) == 0.93
    assert collect_results.least_success_since(rows, 16_000) == 0.97


def test_nothing_to_collect_is_an_error(tmp_path):
    command = [sys.executable, "-m", "study.collect_results", tmp_path, tmp_path / "out"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "holds no finished run" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda run: run.rename(run.with_name("none")), "runs: must be a folder in which finished runs lie"),
        (lambda run: (run / "one/summary.json").write_text("{"), r"summary\.json: must be a JSON file"),
        (
            lambda run: (run / "one/summary.json").write_text("{}"),
            r"summary\.json: must be the summary.* has no algo",
        ),
        (lambda run: (run / "one/config.json").unlink(), r"config\.json: must be a JSON file"),
        (lambda run: (run / "one/metrics.jsonl").unlink(), r"metrics\.jsonl: must be what a finished run logged"),
        (lambda run: (run.parent / "out").touch(), "out: must be a folder that can be written"),
    ],
)
def test_what_cannot_be_collected_is_told_and_replaces_nothing(damage, sentence, tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "runs/one", rows=[logged(4_000, 0.1)])
    damage(tmp_path / "runs")
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "runs"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        collect_results.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and re.match(f"error: .*{sentence}", error) and error.count("\n") == 1
    assert not (tmp_path / "out").is_dir()


@pytest.mark.parametrize(
    ("program", "words"),
    [(collect_results, ["a"]), (collect_results, ["a", "b", "--c"]), (plot_results, ["all"])],
)
def test_words_that_mean_nothing_are_refused(program, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", *words])
    with pytest.raises(SystemExit) as stopped:
        program.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("place", ["folder", "file/out.csv", "/proc/none/out.csv"])
def test_a_place_that_cannot_be_written_is_told_before_any_work(place, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    out = tmp_path / place
    for module in (measure_gate, measure_starts):
        monkeypatch.setattr(module, "load_players", lambda files: pytest.fail("it began"))
        with pytest.raises(InputError, match=f"--out {out}: must be a file that can be written"):
            module.main(module.Options((PUBLISHED,), out))
    monkeypatch.setattr(shortest_ways, "shortest_length", lambda env_id: pytest.fail("it began"))
    with pytest.raises(InputError, match=f"--out {out}: must be a file that can be written"):
        shortest_ways.main(shortest_ways.Options(out=out))
    with pytest.raises(InputError, match=f"--study {out}: must be a file that can be written"):
        tune.main(tune.Options(study=out))
    target = out.parent if place != "folder" else tmp_path / "file"
    with pytest.raises(InputError, match=f"TARGET {target}: must be a folder that can be written"):
        publish_checkpoints.main(publish_checkpoints.Options(tmp_path, target))


def collect(out, monkeypatch):
    write_run(out.parent / "runs/plain", rows=[logged(4_000, 0.1)])
    monkeypatch.setattr(sys, "argv", ["", str(out.parent / "runs"), str(out.parent)])
    collect_results.main()


@pytest.mark.parametrize(
    "program",
    [
        collect,
        lambda out, _: measure_gate.main(measure_gate.Options((PUBLISHED,), out, episodes=5)),
        lambda out, _: measure_starts.main(measure_starts.Options((PUBLISHED,), out, episodes=2)),
        lambda out, _: shortest_ways.main(shortest_ways.Options(("MiniGrid-MemoryS5-v0",), out)),
    ],
    ids=["collect_results", "measure_gate", "measure_starts", "shortest_ways"],
)
def test_a_table_stays_until_the_next_one_is_written(program, tmp_path, monkeypatch):
    out = tmp_path / "runs.csv"
    out.write_text("earlier")

    def half(writer, rows):
        writer.writerow(rows[0])
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(csv.DictWriter, "writerows", half)
        with pytest.raises(OSError, match="disk full"):
            program(out, monkeypatch)
    assert out.read_text() == "earlier"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["runs.csv"]


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


def test_the_maze_study_is_the_unchanged_agents_of_the_scorecard(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    (tmp_path / "results/scorecard").mkdir(parents=True)
    named = ["s13/palmer", "s13/palmer_fixed_gate", "s11/lstm", "noisy_s17random/palmer", "s17random/no_recall"]
    pd.DataFrame({"experiment": named, "seed": 11}).to_csv(tmp_path / "results/scorecard/runs.csv", index=False)
    assert list(plot_results.of_mazes("runs")["experiment"]) == ["s13/palmer", "s11/lstm"]


def test_main_table_counts_solved_runs_and_takes_medians():
    table = plot_results.main_table(some_runs())
    assert table[1][:5] == ["S11", "14.4", "PALMER", "1 of 3", "0.960 (0.930)"]
    assert table[1][-3:] == ["0.20M", "20", "1.5"]
    assert table[3][2] == "PPO-TrXL" and table[3][-3] == "never"
    assert [row[0] for row in table[1:]] == ["S11"] * 3 + ["S17Random"] * 3


def test_all_mazes_together_tell_how_runs_end_and_how_soon_they_learned():
    runs = some_runs().assign(**{"least_success_after_0.99": 0.96})
    palmer, s17, first = runs["algo"] == "palmer", runs["env"].str.contains("S17"), runs["seed"] == 1
    runs.loc[palmer & s17, "seconds"] = 360.0
    runs.loc[palmer & s17 & first, ["least_success_after_0.99", "greedy_success", "success"]] = [0.9, 0.999, 0.9996]
    runs.loc[palmer & s17, "steps_to_0.99"] = [250_000, 300_000, 350_000]
    curves = [
        {"algo": algo, "env": env, "seed": seed, "step": step, "recall_loss": loss, "success": 1 - loss}
        for algo in ("palmer", "lstm", "trxl")
        for env in set(runs["env"])
        for seed in (1, 2, 3)
        for step, loss in ((100_000, 0.5), (199_000, 0.25 if seed == 1 else 0.125), (201_000, 0.0))
    ]
    header, ours, lstm, _, everyone = plot_results.ends_table(runs, pd.DataFrame(curves))
    ours, lstm, everyone = (dict(zip(header, row, strict=True)) for row in (ours, lstm, everyone))
    assert (ours["runs"], ours["at 0.99"], ours["at 1.000"], ours["least success"]) == ("6", "3", "1", "0.930")
    assert (ours["least greedy"], lstm["least greedy"]) == ("0.999", "1.000")
    assert ours["steps to 0.99"] == "0.20M to 0.30M" and lstm["steps to 0.99"] == "0.40M to 0.40M"
    # the shortest are 14.4 and 15.9 steps, all of these 15
    assert ours["longer than the shortest"] == "-5% to 4%" and ours["runs within 10%"] == "6"
    assert (ours["below 0.95 again"], ours["at the lowest"]) == ("1", "0.90")
    assert (lstm["below 0.95 again"], everyone["below 0.95 again"]) == ("0", "1")
    assert ours["PPO-LSTM's steps in its time"] == "25% to 100%" and lstm["PPO-LSTM's steps in its time"] == ""
    assert (ours["recall loss at 0.2M"], ours["success at 0.2M"]) == ("0.12", "0.88")
    assert (everyone["runs"], everyone["at 0.99"], everyone["steps to 0.99"]) == ("18", "7", "")


def test_pairs_are_of_the_same_maze_and_seed():
    runs = some_runs()
    palmer, s17 = runs["algo"] == "palmer", runs["env"].str.contains("S17")
    runs.loc[palmer & (runs["seed"] == 1), "length"] = 14.0
    runs.loc[palmer & s17 & (runs["seed"] == 2), "steps_to_0.99"] = math.nan  # never, as PPO-TrXL
    runs = runs[~((runs["algo"] == "trxl") & s17 & (runs["seed"] == 3))]
    assert plot_results.pairs_table(runs)[1:] == [
        ["PPO-LSTM", "6", "5", "0", "2"],
        ["PPO-TrXL", "5", "4", "0", "2"],
    ]
    assert plot_results.pairs_table(runs.query("algo == 'palmer'"))[1:] == []


def test_alone_table_gives_the_spread_of_the_clock_and_what_the_agents_solve():
    runs = some_runs().query("algo == 'palmer'").assign(threads=2, success=0.95)
    runs.loc[runs["env"].str.contains("S17") & (runs["seed"] == 3), ["steps_to_0.99", "seconds_to_0.99"]] = math.nan
    runs.loc[runs["env"].str.contains("S17"), "success"] = [0.99, 0.625, 0.875]
    table = plot_results.alone_table(runs)
    assert table[1:] == [
        ["S11", "3 of 3", "2", "20 (10 to 30)", "0.20M", "0.950 (0.950)"],
        ["S17Random", "2 of 3", "2", "20 (10 to 20)", "0.20M", "0.875 (0.625)"],
    ]


def test_scores_are_the_budget_left_and_zero_for_never():
    scores = plot_results.scores(some_runs())
    np.testing.assert_allclose(scores["palmer"], 0.8, atol=1e-4)
    assert scores["palmer"].shape == (3, 2)
    assert (scores["trxl"] == 0).all()


def test_aggregates_know_who_is_better(monkeypatch):
    monkeypatch.setattr(figures, "BOOTSTRAP_REPETITIONS", 50)
    table = plot_results.aggregates_table(some_runs())
    assert table[1][1] == "2 of 6" and table[1][2].startswith("0.800")
    assert table[2][3].startswith("1.00") and table[3][3].startswith("1.00"), "fewer steps in every run"
    assert table[2][4].startswith("0.50") and table[2][5].startswith("0.50"), "the same seconds and lengths"
    np.random.rand()
    assert plot_results.aggregates_table(some_runs()) == table, "intervals that are drawn anew"


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


def test_larger_mazes_are_played_with_a_held_gate_too_where_there_are_such_agents(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    assert plot_results.played_larger() == {}
    folder = tmp_path / "results" / "generalise"
    folder.mkdir(parents=True)
    (folder / "runs.jsonl").write_text('{"algo": "lstm", "seed": 1}\n{"algo": "palmer", "seed": 2}\n')
    played = plot_results.played_larger()
    assert {label: games["seed"].tolist() for label, games in played.items()} == {
        "PALMER": [2],
        "PPO-LSTM": [1],
        "PPO-TrXL": [],
    }
    (folder / "fixed_gate.jsonl").write_text('{"algo": "palmer", "seed": 3}\n')
    assert plot_results.played_larger()["gate held at 0.5"]["seed"].tolist() == [3]


def test_looks_tell_a_lack_of_looking_from_a_lack_of_memory():
    columns = ["checkpoint", "algo", "env", "episodes", "saw_cue", "wrong_object", "wrong_without_cue", "out_of_time"]
    keys = ("palmer", "MiniGrid-MemoryS11-v0")
    rows = [
        ("runs/scorecard/s11/no_recall/a/checkpoint.pt", *keys, 30, 1.0, 0.4, 0.0, 0.0),
        ("runs/scorecard/s11/no_recall/b/checkpoint.pt", *keys, 10, 1.0, 0.8, 0.0, 0.1),
        ("runs/scorecard/s11/no_visit_bonus/a/checkpoint.pt", *keys, 40, 0.2, 0.42, 0.4, 0.0),
        ("runs/scorecard/s11/palmer/a/checkpoint.pt", *keys, 40, 1.0, 0.0, 0.0, 0.0),
    ]
    assert plot_results.looks_table(pd.DataFrame(rows, columns=columns))[1:] == [
        ["nothing changed", "S11", "1", "1.000", "0.000", "", "0.000"],
        ["recall", "S11", "2", "1.000", "0.500", "", "0.025"],
        ["visit bonus", "S11", "1", "0.200", "0.100", "0.500", "0.000"],
    ]


def test_tables_in_documents_are_replaced_where_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    (tmp_path / "REPORT.md").write_text("a\n<!-- table x -->\nold\n<!-- end -->\nb\n<!-- table y -->\n<!-- end -->\n")
    figures.replace_table("x", figures.markdown([["h", "i"], ["1", "2"]]))
    assert (tmp_path / "REPORT.md").read_text() == (
        "a\n<!-- table x -->\n| h | i |\n|---|---|\n| 1 | 2 |\n<!-- end -->\nb\n<!-- table y -->\n<!-- end -->\n"
    )


def test_a_document_stays_until_the_next_one_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    (tmp_path / "REPORT.md").write_bytes(document := b"a\n<!-- table x -->\nold\n<!-- end -->\nb\n")

    def half(file, text, **_):
        file.write_bytes(text.encode()[: len(text) // 2])
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="disk full"):
            figures.replace_table("x", "new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("REPORT.md", document)]


def test_a_figure_stays_until_the_next_one_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    figure, _ = figures.panels(1)
    figures.save(figure, "x")
    file = tmp_path / "results/figures/x.png"
    drawn = file.read_bytes()
    assert drawn.startswith(b"\x89PNG")

    def half(figure, file, **_):
        Path(file).write_bytes(drawn[:100])
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        figures.save(figure, "x")
    assert list(file.parent.iterdir()) == [file] and file.read_bytes() == drawn


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ([], "scorecard/runs"),
        (["scorecard/runs"], "scorecard/curves"),
        (["scorecard/runs", "scorecard/curves", "larger/runs"], "larger/curves"),
    ],
)
def test_nothing_is_drawn_unless_all_can_be(present, missing, tmp_path, monkeypatch, capsys):
    for name in present:
        (tmp_path / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"results/{name}.csv").write_bytes((ROOT / f"results/{name}.csv").read_bytes())
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", [""])
    with pytest.raises(SystemExit) as stopped:
        plot_results.main()
    sentence = f"error: results/{missing}.csv is missing; results/README.md says what makes it"
    assert (stopped.value.code, capsys.readouterr().err) == (2, sentence + "\n")
    assert not (tmp_path / "results/figures").exists()


# ------------------------------------------------------------------------------------------------ the PDF


def test_the_pdf_is_that_of_the_report():
    made_of = make_pdf.digest((ROOT / "REPORT.md").read_text(encoding="utf-8"))
    assert made_of.encode() in (ROOT / "docs/REPORT.pdf").read_bytes(), "python -m study.make_pdf"


def test_a_pdf_is_made_with_pictures_and_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", [""])
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/palmer.svg").write_bytes((ROOT / "docs/palmer.svg").read_bytes())
    text = "# A report\n\n## A part\n\n| a | b |\n|---|---|\n| 1 | `x_t` |\n\n"
    (tmp_path / "REPORT.md").write_text(text)
    make_pdf.main()
    file = tmp_path / "docs/REPORT.pdf"
    plain = file.read_bytes()
    assert plain.startswith(b"%PDF") and make_pdf.digest(text).encode() in plain and b"A report" in plain
    make_pdf.main()
    assert file.read_bytes() == plain, "the same report makes the same file"
    (tmp_path / "REPORT.md").write_text(text + "![Architecture](docs/palmer.svg)\n")
    make_pdf.main()
    pictured = file.read_bytes()
    assert len(pictured) > len(plain) + 1000
    (tmp_path / "REPORT.md").write_text(text + "![Nothing](docs/none.png)\n")
    with pytest.raises(Exception, match="none.png"):
        make_pdf.main()
    assert file.read_bytes() == pictured and len(list(file.parent.iterdir())) == 2


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
    with pytest.raises(InputError, match="--study .*none.log"):
        tune.main(tune.Options(study=tmp_path / "none.log", show=True))
    assert not (tmp_path / "none.log").exists()


def test_what_is_no_journal_of_a_search_is_refused(tmp_path):
    other = tmp_path / "other"
    for text, show in (("# README\n", True), ("# README\n", False), ("", True)):
        other.write_text(text)
        with pytest.raises(InputError, match=f"--study {other}: must be the journal of a search"):
            tune.main(tune.Options(study=other, show=show))
        assert other.read_text() == text


def test_the_search_starts_from_the_settings_of_the_scripts():
    settings = tune.suggest(optuna.trial.FixedTrial(tune.DEFAULTS))
    for script in (ppo_palmer, ppo_lstm, ppo_trxl):
        assert settings == pytest.approx({name: getattr(script.Args(), name) for name in settings})


def test_a_search_without_trials_is_refused(tmp_path):
    with pytest.raises(InputError, match="--trials 0: must be from 1"):
        tune.main(tune.Options(study=tmp_path / "journal.log", trials=0))
    assert not (tmp_path / "journal.log").exists()


def test_a_run_that_does_not_get_there_counts_twice_its_steps():
    flags = {"num_envs": 8, "num_steps": 16, "num_minibatches": 2, "width": 16, "obs_mode": "symbolic"}
    value = tune.train("lstm", "MiniGrid-MemoryS5-v0", 1000, flags, 2048)
    steps = math.log2(2 * 2048 / 100_000)
    seconds = 2 * value - steps  # log2 of seconds / 30
    assert 0 < 30 * 2**seconds < 60


def test_a_run_is_judged_when_it_first_gets_there(monkeypatch):
    def run(command, **_):
        flags = dict(zip(command[2::2], command[3::2], strict=True))
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
    publish_checkpoints.main(publish_checkpoints.Options(tmp_path / "runs", tmp_path / "pretrained", seed=1))
    file = tmp_path / "pretrained/lstm__MiniGrid-MemoryS5-v0.pt"
    assert file.stat().st_size < run.joinpath("checkpoint.pt").stat().st_size / 2
    assert str(tmp_path).encode() not in file.read_bytes(), "no word of where it was made"
    assert evaluate.main(evaluate.Args(checkpoint=str(file), episodes=4)) == expected
    _, task, checkpoint = evaluate.load_policy(file)
    assert set(load_aids(checkpoint, task, "the file").heads) == {"seen", "age"}, "for the page"


def test_checkpoints_are_published_all_or_none(tmp_path):
    finished, unfinished = (tmp_path / f"runs/{algo}__MiniGrid-MemoryS11-v0__s1" for algo in ("palmer", "trxl"))
    for folder in (finished, unfinished):
        folder.mkdir(parents=True)
        save_checkpoint(folder / "checkpoint.pt", load_checkpoint(PUBLISHED) | {"aids": {}})
    (finished / "summary.json").touch()
    options = publish_checkpoints.Options(tmp_path / "runs", tmp_path / "pretrained", seed=1)
    with pytest.raises(InputError, match=r"trxl__.*__s1: has not finished"):
        publish_checkpoints.main(options)
    (unfinished / "summary.json").touch()
    (unfinished / "checkpoint.pt").write_bytes(PUBLISHED.read_bytes()[:1000])
    with pytest.raises(InputError, match="the file is damaged"):
        publish_checkpoints.main(options)
    with pytest.raises(InputError, match="holds no run of seed 2"):
        publish_checkpoints.main(publish_checkpoints.Options(tmp_path / "runs", tmp_path / "pretrained", seed=2))
    assert not (tmp_path / "pretrained").exists()


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


class Corridor:
    """An environment whose episode ends as is written down; the agent stands in column 2, of a fork in column 8."""

    height, success_pos, agent_pos = 7, (9, 1), (2, 3)

    def __init__(self, length, terminated=False, truncated=False, success=False, sees_cue=True):
        self.unwrapped, self.sees_cue = self, sees_cue
        self.steps = [(False, False, False)] * (length - 1) + [(terminated, truncated, success)]

    def agent_sees(self, column, row):
        assert (column, row) == (1, 2), "the cue's place"
        return self.sees_cue

    def get_wrapper_attr(self, name):
        return {"tells": True}[name]

    def step(self, action):
        terminated, truncated, success = self.steps.pop(0)
        return (), float(success), terminated, truncated, {"is_success": success}


def played(corridor, values):
    """The moments of an episode in the corridor, with the first and the last value estimates."""
    episode = evaluate.Episode(corridor, slot=0, number=0, obs=())
    estimates = [values[0], *[0.25] * (len(corridor.steps) - 2), values[1]]
    for value in estimates:
        output = PolicyOutput(torch.zeros(1, 1, 3), torch.full((1, 1), value), torch.zeros(1, 1, 4), None)
        yield episode.moment(output, None, 0, 0)
        episode.act(0, None)
    yield episode.moment()


def test_lost_episodes_are_told_apart():
    corridors = [
        (Corridor(10, terminated=True, success=True), (0.5, 1.0)),
        (Corridor(11, terminated=True), (0.5, 0.0)),
        (Corridor(12, truncated=True), (0.5, 0.0)),
        (Corridor(13, terminated=True, truncated=True, sees_cue=False), (0.5, 0.0)),
    ]
    moments = [moment for corridor, values in corridors for moment in played(corridor, values)]
    episodes = list(measure_starts.episodes_of(moments))
    assert {episode.column for episode in episodes} == {2}
    assert measure_starts.summary(episodes) == {
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


def test_phases_begin_with_the_first_view_of_the_cue_and_with_the_fork():
    corridor = Corridor(6, terminated=True, sees_cue=False)
    phases = []
    for moment, phase in measure_gate.with_phases(played(corridor, (0.0, 0.0))):
        phases.append(phase)
        # What the agent will see and where it will stand when it acts next.
        corridor.sees_cue = moment.step == 1
        corridor.agent_pos = (8 if moment.step >= 3 else 2, 3)
    before, after, fork = measure_gate.PHASES
    assert phases == [before, before, after, after, fork, fork, fork]


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
    with pytest.raises(InputError, match="--episodes 0: must be from 1"):
        script.main(script.Options((PUBLISHED,), tmp_path / "out.csv", episodes=0))
    with pytest.raises(InputError, match=r"none\.pt: there is no such file"):
        script.main(script.Options((PUBLISHED, tmp_path / "none.pt"), tmp_path / "out.csv", episodes=10**6))
    run = tmp_path / "run"
    other = SHORT | {"env_id": "CartPole-v1", "total_timesteps": 256, "run_dir": str(run)}
    ppo_palmer.main(ppo_palmer.Args(**other))
    with pytest.raises(InputError, match=r"checkpoint\.pt: was trained on CartPole-v1; must be a maze"):
        script.main(script.Options((run / "checkpoint.pt",), tmp_path / "out.csv"))
    assert not (tmp_path / "out.csv").exists()


def test_the_gate_is_measured_where_there_is_one(tmp_path):
    published = ROOT / "pretrained/lstm__s11.pt"
    with pytest.raises(InputError, match="holds lstm, which has no gate"):
        measure_gate.main(measure_gate.Options((published,), tmp_path / "out.csv"))


def test_shortest_ways_are_those_of_memory_mazes():
    with pytest.raises(InputError, match="--env-ids CartPole-v1: must be mazes"):
        shortest_ways.main(shortest_ways.Options(("MiniGrid-MemoryS5-v0", "CartPole-v1")))
    with pytest.raises(InputError, match="--env-ids: none given"):
        shortest_ways.main(shortest_ways.Options(()))
