"""study/scorecard.py: every agent gets the same settings of a task, and what is cut goes on where it was."""

import csv
import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import ppo_lstm
import ppo_palmer
import ppo_trxl
from harness.flags import parse_args
from harness.input_error import InputError
from study import scorecard
from study.figures import markdown
from study.plot_scorecard import settings_table
from study.scorecard import ABLATIONS, AGENTS, TASKS, WITHOUT_FLAG, Options

ABLATED = {
    "no_recall": {"recall_coef"},
    "no_recall_at_all": {"recall_coef", "age_coef"},
    "no_visit_bonus": {"visit_bonus"},
    "plain_ppo": {"recall_coef", "age_coef", "visit_bonus"},
    "no_solved_entropy": {"solved_ent_coef"},
    "no_memory": {"forget"},
}
DIFFERENT = {
    "palmer_fixed_gate": {"fixed_gate"},
    "palmer_no_age": {"age_coef"},
}
RESULTS = Path(__file__).resolve().parent.parent / "results/scorecard/runs.csv"
SCRIPTS = {"palmer": ppo_palmer, "lstm": ppo_lstm, "trxl": ppo_trxl}


def settings_of(command, monkeypatch):
    """The script of a command, and the flags as it would read them."""
    script, *words = command
    monkeypatch.setattr("sys.argv", [script, *words])
    module = SCRIPTS[script.removeprefix("ppo_").removesuffix(".py")]
    args = vars(parse_args(module.Args, module.PRESETS))
    return script, {name: value for name, value in args.items() if name not in ("run_dir", "given_flags")}


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("task", TASKS)
def test_each_command_is_one_that_its_script_takes(task, agent, tmp_path, monkeypatch):
    script, settings = settings_of(scorecard.command(Options(out=tmp_path), task, agent, 11), monkeypatch)
    assert script == f"ppo_{AGENTS[agent][0]}.py" and settings["seed"] == 11
    assert settings["total_timesteps"] == TASKS[task].steps
    _, palmers = settings_of(scorecard.command(Options(out=tmp_path), task, "palmer", 11), monkeypatch)
    different = {name for name, value in settings.items() if value != palmers[name]}
    assert different == DIFFERENT.get(agent, set())


def test_published_rows_were_made_with_the_settings_of_their_task(tmp_path, monkeypatch):
    """A setting that changes would leave rows behind that `python -m study.scorecard` no longer makes."""
    with open(RESULTS, newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert rows
    monkeypatch.chdir(tmp_path)  # where no run of one's own could be gone on with
    for row in rows:
        task, agent = row["experiment"].split("/")
        words = ["python", *scorecard.command(Options(), task, agent, int(row["seed"]))]
        assert row["command"] == shlex.join(words)


def test_the_report_gives_the_settings_of_each_task():
    report = (RESULTS.parents[2] / "REPORT.md").read_text(encoding="utf-8")
    assert f"<!-- table settings -->\n{markdown(settings_table())}\n<!-- end -->" in report


@pytest.mark.parametrize("agent", ABLATIONS)
def test_an_ablation_is_palmer_without_one_part(agent, tmp_path, monkeypatch):
    _, palmers = settings_of(scorecard.command(Options(out=tmp_path), "s13", "palmer", 11), monkeypatch)
    words = scorecard.command(Options(out=tmp_path), "s13", agent, 11)
    if (part := agent.removeprefix("no_")) in WITHOUT_FLAG:
        assert words[:3] == ["-m", "study.without", part]
        words = words[3:]
    script, settings = settings_of(words, monkeypatch)
    different = {name for name, value in settings.items() if value != palmers[name]}
    assert script == "ppo_palmer.py" and different == ABLATED.get(agent, set())


@pytest.mark.parametrize("length", [100, 250, 500])
def test_a_solved_agent_has_no_entropy_in_a_tmaze(length):
    """There is one way only, of which entropy would only lead it away."""
    assert TASKS[f"tmaze_passive_{length}"].flags.endswith(" --solved-ent-coef 0")


@pytest.fixture
def runs(monkeypatch):
    """Stands in for training: the first attempt at a run leaves a checkpoint, the second one finishes it."""
    commands = []

    def run(words, env, **_):
        commands.append(words)
        assert env["OMP_NUM_THREADS"] == "1"
        folder = scorecard.Path(words[words.index("--seed") + 3])
        name = "summary.json" if (folder / "checkpoint.pt").exists() else "checkpoint.pt"
        (folder / name).write_text(json.dumps({}))

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_what_is_cut_goes_on_and_what_is_finished_stays(runs, tmp_path, capsys):
    options = Options(tasks=("parity_25",), agents=("palmer", "trxl"), seeds=(1001, 1002), jobs=2, out=tmp_path)
    with pytest.raises(SystemExit):
        scorecard.main(replace(options))
    assert "4 runs are unfinished" in capsys.readouterr().err
    assert all("--run-dir" in words for words in runs) and len(runs) == 4
    scorecard.main(replace(options))
    assert all("--resume" in words for words in runs[4:]) and len(runs) == 8
    scorecard.main(replace(options))
    assert len(runs) == 8
    assert len(list(tmp_path.rglob("summary.json"))) == 4


def test_what_another_machine_has_finished_is_left_out(runs, tmp_path, capsys):
    table = tmp_path / "runs.csv"
    table.write_text("experiment,seed\nparity_25/palmer,1001\npendulum/trxl,1002\n")
    options = Options(tasks=("parity_25",), agents=("palmer", "trxl"), seeds=(1001, 1002), but_for=table, dry=True)
    scorecard.main(replace(options))
    commands = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(words[1], words[words.index("--seed") + 1]) for words in commands] == [
        ("ppo_trxl.py", "1001"),
        ("ppo_palmer.py", "1002"),
        ("ppo_trxl.py", "1002"),
    ]


def test_a_dry_run_prints_a_command_a_line_and_makes_nothing(runs, tmp_path, capsys):
    scorecard.main(Options(seeds=(11, 12), out=tmp_path / "new", dry=True))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(TASKS) * len(AGENTS) and len(set(lines)) == len(lines)
    assert all(line.startswith("python ppo_") for line in lines)
    assert not runs and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "options, sentence",
    [
        (Options(tasks=("chess",)), "--tasks chess: must be of s11, s13, s13random, s17random"),
        (Options(agents=("gru",)), "--agents gru: must be of palmer, palmer_fixed_gate"),
        (Options(seeds=(1, -1)), "--seeds -1: must be from 0 to 99,999,999."),
        (Options(jobs=0), "--jobs 0: must be from 1 to 1,024."),
        (Options(but_for=scorecard.Path("/none")), "--but-for /none: must be a runs.csv of collect_results"),
        (Options(but_for=scorecard.Path(__file__)), "--but-for .*: must be a runs.csv of collect_results"),
    ],
)
def test_wrong_input_is_refused(options, sentence, runs):
    with pytest.raises(InputError, match=sentence):
        scorecard.main(options)
    assert not runs
