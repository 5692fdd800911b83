"""`load_agent`: it acts as evaluate.py does, action for action, on an environment's own observations and actions."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import gymnasium
import numpy as np
import pytest
import small_envs  # noqa: F401  registers what the tests play
import torch
from agents import BY_ALGO, TASKS, repeated, save_agent
from gymnasium import spaces

import evaluate
from evaluate import held_out_seed, load_agent, load_policy, play
from harness.input_error import InputError, RunError
from palmer_policy import setting_hints
from tasks import make_real_env
from tasks.observations import batch_rows, check_observation
from tasks.real import make_native_env, plain_actions

ROOT = Path(__file__).parent.parent
SEED, STEPS = 3, 60

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=TASKS)
def task(request):
    if request.param == "popgym":
        pytest.importorskip("popgym", reason="POPGym is not installed")
    return TASKS[request.param]


def evaluated(file, given, rows, greedy=False):
    """What evaluate.py does in so many episodes at once -> the native actions of each step."""
    policy, task, _ = load_policy(file, **given)
    envs = [make_real_env(task) for _ in range(rows)]
    to_native = plain_actions(make_native_env(task).action_space, task.env_id)[0]
    moments = (moment for moment in play(policy, envs, 1000, SEED, greedy) if not moment.end)
    return [np.stack([to_native(next(moments).action) for _ in range(rows)]) for _ in range(STEPS)]


def same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.asarray(one).dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("algo", BY_ALGO)
def test_one_environment_is_played_as_in_evaluation(tmp_path, algo, task):
    file, given = tmp_path / "checkpoint.pt", repeated(task)
    save_agent(file, algo, **task)
    agent = load_agent(file, seed=SEED, **given)
    env = agent.make_env()
    assert env.action_space == agent.action_space and agent.needs_reward == ("last_reward" in task)
    found, episode, reward, done = [], 0, None, True
    while len(found) < STEPS:
        if done:
            observation, _ = env.reset(seed=held_out_seed(SEED, episode))
            agent.reset()
            episode += 1
        found.append(agent.act(observation, reward))
        observation, reward, terminated, truncated, _ = env.step(found[-1])
        done = terminated or truncated
    same(found, [actions[0] for actions in evaluated(file, given, 1)])
    assert episode > 1 or task is TASKS["continuous"]  # of which an episode is longer


def test_several_environments_are_played_as_in_evaluation(tmp_path, task):
    """Observations as a list or as vector environments give them; starts by `episode_start` or by `reset`."""
    file, given, rows = tmp_path / "checkpoint.pt", repeated(task), 3
    save_agent(file, "palmer", **task)
    agent, other = (load_agent(file, batch=rows, seed=SEED, **given) for _ in range(2))
    space = agent.observation_space
    envs = [agent.make_env() for _ in range(rows)]
    seen = [env.reset(seed=held_out_seed(SEED, i))[0] for i, env in enumerate(envs)]
    episodes, rewards, starts, found, found_too = rows, np.zeros(rows), np.ones(rows, bool), [], []
    for _ in range(STEPS):
        found.append(agent.act(seen, rewards, starts, greedy=True))
        other.reset(starts)
        empty = gymnasium.vector.utils.create_empty_array(space, rows)
        found_too.append(other.act(gymnasium.vector.utils.concatenate(space, seen, empty), rewards, greedy=True))
        starts = np.zeros(rows, bool)
        for i, env in enumerate(envs):
            seen[i], rewards[i], terminated, truncated, _ = env.step(found[-1][i])
            if terminated or truncated:
                seen[i], starts[i] = env.reset(seed=held_out_seed(SEED, episodes))[0], True
                episodes += 1
    same(found, evaluated(file, given, rows, greedy=True))
    same(found_too, found)


def test_a_vector_environment_is_played_to_the_end(tmp_path):
    save_agent(tmp_path / "c.pt", "palmer", env_id="small_envs:Case/Continuous-v0")
    agent = load_agent(tmp_path / "c.pt", batch=4, env_id="small_envs:Case/Continuous-v0")
    envs = gymnasium.vector.SyncVectorEnv([agent.make_env] * 4)
    observations, _ = envs.reset(seed=1)
    starts = np.ones(4, bool)
    for _ in range(20):
        actions = agent.act(observations, episode_start=starts)
        assert actions in envs.action_space
        observations, _, terminated, truncated, _ = envs.step(actions)
        starts = terminated | truncated


def test_one_row_can_begin_anew_while_the_others_go_on(tmp_path):
    save_agent(tmp_path / "c.pt", "palmer", env_id="small_envs:Case/Bit-v0")
    load = lambda **flags: load_agent(tmp_path / "c.pt", env_id="small_envs:Case/Bit-v0", **flags)  # noqa: E731
    three, alone = load(batch=3), [load(), load(), load()]
    logits = []
    for agent in (three, *alone):
        agent.policy.register_forward_hook(lambda _, __, result: logits.append(result[0].logits[0]))
    bits = np.eye(2, dtype=np.float32)[np.random.default_rng(0).integers(0, 2, (12, 3))]
    for t, seen in enumerate(bits):
        if t == 5:
            three.reset([1])
            alone[1].reset()
        three.act(seen, episode_start=np.array([False, False, t == 8]))
        for i, agent in enumerate(alone):
            agent.act(seen[i], episode_start=i == 2 and t == 8)
        together, *single = logits[-4:]
        torch.testing.assert_close(together, torch.cat(single), rtol=0, atol=1e-5)


def test_minigrids_own_observations_of_the_agents_view_are_taken(tmp_path):
    save_agent(tmp_path / "c.pt", "lstm", **TASKS["cells"])
    whole = gymnasium.make("MiniGrid-MemoryS7-v0", agent_view_size=3)
    observation, _ = whole.reset(seed=1)
    agent, same_agent = load_agent(tmp_path / "c.pt"), load_agent(tmp_path / "c.pt")
    assert agent.act(observation) == same_agent.act(observation["image"])
    agent = load_agent(tmp_path / "c.pt", batch=1)
    assert agent.act([observation]).shape == (1,)


# ------------------------------------------------------------------------------------------ wrong input


def sentence(call, *words):
    with pytest.raises(InputError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and text.endswith("."), text
    for word in words:
        assert word in text, text


def test_wrong_observations_are_refused_in_one_sentence_and_change_nothing(tmp_path):
    save_agent(tmp_path / "c.pt", "palmer", **TASKS["pixels"])
    agent, untouched = load_agent(tmp_path / "c.pt"), load_agent(tmp_path / "c.pt")
    picture = agent.make_env().reset(seed=1)[0]
    for wrong, word in (
        (picture[None], "(1, 84, 84, 3)"),
        (picture[..., 0], "(84, 84)"),
        (picture / 255, "float64"),
        (picture.astype(int) - 300, "bounds"),
        ({"image": picture[::2]}, "(42, 84, 3)"),
        ({"pixels": picture}, "object"),
        ([[1, 2], [3]], "no array"),
        (None, "object"),
        ("text", "(84, 84, 3)"),
    ):
        sentence(lambda wrong=wrong: agent.act(wrong), "act: the observation", word, "make_env()")
    for wrong in (1, "yes", [True], [[True], []]):
        sentence(lambda wrong=wrong: agent.act(picture, episode_start=wrong), "episode_start=", "True or False")
    assert [agent.act(picture) for _ in range(9)] == [untouched.act(picture) for _ in range(9)]

    several = load_agent(tmp_path / "c.pt", batch=2)
    for wrong in (picture, np.stack([picture] * 3), [picture], 3):
        sentence(lambda wrong=wrong: several.act(wrong), "2 rows")
    sentence(lambda: several.act(np.stack([picture] * 2), episode_start=True), "each of 2 environments")
    for rows in (2, [0, 5], [True, True, True]):
        sentence(lambda rows=rows: several.reset(rows), "below 2")


def test_observations_of_every_kind_are_checked():
    space = spaces.Dict(
        {
            "n": spaces.Discrete(4, start=2),
            "x": spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "both": spaces.Tuple((spaces.MultiBinary(3), spaces.Text(9))),
        }
    )
    good = {"n": 3, "x": [1, 2.5], "both": (np.ones(3, np.int8), "a word")}
    check_observation(space, good)
    for key, wrong in (
        ("n", 0),
        ("n", 1.0),
        ("x", [np.nan, 0]),
        ("x", ["a", "b"]),
        ("both", (np.ones(3, np.int8),)),
        ("both", 7),
        ("both", (np.full(3, 2), "a word")),
        ("both", (np.ones(3, np.int8), 5)),
    ):
        with pytest.raises(ValueError):
            check_observation(space, good | {key: wrong})
    with pytest.raises(ValueError):
        check_observation(space, {"n": 3})
    batch = {"n": np.array([3, 4]), "x": np.ones((2, 2)), "both": (np.ones((2, 3), np.int8), ("a", "b"))}
    rows = batch_rows(space, batch, 2)
    assert [row["n"] for row in rows] == [3, 4] and [row["both"][1] for row in rows] == ["a", "b"]
    assert batch_rows(space, [good, good], 2) == [good, good]
    for wrong in (batch | {"x": np.ones((3, 2))}, {"n": batch["n"]}, 5, [good]):
        with pytest.raises(ValueError):
            batch_rows(space, wrong, 2)


def test_a_reward_must_be_given_where_the_agent_needs_it(tmp_path):
    save_agent(tmp_path / "c.pt", "lstm", **TASKS["last step"])
    agent = load_agent(tmp_path / "c.pt", env_kwargs='{"length": 9}')
    observation = agent.make_env().reset(seed=1)[0]
    agent.act(observation)
    sentence(lambda: agent.act(observation), "reward=", "--last-reward", "reset()")
    for wrong in ("much", [1.0], float("nan")):
        sentence(lambda wrong=wrong: agent.act(observation, wrong), "reward=", "a number")
    agent.act(observation, 1.0)
    agent.act(observation, episode_start=True)


def test_what_load_agent_is_given_is_checked(tmp_path):
    file = tmp_path / "c.pt"
    save_agent(file, "lstm", env_id="small_envs:Case/Bit-v0")
    sentence(lambda: load_agent(file), "--env-id small_envs:Case/Bit-v0")
    given = {"env_id": "small_envs:Case/Bit-v0"}
    for name, value in (("batch", 0), ("batch", 2.0), ("batch", True), ("seed", -1), ("seed", None)):
        sentence(lambda name=name, value=value: load_agent(file, **given | {name: value}), f"load_agent: {name} ")
    for wrong in ({"env_id": 5}, {"env_kwargs": {"length": 5}}):
        sentence(lambda wrong=wrong: load_agent(file, **given | wrong), "must be a")
    sentence(lambda: load_agent(None, **given), "load_agent: file None")
    save_agent(tmp_path / "other.pt", "lstm", **TASKS["continuous"])
    sentence(lambda: load_agent(tmp_path / "other.pt", env_id="palmer/CartPoleNoVelocity-v0"), "must be like those")
    sentence(lambda: load_agent(tmp_path / "none.pt"), "no such file")
    agent = load_agent(file, env_id="small_envs:Case/Bit100-v0")
    assert agent.task.env_id == "small_envs:Case/Bit100-v0"
    torch.nn.init.constant_(agent.policy.actor.bias, torch.inf)
    with pytest.raises(RunError, match="not finite"):
        agent.act(np.zeros(2, np.float32))


def test_the_seed_decides_what_is_sampled(tmp_path):
    save_agent(tmp_path / "c.pt", "lstm", env_id="small_envs:Case/Endless-v0")
    load = lambda seed: load_agent(tmp_path / "c.pt", seed=seed, env_id="small_envs:Case/Endless-v0")  # noqa: E731
    played = [[agent.act(np.zeros(3)) for _ in range(40)] for agent in map(load, (1, 1, 2))]
    assert played[0] == played[1] != played[2]
    agent = load(1)
    assert len({agent.act(np.zeros(3), episode_start=True, greedy=True) for _ in range(9)}) == 1


# ------------------------------------------------------------------------------------------ what is not loaded


def test_the_lines_in_the_readme_run_and_load_no_training_code():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(from evaluate import load_agent\n.*?)```", text, re.DOTALL)
    lines += """
import sys
training = ("ppo_", "memory_aids", "harness.run", "harness.resume", "harness.folder", "wandb")
print([name for name in sys.modules if name.startswith(training) or "tensorboard" in name])
"""
    result = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"return 0\.\d\d\n\[\]\n", result.stdout), result.stdout


@pytest.mark.parametrize("algo", BY_ALGO)
def test_an_agents_settings_are_limited_as_the_flags_of_its_script(algo):
    """A file's settings are checked without the script."""
    flags = get_type_hints(BY_ALGO[algo].Args, include_extras=True)
    assert all(flags[name] == hint for name, hint in setting_hints(algo).items())
    assert get_type_hints(evaluate.Args, include_extras=True)["seed"] == flags["seed"]
