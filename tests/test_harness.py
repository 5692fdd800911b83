"""What harness/ promises: flags, the run's folder, checkpoints, progress, randomness, stopping, the run itself."""

import ctypes
import dataclasses
import importlib
import io
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor

import harness.folder
import harness.progress
import harness.run
from harness.checkpoint import load_checkpoint, pack, save_checkpoint, unpack, write_json
from harness.flags import MAY_CHANGE, Range, check_args, metadata, parse_args, run_script
from harness.folder import RunFolder, git_commit
from harness.input_error import InputError, RunError
from harness.processes import choose_device
from harness.progress import Interrupt, Progress
from harness.randomness import random_state, seed_everything, set_random_state
from harness.resume import resume_args
from harness.run import Run, RunArgs
from palmer_policy import KeyValueCache, MemoryState
from tasks import TaskArgs


@dataclass
class Args:
    preset: Literal["default", "report"] = "default"
    env_id: str = "MiniGrid-MemoryS11-v0"
    seed: Annotated[int, Range(0, 99)] = 1
    total_timesteps: Annotated[int, Range(1, 10**6), MAY_CHANGE] = 1000
    learning_rate: Annotated[float, Range(0, 1, above=True)] = 1e-3
    final_learning_rate: Annotated[float | None, Range(0, 1)] = None
    normalise: bool = True
    cuda: Annotated[bool, MAY_CHANGE] = False
    run_dir: str = ""
    resume: Annotated[str, MAY_CHANGE] = ""
    track: Annotated[bool, MAY_CHANGE] = False


PRESETS = {"default": {}, "report": {"learning_rate": 2.75e-4, "normalise": False}}


def command_line(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["ppo_test.py", *map(str, words)])
    return parse_args(Args, PRESETS)


def rows(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def tensorboard_steps(folder, name):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    # Files are read in the order of their names, which within one second is that of the process numbers.
    return sorted(event.step for event in accumulator.Scalars(name))


def stored_run(folder, **changed):
    """A run's folder with one row and a checkpoint; returns the checkpoint."""
    run = RunFolder(folder, Args(run_dir=str(folder), **changed), "palmer")
    run.log(0, {"a": 0.0})
    save_checkpoint(run.checkpoint_file, {"algo": "palmer", "log_sizes": run.log_sizes()})
    run.close()
    return load_checkpoint(run.checkpoint_file)


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize("words", [["--preset", "report"], ["--preset=report"]])
def test_preset_values_become_the_defaults(monkeypatch, words):
    args = command_line(monkeypatch, *words)
    assert (args.preset, args.learning_rate, args.normalise) == ("report", 2.75e-4, False)


def test_flags_override_the_preset_on_either_side(monkeypatch):
    args = command_line(monkeypatch, "--learning-rate", 0.5, "--preset", "report", "--normalise")
    assert (args.preset, args.learning_rate, args.normalise) == ("report", 0.5, True)


def test_without_a_preset_the_defaults_hold(monkeypatch):
    assert command_line(monkeypatch) == Args()


def test_help_shows_the_presets_values(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        command_line(monkeypatch, "--preset", "report", "--help")
    assert "0.000275" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--preset", "other"], ["--preset"]])
def test_unknown_or_missing_preset_is_refused(monkeypatch, words):
    with pytest.raises(InputError, match="--preset.*must be default or report"):
        command_line(monkeypatch, *words)


def test_given_flags_are_known_in_every_spelling(monkeypatch):
    args = command_line(monkeypatch, "--total_timesteps", 5, "--learning-rate=1", "--no-normalise")
    assert args.given_flags == {"total_timesteps", "learning_rate", "normalise"}


def test_run_script_prints_input_errors_in_one_sentence(monkeypatch, capsys):
    def main(args):
        raise InputError(f"--seed {args.seed}: must not be 7")

    monkeypatch.setattr(sys, "argv", ["ppo_test.py", "--seed", "7"])
    with pytest.raises(SystemExit) as stopped:
        run_script(main, Args, PRESETS, "A test.")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: --seed 7: must not be 7\n"


def test_run_script_lets_other_errors_through(monkeypatch):
    def main(args):
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["ppo_test.py"])
    with pytest.raises(ZeroDivisionError):
        run_script(main, Args, PRESETS, "A test.")


def test_a_range_holds_its_ends_and_nothing_that_is_no_number():
    inside, above = Range(0, 1), Range(0, 1, above=True)
    assert [inside.holds(value) for value in (-1e-9, 0, 0.5, 1, 1 + 1e-9)] == [False, True, True, True, False]
    assert not above.holds(0) and above.holds(1e-9) and above.holds(1)
    for value in (math.nan, math.inf, -math.inf):
        assert not inside.holds(value) and not above.holds(value)
    assert (str(Range(1, 65_536)), str(above)) == ("from 1 to 65,536", "above 0 to 1")


def test_flags_out_of_their_range_are_refused_in_one_sentence():
    check_args(Args())
    check_args(Args(seed=99, learning_rate=1.0, final_learning_rate=0.0))
    for flags, sentence in (
        ({"seed": -1}, "--seed -1: must be from 0 to 99."),
        ({"total_timesteps": 10**7}, "--total-timesteps 10000000: must be from 1 to 1,000,000."),
        ({"learning_rate": 0.0}, "--learning-rate 0.0: must be above 0 to 1."),
        ({"learning_rate": math.nan}, "--learning-rate nan: must be above 0 to 1."),
        ({"final_learning_rate": math.inf}, "--final-learning-rate inf: must be from 0 to 1."),
    ):
        with pytest.raises(InputError) as error:
            check_args(Args(**flags))
        assert str(error.value) == sentence


def test_what_stands_beside_a_flag_is_found_whatever_else_stands_there():
    assert metadata(Args, Range)["total_timesteps"] == Range(1, 10**6)
    assert metadata(Args, Range).keys() == {"seed", "total_timesteps", "learning_rate", "final_learning_rate"}
    assert metadata(Args, str).keys() == {"total_timesteps", "cuda", "resume", "track"}


def test_run_script_ends_a_run_that_cannot_go_on_in_one_sentence_below_its_cause(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ppo_test.py"])

    def main(args):
        try:
            raise ZeroDivisionError("the motor is off")
        except ZeroDivisionError as error:
            raise RunError("its step fails.") from error

    with pytest.raises(SystemExit) as stopped:
        run_script(main, Args, PRESETS, "A test.")
    assert stopped.value.code == 1
    *cause, last = capsys.readouterr().err.splitlines()
    assert cause[-1] == "ZeroDivisionError: the motor is off" and last == "error: its step fails."

    def without_cause(args):
        raise RunError("a gradient is nan.")

    with pytest.raises(SystemExit):
        run_script(without_cause, Args, PRESETS, "A test.")
    assert capsys.readouterr().err == "error: a gradient is nan.\n"


# ---------------------------------------------------------------- resuming


def test_resume_takes_the_stored_arguments(tmp_path, monkeypatch):
    stored_run(tmp_path / "run", learning_rate=0.5, seed=3, total_timesteps=50)
    for args in (command_line(monkeypatch, "--resume", tmp_path / "run"), Args(resume=str(tmp_path / "run"))):
        resumed = resume_args(args)
        assert (resumed.learning_rate, resumed.seed, resumed.total_timesteps) == (0.5, 3, 50)
        assert resumed.resume == str(tmp_path / "run")


def test_resume_may_change_the_number_of_steps_even_to_the_default(tmp_path, monkeypatch):
    stored_run(tmp_path / "run", total_timesteps=50)
    args = command_line(monkeypatch, "--resume", tmp_path / "run", "--total-timesteps", Args.total_timesteps)
    assert resume_args(args).total_timesteps == Args.total_timesteps


def test_resume_refuses_another_setting_even_the_default(tmp_path, monkeypatch):
    stored_run(tmp_path / "run", learning_rate=0.5)
    args = command_line(monkeypatch, "--resume", tmp_path / "run", "--learning-rate", Args.learning_rate)
    with pytest.raises(InputError, match=r"--learning-rate 0.001: .* 0.5, and only --total-timesteps"):
        resume_args(args)
    with pytest.raises(InputError, match="--seed 9"):
        resume_args(Args(resume=str(tmp_path / "run"), seed=9))


def test_what_decides_what_is_learned_may_not_change_on_resume():
    changeable = {"cuda", "track", "capture_video", "resume", "checkpoint_every", "total_timesteps"}
    assert metadata(RunArgs, str).keys() == changeable
    assert not metadata(TaskArgs, str)


def test_resume_changes_what_may_change_and_only_if_it_is_given(tmp_path, monkeypatch):
    stored_run(tmp_path / "run", cuda=True, total_timesteps=50)
    args = command_line(monkeypatch, "--resume", tmp_path / "run", "--track")
    resumed = resume_args(args)
    assert (resumed.cuda, resumed.track, resumed.total_timesteps) == (True, True, 50)
    assert not resume_args(command_line(monkeypatch, "--resume", tmp_path / "run", "--no-cuda")).cuda


def test_resume_accepts_repeated_settings(tmp_path, monkeypatch):
    stored_run(tmp_path / "run", learning_rate=0.5)
    args = command_line(monkeypatch, "--resume", tmp_path / "run", "--learning-rate", 0.5)
    assert resume_args(args).learning_rate == 0.5


def test_without_resume_the_arguments_stay_as_they_are():
    args = Args(seed=4)
    assert resume_args(args) is args


def test_resume_refuses_folders_without_a_run(tmp_path):
    with pytest.raises(InputError, match=f"--resume {tmp_path / 'none'}: no run"):
        resume_args(Args(resume=str(tmp_path / "none")))
    (tmp_path / "config.json").write_text('{"name": "another program"}')
    with pytest.raises(InputError, match="--resume .*no run"):
        resume_args(Args(resume=str(tmp_path)))


def test_resume_refuses_a_run_without_a_checkpoint(tmp_path):
    RunFolder(tmp_path / "run", Args(), "palmer").close()
    with pytest.raises(InputError, match="--resume .*no checkpoint.pt"):
        resume_args(Args(resume=str(tmp_path / "run")))


def test_resume_refuses_another_scripts_run(tmp_path):
    @dataclass
    class OtherArgs(Args):
        memory_length: int = 64

    checkpoint = stored_run(tmp_path / "run")
    write_json(tmp_path / "run" / "config.json", {"algo": "palmer", "args": dataclasses.asdict(OtherArgs())})
    with pytest.raises(InputError, match="--resume .*'palmer'.*memory_length"):
        resume_args(Args(resume=str(tmp_path / "run")))
    with pytest.raises(InputError, match="--resume .*'palmer', not of 'lstm'"):
        RunFolder(tmp_path / "run", Args(), "lstm", checkpoint["log_sizes"])


# ---------------------------------------------------------------- the run's folder


def test_a_new_run_makes_its_folder_and_tells_how_it_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.orig_argv", ["/usr/bin/python3", "ppo_palmer.py", "--seed", "1"])
    runs = [RunFolder("", Args(env_id="ALE/Pong-v5"), "palmer") for _ in range(2)]
    for run in runs:
        run.close()
        assert run.path.parent == Path("runs")
        assert run.path.name.startswith("ALE_Pong-v5__ppo_palmer__1__")
    assert runs[0].path != runs[1].path  # made in the same second
    config = json.loads((runs[0].path / "config.json").read_text())
    assert config["algo"] == "palmer"
    assert config["args"] == dataclasses.asdict(Args(env_id="ALE/Pong-v5"))
    assert config["versions"]["torch"] == torch.__version__
    assert {"python", "gymnasium", "minigrid", "numpy", "commit"} <= config["versions"].keys()
    assert config["threads"] == torch.get_num_threads()
    assert config["command"] == "python ppo_palmer.py --seed 1"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder that git_commit takes for the project's, inside of another repository; `commit()` -> its commit."""
    folder = tmp_path / "around" / "project"
    folder.mkdir(parents=True)
    monkeypatch.setattr(harness.folder, "__file__", str(folder / "harness" / "folder.py"))

    def git(where, *words):
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *words]
        return subprocess.run(command, cwd=where, check=True, capture_output=True, text=True).stdout.strip()

    def commit(where=folder):
        git(where, "init", "-q")
        git(where, "add", ".")
        git(where, "commit", "-q", "--allow-empty", "-m", "first")
        return git(where, "rev-parse", "HEAD")

    def write(name, text):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    commit(folder.parent)
    return types.SimpleNamespace(commit=commit, write=write)


def test_git_commit_is_the_projects_own(project):
    assert git_commit() is None
    project.write("harness/folder.py", "pass")
    assert git_commit() is None
    commit = project.commit()
    assert git_commit() == commit
    project.write("harness/folder.py", "print()")
    assert git_commit() == commit + "-dirty"


def test_only_changed_code_makes_a_commit_dirty(project):
    """Results, agents, figures and texts are written between the runs of one study."""
    code = ["ppo.py", "study/tables.py", "scripts/train.sh", "requirements.txt", "requirements-dev.txt"]
    other = ["README.md", "REPORT.md", "results/runs.csv", "results/seed_1/summary.json", "pretrained/agent.pt"]
    other += ["docs/palmer.svg"]
    for name in code + other:
        project.write(name, "as it was committed")
    commit = project.commit()
    for name in other:
        project.write(name, "changed")
    assert git_commit() == commit
    for name in code:
        project.write(name, "changed")
        assert git_commit() == commit + "-dirty", name
        project.write(name, "as it was committed")
        assert git_commit() == commit, name


def test_unwritable_run_dir_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="--run-dir .*cannot be written"):
        RunFolder(tmp_path / "file" / "run", Args(), "palmer")
    # A folder where config.json should be written stands for one that refuses files.
    (tmp_path / "locked" / "config.json.tmp").mkdir(parents=True)
    with pytest.raises(InputError, match="--run-dir .*cannot be written"):
        RunFolder(tmp_path / "locked", Args(), "palmer")


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    stored_run(tmp_path / "run")
    with pytest.raises(InputError, match="--run-dir .*--resume"):
        RunFolder(tmp_path / "run", Args(), "palmer")


def test_a_folder_that_holds_only_a_log_is_taken(tmp_path):
    (tmp_path / "train.log").write_text("starting\n")
    RunFolder(tmp_path, Args(), "palmer").close()
    assert (tmp_path / "config.json").exists()


def test_metrics_reach_tensorboard_and_json(tmp_path):
    run = RunFolder(tmp_path / "run", Args(), "palmer")
    run.log(10, {"charts/SPS": torch.tensor(2.5), "losses/entropy": np.float32(0.5)})
    run.log(20, {"charts/SPS": 3})
    assert len(rows(run.path)) == 2  # before closing: a killed run keeps its rows
    run.close()
    first, second = rows(run.path)
    assert (first["step"], first["charts/SPS"], first["losses/entropy"]) == (10, 2.5, 0.5)
    assert 0 <= first["time"] <= second["time"]
    assert tensorboard_steps(run.path, "charts/SPS") == [10, 20]


def test_values_that_are_no_number_are_null_in_json_and_left_out_of_tensorboard(tmp_path):
    run = RunFolder(tmp_path / "run", Args(), "palmer")
    for step, value in enumerate([math.nan, math.inf, None, 1.0]):
        run.log(step, {"a": value})
    run.close()

    def refuse(literal):
        raise AssertionError(f"{literal} is not JSON")

    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["a"] for line in lines] == [None, None, None, 1.0]
    assert tensorboard_steps(run.path, "a") == [3]


def test_a_resumed_run_has_no_row_twice_and_none_missing(tmp_path):
    args = Args(run_dir=str(tmp_path / "run"))
    run = RunFolder(args.run_dir, args, "palmer")
    for step in range(5):
        run.log(step, {"a": step})
    sizes = run.log_sizes()
    for step in range(5, 8):  # lost: the run is killed, in the middle of a row, before the next checkpoint
        run.log(step, {"a": -1})
    run.log_sizes()
    run._metrics.write('{"step": 8, "ti')
    run.close()

    second = RunFolder(args.run_dir, args, "palmer", sizes)
    second.log(5, {"a": 5})
    sizes_of_two = second.log_sizes()
    second.log(6, {"a": -1})
    second.close()

    for sizes_then, first_new in ((sizes_of_two, 6), (sizes, 5)):  # once more, and back to the first
        again = RunFolder(args.run_dir, args, "palmer", sizes_then)
        for step in range(first_new, 9):
            again.log(step, {"a": step})
        again.close()
        assert [row["step"] for row in rows(again.path)] == list(range(9))
        assert [row["a"] for row in rows(again.path)] == list(range(9))
        assert tensorboard_steps(again.path, "a") == list(range(9))


def test_log_sizes_count_every_row_so_far(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # its milliseconds would hide a missing flush
    run = RunFolder(tmp_path / "run", Args(), "palmer")
    for step in range(7):
        run.log(step, {f"metric_{i}": 1.0 for i in range(50)})
    sizes = run.log_sizes()
    run.close()  # writes what was still waiting
    files = [run.path / "metrics.jsonl", *run.path.glob("events.out.tfevents.*")]
    assert sizes == {file.name: file.stat().st_size for file in files}


def exit_code_of(work):
    """Of a process of its own that does `work`, as a copy of this one: starting Python anew takes seconds."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode


def test_a_killed_run_can_be_continued(tmp_path):
    """SIGKILL: nothing is flushed or closed."""

    def killed():
        run = RunFolder(tmp_path / "run", Args(), "palmer")
        for step in range(3):
            run.log(step, {"a": step})
        save_checkpoint(run.checkpoint_file, {"algo": "palmer", "log_sizes": run.log_sizes()})
        for step in range(3, 30):
            run.log(step, {"a": -1})
        os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code_of(killed) == -signal.SIGKILL
    assert len(rows(tmp_path / "run")) == 30

    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    run = RunFolder(tmp_path / "run", Args(), "palmer", checkpoint["log_sizes"])
    run.log(3, {"a": 3})
    run.close()
    assert [row["a"] for row in rows(run.path)] == [0, 1, 2, 3]
    assert tensorboard_steps(run.path, "a") == [0, 1, 2, 3]


def test_time_goes_on_from_the_earlier_session(tmp_path):
    checkpoint = stored_run(tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    file.write_text('{"step": 0, "time": 100.0, "a": 0.0}\n')
    checkpoint["log_sizes"]["metrics.jsonl"] = file.stat().st_size
    run = RunFolder(tmp_path / "run", Args(), "palmer", checkpoint["log_sizes"])
    run.log(1, {"a": 1})
    assert 100 <= rows(run.path)[-1]["time"] < 160
    assert 100 <= run.seconds < 160
    run.close()


def test_a_resumed_run_stores_its_new_arguments_and_session(tmp_path):
    checkpoint = stored_run(tmp_path / "run")
    args = Args(run_dir=str(tmp_path / "run"), total_timesteps=5000)
    RunFolder(args.run_dir, args, "palmer", checkpoint["log_sizes"]).close()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["args"]["total_timesteps"] == 5000
    assert [session["versions"]["torch"] for session in config["resumed"]] == [torch.__version__]


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: os.truncate(file, 3)])
def test_logs_shorter_than_at_the_checkpoint_are_refused(tmp_path, damage):
    checkpoint = stored_run(tmp_path / "run")
    damage(tmp_path / "run" / "metrics.jsonl")
    with pytest.raises(InputError, match="--resume .*metrics.jsonl is missing or shorter"):
        RunFolder(tmp_path / "run", Args(), "palmer", checkpoint["log_sizes"])


def test_write_json_is_valid_json_and_whole(tmp_path, monkeypatch):
    file = tmp_path / "summary.json"
    write_json(file, {"evaluation": {"mean_return": math.nan, "interval": (0.5, math.inf)}, "steps": 3})
    assert json.loads(file.read_text()) == {
        "evaluation": {"mean_return": None, "interval": [0.5, None]},
        "steps": 3,
    }
    with pytest.raises(TypeError):
        write_json(file, {"not json": object()})
    assert json.loads(file.read_text())["steps"] == 3


# ---------------------------------------------------------------- wandb


class FakeWandb(types.ModuleType):
    """Records what a real wandb would be told."""

    Error = type("Error", (Exception,), {})

    def __init__(self, broken=False):
        super().__init__("wandb")
        self.broken = broken
        self.started = []
        self.logged = []

    def init(self, **settings):
        if self.broken:
            raise self.Error("no API key\nand more")
        self.started.append(settings)
        log = lambda values, step: self.logged.append((step, values))  # noqa: E731
        return types.SimpleNamespace(id=settings["id"] or "abc123", log=log, finish=lambda: None)

    def Video(self, file, format):
        return (file, format)


def test_track_without_wandb_is_refused_before_a_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="--track: .*pip install -r requirements.txt"):
        RunFolder(tmp_path / "run", Args(track=True), "palmer")
    assert not (tmp_path / "run").exists()


def test_wandb_that_does_not_start_is_refused_and_leaves_the_folder_free(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(broken=True))
    with pytest.raises(InputError, match="--track: .*no API key.*WANDB_MODE=offline"):
        RunFolder(tmp_path / "run", Args(track=True), "palmer")
    RunFolder(tmp_path / "run", Args(), "palmer").close()


def small_film(file):
    imageio.mimsave(file, [np.full((64, 96, 3), shade, np.uint8) for shade in (0, 120, 250)], fps=5)
    return file


def test_wandb_gets_metrics_and_videos_and_a_resume_continues_its_run(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_PROJECT", "project")
    args = Args(track=True)
    run = RunFolder(tmp_path / "run", args, "palmer")
    run.log(7, {"a": 1.0, "b": math.nan})
    run.log_video(7, small_film(tmp_path / "video.mp4"))
    sizes = run.log_sizes()
    run.close()
    assert wandb.logged == [(7, {"a": 1.0}), (7, {"video": (str(tmp_path / "video.mp4"), "mp4")})]
    RunFolder(tmp_path / "run", args, "palmer", sizes).close()
    first, second = wandb.started
    assert (first["project"], first["name"]) == ("project", "run")
    assert "entity" not in first, "so that wandb reads WANDB_ENTITY"
    assert first["config"]["seed"] == 1
    assert first["dir"] == str(tmp_path / "run")
    assert (first["id"], second["id"], second["resume"]) == (None, "abc123", "allow")


def test_without_track_wandb_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = RunFolder(tmp_path / "run", Args(), "palmer")
    run.log_video(1, small_film(tmp_path / "video.mp4"))
    run.close()


def test_tensorboard_gets_films_flags_and_charts(tmp_path):
    run = RunFolder(tmp_path / "run", Args(seed=7), "palmer")
    run.log_video(3, small_film(tmp_path / "video.mp4"))
    run.close()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    [film] = events.Images("evals/film")
    gif = Image.open(io.BytesIO(film.encoded_image_string))
    assert (film.step, gif.format, gif.size, gif.n_frames, gif.info["duration"]) == (3, "GIF", (48, 32), 3, 200)

    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    flags = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (flags["seed"].number_value, flags["agent"].string_value) == (7, "palmer")
    assert "run_dir" not in flags and "env_id" in flags
    charts = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    logged = {tag for group in charts.category for chart in group.chart for tag in chart.multiline.tag}
    assert {"train/success_rate", "losses/age_loss"} <= logged


# ---------------------------------------------------------------- checkpoints


def test_checkpoint_round_trip(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"algo": "palmer", "weights": {"w": torch.arange(3)}, "step": 4})
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded["weights"]["w"], torch.arange(3))
    assert (loaded["algo"], loaded["step"]) == ("palmer", 4)
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("failing", ["torch.save", "os.fsync", "os.replace"])
def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path, monkeypatch, failing):
    file = tmp_path / "c.pt"
    save_checkpoint(file, {"algo": "palmer", "step": 1})

    def disk_full(first, *rest):
        if failing == "torch.save":
            rest[0].write(b"half a file")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(failing, disk_full)
        save_checkpoint(file, {"algo": "palmer", "step": 2})
    assert load_checkpoint(file)["step"] == 1
    assert list(tmp_path.iterdir()) == [file]


def test_a_kill_while_saving_leaves_the_previous_checkpoint(tmp_path):
    def killed_in_the_middle(payload, opened):
        opened.write(b"half a file")
        opened.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def killed():
        torch.save = killed_in_the_middle
        save_checkpoint(tmp_path / "c.pt", {"algo": "palmer", "step": 2})

    save_checkpoint(tmp_path / "c.pt", {"algo": "palmer", "step": 1})
    assert exit_code_of(killed) == -signal.SIGKILL
    assert (tmp_path / "c.pt.tmp").read_bytes() == b"half a file"
    assert load_checkpoint(tmp_path / "c.pt")["step"] == 1
    save_checkpoint(tmp_path / "c.pt", {"algo": "palmer", "step": 3})  # over the half file left behind
    assert load_checkpoint(tmp_path / "c.pt")["step"] == 3


def test_missing_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    file = tmp_path / "c.pt"
    with pytest.raises(InputError, match=f"--checkpoint {file}: there is no such file"):
        load_checkpoint(file)

    save_checkpoint(file, {"algo": "palmer", "weights": torch.zeros(1000)})
    whole = file.read_bytes()
    for damaged in (whole[:100], whole[: len(whole) // 2], whole[:-10], b"", b"hello"):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=f"--checkpoint {file}: the file is damaged"):
            load_checkpoint(file)

    for foreign in (
        {"weights": torch.zeros(1)},
        [1, 2],
        {"algo": "palmer"},
        {"algo": "palmer", "format": 999},
        {"format": 1, "weights": torch.zeros(1)},
    ):
        torch.save(foreign, file)
        with pytest.raises(InputError, match=f"--resume {file}: not a checkpoint of this project"):
            load_checkpoint(file, flag="--resume")


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "made_by_the_checkpoint"),))

    save_checkpoint(tmp_path / "c.pt", {"algo": "palmer", "evil": Evil()})
    with pytest.raises(InputError, match="--checkpoint"):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "made_by_the_checkpoint").exists()


class Inner(NamedTuple):
    seen: Tensor


class Carry(NamedTuple):
    obs: Tensor
    state: MemoryState
    inner: Inner


def some_carry(B, cached):
    """Of B environments, with a memory of that many steps in a buffer with much room."""
    cache = KeyValueCache(torch.randn(B, 2, 1000, 8)).last(cached)
    state = MemoryState(torch.randn(1, B, 4), torch.randn(1, B, 4), (cache,), torch.arange(B))
    return Carry(torch.arange(10_000)[:B], state, Inner(torch.ones(9000, B, dtype=torch.bool)[7]))


def leaves(tree):
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else []
    return [leaf for part in parts for leaf in leaves(part)]


def test_pack_copies_views_so_that_no_storage_behind_them_is_saved(tmp_path):
    carry = some_carry(3, 5)
    packed = pack({"carry": carry, "numbers": (1, None, "text"), "tensor": torch.zeros(1000)[4:6]})
    carry.obs.add_(1)  # what goes on must not change what is packed
    assert packed["carry"]["obs"].tolist() == [0, 1, 2]
    save_checkpoint(tmp_path / "c.pt", {"algo": "palmer", **packed})
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert loaded["numbers"] == [1, None, "text"]
    assert len(leaves(loaded)) == 7
    for leaf in leaves(loaded):
        assert leaf.untyped_storage().nbytes() == leaf.numel() * leaf.element_size(), leaf.shape


def test_unpack_gives_back_what_was_packed_whatever_the_sizes_of_its_likeness(tmp_path):
    carry = some_carry(3, 5)
    save_checkpoint(tmp_path / "c.pt", {"algo": "palmer", "carry": pack(carry)})
    again = unpack(load_checkpoint(tmp_path / "c.pt")["carry"], like=some_carry(2, 0))
    assert [type(part) for part in (again, again.state, again.inner)] == [Carry, MemoryState, Inner]
    assert torch.equal(again.obs, carry.obs) and torch.equal(again.inner.seen, carry.inner.seen)
    for ours, theirs in zip(again.state.tensors(), carry.state.tensors(), strict=True):
        assert torch.equal(ours, theirs)


# ---------------------------------------------------------------- the progress line


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told to: clock.now += seconds."""
    fake = types.SimpleNamespace(now=0.0, monotonic=lambda: fake.now)
    monkeypatch.setattr(harness.progress, "time", fake)
    return fake


FIGURES = {"sps": 24310.2, "success_rate": 0.873, "length": 14.25, "episodic_return": 0.9}


def test_progress_tells_where_the_run_is(clock):
    stream = io.StringIO()
    progress = Progress(2000, start_step=500, stream=stream)
    clock.now = 100.0
    progress.update(1000, **FIGURES)  # 500 steps in 100 s of this session: 200 s for the other 1,000
    line = stream.getvalue()
    assert line == "1,000/2,000 steps   50%  24,310 steps/s  success 0.873  length 14.2  3:20 left\n"


def test_progress_shows_the_return_where_there_is_no_success_rate(clock):
    stream = io.StringIO()
    progress = Progress(2000, stream=stream)
    progress.update(2000, sps=1, success_rate=None, length=None, episodic_return=-1.5)
    assert "return -1.500  length -" in stream.getvalue()
    assert "success" not in stream.getvalue()


def test_progress_in_a_file_is_a_plain_line_every_ten_seconds_and_at_the_end(clock):
    stream = io.StringIO()
    progress = Progress(1000, stream=stream)
    for step in range(0, 251, 10):
        clock.now = step / 10  # 0 to 25 s
        progress.update(step, **FIGURES)
    progress.note("checkpoint saved")
    progress.close()
    assert "\r" not in stream.getvalue()
    starts = [line.split()[0] for line in stream.getvalue().splitlines()]
    assert starts == ["0/1,000", "100/1,000", "200/1,000", "checkpoint", "250/1,000"]


def test_progress_shows_the_last_step_at_once(clock):
    stream = io.StringIO()
    progress = Progress(1000, stream=stream)
    progress.update(10, **FIGURES)
    progress.update(20, **FIGURES)
    progress.update(1000, **FIGURES)
    assert [line.split("/")[0] for line in stream.getvalue().splitlines()] == ["10", "1,000"]


def test_progress_on_a_terminal_is_rewritten_in_place_four_times_a_second(clock, monkeypatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((60, 24)))
    stream = Terminal()
    progress = Progress(10_000, stream=stream)
    for step in range(1, 101):
        clock.now += 0.01
        progress.update(step, **FIGURES)
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().count("\r") == 4
    assert all(len(line) <= 59 for line in stream.getvalue().split("\r"))  # never wraps
    progress.note("checkpoint saved")
    progress.close()
    lines = stream.getvalue().split("\n")
    assert lines[0].endswith("\rcheckpoint saved")
    assert lines[1].startswith("76/") or lines[1].startswith("77/")  # the line moved below the note
    assert lines[1].rpartition("\r")[2].startswith("100/")
    assert lines[2:] == [""]


def test_progress_leaves_nothing_of_a_longer_line(clock):
    stream = Terminal()
    progress = Progress(1000, stream=stream)
    progress.update(1, sps=1e9, success_rate=0.5, length=14.0, episodic_return=None)
    longer = len(stream.getvalue().split("\r")[-1])
    clock.now += 1.0
    progress.update(2, sps=1, success_rate=0.5, length=14.0, episodic_return=None)
    assert stream.getvalue().count("\r") == 2
    last = stream.getvalue().split("\r")[-1]
    assert len(last) == longer > len(last.rstrip())


def test_clock_format():
    assert [harness.progress.clock(seconds) for seconds in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


# ---------------------------------------------------------------- randomness and device


def draws():
    return [random.random(), random.gauss(0, 1), np.random.normal(), np.random.rand(), torch.rand(1).item()]


def test_the_same_seed_gives_the_same_numbers():
    seed_everything(3)
    first = draws()
    seed_everything(3)
    assert draws() == first
    seed_everything(4)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_a_seed_makes_cudnn_deterministic(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seed_everything(1)
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark


def test_random_state_survives_a_checkpoint(tmp_path):
    seed_everything(1)
    draws()  # leaves half a pair of normal numbers in NumPy's and Python's generators
    save_checkpoint(tmp_path / "c.pt", {"algo": "palmer", "random": random_state()})
    expected = draws()
    seed_everything(2)
    set_random_state(load_checkpoint(tmp_path / "c.pt")["random"])
    assert draws() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_random_state_holds_the_gpus():
    torch.cuda.manual_seed_all(1)
    state = random_state()
    expected = torch.rand(3, device="cuda")
    torch.rand(3, device="cuda")
    set_random_state(state)
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_a_missing_gpu_gives_the_cpu_and_one_notice(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(cuda=True) == torch.device("cpu")
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert choose_device(cuda=False) == torch.device("cpu")
    assert capsys.readouterr().out == ""


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs -> the numbers of those that were made the current one."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return current


def test_a_gpu_is_chosen_only_if_asked_for_and_never_made_the_default(two_gpus):
    assert choose_device(cuda=False) == torch.device("cpu") and two_gpus == []
    assert choose_device(cuda=True) == torch.device("cuda", 0) and two_gpus == [0]
    assert torch.get_default_device() == torch.device("cpu")


def test_each_process_on_a_machine_takes_its_own_gpu(two_gpus, monkeypatch):
    for local_rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        monkeypatch.setenv("RANK", "7")  # of all machines: says nothing about this one's GPUs
        assert choose_device(cuda=True) == torch.device("cuda", int(local_rank))
    assert two_gpus == [0, 1], "the current GPU too, on which NCCL works"


def test_more_processes_than_gpus_are_refused(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError) as error:
        choose_device(cuda=True)
    sentence = str(error.value)
    assert sentence.startswith("--cuda: ") and sentence.endswith(".") and "\n" not in sentence
    assert "at most 2 processes" in sentence and "--no-cuda" in sentence
    assert choose_device(cuda=False) == torch.device("cpu") and two_gpus == []


# ---------------------------------------------------------------- stopping


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_asks_and_second_stops(signal_number):
    before = signal.getsignal(signal_number)
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), signal_number)
        assert interrupt.requested
        os.kill(os.getpid(), signal_number)
        pytest.fail("the second signal did not stop")
    assert signal.getsignal(signal_number) is before


def test_interrupt_restores_the_handlers():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_interrupt_does_nothing_in_another_thread():
    outcome = []

    def work():
        with Interrupt() as interrupt:
            outcome.append(interrupt.requested)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [False]
    assert signal.getsignal(signal.SIGINT) is before


def test_resuming_within_a_second_keeps_the_order_of_events(tmp_path, monkeypatch):
    """A later process can have the smaller number, and TensorBoard reads files in the order of their names."""
    args = Args(run_dir=str(tmp_path / "run"))
    time.sleep(1 - time.time() % 1)  # both within one second
    monkeypatch.setattr(os, "getpid", lambda: 99999)
    run = RunFolder(args.run_dir, args, "palmer")
    run.log(1, {"charts/x": 1.0})
    sizes = run.log_sizes()
    run.close()
    monkeypatch.setattr(os, "getpid", lambda: 11)
    run = RunFolder(args.run_dir, args, "palmer", sizes)
    run.log(2, {"charts/x": 2.0})
    run.close()
    names = sorted(path.name for path in (tmp_path / "run").glob("events.out.tfevents.*"))
    assert [".99999." in names[0], ".11." in names[1]] == [True, True]
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in events.Scalars("charts/x")] == [1, 2]


# ---------------------------------------------------------------- the run


@dataclass
class RunFlags(RunArgs, TaskArgs):
    num_envs: int = 4
    num_steps: int = 25
    num_minibatches: int = 2
    width: int = 8


class Envs:
    """Environments of which only the state counts: the number of the last observation."""

    tells_success, max_episode_steps = True, 10

    def __init__(self, exact_resume=True):
        self.exact_resume, self.state, self.closed = exact_resume, 0, False

    def reset(self):
        return torch.full((4,), -1)

    def state_dict(self):
        return {"state": self.state}

    def load_state_dict(self, state):
        self.state = state["state"]

    def close(self):
        self.closed = True


class Counter:
    """A part that all processes share."""

    value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


class RunCarry(NamedTuple):
    obs: Tensor
    memory: Tensor


FIRST = RunCarry(torch.arange(4), torch.zeros(3, 4))


def run_flags(tmp_path, **flags):
    """100 steps are an iteration, and four make a run."""
    defaults = {"run_dir": str(tmp_path / "run"), "cuda": False, "total_timesteps": 400, "checkpoint_every": 1e6}
    return RunFlags(**defaults | {"eval_every": 0} | flags)


def episodes(solved, failed=0):
    return torch.tensor([[1.0, 5.0, 1.0]] * solved + [[0.0, 9.0, 0.0]] * failed).reshape(-1, 3)


@pytest.fixture
def evaluations(monkeypatch):
    """No agent plays -> (step, episodes, greedy) of every evaluation."""
    asked = []

    def evaluate_policy(policy, task, algo, step, *, episodes, seed, greedy=False, video=None, track=None):
        asked.append((step, episodes, greedy))
        return {"mean_return": 0.5, "mean_length": 7.0, "success_rate": 0.25}

    monkeypatch.setattr(harness.run, "evaluate_policy", evaluate_policy)
    monkeypatch.setattr(harness.run, "describe", lambda result, trained_on: "described")
    return asked


@pytest.fixture
def process_group(tmp_path):
    """A group of this process alone, as torchrun's processes have one."""
    importlib.import_module("torch.distributed.nn.functional")  # see harness/processes.py
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, RunError, InputError])
def test_a_run_left_by_an_error_cleans_up(error, process_group, tmp_path):
    """Its process group, its folder's files, the handlers of signals."""
    before = handlers()
    with pytest.raises(error), Run(run_flags(tmp_path), "palmer") as run:
        run.restore(FIRST, Envs())
        metrics = run._folder._metrics
        assert handlers() != before and dist.is_initialized() and not metrics.closed
        raise error("in the middle")
    assert handlers() == before
    assert not dist.is_initialized()
    assert metrics.closed


def test_environments_that_cannot_be_shared_out_are_refused(process_group, tmp_path):
    before = handlers()
    with (
        pytest.raises(InputError, match="--num-minibatches 3: .*--num-envs 4"),
        Run(run_flags(tmp_path, num_minibatches=3), "palmer") as run,
    ):
        _ = run.num_envs
    assert handlers() == before and not dist.is_initialized()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [{"seed": -1}, {"resume": "nowhere"}])
def test_a_run_that_is_refused_joins_no_process_group(flags, tmp_path, monkeypatch):
    """Nobody would leave it."""
    monkeypatch.setattr(harness.run, "join_processes", lambda device: pytest.fail("joined"))
    with pytest.raises(InputError):
        Run(run_flags(tmp_path, **flags), "palmer")


def test_a_save_that_fails_does_not_keep_the_rest_from_being_cleaned_up(process_group, tmp_path, monkeypatch):
    def disk_full(file, payload):
        raise OSError("No space left on device")

    before = handlers()
    with pytest.raises(RunError, match="No space left"), Run(run_flags(tmp_path), "palmer") as run:
        run.restore(FIRST, Envs(exact_resume=False))
        run.save_when_due(FIRST)
        monkeypatch.setattr(harness.run, "save_checkpoint", disk_full)
        raise RunError("a reward is nan.")
    assert handlers() == before and not dist.is_initialized() and run._folder._metrics.closed


def test_a_run_that_cannot_go_on_says_how_far_it_came_and_saves_what_restarts_anyway(tmp_path):
    """Environments that restart lose nothing by a save in between; tables would go on from another point."""
    for name, envs, saved in (("restarting", Envs(exact_resume=False), True), ("table", Envs(), False)):
        flags = run_flags(tmp_path, run_dir=str(tmp_path / name), num_steps=2500, total_timesteps=10**6)
        with pytest.raises(RunError) as error, Run(flags, "palmer") as run:
            run.restore(FIRST, envs)
            assert run.goes_on()
            run.count(episodes(1))
            run.save_when_due(FIRST)
            raise RunError("a reward is nan.")
        assert str(error.value) == "a reward is nan. (10,000 steps were made before.)"
        assert (tmp_path / name / "checkpoint.pt").exists() == saved


def test_one_of_several_processes_never_saves_alone(tmp_path):
    """The others know nothing of its error: what they send next would be saved as if it were their state."""
    with pytest.raises(RunError), Run(run_flags(tmp_path), "palmer") as run:
        run.restore(FIRST, Envs(exact_resume=False))
        run.save_when_due(FIRST)
        run.processes = 2
        raise RunError("a reward is nan.")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_run_goes_on_for_its_steps(tmp_path, evaluations):
    seen = []
    with Run(run_flags(tmp_path, total_timesteps=350), "palmer") as run:
        run.restore(FIRST, Envs())
        while run.goes_on():
            seen.append((run.step, run.progress))
            run.count(episodes(1))
            run.log({})
        summary = run.finish("policy", FIRST)
    assert seen == [(0, 0), (100, 100 / 350), (200, 200 / 350), (300, 300 / 350)]
    assert summary["steps"] == 400 and summary["sps"] == pytest.approx(400 / summary["seconds"])
    assert evaluations == [(400, 1000, False), (400, 1000, True)]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert run._envs.closed
    *learned, last = rows(tmp_path / "run")
    assert [row["step"] for row in learned] == [100, 200, 300, 400]
    assert learned[1]["train/success_rate"] == 1.0 and learned[1]["charts/episodic_length"] == 5.0
    assert {name: value for name, value in last.items() if name != "time"} == {
        "step": 400,
        "evals/reward": 0.5,
        "evals/episode_length": 7.0,
        "evals/success_rate": 0.25,
    }


def test_the_share_solved_is_of_500_episodes_and_tells_when_levels_were_reached(tmp_path, evaluations):
    with Run(run_flags(tmp_path, total_timesteps=10**6, stop_at_success=1.0), "palmer") as run:
        run.restore(FIRST, Envs())
        shares = []
        for solved, failed in ((474, 0), (1, 0), (0, 25), (495, 5), (500, 0)):
            assert run.goes_on(), shares
            run.count(episodes(solved, failed))
            shares.append(run.share_solved)
        assert shares == [0.948, 0.95, 0.95, 0.99, 1.0]
        assert not run.goes_on()
        summary = run.finish("policy", FIRST)
    assert (summary["steps_to_0.95"], summary["steps_to_0.99"]) == (200, 400)
    assert 0 < summary["seconds_to_0.95"] < summary["seconds_to_0.99"] < summary["seconds"]


def test_stopping_at_success_needs_a_task_that_tells_it(tmp_path):
    envs = Envs()
    envs.tells_success = False
    flags = run_flags(tmp_path, stop_at_success=0.9)
    with pytest.raises(InputError, match="--stop-at-success 0.9: "), Run(flags, "palmer") as run:
        run.restore(FIRST, envs)
    assert not (tmp_path / "run").exists()


def test_evaluations_are_due_whenever_so_many_steps_were_passed(tmp_path, evaluations):
    with Run(run_flags(tmp_path, total_timesteps=1000, eval_every=250, eval_episodes=7), "palmer") as run:
        run.restore(FIRST, Envs())
        while run.goes_on():
            run.count(episodes(0))
            metrics = run.evaluate_when_due("policy")
            assert bool(metrics) == (run.step in (300, 500, 800, 1000))
    assert evaluations == [(step, 7, False) for step in (300, 500, 800, 1000)]
    assert metrics == {"evals/reward": 0.5, "evals/episode_length": 7.0, "evals/success_rate": 0.25}


def iterate(run, carry):
    """One iteration -> what the next starts from."""
    assert run.goes_on()
    run.count(episodes(1))
    run._envs.state, run._parts["counter"].value = run.step, 2 * run.step
    carry = RunCarry(carry.obs + 1, carry.memory + torch.rand(3, 4))
    run.save_when_due(carry)
    return carry


def test_a_checkpoint_is_due_every_so_many_seconds_and_a_run_resumed_from_it_goes_on_where_it_was(tmp_path):
    file = tmp_path / "run" / "checkpoint.pt"
    flags = run_flags(tmp_path, checkpoint_every=0.0)
    with Run(flags, "palmer") as run:
        carry = run.restore(FIRST, Envs(), counter=Counter())
        carry = iterate(run, carry)
        run.args.checkpoint_every = 1e6
        assert load_checkpoint(file)["step"] == 100
        expected = iterate(run, carry)
        assert load_checkpoint(file)["step"] == 100, "not due again"

    with Run(RunFlags(resume=str(tmp_path / "run")), "palmer") as run:
        envs, counter = Envs(), Counter()
        assert run.args == dataclasses.replace(flags, resume=str(tmp_path / "run"), checkpoint_every=0.0)
        resumed = run.restore(RunCarry(FIRST.obs * 0, FIRST.memory * 0), envs, counter=counter)
        assert (run.step, list(run.recent), envs.state, counter.value) == (100, [[1.0, 5.0, 1.0]], 100, 200)
        assert torch.equal(resumed.memory, carry.memory)
        again = iterate(run, resumed)
    assert torch.equal(again.obs, expected.obs) and torch.equal(again.memory, expected.memory), "and as random"


def test_environments_that_cannot_be_saved_restart(tmp_path, capsys):
    with Run(run_flags(tmp_path, checkpoint_every=0.0), "palmer") as run:
        iterate(run, run.restore(FIRST, Envs(exact_resume=False), counter=Counter()))
    with Run(RunFlags(resume=str(tmp_path / "run")), "palmer") as run:
        resumed = run.restore(FIRST, Envs(exact_resume=False), counter=Counter())
    assert resumed.obs.tolist() == [-1] * 4 and torch.equal(resumed.memory, FIRST.memory)
    assert run._envs.state == run.step == 100
    assert "all episodes restart" in capsys.readouterr().out


def test_ctrl_c_ends_a_run_after_its_iteration_without_an_evaluation(tmp_path, evaluations, capsys):
    with Run(run_flags(tmp_path), "palmer") as run:
        carry = run.restore(FIRST, Envs(), counter=Counter())
        carry = iterate(run, carry)
        os.kill(os.getpid(), signal.SIGINT)
        carry = iterate(run, carry)
        assert not run.goes_on()
        summary = run.finish("policy", carry)
    assert summary["steps"] == load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 200
    assert summary["evaluation"] is None and evaluations == []
    assert not (tmp_path / "run" / "summary.json").exists()
    assert f"--resume {tmp_path / 'run'}" in capsys.readouterr().out


def test_each_process_has_its_share_of_environments_and_seeds_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(harness.run, "join_processes", lambda device: (3, 4))
    run = Run(run_flags(tmp_path, seed=7, num_envs=24, num_minibatches=3), "palmer")
    assert (run.num_envs, run.env_seed) == (6, 7 + 3 * harness.run.PROCESS_SEED)
    with pytest.raises(InputError, match="--num-minibatches 4: .*processes \\(4\\)"):
        _ = Run(run_flags(tmp_path, num_envs=24, num_minibatches=4), "palmer").num_envs


# ---------------------------------------------------------------------------------- freed memory

ONE_BLOCK = """
import ctypes
from harness.freed_memory import keep_freed_memory

class Statistics(ctypes.Structure):  # mallinfo2(3)
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = [(name, ctypes.c_size_t) for name in names]

if {keep}:
    keep_freed_memory()
glibc = ctypes.CDLL(None)
glibc.mallinfo2.restype = Statistics
glibc.malloc.restype = ctypes.c_void_p
before = glibc.mallinfo2()
block = glibc.malloc(ctypes.c_size_t(20_000_000))
glibc.free(ctypes.c_void_p(block))
after = glibc.mallinfo2()
print(after.arena + after.hblkhd - before.arena - before.hblkhd)
"""


def bytes_kept(keep: bool) -> int:
    """After a block of 20 MB was freed."""
    code = ONE_BLOCK.format(keep=keep)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="an allocator other than that of glibc")
def test_freed_memory_is_kept_for_what_comes_next():
    assert bytes_kept(keep=False) < 1_000_000
    assert bytes_kept(keep=True) > 19_000_000


def test_a_run_keeps_freed_memory(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(harness.run, "keep_freed_memory", lambda: kept.append(True))
    Run(run_flags(tmp_path), "palmer")
    assert kept == [True]
