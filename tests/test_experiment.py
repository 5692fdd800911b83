"""What experiment.py promises: flags, the run's folder, checkpoints, progress, randomness, stopping."""

import dataclasses
import io
import json
import math
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
from typing import Literal

import experiment
import numpy as np
import pytest
import torch
from experiment import (
    Interrupt,
    Progress,
    RunFolder,
    choose_device,
    load_checkpoint,
    parse_args,
    random_state,
    resume_args,
    run_script,
    save_checkpoint,
    seed_everything,
    set_random_state,
    write_json,
)
from input_error import InputError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@dataclass
class Args:
    preset: Literal["default", "report"] = "default"
    env_id: str = "MiniGrid-MemoryS11-v0"
    exp_name: str = "test"
    seed: int = 1
    total_timesteps: int = 1000
    learning_rate: float = 1e-3
    normalise: bool = True
    cuda: bool = False
    run_dir: str = ""
    resume: str = ""
    track: bool = False
    wandb_project_name: str = "palmer"
    wandb_entity: str | None = None


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
def test_unknown_or_missing_preset_is_refused(monkeypatch, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        command_line(monkeypatch, *words)
    assert stopped.value.code == 2
    assert "--preset" in "".join(capsys.readouterr())


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


# ---------------------------------------------------------------- resuming


def test_resume_takes_the_stored_arguments(tmp_path, monkeypatch):
    stored_run(tmp_path / "run", learning_rate=0.5, seed=3, total_timesteps=50)
    for args in (command_line(monkeypatch, "--resume", tmp_path / "run"), Args(resume=str(tmp_path / "run"))):
        resumed = resume_args(args, Args)
        assert (resumed.learning_rate, resumed.seed, resumed.total_timesteps) == (0.5, 3, 50)
        assert resumed.resume == str(tmp_path / "run")


def test_resume_may_change_the_number_of_steps_even_to_the_default(tmp_path, monkeypatch):
    stored_run(tmp_path / "run", total_timesteps=50)
    args = command_line(monkeypatch, "--resume", tmp_path / "run", "--total-timesteps", Args.total_timesteps)
    assert resume_args(args, Args).total_timesteps == Args.total_timesteps


def test_resume_refuses_another_setting_even_the_default(tmp_path, monkeypatch):
    stored_run(tmp_path / "run", learning_rate=0.5)
    args = command_line(monkeypatch, "--resume", tmp_path / "run", "--learning-rate", Args.learning_rate)
    with pytest.raises(InputError, match=r"--learning-rate 0.001: .* 0.5, and only --total-timesteps"):
        resume_args(args, Args)
    with pytest.raises(InputError, match="--seed 9"):
        resume_args(Args(resume=str(tmp_path / "run"), seed=9), Args)


def test_resume_accepts_repeated_settings(tmp_path, monkeypatch):
    stored_run(tmp_path / "run", learning_rate=0.5)
    args = command_line(monkeypatch, "--resume", tmp_path / "run", "--learning-rate", 0.5)
    assert resume_args(args, Args).learning_rate == 0.5


def test_without_resume_the_arguments_stay_as_they_are():
    args = Args(seed=4)
    assert resume_args(args, Args) is args


def test_resume_refuses_folders_without_a_run(tmp_path):
    with pytest.raises(InputError, match=f"--resume {tmp_path / 'none'}: no run"):
        resume_args(Args(resume=str(tmp_path / "none")), Args)
    (tmp_path / "config.json").write_text('{"name": "another program"}')
    with pytest.raises(InputError, match="--resume .*no run"):
        resume_args(Args(resume=str(tmp_path)), Args)


def test_resume_refuses_a_run_without_a_checkpoint(tmp_path):
    RunFolder(tmp_path / "run", Args(), "palmer").close()
    with pytest.raises(InputError, match="--resume .*no checkpoint.pt"):
        resume_args(Args(resume=str(tmp_path / "run")), Args)


def test_resume_refuses_another_scripts_run(tmp_path):
    @dataclass
    class OtherArgs(Args):
        gate_floor: float = 0.2

    checkpoint = stored_run(tmp_path / "run")
    write_json(tmp_path / "run" / "config.json", {"algo": "palmer", "args": dataclasses.asdict(OtherArgs())})
    with pytest.raises(InputError, match="--resume .*'palmer'.*gate_floor"):
        resume_args(Args(resume=str(tmp_path / "run")), Args)
    with pytest.raises(InputError, match="--resume .*'palmer', not of 'lstm'"):
        RunFolder(tmp_path / "run", Args(), "lstm", checkpoint["log_sizes"])


# ---------------------------------------------------------------- the run's folder


def test_a_new_run_makes_its_folder_and_tells_how_it_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [RunFolder("", Args(env_id="ALE/Pong-v5"), "palmer") for _ in range(2)]
    for run in runs:
        run.close()
        assert run.path.parent == Path("runs")
        assert run.path.name.startswith("ALE_Pong-v5__test__1__")
    assert runs[0].path != runs[1].path  # made in the same second
    config = json.loads((runs[0].path / "config.json").read_text())
    assert config["algo"] == "palmer"
    assert config["args"] == dataclasses.asdict(Args(env_id="ALE/Pong-v5"))
    assert config["versions"]["torch"] == torch.__version__
    assert {"python", "gymnasium", "minigrid", "numpy", "commit"} <= config["versions"].keys()
    assert config["threads"] == torch.get_num_threads()
    assert "pytest" in config["command"] and config["command"].split()[0] == "python"


def test_git_commit_is_the_projects_own(tmp_path, monkeypatch):
    project = tmp_path / "around" / "project"
    project.mkdir(parents=True)
    monkeypatch.setattr(experiment, "__file__", str(project / "experiment.py"))
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]

    def commit(folder):
        subprocess.run([*git, "init", "-q"], cwd=folder, check=True)
        subprocess.run([*git, "add", "."], cwd=folder, check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], cwd=folder, check=True)

    commit(tmp_path / "around")
    assert experiment.git_commit() is None
    (project / "results").mkdir()
    (project / "results" / "runs.csv").write_text("0.5")
    (project / "experiment.py").write_text("pass")
    commit(project)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True)
    assert experiment.git_commit() == head.stdout.strip()
    (project / "results" / "runs.csv").write_text("1.0")
    assert experiment.git_commit() == head.stdout.strip()
    (project / "experiment.py").write_text("print()")
    assert experiment.git_commit() == head.stdout.strip() + "-dirty"


def test_unwritable_run_dir_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="--run-dir .*cannot be written"):
        RunFolder(tmp_path / "file" / "run", Args(), "palmer")
    # A folder where config.json should be written stands for one that refuses files.
    (tmp_path / "locked" / "config.json.tmp").mkdir(parents=True)
    with pytest.raises(InputError, match="--run-dir .*cannot be written"):
        RunFolder(tmp_path / "locked", Args(), "palmer")


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    RunFolder(tmp_path / "run", Args(), "palmer").close()
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


def test_a_killed_run_can_be_continued(tmp_path):
    """SIGKILL: nothing is flushed or closed."""
    script = f"""
import os, signal, test_experiment as t
run = t.RunFolder({str(tmp_path / "run")!r}, t.Args(), "palmer")
for step in range(3):
    run.log(step, {{"a": step}})
t.save_checkpoint(run.checkpoint_file, {{"algo": "palmer", "log_sizes": run.log_sizes()}})
for step in range(3, 30):
    run.log(step, {{"a": -1}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
    killed = subprocess.run([sys.executable, "-c", script], env=environment)
    assert killed.returncode == -signal.SIGKILL
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
    with pytest.raises(InputError, match="--track .*pip install wandb"):
        RunFolder(tmp_path / "run", Args(track=True), "palmer")
    assert not (tmp_path / "run").exists()


def test_wandb_that_does_not_start_is_refused_and_leaves_the_folder_free(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(broken=True))
    with pytest.raises(InputError, match="--track: .*no API key.*WANDB_MODE=offline"):
        RunFolder(tmp_path / "run", Args(track=True), "palmer")
    RunFolder(tmp_path / "run", Args(), "palmer").close()


def test_wandb_gets_metrics_and_videos_and_a_resume_continues_its_run(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    args = Args(track=True, wandb_project_name="project", wandb_entity="team")
    run = RunFolder(tmp_path / "run", args, "palmer")
    run.log(7, {"a": 1.0, "b": math.nan})
    run.log_video(7, tmp_path / "video.mp4")
    sizes = run.log_sizes()
    run.close()
    assert wandb.logged == [(7, {"a": 1.0}), (7, {"video": (str(tmp_path / "video.mp4"), "mp4")})]
    RunFolder(tmp_path / "run", args, "palmer", sizes).close()
    first, second = wandb.started
    assert (first["project"], first["entity"], first["name"]) == ("project", "team", "run")
    assert first["config"]["seed"] == 1
    assert first["dir"] == str(tmp_path / "run")
    assert (first["id"], second["id"], second["resume"]) == (None, "abc123", "allow")


def test_without_track_wandb_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = RunFolder(tmp_path / "run", Args(), "palmer")
    run.log_video(1, tmp_path / "video.mp4")
    run.close()


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
    script = f"""
import os, signal, torch, experiment
experiment.save_checkpoint({str(tmp_path / "c.pt")!r}, {{"algo": "palmer", "step": 1}})
def killed(payload, opened):
    opened.write(b"half a file")
    opened.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = killed
experiment.save_checkpoint({str(tmp_path / "c.pt")!r}, {{"algo": "palmer", "step": 2}})
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == -signal.SIGKILL
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


# ---------------------------------------------------------------- the progress line


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told to: clock.now += seconds."""
    fake = types.SimpleNamespace(now=0.0, monotonic=lambda: fake.now)
    monkeypatch.setattr(experiment, "time", fake)
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


def test_progress_shows_the_last_step_and_forced_updates_at_once(clock):
    stream = io.StringIO()
    progress = Progress(1000, stream=stream)
    progress.update(10, **FIGURES)
    progress.update(20, **FIGURES)
    progress.update(30, **FIGURES, force=True)
    progress.update(1000, **FIGURES)
    assert [line.split("/")[0] for line in stream.getvalue().splitlines()] == ["10", "30", "1,000"]


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
    longer = len(stream.getvalue()) - 1
    progress.update(2, sps=1, success_rate=0.5, length=14.0, episodic_return=None, force=True)
    assert len(stream.getvalue().split("\r")[-1]) >= longer - 1


def test_clock_format():
    assert [experiment.clock(seconds) for seconds in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


# ---------------------------------------------------------------- randomness and device


def draws():
    return [random.random(), random.gauss(0, 1), np.random.normal(), np.random.rand(), torch.rand(1).item()]


def test_the_same_seed_gives_the_same_numbers():
    seed_everything(3, torch_deterministic=True)
    first = draws()
    seed_everything(3, torch_deterministic=True)
    assert draws() == first
    seed_everything(4, torch_deterministic=True)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_flag_reaches_cudnn(deterministic):
    seed_everything(1, torch_deterministic=deterministic)
    assert torch.backends.cudnn.deterministic is deterministic


def test_random_state_survives_a_checkpoint(tmp_path):
    seed_everything(1, torch_deterministic=True)
    draws()  # leaves half a pair of normal numbers in NumPy's and Python's generators
    save_checkpoint(tmp_path / "c.pt", {"algo": "palmer", "random": random_state()})
    expected = draws()
    seed_everything(2, torch_deterministic=True)
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


def test_a_gpu_is_chosen_only_if_asked_for_and_never_made_the_default(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(cuda=True) == torch.device("cuda")
    assert choose_device(cuda=False) == torch.device("cpu")
    assert torch.get_default_device() == torch.device("cpu")


# ---------------------------------------------------------------- stopping


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
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
