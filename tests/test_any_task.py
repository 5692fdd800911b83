"""Any observation, action and reward: the acting policy learns, statistics are shared, recall asks what it should."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import small_envs
import torch
from gymnasium import spaces
from pair import spawn_pair

import memory_aids
import ppo_lstm
import ppo_palmer
import ppo_trxl
from harness import processes
from harness.input_error import RunError
from harness.return_scale import ReturnScale
from memory_aids import Codes, MemoryAids, draw_ages, questions
from palmer_policy import RunningNorm, make_policy
from tasks import make_envs
from tasks.envs import maze_tables
from tasks.observations import ObservationTable, plain_space, words

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [ppo_palmer, ppo_lstm, ppo_trxl]


class Mixed(small_envs.Plain):
    """A picture, raw physical units, a choice and a text; a square of switches, counted from elsewhere."""

    observation_space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (1, 40, 44), np.uint8),
            "pressure": spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "gear": spaces.Discrete(4, start=-1),
            "order": spaces.Text(40),
        }
    )
    action_space = spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, 0], [0, 5]])

    def observe(self):
        return {
            "camera": self.np_random.integers(0, 256, (1, 40, 44)).astype(np.uint8),
            "pressure": self.np_random.normal(1e5, 3e3, 2),
            "gear": int(self.np_random.integers(-1, 3)),
            "order": ["go left", "go right now"][self.np_random.integers(2)],
        }

    def pay(self, action):
        assert self.action_space.contains(action)
        return 1.0


class Bounded(small_envs.Continuous):
    """Actions of a shape and with bounds on some sides only."""

    action_space = spaces.Box(np.float32([[-2, 0], [-np.inf, 1]]), np.float32([[2, 10], [np.inf, 3]]))

    def pay(self, action):
        assert self.action_space.contains(action)
        return 1.0


for case in (Mixed, Bounded):
    gymnasium.register(id=f"Case/{case.__name__}-v0", entry_point=case, max_episode_steps=50)


def set_up(script, env_id, num_envs=4, seed=1, **flags):
    flags = {"width": 16, "num_envs": num_envs, "num_steps": 12, "num_minibatches": 1} | flags
    args = script.Args(env_id=env_id, **flags)
    torch.manual_seed(0)
    envs = make_envs(args, num_envs, seed=seed)
    policy = make_policy(script.ALGO, vars(args), envs.observations.space, envs.action_space)
    torch.nn.init.normal_(policy.actor.weight, std=0.3)  # so that memory moves the probabilities
    aids = MemoryAids(args, envs, args.width, torch.device("cpu"))
    optimizer = torch.optim.Adam([*policy.parameters(), *aids.heads.parameters()], lr=3e-3)
    return args, envs, policy, aids, optimizer, script.first_carry(policy, envs, aids)


def iterate(script, parts, scale):
    """One iteration as `main` makes it -> losses and the next carry."""
    args, envs, policy, aids, optimizer, carry = parts
    batch, carry = script.rollout(args, policy, envs, carry)
    batch = batch._replace(reward=batch.reward / scale.learn(batch.episode[..., 3]))
    batch, carry = aids.first_visits(batch, carry, 1.0)
    batch, _ = script.with_advantages(args, batch)
    losses = script.update(args, policy, optimizer, aids, envs.observations, batch, 0.01)
    policy.encoder.learn_statistics(envs.observations.frames, batch.obs)
    return losses, batch, carry


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "env_id, flags",
    [
        ("Case/Continuous-v0", {}),
        ("Case/Bounded-v0", {"norm_obs": True}),
        ("Case/Switches-v0", {"last_action": True}),
        ("Case/Mixed-v0", {"last_action": True, "last_reward": True}),
        ("Pendulum-v1", {"norm_obs": True, "last_action": True, "last_reward": True}),
        ("CartPole-v1", {"memory_length": 5}),
        ("Case/Window-v0", {}),
    ],
)
def test_first_minibatch_has_ratio_one_while_statistics_move(script, env_id, flags):
    if script is ppo_lstm:
        flags = {name: value for name, value in flags.items() if name != "memory_length"}
    *parts, carry = set_up(script, env_id, **flags)
    scale, means, started = ReturnScale(torch.device("cpu")), [], env_id == "Pendulum-v1"
    for _ in range(4):
        losses, batch, carry = iterate(script, [*parts, carry], scale)
        assert losses["first_minibatch_ratio_error"] < 1e-4
        norms = [module for module in parts[2].modules() if isinstance(module, RunningNorm)]
        means.append([norm.mean.clone() for norm in norms])
        started = started or batch.episode_start[1:].any()
    assert started, "episodes start inside a rollout"
    if flags.get("norm_obs") or env_id == "Case/Mixed-v0":
        assert all((a - b).abs().max() > 0 for a, b in zip(means[1], means[3], strict=True)), "statistics must move"


@pytest.mark.parametrize("norm_obs", [None, False])
def test_pictures_in_raw_units_are_normalised_and_told_apart_like_numbers(norm_obs):
    *parts, carry = set_up(ppo_palmer, "Case/Window-v0", norm_obs=norm_obs)
    envs, policy, aids = parts[1], parts[2], parts[3]
    for _ in range(20):
        _, batch, carry = iterate(ppo_palmer, [*parts, carry], ReturnScale(torch.device("cpu")))
    encoder = policy.encoder.parts[0]
    assert encoder.kind == "picture" and bool(encoder.norm.chosen.all()) == (norm_obs is None)
    size = encoder.norm(envs.observations.frames[0]).square().mean().sqrt()
    assert 0.5 < size < 2 if norm_obs is None else size > 1e4
    rising = envs.observations.frames[0][:, -1].mean((1, 2)) > envs.observations.frames[0][:, 0].mean((1, 2))
    envs.observations.distinct = False  # from here on codes are those of what looks alike
    aids.codes.learn()
    code = aids.codes.of(envs.observations.frames)
    assert not set(code[rising].tolist()) & set(code[~rising].tolist())


@pytest.mark.parametrize("unit", [2.0**-10, 2.0**7, 2.0**13])
def test_learning_does_not_depend_on_the_unit_of_the_reward(unit, monkeypatch):
    """To the bit, with powers of two: what is multiplied by one and divided by it again is not rounded."""
    learned = []
    for scale_of_reward in (1.0, unit):
        monkeypatch.setattr(small_envs.Bit, "scale", scale_of_reward)
        *parts, carry = set_up(ppo_palmer, "Case/Bit-v0", num_envs=8)
        torch.manual_seed(3)
        scale = ReturnScale(torch.device("cpu"))
        for _ in range(5):
            _, batch, carry = iterate(ppo_palmer, [*parts, carry], scale)
        learned.append(torch.nn.utils.parameters_to_vector(parts[2].parameters()))
        assert batch.episode[..., 0].max() > 2 * scale_of_reward, "logged returns stay the environment's own"
    assert torch.equal(learned[0], learned[1])


def test_the_scale_of_returns_by_hand():
    scale = ReturnScale(torch.device("cpu"))
    assert scale.learn(torch.zeros(3, 2)) == 1, "before the first reward"
    assert scale.learn(torch.tensor([[0.0, -4.0]])) == 4
    assert scale.learn(torch.zeros(3, 2)) == 4, "no reward says nothing of its size"
    assert scale.learn(torch.tensor([[1.0]])).item() == pytest.approx(4 * 199 / 200)
    saved = scale.state_dict()
    other = ReturnScale(torch.device("cpu"))
    other.load_state_dict(saved)
    assert other.learn(torch.tensor([[5.0]])) == 5


def test_running_statistics_are_those_of_all_that_was_seen():
    torch.manual_seed(0)
    space = spaces.Box(np.float32([-np.inf, -1, -50]), np.float32([np.inf, 1, 50]))
    norm, x = RunningNorm(space, None), torch.randn(300, 3) * torch.tensor([2e3, 1, 9]) + torch.tensor([1e5, 0, 4])
    for part in x.split([7, 1, 200, 92]):
        norm.learn(part)
    torch.testing.assert_close(norm.mean, x.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.var, x.var(0, correction=0), rtol=1e-3, atol=0)
    y = norm(x)
    assert torch.equal(y[:, 1], x[:, 1]), "bounded within [-10, 10]: as it is"
    assert y[:, (0, 2)].mean(0).abs().max() < 1e-2 and (y[:, (0, 2)].std(0) - 1).abs().max() < 1e-2
    assert norm(x * 1e6)[:, 0].abs().max() == 10
    assert RunningNorm(space, False)(x).equal(x)


def test_the_last_action_and_reward_stand_beside_the_observation():
    envs = make_envs(ppo_palmer.Args(env_id="Case/Bit-v0", last_action=True, last_reward=True), 3, seed=1)
    obs, table = envs.reset(), envs.observations
    assert table.frames[-1][obs].tolist() == [[0, 0, 0]] * 3
    for t in range(8):
        step = envs.step(torch.tensor([0, 1, 1]))
        expected = [[1, 0], [0, 1], [0, 1]]
        last = table.frames[-1][step.final_obs]
        assert last[:, :2].tolist() == expected and last[:, 2].tolist() == step.reward.tolist()
        if t == 7:
            assert step.terminated.all() and table.frames[-1][step.obs].abs().max() == 0, "a new episode"


# ---------------------------------------------------------------------------------- recall by age


def asked(past, obs, clock, start, most=9):
    batch = SimpleNamespace(
        past=torch.tensor(past)[:, None],
        obs=torch.tensor(obs)[:, None],
        state=SimpleNamespace(clock=torch.tensor([clock])),
        episode_start=torch.tensor(start).bool()[:, None],
    )
    age, answer = questions(batch, most)
    return age.flatten().tolist(), answer.flatten().tolist()


def test_questions_by_hand(monkeypatch):
    """Across the segment's border and an episode's start; the oldest that may be asked for, then the youngest."""
    monkeypatch.setattr(torch, "rand", lambda shape, device=None: torch.full(shape, 0.9999))
    assert asked([7, 8], [9, 5, 6], 2, [0, 0, 0]) == ([2, 3, 4], [7, 7, 7])
    assert asked([7, 8], [9, 5, 6], 1, [0, 0, 1]) == ([1, 2, 0], [8, 8, 6]), "as drawn in the docstring"
    assert asked([7, 8], [9, 5, 6], 5, [0, 1, 0], most=3) == ([2, 0, 1], [7, 5, 5]), "P steps are kept, no more"
    assert asked([7, 8], [9, 5, 6], 0, [1, 0, 0], most=1) == ([0, 1, 1], [9, 9, 5])
    monkeypatch.setattr(torch, "rand", lambda shape, device=None: torch.zeros(shape))
    assert asked([7, 8], [9, 5, 6], 2, [0, 0, 0]) == ([1, 1, 1], [8, 9, 5])


def test_ages_are_uniform_and_never_reach_another_episode_or_the_future():
    torch.manual_seed(0)
    position = torch.arange(8)[:, None].expand(8, 50_000)
    age = draw_ages(position, past=3, most=5)
    assert age[0].max() == 0 and (age[1:] >= 1).all() and (age <= position).all() and age.max() == 5
    share = torch.bincount(age[6], minlength=6)[1:] / 50_000
    torch.testing.assert_close(share, torch.full((5,), 0.2), atol=0.01, rtol=0)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MiniGrid-MemoryS7-v0"])
def test_past_observations_keep_their_frames_over_the_border_of_a_rollout(env_id, monkeypatch):
    """The frame that an answer names is the one that was shown, also where numbers do not outlive a rollout."""
    *parts, carry = set_up(ppo_palmer, env_id, obs_mode="symbolic")
    args, envs, policy, aids, _ = parts
    envs.observations.capacity = min(envs.observations.capacity, 20) if env_id == "CartPole-v1" else 4096
    shown = []
    for _ in range(4):
        batch, carry = ppo_palmer.rollout(args, policy, envs, carry)
        frames = envs.observations.frames[0]
        if shown:
            torch.testing.assert_close(frames[batch.past], torch.cat(shown)[-len(batch.past) :])
        shown.append(frames[batch.obs].clone())
        batch, carry = aids.first_visits(batch, carry, 1.0)
    assert len(batch.past) == args.num_steps
    assert envs.observations.distinct == (env_id != "CartPole-v1")


# ---------------------------------------------------------------------------------- codes


def table_of(*frames, distinct=True):
    """A table that holds these frames, whatever they are."""
    box = (
        spaces.Box(0, 255, frames[0].shape, np.uint8) if frames[0].ndim == 3 else spaces.Box(-99, 99, frames[0].shape)
    )
    table = ObservationTable(spaces.Tuple((box,)))
    table.distinct = distinct
    table.number((np.stack(frames),))
    return table


def test_set_recall_asks_for_no_code_that_is_not_in_use():
    args, envs, policy, aids, _, carry = set_up(ppo_lstm, "CartPole-v1")
    batch, carry = ppo_lstm.rollout(args, policy, envs, carry)
    batch, _ = aids.first_visits(batch, carry, 1.0)
    output, _ = policy.act(batch.features[batch.obs], batch.state, batch.episode_start)
    aids.losses(policy, output.memory, batch)["recall_loss"][0].backward()
    asked = aids.heads["seen"].weight.grad.abs().sum(1) > 0
    assert 0 < aids.codes.count < aids.codes.capacity
    assert asked.tolist() == [True] * aids.codes.count + [False] * (aids.codes.capacity - aids.codes.count)


def test_on_a_table_codes_are_the_numbers():
    envs = make_envs(ppo_palmer.Args(env_id="MiniGrid-MemoryS13-v0"), 2)
    code_of, restarted = Codes(envs.observations).learn()
    assert code_of.tolist() == list(range(envs.observations.count)) and not restarted


@pytest.mark.parametrize("maze", ["S11", "S17Random"])
def test_codes_of_noisy_pictures_are_the_noise_free_numbers(maze):
    clean = maze_tables(f"MiniGrid-Memory{maze}-v0", "rgb", 3).frames[0].numpy().astype(int)
    rng = np.random.default_rng(0)
    numbers = rng.permutation(np.repeat(np.arange(len(clean)), 6))
    noise = rng.integers(-30, 31, (len(numbers), *clean.shape[1:]))
    noisy = (clean[numbers] + noise).clip(0, 255).astype(np.uint8)
    codes = Codes(table_of(*noisy, distinct=False))
    code_of, restarted = codes.learn()
    pairs = set(zip(numbers.tolist(), code_of.tolist(), strict=True))
    assert restarted and len(pairs) == len(clean) == len(codes.prototypes), "one code for each number, and back"


def test_repeating_observations_have_a_code_each_until_they_no_longer_repeat():
    vectors = [np.float32([i, 0]) / 100 for i in range(5)]
    table = table_of(*vectors)
    codes = Codes(table)
    assert codes.learn()[0].tolist() == [0, 1, 2, 3, 4], "however near"
    table.number((np.float32([[0.01, 0], [7, 7]]),))
    assert codes.learn()[0].tolist() == [0, 1, 2, 3, 4, 5]
    table.distinct = False
    assert codes.learn()[1] and not codes.learn()[1], "codes begin anew once"


def test_no_code_changes_by_what_is_seen_later():
    torch.manual_seed(0)
    vectors = [vector.numpy() for vector in torch.randn(400, 3)]
    alone = Codes(table_of(*vectors[:200], distinct=False))
    alone.learn()
    first = alone._codes(alone._looks(alone.table.frames))
    alone.table = table_of(*vectors, distinct=False)
    again, _ = alone.learn()
    assert torch.equal(again[:200], first)
    assert len(alone.prototypes) <= memory_aids.CODES


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize("idle", [[], [0.0], [7e5]], ids=["nothing idle", "an idle 0", "an idle number"])
def test_looks_are_told_apart_however_large_or_idle_their_numbers_are(offset, idle):
    rng = np.random.default_rng(0)
    kinds = rng.permutation(np.repeat(np.arange(20), 30))
    corners = np.array(list(np.ndindex(3, 3, 3)))[:20]
    numbers = offset + corners[kinds] + rng.uniform(-0.02, 0.02, (len(kinds), 3))
    vectors = np.concatenate((numbers, np.tile(idle, (len(kinds), 1))), 1).astype(np.float32)
    codes = Codes(table_of(*vectors, distinct=False))
    code_of, _ = codes.learn()
    assert len(set(zip(kinds.tolist(), code_of.tolist(), strict=True))) == len(codes.prototypes) == 20
    frames = codes.table.frames
    alone = torch.cat([codes.of(tuple(part[i : i + 1] for part in frames)) for i in range(100)])
    assert torch.equal(alone, code_of[:100]), "a code depends on the frames that were asked for beside it"


def test_a_number_that_begins_to_change_late_tells_looks_apart():
    rng = np.random.default_rng(0)
    looks = rng.normal(size=(300, 2)).astype(np.float32)
    off, on = (np.concatenate((looks, np.full((300, 1), flag, np.float32)), 1) for flag in (0, 1))
    codes = Codes(table_of(*off, distinct=False))
    codes.learn()
    codes.table = table_of(*off[:5], *on[:5], distinct=False)
    codes.prototypes = codes.prototypes[:200]  # room for more
    code_of, _ = codes.learn()
    assert len(set(code_of.tolist())) == 10, "by the new number, and by the others as before"


def test_texts_are_told_apart_by_their_words():
    missions = [f"go to the {colour} {thing}" for colour in ("red", "blue", "grey") for thing in ("ball", "key")]
    space = plain_space(spaces.Dict(mission=spaces.Text(99), noise=spaces.Box(-1, 1, (2,))))
    table = ObservationTable(space)
    table.distinct = False
    noise = np.random.default_rng(0).uniform(-1e-3, 1e-3, (60, 2)).astype(np.float32) + [[5, 5]]
    noise[::2] -= 10  # of two kinds, so that there is a spread to measure by
    table.number((noise, np.stack([words(missions[i % 6]) for i in range(60)])))
    code_of, _ = Codes(table).learn()
    assert len(code_of.unique()) == 6 and torch.equal(code_of, torch.arange(60) % 6)


def test_codes_do_not_look_at_what_the_agent_did():
    envs = make_envs(ppo_palmer.Args(env_id="Case/Bit-v0", last_action=True, last_reward=True), 8, seed=1)
    envs.reset()
    for t in range(6):
        envs.step(torch.full((8,), t % 2))
    codes = Codes(envs.observations, last_step=True)
    assert envs.observations.count > 2 and codes.learn()[0].unique().tolist() == [0, 1]


# ---------------------------------------------------------------------------------- several processes


def agreeing(rank, folder):
    processes.join_processes(torch.device("cpu"))
    *parts, carry = set_up(ppo_palmer, "MiniGrid-DoorKey-5x5-v0", seed=1 + 100 * rank, env_backend="gymnasium")
    torch.manual_seed(rank)
    scale = ReturnScale(torch.device("cpu"))
    for _ in range(6):
        _, batch, carry = iterate(ppo_palmer, [*parts, carry], scale)
    aids, table = parts[3], parts[1].observations
    norm = RunningNorm(spaces.Box(-99, 99, (2,)), None)
    norm.learn(torch.full((3 + rank, 2), float(rank)))
    codes = {frame.numpy().tobytes(): int(c) for frame, c in zip(table.frames[0], aids.codes.learn()[0], strict=True)}
    torch.save([codes, aids.together, norm.mean, norm.var, scale.value], f"{folder}/{rank}")
    processes.leave_processes()


def test_two_processes_agree_on_codes_shares_statistics_and_scale(tmp_path):
    spawn_pair(agreeing, str(tmp_path))
    (codes, *statistics), (other_codes, *others) = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    common = codes.keys() & other_codes.keys()
    assert len(common) > 5 and len(codes.keys() ^ other_codes.keys()) > 0, "each has seen something of its own"
    assert all(codes[frame] == other_codes[frame] for frame in common)
    for ours, theirs in zip(statistics, others, strict=True):
        assert torch.equal(ours, theirs)
    assert statistics[1].tolist() == pytest.approx([4 / 7] * 2)


# ---------------------------------------------------------------------------------- nothing that is not finite


class Broken(small_envs.Plain):
    """Sound for a while; then its step raises."""

    def pay(self, action):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps > 40:
            raise ZeroDivisionError("the motor is off")
        return 1.0


class InfinitePicture(small_envs.Plain):
    """A float picture with a pixel that is infinite after a while."""

    observation_space = spaces.Box(0, 1, (12, 12, 1), np.float32)

    def observe(self):
        picture = self.np_random.random((12, 12, 1)).astype(np.float32)
        self.shown = getattr(self, "shown", 0) + 1
        picture[3, 3] = np.inf if self.shown == 60 else 0
        return picture


class NoReading(small_envs.Plain):
    """A sensor that says 1e20 where it has nothing to say: finite, but its square is not."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observe(self):
        self.shown = getattr(self, "shown", 0) + 1
        return np.float32([self.shown, 1e20 if self.shown == 60 else 0])


class FailsWhenEvaluated(small_envs.Plain):
    """Sound in training; with held-out seeds its reset or a step fails, or a number is NaN."""

    how = "step"

    def reset(self, *, seed=None, options=None):
        self.held_out = getattr(self, "held_out", False) or (seed or 0) >= 10**9
        if self.held_out and self.how == "reset":
            raise ZeroDivisionError("the motor is off")
        return super().reset(seed=seed, options=options)

    def pay(self, action):
        if self.held_out and self.how == "step":
            raise ZeroDivisionError("the motor is off")
        return np.nan if self.held_out and self.how == "reward" else 1.0


for how in ("step", "reset", "reward"):
    case = type(f"Fails{how.title()}", (FailsWhenEvaluated,), {"how": how})
    gymnasium.register(id=f"Case/{case.__name__}-v0", entry_point=case, max_episode_steps=50)
for case in (Broken, InfinitePicture, NoReading):
    gymnasium.register(id=f"Case/{case.__name__}-v0", entry_point=case, max_episode_steps=50)


@pytest.mark.parametrize(
    "env_id, words",
    [
        ("Case/NaNReward-v0", ["a reward is nan", "environment", "step"]),
        ("Case/InfinitePicture-v0", ["observation is inf", "environment", "step"]),
        ("Case/NoReading-v0", ["observation is 1.0000000200408773e+20", "beyond 1e+14"]),
        ("Case/Broken-v0", ["its step fails with ZeroDivisionError (the motor is off)"]),
    ],
)
def test_a_run_that_cannot_go_on_ends_in_a_sentence_and_leaves_a_finite_checkpoint(env_id, words, tmp_path):
    flags = "--no-cuda --num-envs 4 --num-steps 8 --num-minibatches 1 --width 16 --eval-every 0"
    command = [sys.executable, "ppo_lstm.py", *flags.split(), "--env-id", f"test_any_task:{env_id}"]
    command += ["--run-dir", str(tmp_path / "run"), "--total-timesteps", "100000"]
    environment = os.environ | {"PYTHONPATH": "tests", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    *before, last = done.stderr.splitlines()
    assert last.startswith("error: --env-id") and all(word in last for word in words), done.stderr
    assert ("ZeroDivisionError" in " ".join(before)) == ("Broken" in env_id), "the cause is shown where there is one"
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert saved["step"] == rows[-1]["step"] > 0
    assert all(part.isfinite().all() for part in saved["policy"].values())


@pytest.mark.parametrize(
    "env_id, words",
    [
        ("Case/FailsStep-v0", "FailsStep-v0: its step fails with ZeroDivisionError"),
        ("Case/FailsReset-v0", "FailsReset-v0: its reset fails with ZeroDivisionError"),
        ("Case/FailsReward-v0", "FailsReward-v0: a number of an observation or reward is nan"),
    ],
)
def test_an_environment_that_fails_in_an_evaluation_is_named_and_what_was_trained_kept(env_id, words, tmp_path):
    small = {"num_envs": 4, "num_steps": 8, "num_minibatches": 1, "width": 16, "cuda": False}
    args = ppo_lstm.Args(
        env_id=env_id, **small, total_timesteps=96, eval_every=64, run_dir=str(tmp_path / "run"), checkpoint_every=0
    )
    with pytest.raises(RunError, match=re.escape(words)):
        ppo_lstm.main(args)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] >= 32


def test_a_gradient_that_is_not_finite_is_not_learned():
    *parts, carry = set_up(ppo_palmer, "Case/Bit-v0")
    args, envs, policy, aids, optimizer = parts
    batch, carry = ppo_palmer.rollout(args, policy, envs, carry)
    batch, carry = aids.first_visits(batch, carry, 1.0)
    batch, _ = ppo_palmer.with_advantages(args, batch)
    before = torch.nn.utils.parameters_to_vector(policy.parameters()).clone()
    with pytest.raises(RunError, match="a gradient is nan"):
        ppo_palmer.update(
            args, policy, optimizer, aids, envs.observations, batch._replace(logprob=batch.logprob * np.nan), 0.0
        )
    assert torch.equal(torch.nn.utils.parameters_to_vector(policy.parameters()), before)
