"""Whole runs of the scripts: repeatable, resumable after a kill, stoppable, evaluated as saved; wrong input."""

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from agents import TASKS, save_agent
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import memory_aids
import ppo_lstm
import ppo_palmer
import ppo_trxl
from harness import run
from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.flags import Range, metadata, run_script
from harness.input_error import InputError
from harness.run import PROCESS_SEED, RunArgs
from harness.tensorboard import CHARTS, RESULTS
from palmer_policy import TrXLPolicy
from tasks import TaskArgs, make_envs

ROOT = Path(__file__).parent.parent
SCRIPTS = [ppo_palmer, ppo_lstm, ppo_trxl]
TINY = {
    "env_id": "MiniGrid-MemoryS7-v0",
    "obs_mode": "symbolic",
    "max_episode_steps": 24,
    "total_timesteps": 6 * 4 * 16,
    "num_envs": 4,
    "num_steps": 16,
    "num_minibatches": 2,
    "width": 16,
    "eval_every": 128,
    "eval_episodes": 3,
    "final_eval_episodes": 5,
    "cuda": False,
}
SCALARS = {
    *("charts/episodic_return", "charts/episodic_length", "charts/SPS", "charts/learning_rate"),
    *("charts/entropy_coefficient", "evals/reward", "evals/episode_length", "evals/success_rate"),
    *("train/success_rate", "losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/recall_loss"),
    *("losses/approx_kl", "losses/old_approx_kl", "losses/clipfrac", "losses/explained_variance"),
    *("losses/age_loss", "losses/first_minibatch_ratio_error", "charts/visit_bonus"),
}
GATES = {f"gates/{name}" for name in ("agf_value", "min_gate_value", "max_gate_value", "std_gate_value")}


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_args(script, run_dir, **flags):
    return script.Args(**TINY | {"run_dir": str(run_dir)} | flags)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of an agent that has hardly learned anything."""
    folder = tmp_path_factory.mktemp("trained")
    ppo_palmer.main(tiny_args(ppo_palmer, folder, total_timesteps=64, eval_every=0))
    return str(folder / "checkpoint.pt")


def command(script_name, **flags):
    words = [sys.executable, script_name]
    for name, value in flags.items():
        flag = name.replace("_", "-")
        words += [f"--{flag}", str(value)] if not isinstance(value, bool) else [f"--{'' if value else 'no-'}{flag}"]
    return words


def rows(run_dir):
    """metrics.jsonl without what a clock decides."""
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("time", "charts/SPS")} for line in lines]


def tensorboard(run_dir):
    """Every scalar in the folder's TensorBoard files -> {name: [(step, value)]}, SPS without values."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, None if tag == "charts/SPS" else event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def checkpoint(run_dir):
    return torch.load(Path(run_dir) / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("anneal", [True, False])
def test_learning_rate_and_entropy_fall_to_nothing_together(tmp_path, anneal):
    args = tiny_args(ppo_palmer, tmp_path, anneal=anneal, eval_every=0, learning_rate=0.5e-3, ent_coef=0.5)
    ppo_palmer.main(args)
    logged = tensorboard(tmp_path)
    left = [1 - k / 6 if anneal else 1.0 for k in range(6)]
    for name, start in (("learning_rate", 0.5e-3), ("entropy_coefficient", 0.5)):
        assert [value for _, value in logged[f"charts/{name}"]] == pytest.approx([start * share for share in left])


@pytest.mark.parametrize("solved", [0.0, 1.0])
def test_what_is_solved_prices_the_entropy_of_a_run(tmp_path, monkeypatch, solved):
    monkeypatch.setattr(ppo_palmer.Run, "share_solved", solved)
    spreads, with_advantages = [], ppo_palmer.with_advantages
    monkeypatch.setattr(ppo_palmer, "with_advantages", lambda *a: spreads.append(with_advantages(*a)) or spreads[-1])
    ppo_palmer.main(tiny_args(ppo_palmer, tmp_path, eval_every=0, ent_coef=0.0, solved_ent_coef=0.5))
    expected = [solved * 0.5 * min(1, 2.5 * (1 - k / 6)) / spread.item() for k, (_, spread) in enumerate(spreads)]
    assert [value for _, value in tensorboard(tmp_path)["charts/entropy_coefficient"]] == pytest.approx(expected)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_writes_what_it_promises_and_is_evaluated_as_saved(script, tmp_path, capsys):
    summary = script.main(tiny_args(script, tmp_path / "run"))
    out = capsys.readouterr().out
    assert f"evaluate.py --checkpoint {tmp_path / 'run' / 'checkpoint.pt'}" in out
    names = tensorboard(tmp_path / "run").keys()
    assert names >= (SCALARS | GATES if script is ppo_palmer else SCALARS)
    charted = {tag for charts in CHARTS.values() for _, tags in charts.values() for tag in tags} | set(RESULTS)
    assert names >= (charted if script is ppo_palmer else charted - GATES)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["algo"] == script.ALGO and config["args"]["env_id"] == TINY["env_id"]
    assert config["versions"]["minigrid"]
    assert summary["steps"] == TINY["total_timesteps"] and summary["sps"] > 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == json.loads(json.dumps(summary))

    again = evaluate.main(evaluate.Args(checkpoint=str(tmp_path / "run" / "checkpoint.pt"), episodes=5, json=True))
    assert again == summary["evaluation"], "the saved agent is the trained one"


def test_the_same_seed_gives_the_same_run_bit_for_bit(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ppo_palmer.main(tiny_args(ppo_palmer, tmp_path / name, seed=seed))
    assert rows(tmp_path / "a") == rows(tmp_path / "b") != rows(tmp_path / "c")
    a, b = checkpoint(tmp_path / "a")["policy"], checkpoint(tmp_path / "b")["policy"]
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(script, monkeypatch, tmp_path):
    flags = {"total_timesteps": 40 * 4 * 16, "eval_every": 960, "update_epochs": 1}
    script.main(tiny_args(script, tmp_path / "whole", **flags))
    # An interruption must not find itself in the logs, so kill at some moment after the first checkpoint. A copy of
    # this process does as well as a new one, and need not start Python.
    killed = tmp_path / "killed"
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=script.main, args=(tiny_args(script, killed, **flags, checkpoint_every=0.1),))
    save_when_due = run.Run.save_when_due

    def save_or_wait(self, carry):
        save_when_due(self, carry)
        if (killed / "checkpoint.pt").exists() and len(rows_so_far(killed)) >= 8:
            time.sleep(1e6)  # for the end: it must not be over before

    with monkeypatch.context() as patched:
        patched.setattr(run.Run, "save_when_due", save_or_wait)
        process.start()
    while not (killed / "checkpoint.pt").exists() or len(rows_so_far(killed)) < 8:
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert len(rows_so_far(killed)) < 40, "the run must have been cut"
    with open(killed / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 99')  # what a kill may leave of a row
    script.main(script.Args(resume=str(killed), checkpoint_every=1e3))

    assert rows(killed) == rows(tmp_path / "whole")
    assert tensorboard(killed) == tensorboard(tmp_path / "whole")
    a, b = checkpoint(killed), checkpoint(tmp_path / "whole")
    for part in ("policy", "optimizer", "aids", "scale", "processes", "recent", "step"):
        assert identical(a[part], b[part]), part


def identical(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return a == b


def rows_so_far(run_dir):
    file = Path(run_dir) / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize("level", [0.05, None])
def test_a_run_may_stop_once_enough_is_solved(level, monkeypatch, tmp_path):
    """With two recent episodes instead of 500, chance solves enough within the first rollouts."""
    monkeypatch.setattr(run, "RECENT_EPISODES", 2)
    flags = {"num_envs": 16, "total_timesteps": 8192, "eval_every": 0, "max_episode_steps": 96}
    args = tiny_args(ppo_palmer, tmp_path / "run", stop_at_success=level, **flags)
    summary = ppo_palmer.main(args)
    assert (summary["steps"] < 8192) == (level is not None)
    assert summary["evaluation"]["episodes"] == args.final_eval_episodes, "the evaluation follows all the same"


def test_resuming_real_environments_says_that_episodes_restart(tmp_path, capsys):
    flags = {"env_backend": "gymnasium", "total_timesteps": 128, "eval_every": 0}
    ppo_palmer.main(tiny_args(ppo_palmer, tmp_path / "run", **flags))
    capsys.readouterr()
    summary = ppo_palmer.main(ppo_palmer.Args(resume=str(tmp_path / "run"), total_timesteps=256))
    assert "cannot be saved" in capsys.readouterr().out
    assert summary["steps"] == 256
    steps = [row["step"] for row in rows(tmp_path / "run") if "losses/entropy" in row]
    assert steps == [64, 128, 192, 256]


def test_ctrl_c_saves_and_exits_cleanly(tmp_path):
    flags = TINY | {"total_timesteps": 10**9, "eval_every": 0, "run_dir": tmp_path / "run"}
    process = subprocess.Popen(
        command("ppo_trxl.py", **flags), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while len(rows_so_far(tmp_path / "run")) < 3:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in error
    assert f"--resume {tmp_path / 'run'}" in out
    assert checkpoint(tmp_path / "run")["step"] == rows(tmp_path / "run")[-1]["step"]


def test_evaluate_prints_one_json_object_alone(monkeypatch, tmp_path, capfd):
    ppo_lstm.main(tiny_args(ppo_lstm, tmp_path / "run", total_timesteps=64, eval_every=0))
    file = tmp_path / "run" / "checkpoint.pt"
    _, *words = command("evaluate.py", checkpoint=file, episodes=7, seed=3, json=True, greedy=True)
    monkeypatch.setattr(sys, "argv", [*words, "--env-id", "MiniGrid-MemoryS9-v0"])
    capfd.readouterr()
    runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
    out, error = capfd.readouterr()
    assert not error
    result = json.loads(out)
    assert (result["env_id"], result["algo"], result["episodes"]) == ("MiniGrid-MemoryS9-v0", "lstm", 7)
    assert (result["seed"], result["greedy"], result["steps_trained"]) == (3, True, 64)
    assert 0 <= result["success_ci_low"] <= result["success_rate"] <= result["success_ci_high"] <= 1
    assert 1 <= result["mean_length"] <= 24 and 0 <= result["mean_return"] <= 1


class Chatty(gym.ObservationWrapper):
    """Prints, as BabyAI does."""

    def observation(self, obs):
        print("Sampling rejected")
        return obs


def test_what_an_environment_prints_is_no_part_of_the_json(monkeypatch, trained, capsys):
    make = evaluate.gym.make
    monkeypatch.setattr(evaluate.gym, "make", lambda *a, **k: Chatty(make(*a, **k)))
    evaluate.main(evaluate.Args(checkpoint=trained, episodes=2, json=True))
    out, error = capsys.readouterr()
    assert json.loads(out)["episodes"] == 2 and out.count("\n") == 1
    assert "Sampling rejected" in error


class PressesButtons(evaluate.gym.Wrapper):
    """Ends the first episode at the wrong object, the second at the right one; the others run until the limit."""

    def reset(self, *, seed=None, options=None):
        self.number, self.steps = (seed or 0) % evaluate.SEED_BLOCK, 0
        return self.env.reset(seed=seed)

    def step(self, action):
        self.steps += 1
        obs, _, _, _, info = self.env.step(action)
        over = self.steps >= 4
        # Success in the very step of the limit is a success.
        return obs, float(over and self.number == 1), over and self.number < 2, over and self.number > 0, info


def test_evaluation_tells_time_outs_from_wrong_objects(monkeypatch, trained):
    make = evaluate.gym.make
    monkeypatch.setattr(evaluate.gym, "make", lambda *a, **k: PressesButtons(make(*a, **k)))
    result = evaluate.main(evaluate.Args(checkpoint=trained, episodes=5))
    assert (result["success_rate"], result["timeout_rate"]) == (0.2, 0.6)


def test_evaluation_with_another_memory_length(monkeypatch, tmp_path):
    ppo_trxl.main(tiny_args(ppo_trxl, tmp_path / "run", total_timesteps=64, eval_every=0, memory_length=8))
    remember, cached = TrXLPolicy.remember, []

    def watched(self, x, state, episode_start):
        cached.append(len(state.cache[0]))
        return remember(self, x, state, episode_start)

    monkeypatch.setattr(TrXLPolicy, "remember", watched)
    for given, seen in ((None, 8), (5, 5), (20, 20)):
        cached.clear()
        file = str(tmp_path / "run" / "checkpoint.pt")
        result = evaluate.main(evaluate.Args(checkpoint=file, episodes=8, memory_length=given))
        assert result["memory_length"] == seen == max(cached) + 1, "the cached steps and the present one"


def test_a_memory_that_is_cut_off_has_the_present_step_alone(tmp_path):
    """With one memory alone and that one cut, what remains is the agent that forgets everything."""
    for algo, memory in (("lstm", "lstm"), ("trxl", "transformer")):
        whole, forgets = tmp_path / f"{algo}.pt", tmp_path / f"{algo}_forgets.pt"
        save_agent(whole, algo, **TASKS["continuous"])
        save_agent(forgets, algo, **TASKS["continuous"], forget=True)
        results = [
            evaluate.main(evaluate.Args(checkpoint=str(file), episodes=20, cut=cut))
            for file, cut in ((whole, memory), (forgets, None), (whole, None))
        ]
        assert results[0].pop("cut") == memory
        cut, expected, not_cut = (result["mean_return"] for result in results)
        assert cut == expected != not_cut


def test_the_other_memory_keeps_all(tmp_path):
    file = tmp_path / "palmer.pt"
    save_agent(file, "palmer", **TASKS["continuous"])
    args = [evaluate.Args(checkpoint=str(file), episodes=20, cut=cut) for cut in (None, "lstm", "transformer")]
    returns = [evaluate.main(arg)["mean_return"] for arg in args]
    assert len(set(returns)) == 3


def test_an_agent_whose_gate_had_a_floor_is_not_played_without_it(tmp_path):
    """Earlier versions had --gate-floor."""
    file = tmp_path / "earlier.pt"
    save_agent(file, "palmer", **TASKS["continuous"])
    checkpoint = load_checkpoint(file)
    save_checkpoint(file, checkpoint | {"args": checkpoint["args"] | {"gate_floor": 0.0}})
    evaluate.load_policy(file)
    save_checkpoint(file, checkpoint | {"args": checkpoint["args"] | {"gate_floor": 0.2}})
    with pytest.raises(InputError, match="earlier.pt: holds --gate-floor 0.2: must be from 0 to 0"):
        evaluate.load_policy(file)


def test_a_memory_answers_alone_as_if_the_gate_were_held_there(tmp_path):
    learned, held = tmp_path / "learned.pt", tmp_path / "held.pt"
    save_agent(learned, "palmer", **TASKS["continuous"])
    checkpoint = load_checkpoint(learned)
    without_gate = {name: value for name, value in checkpoint["policy"].items() if not name.startswith("gate.")}
    returns = {}
    for memory, gate in (("lstm", 0.0), ("transformer", 1.0)):
        args = checkpoint["args"] | {"fixed_gate": gate}
        save_checkpoint(held, checkpoint | {"args": args, "policy": without_gate})
        alone = evaluate.main(evaluate.Args(checkpoint=str(learned), episodes=20, alone=memory))
        assert alone.pop("alone") == memory
        assert alone["mean_return"] == evaluate.main(evaluate.Args(checkpoint=str(held), episodes=20))["mean_return"]
        returns[memory] = alone["mean_return"]
    returns["both"] = evaluate.main(evaluate.Args(checkpoint=str(learned), episodes=20))["mean_return"]
    assert len(set(returns.values())) == 3


def test_a_video_shows_five_episodes(monkeypatch, trained, tmp_path):
    shown = []
    add = evaluate.Film.add
    monkeypatch.setattr(evaluate.Film, "add", lambda self, *a, **k: shown.append(k["episode"]) or add(self, *a, **k))
    video = tmp_path / "episodes.mp4"
    flags = {"episodes": 12, "max_episode_steps": 6, "video": str(video)}
    result = evaluate.main(evaluate.Args(checkpoint=trained, **flags))
    assert result["episodes"] == 12 and sorted(set(shown)) == [1, 2, 3, 4, 5]
    assert video.stat().st_size > 1000


def test_what_cannot_be_filmed_is_told_before_it_is_played(monkeypatch, trained, tmp_path):
    monkeypatch.setattr(evaluate.gym.Wrapper, "render", lambda self: None)
    monkeypatch.setattr(evaluate, "play", lambda *a, **k: pytest.fail("it was played"))
    with pytest.raises(
        InputError, match="--video: MiniGrid-MemoryS7-v0 cannot be filmed, as its render gives NoneType"
    ):
        evaluate.main(evaluate.Args(checkpoint=trained, video=str(tmp_path / "film.gif")))
    assert not list(tmp_path.iterdir())


def test_capture_video_films_every_evaluation(tmp_path):
    flags = {"total_timesteps": 128, "eval_every": 64, "capture_video": True, "max_episode_steps": 6}
    ppo_trxl.main(tiny_args(ppo_trxl, tmp_path / "run", **flags))
    names = sorted(file.name for file in (tmp_path / "run" / "videos").iterdir())
    assert names == ["step_128.mp4", "step_64.mp4"]
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [image.step for image in events.Images("evals/memory")] == [64, 128, 128], "the last one is the final one"


def test_wilson_interval_against_published_values():
    """Brown, Cai & DasGupta 2001: 0 of 10 and 5 of 10 at 95%."""
    assert evaluate.wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert evaluate.wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_evaluation_counts_every_episode_once_and_its_seeds_are_held_out(monkeypatch, trained):
    seeds = []
    make = evaluate.make_real_env

    def recording(*args, **kwargs):
        env = make(*args, **kwargs)
        reset = env.reset
        env.reset = lambda seed: seeds.append(seed) or reset(seed=seed)
        return env

    monkeypatch.setattr(evaluate, "make_real_env", recording)
    evaluate.main(evaluate.Args(checkpoint=trained, episodes=150, seed=2, max_episode_steps=3, json=True))
    assert sorted(seeds) == [1_002_000_000 + i for i in range(150)]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ("--env-id Nonsense-v0", "--env-id Nonsense-v0"),
        ("--env-id MiniGrid-MemoryS8-v0", "--env-id MiniGrid-MemoryS8-v0"),
        ("--env-id MiniGrid-MemoryS3-v0", "--env-id MiniGrid-MemoryS3-v0"),
        ("--env-kwargs 3", "--env-kwargs 3"),
        ("--env-id no_such_module:Thing-v0", "--env-id no_such_module:Thing-v0"),
        ("--gamma nan", "--gamma nan"),
        ("--num-envs 1000000000000", "--num-envs 1000000000000"),
        ("--seed 4294967296", "--seed 4294967296"),
        ("--env-id CartPole-v1 --env-backend table", "--env-backend table"),
        ("--agent-view-size 4", "--agent-view-size 4"),
        ("--max-episode-steps -1", "--max-episode-steps -1"),
        ("--trxl-heads 5", "--trxl-heads 5"),
        ("--num-minibatches 3", "--num-minibatches 3"),
        ("--num-envs 0", "--num-envs 0"),
        ("--gamma 1.5", "--gamma 1.5"),
        ("--stop-at-success 1.5", "--stop-at-success 1.5"),
        ("--stop-at-success 0.9 --env-id CartPole-v1", "--stop-at-success 0.9"),
        ("--learning-rate 0", "--learning-rate 0"),
        ("--visit-bonus -0.1", "--visit-bonus -0.1"),
        ("--norm-adv no", "--norm-adv no"),
        ("--num-envs 65536 --num-steps 65536 --width 8192", "--width 8192"),
        ("--env-id CartPole-v1 --agent-view-size 5", "--agent-view-size 5"),
        ("--env-id small_envs:Case/NoRenderMode-v0 --capture-video", "--capture-video: small_envs"),
        ("--resume /nowhere", "--resume /nowhere"),
        ("--run-dir /proc/run", "--run-dir /proc/run"),
    ],
)
def test_wrong_input_ends_in_one_sentence_before_training(flags, sentence, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ppo_palmer.py", "--no-cuda", *flags.split()])
    with pytest.raises(SystemExit) as exit_:
        run_script(ppo_palmer.main, ppo_palmer.Args, ppo_palmer.PRESETS, "")
    out, error = capsys.readouterr()
    assert exit_.value.code == 2
    assert error.count("\n") == 1 and error.startswith("error: ") and sentence in error
    assert not out and not os.listdir(tmp_path), "nothing is trained or written"


def test_evaluate_refuses_what_does_not_fit(trained, tmp_path):
    ppo_lstm.main(tiny_args(ppo_lstm, tmp_path / "lstm", total_timesteps=64, eval_every=0))
    good = Path(trained)
    payload = torch.load(good, weights_only=True)
    other_algo, other_shape, damaged = (tmp_path / name for name in ("algo.pt", "shape.pt", "damaged.pt"))
    save_checkpoint(other_algo, payload | {"algo": "dqn"})
    save_checkpoint(other_shape, payload | {"args": payload["args"] | {"width": 32}})
    damaged.write_bytes(good.read_bytes()[:1000])
    for flags, sentence in (
        ({"checkpoint": str(tmp_path / "none.pt")}, "--checkpoint .*none.pt"),
        ({"checkpoint": str(damaged)}, "--checkpoint .*damaged.pt"),
        ({"checkpoint": str(other_algo)}, "--checkpoint .*algo.pt.* dqn.*palmer"),
        ({"checkpoint": str(other_shape)}, "--checkpoint .*shape.pt"),
        ({"checkpoint": str(good), "env_id": "CartPole-v1"}, "--env-id CartPole-v1"),
        ({"checkpoint": str(good), "episodes": 0}, "--episodes 0"),
        ({"checkpoint": str(good), "memory_length": 0}, "--memory-length 0"),
        ({"checkpoint": str(tmp_path / "lstm" / "checkpoint.pt"), "memory_length": 9}, "--memory-length 9.*lstm"),
        ({"checkpoint": str(tmp_path / "lstm" / "checkpoint.pt"), "cut": "transformer"}, "--cut transformer.*lstm"),
        ({"checkpoint": str(good), "cut": "gate"}, "--cut gate: must be lstm, transformer or None"),
        ({"checkpoint": str(tmp_path / "lstm" / "checkpoint.pt"), "alone": "lstm"}, "--alone lstm.*no gate"),
        ({"checkpoint": str(good), "alone": "gate"}, "--alone gate: must be lstm, transformer or None"),
        ({"checkpoint": str(good), "video": "film.avi"}, "--video film.avi"),
    ):
        with pytest.raises(InputError, match=sentence):
            evaluate.main(evaluate.Args(**flags))


def test_asking_for_a_missing_gpu_falls_back_with_a_notice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ppo_palmer.main(tiny_args(ppo_palmer, tmp_path / "run", total_timesteps=64, eval_every=0, cuda=True))
    assert capsys.readouterr().out.count("--cuda") == 1


# ------------------------------------------------------------------------------------ seeds


def test_held_out_seeds_are_none_that_training_uses():
    last = int(metadata(evaluate.Args, Range)["seed"].most)
    most_episodes = metadata(RunArgs, Range)["final_eval_episodes"].most
    assert last >= metadata(RunArgs, Range)["seed"].most, "training evaluates with its own seed"
    assert max(most_episodes, metadata(evaluate.Args, Range)["episodes"].most) <= evaluate.SEED_BLOCK
    for seed in (0, 1, 999, 1000, last - 1, last):
        for episode in (0, 1, evaluate.SEED_BLOCK - 1):
            assert 10**9 <= evaluate.held_out_seed(seed, episode) < 2**31
    ends = [evaluate.held_out_seed(seed, episode) for seed in range(1000) for episode in (0, evaluate.SEED_BLOCK - 1)]
    assert ends == sorted(set(ends)), "a thousand seeds share no episode"


SEEDS: list[int] = []  # with which environments were reset


class Seeded(gym.Env):
    """Tells with which seed it was reset."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        SEEDS.append(seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}


gym.register("Seeded-v0", Seeded)


def test_training_seeds_stay_below_those_held_out():
    """Of hundreds of processes with as many environments as are allowed, and after every resume."""
    seed, num_envs = (int(metadata(ppo_palmer.Args, Range)[name].most) for name in ("seed", "num_envs"))
    assert num_envs <= PROCESS_SEED, "no two processes play the same episodes"
    SEEDS.clear()
    envs = make_envs(TaskArgs("Seeded-v0"), 3, seed=seed + 511 * PROCESS_SEED)
    envs.reset()
    assert [seed for seed in SEEDS if seed is not None][-3:] == [seed + 511 * PROCESS_SEED + i for i in range(3)]
    assert max(SEEDS) + num_envs < 10**9
    for steps in range(300):
        SEEDS.clear()
        envs.load_state_dict(envs.state_dict() | {"steps": steps})
        envs.reset()
        assert len(SEEDS) == 3 and min(SEEDS) >= 0 and max(SEEDS) < 10**9


# ------------------------------------------------------------------------------------ any environment


class Endless(Seeded):
    """Never ends and has no time limit."""


gym.register("Endless-v0", Endless)


def test_an_evaluation_ends_where_episodes_do_not(monkeypatch, tmp_path, capsys):
    assert evaluate.UNLIMITED_STEPS <= 1000
    monkeypatch.setattr(evaluate, "UNLIMITED_STEPS", 30)
    flags = {"env_id": "Endless-v0", "max_episode_steps": None, "total_timesteps": 64, "eval_every": 64}
    evaluation = ppo_palmer.main(tiny_args(ppo_palmer, tmp_path / "run", **flags))["evaluation"]
    assert (evaluation["mean_length"], evaluation["timeout_rate"], evaluation["step_limit"]) == (30, 1, 30)
    assert evaluation["success_rate"] is None
    assert "no time limit is known" in capsys.readouterr().out
    again = evaluate.main(evaluate.Args(checkpoint=str(tmp_path / "run" / "checkpoint.pt"), episodes=2))
    assert again["mean_length"] == 30


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else []
    return [tensor for part in parts for tensor in tensors(part)]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MiniGrid-MemoryS7-v0"])
def test_a_checkpoint_holds_what_is_needed_and_nothing_behind_it(env_id, tmp_path):
    """A view would be saved with all that it is a view of: the buffers of caches, tables and codes."""
    flags = {"env_id": env_id, "obs_mode": "symbolic", "total_timesteps": 2 * 2048, "final_eval_episodes": 1}
    args = ppo_palmer.Args(**flags, cuda=False, eval_every=0, max_episode_steps=40, run_dir=str(tmp_path / "run"))
    ppo_palmer.main(args)
    saved = tensors(checkpoint(tmp_path / "run"))
    assert len(saved) > 50
    for tensor in saved:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), tensor.shape
    if env_id == "CartPole-v1":  # its episodes restart on resume, and what is in the middle of them is not kept
        assert (tmp_path / "run" / "checkpoint.pt").stat().st_size < 6e6


def test_a_resumed_gymnasium_run_keeps_what_its_aids_know_of_episodes(monkeypatch, tmp_path):
    """Its observations get new numbers, but the same look has the same code, and shares of episodes are by code."""
    flags = {"env_backend": "gymnasium", "total_timesteps": 256, "eval_every": 0}
    ppo_palmer.main(tiny_args(ppo_palmer, tmp_path / "run", **flags))
    saved = checkpoint(tmp_path / "run")["aids"]
    assert saved["episodes"] > 0 and saved["together"].any() and len(saved["codes"]["prototypes"]) > 10
    found, first_visits = [], memory_aids.MemoryAids.first_visits

    def watched(aids, batch, carry, fading):
        before = (aids.together.clone(), aids.episodes)
        result = first_visits(aids, batch, carry, fading)
        found.append((*before, aids.familiar.clone(), aids.codes.prototypes))
        return result

    monkeypatch.setattr(memory_aids.MemoryAids, "first_visits", watched)
    ppo_palmer.main(ppo_palmer.Args(resume=str(tmp_path / "run"), total_timesteps=320))
    ((together, episodes, familiar, prototypes),) = found
    assert episodes == saved["episodes"]
    assert torch.equal(together, saved["together"]) and torch.equal(familiar, saved["together"].diagonal())
    known = len(saved["codes"]["prototypes"])
    assert torch.equal(prototypes[:known], saved["codes"]["prototypes"])
    assert len(prototypes) < 2 * known, "what was known is found again"
