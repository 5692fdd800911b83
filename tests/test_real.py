"""One real environment: what is made of any id, what success is, and wrong input in one sentence."""

import functools
import sys

import gymnasium
import numpy as np
import pytest
import small_envs
import torch
from gymnasium import spaces
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Goal, Lava
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper, ViewSizeWrapper

import ppo_palmer
import tasks
from evaluate import play
from harness.flags import check_args, run_script
from harness.input_error import InputError, RunError
from palmer_policy import make_policy
from tasks import TaskArgs
from tasks.observations import grid_space

LEFT, RIGHT, FORWARD = range(3)


def make_real_env(env_id, render_mode=None, **flags):
    return tasks.make_real_env(TaskArgs(env_id, **flags), render_mode)


@pytest.fixture
def env_id():
    """Registers an environment for one test: env_id(entry_point, **as for gymnasium.register) -> its id."""
    registered = []

    def register(entry_point, **settings):
        registered.append(f"Own{len(registered)}-v0")
        gymnasium.register(registered[-1], entry_point=entry_point, **settings)
        return registered[-1]

    yield register
    for name in registered:
        del gymnasium.registry[name]


def one_sentence(error, *words):
    message = str(error.value)
    for word in words:
        assert word in message, message
    assert message.endswith(".") and "\n" not in message
    return message


# ------------------------------------------------------------------------------------------ whatever users bring


@pytest.mark.parametrize("case", small_envs.CASES)
def test_small_environments_of_every_kind_are_made_reset_and_stepped(case):
    envs = tasks.make_envs(TaskArgs(f"small_envs:Case/{case.__name__}-v0"), 3, seed=1)
    obs = envs.reset()
    actions = envs.action_space
    actions.seed(0)
    ends = 0
    for _ in range(20):
        assert obs.shape == (3,) and (obs < envs.observations.count).all()
        step = envs.step(torch.from_numpy(np.stack([actions.sample() for _ in range(3)])))
        obs = step.obs
        ends += (step.terminated | step.truncated).sum().item()
    assert ends == (0 if case is small_envs.Endless else 3 * 2)
    assert envs.max_episode_steps == (None if case is small_envs.Endless else 50)
    assert not envs.tells_success


def test_what_one_of_them_gets_and_gives_is_what_arrives():
    """The bits that are shown, and a reward for each action that repeats one."""
    envs = tasks.make_envs(TaskArgs("small_envs:Case/Bit100-v0"), 64)
    obs = envs.reset()
    for t in range(8):
        bit = envs.observations.frames[0][obs].argmax(1)
        action = bit if t % 2 else 1 - bit
        step = envs.step(action)
        assert step.reward.tolist() == [100.0 * (t % 2)] * 64
        obs = step.obs
    assert step.terminated.all()


def test_a_constructor_needs_no_render_mode_unless_a_picture_is_asked_for():
    make_real_env("small_envs:Case/NoRenderMode-v0").reset(seed=1)
    with pytest.raises(InputError) as error:
        make_real_env("small_envs:Case/NoRenderMode-v0", render_mode="rgb_array")
    one_sentence(error, "--env-id small_envs:Case/NoRenderMode-v0", "TypeError", "render_mode")
    env = make_real_env("small_envs:Case/Bit-v0", render_mode="rgb_array")
    env.reset(seed=1)
    assert env.render().ndim == 3


def test_no_info_is_passed_on():
    env = make_real_env("small_envs:Case/GrowingInfo-v0")
    assert env.reset(seed=1)[1] == {"is_success": False}
    for _ in range(8):
        assert env.step(0)[4] == {"is_success": False}


def test_arguments_reach_the_constructor():
    env = make_real_env("palmer/TMazePassive-v0", env_kwargs='{"length": 7}')
    assert env.unwrapped.length == 7
    env = make_real_env("MiniGrid-MemoryS7-v0", env_kwargs='{"size": 9}')
    assert env.unwrapped.width == 9


def test_real_environment_can_be_rendered_for_video():
    env = make_real_env("MiniGrid-MemoryS7-v0", render_mode="rgb_array")
    env.reset(seed=1)
    assert env.render().ndim == 3


# ------------------------------------------------------------------------------------------ success


class Told(gymnasium.Env):
    """Tells success as it is told to: at the reset `first`, then `rows` of (reward, terminated, truncated, info)."""

    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)

    def __init__(self, first, rows):
        self.first, self.rows = first, rows

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.row = iter(self.rows)
        return 0, self.first

    def step(self, action):
        reward, terminated, truncated, info = next(self.row)
        return 1, reward, terminated, truncated, info


TELLS = {"is_success": False}
YES, NO = {"is_success": True}, {"is_success": False}


@pytest.mark.parametrize(
    "first, rows, success",
    [
        (TELLS, [(0, False, False, NO), (0, True, False, YES)], [False, True]),
        (TELLS, [(1, False, False, YES), (1, True, False, NO)], [False, False]),  # it counts where an episode ends
        (TELLS, [(0, False, False, NO), (0, False, True, YES)], [False, True]),
        (TELLS, [(1, True, False, {})], [False]),
        (TELLS, [(0, True, False, {"is_success": np.array(1)})], [True]),
        ({}, [(1, False, False, {}), (1, True, False, {})], [False, False]),  # a reward is no success
    ],
)
def test_success_is_what_the_environment_says_at_the_end(first, rows, success, env_id):
    name = env_id(lambda: Told(first, rows))
    env = make_real_env(name)
    env.reset()
    infos = [env.step(0)[4] for _ in rows]
    assert infos == [{"is_success": one} for one in success]
    assert all(type(info["is_success"]) is bool for info in infos)
    assert env.get_wrapper_attr("tells") == bool(first)
    envs = tasks.make_envs(TaskArgs(name), 2)
    assert envs.tells_success == bool(first)
    envs.reset()
    steps = [envs.step(torch.zeros(2, dtype=torch.int64)) for _ in rows]
    assert [step.success.tolist() for step in steps] == [[one] * 2 for one in success]


def test_an_evaluated_episode_of_minigrid_memory_ends_by_the_same_rule():
    task = TaskArgs("MiniGrid-MemoryS5-v0", obs_mode="symbolic", max_episode_steps=30)
    envs = [tasks.make_real_env(task) for _ in range(8)]
    torch.manual_seed(0)
    settings = vars(ppo_palmer.Args(width=16))
    policy = make_policy("palmer", settings, envs[0].observation_space, envs[0].action_space)
    ends = [moment for moment in play(policy, envs, episodes=80, seed=1) if moment.end]
    for moment in ends:
        assert moment.success == (moment.end == "terminated" and moment.reward > 0)
    assert {(moment.end, moment.success) for moment in ends} == {
        ("terminated", True),
        ("terminated", False),
        ("truncated", False),
    }


# ------------------------------------------------------------------------------------------ MiniGrid


class Fork(MiniGridEnv):
    """Goal to the left, lava to the right of the agent; knows no `agent_view_size`."""

    limit = 4

    def __init__(self, render_mode=None):
        mission = MissionSpace(lambda: "go")
        super().__init__(mission, grid_size=9, max_steps=self.limit, see_through_walls=True, render_mode=render_mode)

    def _gen_grid(self, width, height):
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.put_obj(Goal(), 4, 3)
        self.put_obj(Lava(), 4, 5)
        self.agent_pos, self.agent_dir, self.mission = (4, 4), 0, "go"


class Punished(Fork):
    """Ends with a loss wherever the episode ends."""

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, -1.0, terminated, truncated, info


class Mirrored(gymnasium.ObservationWrapper):
    """An observation wrapper of one's own, which leaves what is observed as it is in form."""

    def observation(self, observation):
        return {**observation, "image": observation["image"][::-1].copy()}


def wrapped(render_mode=None):
    return Mirrored(Fork(render_mode))


MAKERS = {"class": Fork, "function": lambda render_mode=None: Fork(render_mode), "wrapped": wrapped}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("agent_view_size", [3, 5, 9])
def test_a_minigrid_class_of_ones_own_has_the_view_asked_for(maker, agent_view_size, env_id):
    name = env_id(MAKERS[maker])
    theirs = ViewSizeWrapper(Fork(), agent_view_size)  # the package's own way
    expected = theirs.reset(seed=1)[0]["image"]
    env = make_real_env(name, obs_mode="symbolic", agent_view_size=agent_view_size)
    (obs,), _ = env.reset(seed=1)
    np.testing.assert_array_equal(obs, expected[::-1] if maker == "wrapped" else expected)
    assert env.observation_space == spaces.Tuple((grid_space(agent_view_size),))

    env = make_real_env(name, obs_mode="rgb", agent_view_size=agent_view_size)
    (obs,), _ = env.reset(seed=1)
    side = 84 // agent_view_size * agent_view_size
    assert obs.shape == (side, side, 3) and env.observation_space.contains((obs,))
    theirs.unwrapped.agent_view_size = agent_view_size
    np.testing.assert_array_equal(obs, theirs.unwrapped.get_frame(tile_size=84 // agent_view_size, agent_pov=True))


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    "actions, success",
    [
        ([LEFT, FORWARD], True),
        ([RIGHT, FORWARD], False),  # lava
        ([LEFT] * 4, False),  # time is over
        ([LEFT, LEFT, LEFT, LEFT, LEFT, FORWARD], None),  # never gets there
    ],
)
def test_success_in_minigrid_is_an_end_with_reward(maker, actions, success, env_id):
    env = make_real_env(env_id(MAKERS[maker]))
    env.reset(seed=1)
    assert env.get_wrapper_attr("tells")
    for action in actions:
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            break
        assert info == {"is_success": False}
    assert info == {"is_success": bool(success)} and (terminated or truncated)


def test_an_end_without_reward_is_no_success(env_id):
    env = make_real_env(env_id(Punished))
    env.reset(seed=1)
    env.step(LEFT)
    _, reward, terminated, _, info = env.step(FORWARD)
    assert (reward, terminated, info) == (-1.0, True, {"is_success": False})


def test_minigrid_classes_of_ones_own_play_in_make_envs(env_id):
    for maker in MAKERS.values():
        envs = tasks.make_envs(TaskArgs(env_id(maker)), 2)
        assert envs.tells_success and envs.max_episode_steps == Fork.limit
        envs.reset()
        envs.step(torch.tensor([LEFT, RIGHT]))
        step = envs.step(torch.tensor([FORWARD, FORWARD]))
        assert step.terminated.tolist() == [True, True] and step.success.tolist() == [True, False]


def test_what_a_wrapper_of_ones_own_has_made_of_the_view_stays(env_id):
    """With a space of its own it has decided on the view; `--obs-mode` and `--agent-view-size` mean nothing to it."""
    alone = make_real_env(env_id(lambda: ImgObsWrapper(Fork())))
    (obs,), _ = alone.reset(seed=1)
    np.testing.assert_array_equal(obs, Fork().reset(seed=1)[0]["image"])
    for obs_mode in ("rgb", "symbolic"):
        whole = make_real_env(env_id(lambda: RGBImgObsWrapper(Fork(), tile_size=4)), obs_mode=obs_mode)
        (picture, direction, mission), _ = whole.reset(seed=1)
        np.testing.assert_array_equal(picture, RGBImgObsWrapper(Fork(), tile_size=4).reset(seed=1)[0]["image"])
        assert picture.shape == (36, 36, 3) and direction.tolist() == [1, 0, 0, 0] and (mission > 0).sum() == 1
        assert not whole.step(LEFT)[4]["is_success"] and whole.step(FORWARD)[4]["is_success"]


@pytest.mark.parametrize("agent_view_size, pixels", [(3, 84), (5, 80), (7, 84)])
def test_minigrid_images(agent_view_size, pixels):
    for name in ("MiniGrid-MemoryS7-v0", "MiniGrid-DoorKey-5x5-v0"):
        for obs_mode, side in (("rgb", pixels), ("symbolic", agent_view_size)):
            env = make_real_env(name, obs_mode=obs_mode, agent_view_size=agent_view_size)
            obs, _ = env.reset(seed=1)
            assert len(obs) == 1 and obs[0].shape == (side, side, 3) and env.observation_space.contains(obs)


def test_a_mission_is_seen_where_episodes_differ_in_it():
    env = make_real_env("MiniGrid-GoToDoor-5x5-v0", obs_mode="symbolic")
    missions = {env.reset(seed=seed)[0][1].tobytes() for seed in range(10)}
    assert len(env.observation_space) == 2 and len(missions) > 1


# ------------------------------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(env_id="MiniGrid-MemoryS12-v0"), ["--env-id", "MiniGrid-MemoryS12-v0", "odd", "5 to 65"]),
        (dict(env_id="MiniGrid-MemoryS3-v0"), ["--env-id", "MiniGrid-MemoryS3-v0", "5 to 65"]),
        (dict(env_id="MiniGrid-MemoryS5Random-v0"), ["--env-id", "MemoryS5Random-v0", "7 to 65"]),
        (dict(env_id="MiniGrid-MemoryS67-v0"), ["--env-id", "MiniGrid-MemoryS67-v0", "5 to 65"]),
        (dict(env_id="CartPoel-v1"), ["--env-id", "CartPoel-v1", "CartPole-v1", "registered"]),
        (dict(env_id="CartPole-v99"), ["--env-id", "CartPole-v99", "CartPole-v1", "registered"]),
        (dict(env_id="no_such_module:Thing-v0"), ["--env-id no_such_module:Thing-v0", "ModuleNotFoundError"]),
        (dict(env_id="small_envs:Thing-v0"), ["--env-id small_envs:Thing-v0", "registered"]),
        (dict(env_id="not an id"), ["--env-id", "not an id", "registered"]),
        (dict(env_id="CartPole-v1", env_backend="table"), ["--env-backend", "table", "CartPole-v1", "gymnasium"]),
        (dict(agent_view_size=4), ["--agent-view-size", "4", "odd"]),
        (dict(env_kwargs="length 7"), ["--env-kwargs length 7", "JSON object"]),
        (dict(env_kwargs="[7]"), ["--env-kwargs [7]", "JSON object"]),
        (dict(env_kwargs="7"), ["--env-kwargs 7", "JSON object"]),
        (dict(env_kwargs='{"lenth": 7}'), ["--env-id MiniGrid-MemoryS7-v0", "TypeError", "lenth", "--env-kwargs"]),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "gymnasium"])
def test_wrong_input_is_named_in_one_sentence(settings, words, backend):
    settings = {"env_id": "MiniGrid-MemoryS7-v0", "env_backend": backend, **settings}
    with pytest.raises(InputError) as error:
        tasks.make_envs(TaskArgs(**settings), 2)
    one_sentence(error, *words)


@pytest.mark.parametrize(
    "flag, value, words",
    [
        ("env-backend", "tables", ["--env-backend", "tables", "auto", "table", "gymnasium"]),
        ("agent-view-size", "1", ["--agent-view-size", "1", "from 3"]),
        ("agent-view-size", "85", ["--agent-view-size", "85", "83"]),
        ("obs-mode", "pixels", ["--obs-mode", "pixels", "rgb", "symbolic"]),
        ("max-episode-steps", "-1", ["--max-episode-steps", "-1", "from 0"]),
        ("num-envs", "0", ["--num-envs", "0", "from 1"]),
    ],
)
def test_flags_out_of_their_range_are_named(flag, value, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ppo_palmer.py", f"--{flag}", value])
    with pytest.raises(SystemExit) as exit:
        run_script(check_args, ppo_palmer.Args, ppo_palmer.PRESETS, None)
    printed = "".join(capsys.readouterr())
    assert exit.value.code == 2
    for word in words:
        assert word in printed


@pytest.mark.parametrize(
    "source, words",
    [
        ("import package_that_is_missing", ["ModuleNotFoundError", "package_that_is_missing"]),
        ("raise ValueError('no\\nlicence')", ["ValueError (no licence)"]),
        ("def (", ["SyntaxError"]),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_cause(source, words, tmp_path, monkeypatch):
    (tmp_path / "broken_tasks.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_tasks", raising=False)
    with pytest.raises(InputError) as error:
        make_real_env("broken_tasks:Thing-v0")
    one_sentence(error, "--env-id broken_tasks:Thing-v0", "broken_tasks", *words)
    assert isinstance(error.value.__cause__, Exception)


def test_a_package_missing_behind_an_id_is_named(env_id):
    name = env_id("package_that_is_missing.envs:Thing")
    with pytest.raises(InputError) as error:
        make_real_env(name)
    one_sentence(error, f"--env-id {name}", "package_that_is_missing")


class Failing(Told):
    """Raises `error` where it is told to."""

    def __init__(self, where, error):
        super().__init__({}, [(0, False, False, {})] * 9)
        self.where, self.error = where, error
        self.fail("constructor")

    def fail(self, here):
        if here == self.where:
            raise self.error

    def reset(self, **kwargs):
        self.fail("reset")
        return super().reset(**kwargs)

    def step(self, action):
        self.fail("step")
        return super().step(action)


@pytest.mark.parametrize("where", ["constructor", "reset"])
@pytest.mark.parametrize(
    "error, words",
    [(RuntimeError("no\n  display"), "RuntimeError (no display)"), (AssertionError(), "AssertionError")],
)
def test_a_constructor_or_reset_that_raises_is_named_with_the_cause(where, error, words, env_id):
    name = env_id(functools.partial(Failing, where, error))
    with pytest.raises(InputError) as raised:
        tasks.make_envs(TaskArgs(name), 2)
    one_sentence(raised, f"--env-id {name}", where, words)
    assert raised.value.__cause__ is error


def test_a_step_that_raises_is_named_with_the_cause(env_id):
    error = RuntimeError("no\n  display")
    name = env_id(functools.partial(Failing, "step", error))
    envs = tasks.make_envs(TaskArgs(name), 2)
    envs.reset()
    with pytest.raises(RunError) as raised:
        envs.step(torch.zeros(2, dtype=torch.int64))
    one_sentence(raised, f"--env-id {name}", "step", "RuntimeError (no display)")
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    "observation_space, action_space, words",
    [
        (spaces.Sequence(spaces.Discrete(3)), spaces.Discrete(2), ["its observations", "no fixed size"]),
        (spaces.Graph(spaces.Discrete(3), None), spaces.Discrete(2), ["its observations", "no fixed size"]),
        (
            spaces.Dict(a=spaces.Discrete(3), b=spaces.Sequence(spaces.Discrete(3))),
            spaces.Discrete(2),
            ["its observations", "no fixed size"],
        ),
        (spaces.Discrete(2), spaces.Sequence(spaces.Discrete(3)), ["its actions", "MultiDiscrete"]),
        (spaces.Discrete(2), spaces.Dict(a=spaces.Discrete(3)), ["its actions", "MultiDiscrete"]),
        (spaces.Dict(), spaces.Discrete(2), ["its observations", "nothing to see"]),
        (spaces.Box(0, 1, (0,)), spaces.Discrete(2), ["its observations", "nothing to see"]),
        (None, spaces.Discrete(2), ["its observation_space", "must be a space"]),
        (spaces.Discrete(2), None, ["its action_space", "must be a space"]),
    ],
)
def test_spaces_that_cannot_be_used_are_refused(observation_space, action_space, words, env_id):
    def make():
        env = Told({}, [])
        env.observation_space, env.action_space = observation_space, action_space
        return env

    name = env_id(make)
    with pytest.raises(InputError) as error:
        tasks.make_envs(TaskArgs(name), 1)
    one_sentence(error, f"--env-id {name}", *words)
