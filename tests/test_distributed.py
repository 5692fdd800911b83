"""Several processes under torchrun: the same gradient step as one, one writer, resumable, no orphans."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pair import spawn_pair

import ppo_lstm
import ppo_palmer
import ppo_trxl
from harness import processes
from memory_aids import MemoryAids
from tasks import make_envs

ROOT = Path(__file__).parent.parent
SCRIPTS = {"palmer": ppo_palmer, "lstm": ppo_lstm, "trxl": ppo_trxl}
TINY = "--env-id MiniGrid-MemoryS7-v0 --obs-mode symbolic --num-envs 8 --num-steps 16 --num-minibatches 2 --width 16 "
TINY += "--eval-every 0 --final-eval-episodes 5 --no-cuda"


def collect(script, num_envs=8):
    """A rollout of all environments, with episodes carried into it, and the policy that acted."""
    args = script.Args(env_id="MiniGrid-MemoryS7-v0", obs_mode="symbolic", max_episode_steps=20, width=16)
    if script is not ppo_lstm:
        args.trxl_heads = 2
    # No question is drawn at random, so that all processes are asked the same.
    args.age_coef, args.num_envs, args.num_steps, args.num_minibatches, args.update_epochs = 0.0, num_envs, 16, 1, 1
    torch.manual_seed(0)
    envs = make_envs(args, num_envs, seed=1)
    policy = script.make_policy(script.ALGO, vars(args), envs.observations.space, envs.action_space)
    aids = MemoryAids(args, envs, args.width, torch.device("cpu"))
    carry = script.first_carry(policy, envs, aids)
    for _ in range(2):
        batch, carry = script.rollout(args, policy, envs, carry)
        batch, carry = aids.first_visits(batch, carry, 0.1)
    return args, policy, aids, envs.observations, batch


def updated_parameters(collected, script, share=slice(None)):
    """Parameters after one step of plain gradient descent on the environments in `share`."""
    args, policy, aids, table, batch = collected
    part, _ = script.with_advantages(args, batch.select(torch.arange(8)[share]))
    args.max_grad_norm = 1e9
    learned = [*policy.parameters(), *aids.heads.parameters()]
    script.update(args, policy, torch.optim.SGD(learned, lr=1.0), aids, table, part, 0.01)
    return torch.nn.utils.parameters_to_vector(learned).detach()


def one_of_two(rank, algo, folder):
    collected = collect(SCRIPTS[algo])  # of all environments, by one process
    processes.join_processes(torch.device("cpu"))
    torch.save(updated_parameters(collected, SCRIPTS[algo], slice(rank, None, 2)), f"{folder}/{rank}.pt")
    processes.leave_processes()


@pytest.mark.parametrize("algo", SCRIPTS)
def test_two_processes_take_the_step_of_one(algo, tmp_path):
    script = SCRIPTS[algo]
    _, policy, aids, *_ = collect(script)
    before = torch.nn.utils.parameters_to_vector([*policy.parameters(), *aids.heads.parameters()]).detach()
    whole = updated_parameters(collect(script), script)
    half = updated_parameters(collect(script), script, slice(0, None, 2))
    spawn_pair(one_of_two, algo, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, whole, atol=1e-5, rtol=0)
    assert (whole - before).abs().max() > 1e-3 and (whole - half).abs().max() > 1e-4


def joined_and_left(rank, folder):
    before = set(os.listdir("/proc/self/task"))
    processes.join_processes(torch.device("cpu"))
    parameter = torch.nn.Parameter(torch.zeros(1))
    torch.optim.Adam([parameter])  # imports much of torch.distributed, which must not hold on to the group
    processes.gather({"some": torch.ones(3)})
    joined = set(os.listdir("/proc/self/task"))
    processes.leave_processes()
    left = set(os.listdir("/proc/self/task"))
    # A thread that ended stays in the list until the kernel has put it away, also when it was waited for (2 of
    # 200,000 did on a busy machine); one that something holds on to stays for good.
    until = time.monotonic() + 60
    while left - before and time.monotonic() < until:
        time.sleep(0.01)
        left = set(os.listdir("/proc/self/task"))
    Path(folder, str(rank)).write_text(json.dumps([len(joined - before), len(left - before)]))


def test_no_thread_outlives_the_group(tmp_path):
    spawn_pair(joined_and_left, tmp_path)
    for rank in (0, 1):
        joined, left = json.loads((tmp_path / str(rank)).read_text())
        assert joined > 0, "the group has threads of its own here"
        assert left == 0, "a thread that is left may abort the process at its end"


def torchrun(*flags):
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "ppo_palmer.py",
        *flags,
    ]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_a_run_of_two_processes_has_one_writer_and_resumes(tmp_path):
    run = tmp_path / "run"
    flags = [*TINY.split(), "--total-timesteps", "512", "--run-dir", str(run)]
    done = subprocess.run(torchrun(*flags), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [128, 256, 384, 512, 512]
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    processes = torch.load(run / "checkpoint.pt", weights_only=True)["processes"]
    assert len(processes) == 2
    assert not torch.equal(processes[0]["carry"]["obs"], processes[1]["carry"]["obs"]), "different episodes"
    flags = ["--resume", str(run), "--total-timesteps", "768"]
    done = subprocess.run(torchrun(*flags), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "summary.json").read_text())["steps"] == 768

    alone = subprocess.run(
        [sys.executable, "ppo_palmer.py", *flags], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert alone.returncode == 2 and "--resume" in alone.stderr and "2 processes" in alone.stderr


def test_when_one_process_dies_all_end(tmp_path):
    run = tmp_path / "run"
    flags = [*TINY.split(), "--total-timesteps", "1000000000", "--run-dir", str(run)]
    launcher = subprocess.Popen(
        torchrun(*flags), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert launcher.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    workers = [int(pid) for pid in children if b"ppo_palmer.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(workers[-1], signal.SIGKILL)
    launcher.communicate()
    assert launcher.returncode != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
