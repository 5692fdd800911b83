"""What scripts/ promises: the environment's set-up, train.sh, test.sh, sweep.sh and its table."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from stand_ins import ROOT, TRAINING_SCRIPT, make_repository, run

from scripts import check_sweep, sweep_table


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path)


def sweep(repository, *flags, **environment):
    settings = {
        "PYTHON": sys.executable,
        "ALGOS": "palmer lstm",
        "ENVS": "Maze-v0",
        "SEEDS": "1 2",
        **environment,
    }
    return run(repository, "scripts/sweep.sh", *flags, **settings)


def calls(repository):
    """The stand-ins' calls so far, by algorithm and seed; forgotten afterwards."""
    file = repository / "calls.jsonl"
    if not file.exists():
        return {}
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    file.unlink()
    by_run = {(call["script"][4:-3], call["flags"]["--seed"]): call for call in entries}
    assert len(by_run) == len(entries)  # no run was started twice
    return by_run


# ---------------------------------------------------------------- sweep.sh


def test_sweep_trains_everything_in_its_own_folder(repository):
    result = sweep(repository, "--total-timesteps", "77", ENVS="Maze-v0 ALE/Pong-v5")
    assert result.returncode == 0, result.stderr
    folders = {folder.name for folder in (repository / "runs" / "sweep").iterdir() if folder.is_dir()}
    assert folders == {
        f"{a}__{e}__s{s}" for a in ("palmer", "lstm") for e in ("Maze-v0", "ALE_Pong-v5") for s in (1, 2)
    }
    started = [json.loads(line)["flags"] for line in (repository / "calls.jsonl").read_text().splitlines()]
    assert len(started) == 8
    assert {"--env-id": "ALE/Pong-v5", "--seed": "2", "--total-timesteps": "77"}.items() <= started[-1].items()
    assert (repository / "runs/sweep/lstm__Maze-v0__s2/train.log").read_text() == "trained\n"


def test_sweep_shares_the_cores_between_the_jobs(repository):
    (repository / "bin").mkdir()
    (repository / "bin" / "nproc").write_text("#!/bin/sh\necho 6\n")
    (repository / "bin" / "nproc").chmod(0o755)
    path = f"{repository / 'bin'}:{os.environ['PATH']}"
    for jobs, threads in (("1", "6"), ("4", "1"), ("2", "3"), ("1000", "1")):
        assert sweep(repository, JOBS=jobs, SWEEP_DIR=f"runs/{jobs}", PATH=path).returncode == 0
        assert {call["threads"] for call in calls(repository).values()} == {threads}


def test_sweep_skips_what_is_finished(repository):
    sweep(repository)
    assert len(calls(repository)) == 4
    again = sweep(repository, SEEDS="1 2 3")
    assert calls(repository).keys() == {("palmer", "3"), ("lstm", "3")}
    assert again.returncode == 0
    assert again.stdout.count("finished before") == 4


def test_sweep_lists_failed_runs_and_goes_on_with_the_others(repository):
    result = sweep(repository, FAILING_SEED="1")
    assert result.returncode == 1
    assert len(calls(repository)) == 4
    assert "palmer__Maze-v0__s1: error: --seed fails on purpose" in result.stderr
    assert "2 runs are unfinished" in result.stderr
    assert (repository / "runs/sweep/lstm__Maze-v0__s2/summary.json").exists()

    (repository / "runs/sweep/palmer__Maze-v0__s1/left_over").touch()  # no checkpoint: starts afresh
    assert sweep(repository).returncode == 0
    restarted = calls(repository)
    assert restarted.keys() == {("palmer", "1"), ("lstm", "1")}
    assert all("--run-dir" in call["flags"] for call in restarted.values())
    assert not (repository / "runs/sweep/palmer__Maze-v0__s1/left_over").exists()


def test_sweep_resumes_what_has_a_checkpoint(repository):
    stopped = sweep(repository, STOPPING_SEED="2")
    assert stopped.returncode == 1
    assert "unfinished: runs/sweep/palmer__Maze-v0__s2: trained" in stopped.stderr
    calls(repository)
    assert sweep(repository).returncode == 0
    resumed = calls(repository)
    assert resumed.keys() == {("palmer", "2"), ("lstm", "2")}
    flags = resumed[("palmer", "2")]["flags"]
    assert flags["--resume"] == "runs/sweep/palmer__Maze-v0__s2"
    assert "--run-dir" not in flags
    log = (repository / "runs/sweep/palmer__Maze-v0__s2/train.log").read_text()
    assert log == "trained\ntrained\n"


def test_sweep_runs_jobs_at_once(repository):
    """Each stand-in waits until the other has started."""
    for algo in ("palmer", "lstm"):
        wait = f"""
import pathlib, time
pathlib.Path("started_{algo}").touch()
deadline = time.monotonic() + 300  # far beyond what any load makes of it
while len(list(pathlib.Path(".").glob("started_*"))) < 2:
    assert time.monotonic() < deadline
    time.sleep(0.01)
"""
        (repository / f"ppo_{algo}.py").write_text(wait + TRAINING_SCRIPT)
    assert sweep(repository, SEEDS="1", JOBS="2").returncode == 0


def test_a_dry_sweep_prints_commands_that_do_it_run_by_run(repository):
    settings = {"SWEEP_DIR": "runs/a b", "JOBS": "2", "ENVS": "Maze-v0 ALE/Pong-v5"}
    dry = sweep(repository, "--env-kwargs", '{"a": 1}', DRY="1", **settings)
    assert dry.returncode == 0 and not calls(repository) and not (repository / "runs").exists()
    commands = dry.stdout.splitlines()
    assert len(commands) == 8
    environment = {**os.environ, "PYTHON": sys.executable, "STOPPING_SEED": "2"}
    for command in commands:
        subprocess.run(command, shell=True, cwd="/", env=environment, capture_output=True)
    again = {**os.environ, "PYTHON": sys.executable}
    ended = [subprocess.run(command, shell=True, cwd="/", env=again, capture_output=True) for command in commands]
    assert not any(done.returncode for done in ended)
    started = [json.loads(line)["flags"] for line in (repository / "calls.jsonl").read_text().splitlines()]
    assert all(flags["--env-kwargs"] == '{"a": 1}' for flags in started)
    assert sum("--resume" in flags for flags in started) == 4 and len(started) == 12
    assert len(list((repository / "runs" / "a b").glob("*/summary.json"))) == 8


def test_sweep_makes_the_table(repository):
    result = sweep(repository, SEEDS="1 2 3", ALGOS="palmer")
    table = list(csv.DictReader((repository / "runs/sweep/summary.csv").open()))
    assert [row["seed"] for row in table] == ["1", "2", "3", "median of 3"]
    assert {row["algo"] for row in table} == {"palmer"}
    first, median = table[0], table[-1]
    assert (first["env"], first["steps"], first["seconds"]) == ("Maze-v0", "1000", "60.0")
    assert (first["success"], first["success_low"], first["success_high"]) == (
        "0.1",
        "0.05",
        "0.35",
    )
    assert (median["steps"], median["seconds"], median["success"]) == ("2000", "120.0", "0.2")
    assert median["steps_to_0.95"] == "200"
    # Two of three never reached 0.99: the middle run did not.
    assert [row["steps_to_0.99"] for row in table] == ["500", "", "", ""]
    assert "median of 3" in result.stdout
    assert "0.200" in result.stdout


def test_table_takes_runs_without_an_evaluation(repository):
    sweep(repository, SEEDS="1", ALGOS="palmer")
    file = repository / "runs/sweep/palmer__Maze-v0__s1/summary.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "evaluation": None}))
    assert sweep(repository, SEEDS="1", ALGOS="palmer").returncode == 0
    table = list(csv.DictReader((repository / "runs/sweep/summary.csv").open()))
    assert [row["success"] for row in table] == ["", ""]


@pytest.mark.parametrize(
    ("settings", "flags", "sentence"),
    [
        ({"JOBS": "0"}, "", "JOBS=0: must be a whole number from 1 to 9999"),
        ({"JOBS": "99999999999"}, "", "JOBS=99999999999: must be a whole number from 1 to 9999"),
        ({"ALGOS": "palmer dqn"}, "", "ALGOS: there is no ppo_dqn.py; use palmer, lstm or trxl"),
        ({"ALGOS": ""}, "", "ALGOS: is empty; must be palmer, lstm or trxl, or several of them"),
        ({"ALGOS": "../x"}, "", "ALGOS: ../x: must be palmer, lstm or trxl, or several of them"),
        ({"ENVS": ""}, "", "ENVS: is empty; must be ids of environments"),
        ({"ENVS": "a'b"}, "", "ENVS: a'b: must be ids of environments"),
        ({"ENVS": "*"}, "", "ENVS: *: must be ids of environments"),
        ({"ENVS": "A B A"}, "", "ENVS: A: is given twice; must be ids of environments, each once"),
        ({"SEEDS": "x"}, "", "SEEDS: x: must be whole numbers from 0 to 99,999,999"),
        ({"SEEDS": "1 -1"}, "", "SEEDS: -1: must be whole numbers from 0 to 99,999,999"),
        ({"SEEDS": "100000000"}, "", "SEEDS: 100000000: must be whole numbers from 0 to 99,999,999"),
        ({"SWEEP_DIR": "requirements.txt"}, "", "SWEEP_DIR=requirements.txt: must be a folder that can be written"),
        ({"DRY": "yes"}, "", "DRY=yes: must be 0 or 1"),
        ({"PYTHON": "/none"}, "", "PYTHON=/none: must be a Python of version 3.11 or newer"),
        ({}, "fast", "fast: must be a flag of the training scripts"),
        ({}, "--seed=3", "--seed=3: must not be given, as each run gets its own; use ENVS, SEEDS and SWEEP_DIR"),
        ({}, "--help", "--help: the flags are those of the training scripts, see python ppo_palmer.py --help"),
    ],
)
def test_sweep_refuses_what_no_run_could_start_with(repository, settings, flags, sentence):
    result = sweep(repository, *flags.split(), **settings)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"error: {sentence}\n")
    assert calls(repository) == {} and not (repository / "runs").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["palmer lstm", "CartPole-v1", "--memory-length", "9"], r"ppo_lstm.py: --memory-length 9: there is no such"),
        (["palmer", "CartPole-v1 No-v0"], "ppo_palmer.py: --env-id No-v0: must be the id of an environment"),
        (["palmer", "CartPole-v1", "--gamma", "2"], r"ppo_palmer.py: --gamma 2.0: must be from 0 to 1\."),
        (["lstm", "CartPole-v1", "--width", "8192", "--num-steps", "65536"], "ppo_lstm.py: .*GB of memory"),
    ],
)
def test_the_flags_of_a_sweep_are_those_of_its_scripts(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check_sweep.py", *words])
    with pytest.raises(SystemExit) as stopped:
        check_sweep.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and re.match(f"error: {sentence}", error) and error.count("\n") == 1


def test_flags_that_fit_every_script_of_a_sweep_are_not_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", "palmer lstm trxl", "CartPole-v1", "--preset", "report", "--gamma", "0.9"])
    check_sweep.main()
    assert capsys.readouterr() == ("", "")


def test_a_sweep_is_checked_before_it_starts(repository):
    (repository / "scripts/check_sweep.py").write_text("import sys; sys.exit(2 * ('--odd' in sys.argv))")
    assert sweep(repository, "--odd").returncode == 2
    assert calls(repository) == {} and not (repository / "runs").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the following arguments are required: folder; --help tells what is allowed."),
        (["a", "b"], "unrecognized arguments: b; --help tells what is allowed."),
        (["nowhere"], "nowhere: must be the folder of a sweep."),
        (["results/first_runs"], "results/first_runs: holds no finished run (no */summary.json)."),
    ],
)
def test_the_table_needs_the_folder_of_a_sweep(words, sentence, monkeypatch, capsys):
    """A committed summary.csv whose runs are not there stays."""
    monkeypatch.chdir(ROOT)
    committed = (ROOT / "results/first_runs/summary.csv").read_bytes()
    monkeypatch.setattr(sys, "argv", ["sweep_table.py", *words])
    with pytest.raises(SystemExit) as stopped:
        sweep_table.main()
    assert (stopped.value.code, capsys.readouterr().err) == (2, f"error: {sentence}\n")
    assert (ROOT / "results/first_runs/summary.csv").read_bytes() == committed


# ---------------------------------------------------------------- train.sh and the environment's set-up

# Stands for Python and for pip: `-m venv DIR` puts a copy of itself there. Notes what it is asked for.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$1 ${2:-}" in
    "-c "*) exit "${TOO_OLD:-0}" ;;
    "--version "*) echo "Python 3.12.0" ;;
    "-m venv")
        echo "venv" >>"$NOTES"
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        if [[ ${HANGS:-} == venv ]]; then touch "$NOTES.hanging"; exec sleep 30; fi
        ;;
    "-m pip")
        echo "pip ${*: -1}" >>"$NOTES"
        if [[ ${HANGS:-} == pip ]]; then touch "$NOTES.hanging"; exec sleep 30; fi
        exit "${PIP_FAILS:-0}"
        ;;
    *) echo "ran $*" >>"$NOTES" ;;
esac
"""


@pytest.fixture
def fake_python(repository):
    """PATH with stand-ins for every python, and NOTES, where they write what they were asked for."""
    folder = repository / "fake_bin"
    folder.mkdir()
    for name in ("python", "python3", *(f"python3.{minor}" for minor in range(11, 15))):
        (folder / name).write_text(FAKE_PYTHON)
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "NOTES": str(repository / "notes"), "PYTHON": ""}


def notes(repository):
    file = repository / "notes"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def test_train_installs_on_the_first_call_only(repository, fake_python):
    assert run(repository, "scripts/train.sh", "--seed", "3", cwd="/", **fake_python).returncode == 0
    assert notes(repository) == ["venv", "pip requirements.txt", "ran ppo_palmer.py --seed 3"]
    assert run(repository, "scripts/train.sh", SCRIPT="ppo_lstm.py", **fake_python).returncode == 0
    assert notes(repository) == ["ran ppo_lstm.py"]


def test_changed_requirements_are_installed(repository, fake_python):
    run(repository, "scripts/train.sh", **fake_python)
    notes(repository)
    with open(repository / "requirements.txt", "a") as requirements:
        requirements.write("rliable==1.2.0\n")
    run(repository, "scripts/train.sh", **fake_python)
    assert notes(repository) == ["pip requirements.txt", "ran ppo_palmer.py"]


def test_a_failed_install_is_repaired_at_the_next_call(repository, fake_python):
    assert run(repository, "scripts/train.sh", PIP_FAILS="1", **fake_python).returncode != 0
    assert notes(repository) == ["venv", "pip requirements.txt"]
    assert run(repository, "scripts/train.sh", **fake_python).returncode == 0
    assert notes(repository) == ["venv", "pip requirements.txt", "ran ppo_palmer.py"]


@pytest.mark.parametrize("killed_in", ["venv", "pip"])
def test_an_interrupted_install_is_repaired_at_the_next_call(repository, fake_python, killed_in):
    command = ["bash", str(repository / "scripts" / "train.sh")]
    environment = {**os.environ, **fake_python, "HANGS": killed_in}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    while not (repository / "notes.hanging").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (repository / ".venv" / "half_installed").touch()
    notes(repository)
    assert run(repository, "scripts/train.sh", **fake_python).returncode == 0
    assert notes(repository) == ["venv", "pip requirements.txt", "ran ppo_palmer.py"]
    assert not (repository / ".venv" / "half_installed").exists()


def test_too_old_python_is_refused(repository, fake_python):
    result = run(repository, "scripts/train.sh", TOO_OLD="1", **fake_python)
    assert result.returncode != 0
    assert "Python 3.11 or newer is needed" in result.stderr
    assert not (repository / ".venv").exists()


def test_an_environment_of_ones_own_is_used_as_it_is(repository, fake_python):
    own = {**fake_python, "PYTHON": str(repository / "fake_bin" / "python3")}
    assert run(repository, "scripts/train.sh", **own).returncode == 0
    assert notes(repository) == ["ran ppo_palmer.py"]


@pytest.mark.parametrize("script", ["ppo_dqn.py", "study", "requirements.txt"])
def test_unknown_script_is_refused(repository, fake_python, script):
    result = run(repository, "scripts/train.sh", SCRIPT=script, **fake_python)
    assert result.returncode == 2
    assert f"SCRIPT={script}: there is no such script" in result.stderr
    assert notes(repository) == []


def test_test_script_installs_the_tools_and_checks_style_then_tests(repository, fake_python):
    assert run(repository, "scripts/test.sh", "-k", "gate", **fake_python).returncode == 0
    assert notes(repository) == [
        "venv",
        "pip requirements-dev.txt",
        "ran -m ruff check",
        "ran -m ruff format --check",
        "ran -m pytest -q -n 2 --dist worksteal -k gate",
    ]


def test_ci_runs_the_tests(repository, fake_python):
    shutil.copytree(ROOT / ".ci", repository / ".ci")
    subprocess.run([str(repository / ".ci" / "run")], env={**os.environ, **fake_python}, cwd="/", check=True)
    assert notes(repository)[-1] == "ran -m pytest -q -n 2 --dist worksteal"
