"""Environments in processes of their own: the same episodes, and nothing is left of them however a run ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import pytest
import torch
from stand_ins import ROOT

from harness.input_error import RunError
from tasks import TaskArgs, make_envs

TRAIN = [
    *[sys.executable, "ppo_lstm.py", "--no-cuda", "--env-id", "CartPole-v1", "--async-envs"],
    *["--num-envs", "2", "--num-steps", "8", "--num-minibatches", "1", "--update-epochs", "1"],
    *["--eval-every", "0", "--checkpoint-every", "16", "--final-eval-episodes", "1"],
]


def test_they_play_the_episodes_that_they_would_play_one_after_the_other():
    both = [make_envs(TaskArgs("CartPole-v1", async_envs=in_processes), 2, seed=5) for in_processes in (False, True)]
    try:
        firsts = [envs.reset() for envs in both]
        ended = 0
        for step in range(60):
            steps = [envs.step(torch.tensor([step % 3 % 2, 1])) for envs in both]
            assert all(torch.equal(*pair) for pair in zip(*steps, strict=True))
            ended += int(steps[0].terminated.sum())
        assert torch.equal(*firsts) and ended > 4
        for alone, in_process in zip(*(envs.observations.frames for envs in both), strict=True):
            assert torch.equal(alone, in_process)
    finally:
        for envs in both:
            envs.close()


@pytest.mark.parametrize("killed", [[0], [1], [0, 1]])
def test_when_an_environments_process_is_killed_one_sentence_says_so(killed):
    envs = make_envs(TaskArgs("CartPole-v1", async_envs=True), 2)
    try:
        envs.reset()
        for number in killed:
            os.kill(envs._envs.processes[number].pid, signal.SIGKILL)
        with pytest.raises(RunError, match="CartPole-v1: its step fails, as its process ended with exit code -9"):
            envs.step(torch.tensor([0, 1]))
        assert not any(process.is_alive() for process in envs._envs.processes)
    finally:
        envs.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_a_terminal_sends_to_the_whole_group_stops_the_script_alone_which_saves(tmp_path, number):
    run = tmp_path / "run"
    words = [*TRAIN, "--total-timesteps", "1000000000", "--run-dir", str(run)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, **pipes)
    try:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, number)
        out, error = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0 and f"--resume {run}" in out and (run / "checkpoint.pt").exists()
    assert "fails" not in error
    if number != signal.SIGHUP:  # at that Python's own tracker of semaphores ends, too, and says so to nobody
        assert "Traceback" not in error


class Leaving(gymnasium.Env):
    """Ends its process at the first step, as if all were well."""

    observation_space, action_space = gymnasium.spaces.Discrete(2), gymnasium.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        return 0, {}

    def step(self, action):
        os._exit(0)


gymnasium.register("Leaving-v0", entry_point=Leaving)


def test_an_environment_that_ends_its_process_is_waited_for_no_longer():
    envs = make_envs(TaskArgs("test_async_envs:Leaving-v0", async_envs=True), 2)
    envs.reset()
    with pytest.raises(RunError, match="Leaving-v0: its step fails with (EOFError|ConnectionResetError|BrokenPipe)"):
        envs.step(torch.tensor([0, 1]))
    envs.close()


def test_when_the_run_is_killed_its_environments_processes_end_and_it_goes_on(tmp_path):
    folder = tmp_path / "run"
    command = [*TRAIN, "--total-timesteps", "1000000000", "--run-dir", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not (folder / "checkpoint.pt").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(workers) == 2
    finally:
        process.kill()
        process.communicate()
    for pid in workers:
        while Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text():
            time.sleep(0.05)

    steps = torch.load(folder / "checkpoint.pt", weights_only=True)["step"] + 32
    resume = [sys.executable, "ppo_lstm.py", "--resume", str(folder), "--total-timesteps", str(steps)]
    resumed = subprocess.run(resume, cwd=ROOT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == steps
    assert {file.name for file in folder.iterdir() if "events" not in file.name and file.name != ".lock"} == {
        *("checkpoint.pt", "config.json", "metrics.jsonl", "summary.json")
    }
