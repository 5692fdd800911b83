"""N environments: tables against the real MiniGrid package, and both back ends' conventions."""

import functools
import io
from collections import Counter

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from minigrid.envs import MemoryEnv
from minigrid.wrappers import ImgObsWrapper, RGBImgPartialObsWrapper
from torch.utils._python_dispatch import TorchDispatchMode

import tasks
from evaluate import FIRST_SEED
from harness.input_error import InputError
from tasks import Step, TaskArgs, minigrid_memory
from tasks.envs import GymnasiumEnvs, maze_tables
from tasks.minigrid_memory import MazeTables, agent_place, maze_layout
from tasks.observations import ObservationTable, words
from tasks.tables import TableEnvs, Tables

LEFT, FORWARD, DONE = 0, 2, 6
MAZES = {  # layouts, states, distinct 3x3 views, distinct 7x7 views
    "MiniGrid-MemoryS11-v0": (4, 232, 58, 101),
    "MiniGrid-MemoryS13-v0": (4, 264, 58, 105),
    "MiniGrid-MemoryS13Random-v0": (28, 1512, 67, 291),
    "MiniGrid-MemoryS17Random-v0": (44, 2728, 67, 291),
}


def make_envs(env_id, num_envs, *, backend="auto", seed=1, device="cpu", **flags):
    return tasks.make_envs(TaskArgs(env_id, env_backend=backend, **flags), num_envs, seed=seed, device=device)


def make_real_env(env_id, render_mode=None, **flags):
    return tasks.make_real_env(TaskArgs(env_id, **flags), render_mode)


known_tables = functools.cache(maze_tables)  # of all mazes below, more than maze_tables itself keeps


def frames_of(envs, numbers):
    """Frames of a task that shows one thing only."""
    (part,) = envs.observations.frames
    return part[numbers]


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def set_states(envs: TableEnvs, state: torch.Tensor, clock: torch.Tensor) -> None:
    envs.load_state_dict({**envs.state_dict(), "state": state, "clock": clock})


class RealMazes:
    """The real environment, moved to any state of the tables by way of mazes that its own resets drew."""

    def __init__(self, tables: MazeTables, env_id: str, obs_mode: str, agent_view_size: int):
        self.env = make_real_env(env_id, obs_mode=obs_mode, agent_view_size=agent_view_size, max_episode_steps=0)
        self.places = tables.places.tolist()
        self.mazes = {}
        maze = self.env.unwrapped
        for seed in range(3000):
            self.env.reset(seed=seed)
            layout = tables.layouts.index(maze_layout(maze))
            self.mazes[layout] = (maze.grid, maze.success_pos, maze.failure_pos)
            if len(self.mazes) == len(tables.layouts):
                break
        assert len(self.mazes) == len(tables.layouts)

    def step(self, state: int, clock: int, action: int) -> tuple:
        maze = self.env.unwrapped
        layout, column, row, maze.agent_dir = self.places[state]
        maze.grid, maze.success_pos, maze.failure_pos = self.mazes[layout]
        maze.agent_pos, maze.step_count = (column, row), clock
        return self.env.step(action)[:4]


# ------------------------------------------------------------------------- tables against the real package


@pytest.mark.parametrize("env_id", MAZES)
def test_tables_have_the_known_sizes(env_id):
    layouts, states, small_views, large_views = MAZES[env_id]
    for obs_mode in ("rgb", "symbolic"):
        small, large = known_tables(env_id, obs_mode, 3), known_tables(env_id, obs_mode, 7)
        assert len(small.layouts) == len(large.layouts) == layouts
        assert len(small.places) == len(large.places) == states
        assert (len(small.frames[0]), len(large.frames[0])) == (small_views, large_views)


@pytest.mark.parametrize("env_id", MAZES)
@pytest.mark.parametrize("obs_mode", ["rgb", "symbolic"])
@pytest.mark.parametrize("agent_view_size", [3, 7])
def test_every_observation_of_every_layout_is_the_real_one(env_id, obs_mode, agent_view_size):
    tables = known_tables(env_id, obs_mode, agent_view_size)
    real = RealMazes(tables, env_id, obs_mode, agent_view_size)
    assert tables.space == real.env.observation_space
    observed = {}
    for state, number in enumerate(tables.observation.tolist()):
        (frame,) = real.step(state, 0, DONE)[0]  # an action that changes nothing
        assert frame.dtype == np.uint8
        assert observed.setdefault(number, frame.tobytes()) == frame.tobytes()
    (frames,) = tables.frames
    assert len(set(observed.values())) == len(observed) == len(frames)
    for number, frame in enumerate(frames.numpy()):
        assert frame.tobytes() == observed[number]


@pytest.mark.parametrize("env_id", MAZES)
def test_every_action_in_every_state_does_what_the_real_one_does(env_id):
    tables = known_tables(env_id, "symbolic", 3)
    real = RealMazes(tables, env_id, "symbolic", 3)
    max_steps = real.env.unwrapped.max_steps
    state = torch.arange(tables.first_failure).repeat_interleave(7)
    action = torch.arange(7).repeat(tables.first_failure)
    clock = torch.from_numpy(np.random.default_rng(0).integers(0, max_steps, len(state)))
    clock[::5] = max_steps - 1  # the last step of the real environment's own limit
    ending = tables.next_state[state, action] >= tables.first_failure
    state, action = torch.cat((state, state[ending])), torch.cat((action, action[ending]))
    clock = torch.cat((clock, torch.full((int(ending.sum()),), max_steps - 1)))
    envs = TableEnvs(tables, len(state), limit=None, seed=1)
    assert envs.max_episode_steps == max_steps
    set_states(envs, state, clock)
    step = Step(*(field.numpy() for field in envs.step(action)))
    final = frames_of(envs, step.final_obs).numpy()
    next_place = tables.places[envs.state_dict()["state"]].tolist()
    seen = Counter()
    for i, (number, t, a) in enumerate(zip(state.tolist(), clock.tolist(), action.tolist(), strict=True)):
        (obs,), reward, terminated, truncated = real.step(number, t, a)
        assert final[i].tobytes() == obs.tobytes()
        assert step.reward[i] == np.float32(reward)
        assert step.terminated[i] == terminated
        assert step.truncated[i] == (truncated and not terminated)
        assert step.success[i] == (terminated and reward > 0)
        if not (terminated or truncated):
            assert step.obs[i] == step.final_obs[i]
            assert next_place[i] == [real.places[number][0], *agent_place(real.env.unwrapped)]
        seen[terminated, truncated, reward > 0] += 1
    # An ongoing step, and time-out, failure and success, the last two with and without a time-out.
    kinds = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1)]
    assert set(seen) == {tuple(map(bool, kind)) for kind in kinds}


@pytest.mark.parametrize("env_id", ["MiniGrid-MemoryS7-v0", "MiniGrid-MemoryS13Random-v0"])
def test_tables_and_the_real_package_agree_step_for_step(env_id):
    """Whole episodes in step, with same-step resets and a time limit; resets draw different mazes by chance."""
    settings = dict(obs_mode="rgb", agent_view_size=3, max_episode_steps=25)
    tables = make_envs(env_id, 16, **settings)
    real = make_envs(env_id, 16, backend="gymnasium", **settings)
    assert isinstance(tables, TableEnvs) and isinstance(real, GymnasiumEnvs)
    assert tables.max_episode_steps == real.max_episode_steps == 25
    assert tables.action_space == real.action_space
    assert tables.observations.space == real.observations.space
    layouts = known_tables(env_id, "rgb", 3).layouts
    state_at = {tuple(p): i for i, p in enumerate(known_tables(env_id, "rgb", 3).places.tolist())}

    def match(episode_over: torch.Tensor) -> None:
        mazes = [env.unwrapped for env in real._envs.envs]
        state = [state_at[layouts.index(maze_layout(maze)), *agent_place(maze)] for maze in mazes]
        clock = tables.state_dict()["clock"]
        assert (clock[episode_over] == 0).all()
        set_states(tables, torch.tensor(state), clock)

    tables.reset()
    real.reset()
    match(torch.ones(16, dtype=torch.bool))
    generator = torch.Generator().manual_seed(1)
    ends = Counter()
    for _ in range(150):
        action = torch.randint(7, (16,), generator=generator)
        action[torch.rand(16, generator=generator) < 0.5] = FORWARD
        a, b = tables.step(action), real.step(action)
        for name in ("reward", "terminated", "truncated", "success"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
            assert getattr(a, name).dtype == getattr(b, name).dtype
        assert torch.equal(frames_of(tables, a.final_obs), frames_of(real, b.final_obs))
        ended = a.terminated | a.truncated
        for step in (a, b):
            assert torch.equal(step.obs[~ended], step.final_obs[~ended])
        ends += Counter(zip(b.truncated.tolist(), b.success.tolist(), ended.tolist(), strict=True))
        match(ended)
        current = frames_of(tables, tables._observation[tables.state_dict()["state"]])
        assert torch.equal(current, frames_of(real, b.obs))
    assert ends[True, False, True] and ends[False, False, True]
    if env_id == "MiniGrid-MemoryS7-v0":
        assert ends[False, True, True]


def start_chances(env_id: str) -> dict[tuple, float]:
    """By the description of the maze: a corridor, then a column on it, then one of four pairs of objects."""
    size = int(env_id.split("MemoryS")[1].split("Random")[0].split("-")[0])
    corridors = range(4, size - 2) if "Random" in env_id else [size - 3]
    chances = {(end, column): 1 / len(corridors) / end for end in corridors for column in range(1, end + 1)}
    return {(*start, pair): p / 4 for start, p in chances.items() for pair in range(4)}


@pytest.mark.parametrize("env_id", MAZES)
def test_start_distribution_is_exact(env_id):
    tables = known_tables(env_id, "symbolic", 3)
    chance = torch.diff(tables.start_cdf, prepend=torch.zeros(1, dtype=torch.float64))
    assert tables.start_cdf[-1] == 1
    assert len(set(tables.start_state.tolist())) == len(tables.start_state)
    places = tables.places[tables.start_state]
    size = int(len(tables.layouts[0]) ** 0.5)
    assert (places[:, 2] == size // 2).all() and (places[:, 3] == 0).all()
    expected = sorted(start_chances(env_id).values())
    np.testing.assert_allclose(np.sort(chance.numpy()), expected, rtol=1e-9)
    for layout in range(len(tables.layouts)):  # each corridor has its own columns
        columns = places[places[:, 0] == layout, 1]
        own = chance[places[:, 0] == layout]
        assert sorted(columns.tolist()) == list(range(1, len(columns) + 1))
        np.testing.assert_allclose(own.numpy(), 1 / len(tables.layouts) / len(columns), rtol=1e-9)


@pytest.mark.parametrize("source", ["tables", "package"])
def test_resets_are_distributed_as_the_tables_say(source):
    env_id = "MiniGrid-MemoryS13Random-v0"
    tables = known_tables(env_id, "symbolic", 3)
    chance = torch.diff(tables.start_cdf, prepend=torch.zeros(1, dtype=torch.float64)).numpy()
    index = {state: i for i, state in enumerate(tables.start_state.tolist())}
    counts = np.zeros(len(chance))
    if source == "tables":
        envs = make_envs(env_id, 1024, obs_mode="symbolic", max_episode_steps=1, seed=5)
        for _ in range(20):
            envs.step(torch.zeros(1024, dtype=torch.int64))
            for state in envs.state_dict()["state"].tolist():
                counts[index[state]] += 1
    else:
        env = make_real_env(env_id, obs_mode="symbolic")
        state_at = {tuple(p): i for i, p in enumerate(tables.places.tolist())}
        env.reset(seed=5)
        for _ in range(3000):
            env.reset()
            maze = env.unwrapped
            counts[index[state_at[tables.layouts.index(maze_layout(maze)), *agent_place(maze)]]] += 1
    expected = counts.sum() * chance
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = len(chance) - 1
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_numbering_is_deterministic():
    first = maze_tables("MiniGrid-MemoryS13Random-v0", "rgb", 3)
    second = maze_tables.__wrapped__("MiniGrid-MemoryS13Random-v0", "rgb", 3)
    assert first is maze_tables("MiniGrid-MemoryS13Random-v0", "rgb", 3)
    assert second is not first
    for name in ("next_state", "observation", "start_state", "start_cdf", "reward", "pay", "places"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert torch.equal(first.frames[0], second.frames[0])


def test_mazes_that_minigrid_does_not_register_can_be_played():
    for env_id in ("MiniGrid-MemoryS21-v0", "MiniGrid-MemoryS25Random-v0"):
        real = make_real_env(env_id, obs_mode="symbolic")
        (obs,), _ = real.reset(seed=1)
        envs = make_envs(env_id, 4, obs_mode="symbolic")
        assert envs.reset().max() < envs.observations.count
        known = envs.observations.count
        envs.observations.number((obs[None],))
        assert envs.observations.count == known and envs.observations.distinct


def test_smallest_sizes_are_those_the_package_can_draw():
    MemoryEnv(size=minigrid_memory.SMALLEST_SIZE).reset(seed=1)
    MemoryEnv(size=minigrid_memory.SMALLEST_RANDOM_SIZE, random_length=True).reset(seed=1)
    with pytest.raises(AssertionError):
        MemoryEnv(size=minigrid_memory.SMALLEST_SIZE - 2).reset(seed=1)
    with pytest.raises(ValueError):
        MemoryEnv(size=minigrid_memory.SMALLEST_RANDOM_SIZE - 2, random_length=True).reset(seed=1)
    for name in ("S5", "S7Random"):
        assert make_envs(f"MiniGrid-Memory{name}-v0", 2).reset().shape == (2,)


# ------------------------------------------------------------------------- table back end


def random_steps(envs, num_steps: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(num_steps):
        out += envs.step(torch.randint(7, (envs.num_envs,), generator=generator))
    return out


def all_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_same_seed_gives_the_same_stream_and_another_seed_another():
    def stream(seed):
        envs = make_envs("MiniGrid-MemoryS13Random-v0", 8, max_episode_steps=10, seed=seed)
        return [envs.reset(), *random_steps(envs, 60)]

    assert all_equal(stream(3), stream(3))
    assert not all_equal(stream(3), stream(4))


def test_table_envs_continue_bit_for_bit_from_a_saved_state():
    def make(seed):
        return make_envs("MiniGrid-MemoryS13Random-v0", 4096, max_episode_steps=9, seed=seed)

    envs = make(1)
    assert envs.exact_resume
    envs.reset()
    random_steps(envs, 21)
    saved = through_a_file(envs.state_dict())
    expected = random_steps(envs, 50, seed=1)
    restored = make(2)
    restored.load_state_dict(saved)
    assert all_equal(random_steps(restored, 50, seed=1), expected)
    restored.load_state_dict(saved)  # what was loaded has not been overwritten by the steps since
    assert all_equal(random_steps(restored, 50, seed=1), expected)


# A lamp: 0 dark, 1 lit, 2 broken, 3 sold. It can be switched (action 0) or sold (action 1); whoever sells it dark
# breaks it. Light costs 0.5 a step and switching 0.25 more; reward is worth less, the later.
LAMP = Tables(
    next_state=torch.tensor([[1, 2], [0, 3], [2, 2], [3, 3]]),
    reward=torch.tensor([[-0.75, -2.0], [-0.25, 4.0], [0.0, 0.0], [0.0, 0.0]]),
    pay=torch.tensor([9.0, 1.0, 0.5, 0.25, 0.125]),  # after no step, one, ...; four are the limit
    observation=torch.tensor([0, 1, 2, 2]),
    first_failure=2,
    first_success=3,
    start_state=torch.tensor([0, 1]),
    start_cdf=torch.tensor([0.25, 1.0], dtype=torch.float64),
    frames=(torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),),
    space=spaces.Tuple((spaces.Box(0, 1, (2,)),)),
)


def test_a_table_has_a_reward_for_each_state_and_action_which_falls_with_time():
    envs = TableEnvs(LAMP, 4, limit=None, seed=1)
    assert envs.action_space == spaces.Discrete(2) and envs.max_episode_steps == 4 and envs.tells_success
    set_states(envs, torch.tensor([0, 1, 0, 1]), torch.zeros(4, dtype=torch.int64))
    actions = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    # Environment 0 switches on and off until time is over; 1 switches off, on and sells; 2 breaks; 3 sells at once.
    reward = [[-0.75, -0.25, -2.0, 4.0], [-0.125, -0.375], [-0.1875, 1.0], [-0.03125]]
    ends = [(0, 0, 1, 1), (0, 0), (0, 1), (0,)]
    for t, action in enumerate(actions):
        running = len(ends[t])
        step = Step(*(field[:running] for field in envs.step(action)))
        assert step.reward.tolist() == reward[t] and step.reward.dtype == torch.float32
        assert step.terminated.tolist() == [bool(end) for end in ends[t]]
        assert step.truncated.tolist() == [t == 3] * running
        assert step.success.tolist() == [(t, i) in ((0, 3), (2, 1)) for i in range(running)]
    assert step.final_obs.tolist() == [0], "switched on and off twice, it is dark again"


def test_a_table_starts_where_and_as_often_as_it_says():
    envs = TableEnvs(LAMP, 1000, limit=1, seed=1)
    starts = torch.stack([envs.reset(), *(envs.step(torch.zeros(1000, dtype=torch.int64)).obs for _ in range(20))])
    assert (starts == 1).float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert set(starts.flatten().tolist()) == {0, 1}


def test_one_environment():
    for backend in ("table", "gymnasium"):
        envs = make_envs("MiniGrid-MemoryS7-v0", 1, backend=backend, max_episode_steps=2)
        assert envs.reset().shape == (1,)
        envs.step(torch.tensor([LEFT]))
        step = envs.step(torch.tensor([LEFT]))
        assert all(field.shape == (1,) for field in step)
        assert step.truncated.item() and not step.terminated.item()
        envs.close()


def test_episode_limits():
    def limit(env_id, **settings):
        return make_envs(env_id, 1, obs_mode="symbolic", **settings).max_episode_steps

    for backend in ("table", "gymnasium"):
        assert limit("MiniGrid-MemoryS11-v0", backend=backend) == 96
        assert limit("MiniGrid-MemoryS11-v0", backend=backend, max_episode_steps=0) == 5 * 11**2
        assert limit("MiniGrid-MemoryS11-v0", backend=backend, max_episode_steps=7) == 7
        assert limit("MiniGrid-MemoryS11-v0", backend=backend, max_episode_steps=9999) == 5 * 11**2
    assert limit("CartPole-v1") == limit("CartPole-v1", max_episode_steps=0) == 500
    assert limit("CartPole-v1", max_episode_steps=9999) == 500
    assert limit("CartPole-v1", max_episode_steps=30) == 30
    assert limit("MiniGrid-Empty-5x5-v0") == 100
    assert limit("BabyAI-GoToRedBallGrey-v0") is None  # chooses its limit anew at each reset
    assert limit("palmer/TMazeActive-v0", env_kwargs='{"length": 9}') == 12
    assert limit("palmer/Parity-v0", env_kwargs='{"length": 9}') == 10
    assert limit("palmer/RecallXorParity-v0", env_kwargs='{"length": 9, "bits": 2}') == 11


class RecordedOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_step_is_a_few_operations_and_never_waits_for_the_device():
    counts = []
    for num_envs in (4, 64):
        envs = make_envs("MiniGrid-MemoryS13-v0", num_envs)
        action = torch.zeros(num_envs, dtype=torch.int64)
        envs.step(action)  # draws the next episodes' starts for many steps
        with RecordedOperations() as recorded:
            envs.step(action)
        assert not {"_local_scalar_dense", "nonzero", "item", "index", "_to_copy"} & set(recorded.names)
        counts.append(len(recorded.names))
    assert counts[0] == counts[1] <= 18


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_plays_the_same_episodes_without_waiting():
    on_cpu = make_envs("MiniGrid-MemoryS13Random-v0", 256, max_episode_steps=20)
    on_gpu = make_envs("MiniGrid-MemoryS13Random-v0", 256, max_episode_steps=20, device="cuda")
    assert torch.equal(on_cpu.reset(), on_gpu.reset().cpu())
    actions = torch.randint(7, (100, 256))
    moved = actions.cuda()
    expected = [on_cpu.step(action) for action in actions]
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = [on_gpu.step(action) for action in moved]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(expected, steps, strict=True):
        assert all_equal(list(a), [field.cpu() for field in b])


# ------------------------------------------------------------------------- vector environment for other code


def test_vector_environment_behaves_as_gymnasiums_own():
    limit = 4
    envs = gymnasium.make_vec("tasks:palmer/MemoryS7-v0", num_envs=3, max_episode_steps=limit)

    def package_alone():
        env = gymnasium.make("MiniGrid-MemoryS7-v0", agent_view_size=3, max_episode_steps=limit)
        return ImgObsWrapper(RGBImgPartialObsWrapper(env, tile_size=28))

    own = SyncVectorEnv([package_alone] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(envs, name) == getattr(own, name), name
    results = [(envs.reset(seed=1), envs), (own.reset(seed=1), own)]
    assert results[0][0][1] == results[1][0][1] == {}
    for t in range(1, 2 * limit + 1):
        action = np.array([LEFT, LEFT, LEFT])
        (obs, *numbers, infos), (own_obs, *own_numbers, own_infos) = envs.step(action), own.step(action)
        assert envs.observation_space.contains(obs)
        assert obs.dtype == own_obs.dtype and obs.shape == own_obs.shape
        for ours, theirs in zip(numbers, own_numbers, strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
        assert set(infos) == set(own_infos)
        assert bool(infos) == (t % limit == 0)
        for key in infos:
            if isinstance(own_infos[key], dict):
                assert infos[key] == own_infos[key] == {}
                continue
            assert infos[key].dtype == own_infos[key].dtype and infos[key].shape == own_infos[key].shape
            if key.startswith("_"):
                np.testing.assert_array_equal(infos[key], own_infos[key])
            for ours, theirs in zip(infos[key], own_infos[key], strict=True):
                assert np.shape(ours) == np.shape(theirs)
    with pytest.raises(ValueError, match="actions"):
        envs.step(np.array([0, 7, 0]))


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(env_id="CartPole-v1"), ["--env-backend table", "CartPole-v1"]),
        (dict(env_id="MiniGrid-MemoryS12-v0"), ["--env-id MiniGrid-MemoryS12-v0", "odd"]),
        (dict(obs_mode="pixels"), ["--obs-mode pixels", "rgb or symbolic"]),
        (dict(agent_view_size=4), ["--agent-view-size 4", "odd"]),
        (dict(agent_view_size=1), ["--agent-view-size 1", "from 3"]),
        (dict(agent_view_size=85), ["--agent-view-size 85", "83"]),
        (dict(max_episode_steps=-1), ["--max-episode-steps -1", "from 0"]),
        (dict(num_envs=0), ["--num-envs 0", "at least 1"]),
    ],
)
def test_vector_environment_names_wrong_arguments_in_one_sentence(settings, words):
    with pytest.raises(InputError) as error:
        gymnasium.make_vec("tasks:palmer/Memory-v0", **settings)
    message = str(error.value)
    assert all(word in message for word in words) and message.endswith(".") and "\n" not in message


def test_vector_environment_gives_final_frames_only_where_an_episode_ended():
    envs = gymnasium.make_vec("tasks:palmer/MemoryS7-v0", num_envs=8, obs_mode="symbolic")
    envs.reset(seed=1)
    rng = np.random.default_rng(0)
    some_but_not_all = 0
    for _ in range(400):
        action = np.where(rng.random(8) < 0.5, FORWARD, rng.integers(0, 7, 8))
        _, reward, terminated, truncated, infos = envs.step(action)
        ended = terminated | truncated
        if ended.any():
            np.testing.assert_array_equal(infos["_final_obs"], ended)
            for i in range(8):
                assert (infos["final_obs"][i] is not None) == ended[i]
                assert not ended[i] or envs.single_observation_space.contains(infos["final_obs"][i])
            some_but_not_all += not ended.all()
        assert (reward[~terminated] == 0).all()
    assert some_but_not_all


def test_vector_environment_is_seeded_by_reset_and_takes_any_size():
    def first_frames(seed):
        envs = gymnasium.make_vec(
            "tasks:palmer/Memory-v0", num_envs=32, env_id="MiniGrid-MemoryS15Random-v0", agent_view_size=7
        )
        obs, _ = envs.reset(seed=seed)
        steps = [envs.step(np.full(32, FORWARD))[0] for _ in range(3)]
        return np.stack([obs, *steps])

    np.testing.assert_array_equal(first_frames(1), first_frames(1))
    assert (first_frames(1) != first_frames(2)).any()
    assert (first_frames(None) != first_frames(None)).any()


# ------------------------------------------------------------------------- Gymnasium back end


class Toy(gymnasium.Env):
    """Episodes of `length` steps; the observation at step t is `observe(t)`, or a buffer used again and again."""

    def __init__(self, observation_space, observe, action_space=None, length=3, both=False, render_mode=None):
        self.observation_space, self.observe = observation_space, observe
        self.action_space = spaces.Discrete(2) if action_space is None else action_space
        self.length, self.both, self.actions = length, both, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(0), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.actions.append(action)
        self.t += 1
        over = self.t == self.length
        return self.observe(self.t), float(self.t), over, over and self.both, {}


BUFFER = np.zeros((8, 8, 3), np.uint8)


def in_buffer(t):
    BUFFER[:] = t
    return BUFFER


def one_hot(size, t):
    return np.eye(size)[t]


PICTURE = spaces.Box(0, 255, (8, 8, 3), np.uint8)
OBSERVATIONS = {  # space, observation at step t, the parts that become of it
    "discrete": (spaces.Discrete(5), lambda t: t, lambda t: [one_hot(5, t)]),
    "multidiscrete": (
        spaces.MultiDiscrete([4, 5]),
        lambda t: np.array([t, t + 1]),
        lambda t: [np.concatenate((one_hot(4, t), one_hot(5, t + 1)))],
    ),
    "tuple": (
        spaces.Tuple((spaces.Discrete(4), spaces.Box(0, 9, (2,)))),
        lambda t: (t, np.full(2, t, np.float32)),
        lambda t: [np.concatenate((one_hot(4, t), [t, t]))],
    ),
    "dict": (
        spaces.Dict({"a": spaces.Discrete(4), "b": spaces.Box(0, 9, (1, 2), np.float64)}),
        lambda t: {"a": t, "b": np.full((1, 2), t / 3)},
        lambda t: [np.concatenate((one_hot(4, t), [t / 3, t / 3]))],
    ),
    "float64 matrix": (
        spaces.Box(-1e300, 1e300, (2, 2), np.float64),
        lambda t: np.full((2, 2), t / 7),
        lambda t: [np.full(4, t / 7)],
    ),
    "image": (PICTURE, lambda t: np.full((8, 8, 3), t, np.uint8), lambda t: [np.full((8, 8, 3), t)]),
    "reused buffer": (PICTURE, in_buffer, lambda t: [np.full((8, 8, 3), t)]),
    "picture, number and text": (
        spaces.Dict({"number": spaces.Box(0, 9, (1,)), "see": PICTURE, "text": spaces.Text(40)}),
        lambda t: {"number": np.array([t], np.float32), "see": in_buffer(t), "text": "go " * t},
        lambda t: [np.full((8, 8, 3), t), [t], [words("go")[0]] * t + [0] * (32 - t)],
    ),
}


@pytest.fixture
def toy_id():
    """Registers a Toy for one test: toy_id(observation_space, observe, ...) -> environment id."""
    registered = []

    def register(*args, **kwargs):
        registered.append(f"Toy{len(registered)}-v0")
        gymnasium.register(
            registered[-1], entry_point=lambda render_mode=None: Toy(*args, **kwargs), disable_env_checker=True
        )
        return registered[-1]

    yield register
    for env_id in registered:
        del gymnasium.registry[env_id]


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_observations_of_any_kind_and_the_true_last_one(kind, toy_id):
    space, observe, expected = OBSERVATIONS[kind]
    envs = make_envs(toy_id(space, observe), 2)
    table = envs.observations
    image = kind in ("image", "reused buffer", "picture, number and text")
    assert isinstance(table.space[0], spaces.Box)
    assert table.space[0].dtype == (np.uint8 if image else np.float32)
    assert len(table.space[0].shape) == (3 if image else 1)
    assert not envs.tells_success and not envs.exact_resume and envs.max_episode_steps is None

    def check(numbers, t):
        for part, space, one in zip(table.frames, table.space, expected(t), strict=True):
            frames = part[numbers].numpy()
            assert frames.dtype == space.dtype
            np.testing.assert_array_equal(frames, np.stack([np.asarray(one).astype(space.dtype)] * 2))

    check(envs.reset(), 0)
    for _ in range(2):
        for t in (1, 2, 3):
            step = envs.step(torch.zeros(2, dtype=torch.int64))
            check(step.final_obs, t)
            check(step.obs, t % 3)
            assert step.terminated.tolist() == [t == 3] * 2
            assert step.reward.tolist() == [t] * 2 and step.reward.dtype == torch.float32
            assert not step.truncated.any() and not step.success.any()
    assert table.count == 4 and table.distinct


def test_an_episode_that_ends_and_runs_out_of_time_at_once_is_terminated(toy_id):
    envs = make_envs(toy_id(*OBSERVATIONS["discrete"][:2], length=1, both=True), 1)
    envs.reset()
    step = envs.step(torch.tensor([0]))
    assert step.terminated.item() and not step.truncated.item()


@pytest.mark.parametrize(
    "space, action, received",
    [
        (spaces.MultiDiscrete([3, 4]), [[2, 3], [0, 1]], [[2, 3], [0, 1]]),
        (spaces.MultiDiscrete([3, 4], start=[1, 5]), [[2, 3], [0, 1]], [[3, 8], [1, 6]]),
        (spaces.Discrete(3), [2, 0], [2, 0]),
        (spaces.Discrete(3, start=-1), [2, 0], [1, -1]),
        (spaces.MultiDiscrete([[2, 2], [2, 2]]), [[0, 1, 1, 0], [1, 1, 0, 0]], [[[0, 1], [1, 0]], [[1, 1], [0, 0]]]),
        (spaces.MultiBinary(3), [[0, 1, 1], [1, 0, 0]], [[0, 1, 1], [1, 0, 0]]),
        # Floats: bounds at -1 and 1, beyond which they are clipped; as they are where there is no bound.
        (spaces.Box(0, 4, (2,)), [[-1.0, 0.0], [1.0, 9.0]], [[0, 2], [4, 4]]),
        (spaces.Box(-np.inf, np.inf, (1, 2)), [[-1.0, 0.0], [1.0, 9.0]], [[[-1, 0]], [[1, 9]]]),
    ],
)
def test_actions_count_from_zero_and_arrive_as_the_environment_counts_them(space, action, received, toy_id):
    envs = make_envs(toy_id(*OBSERVATIONS["discrete"][:2], action_space=space), 2)
    kind = spaces.MultiDiscrete if isinstance(space, spaces.MultiBinary) else type(space)
    assert type(envs.action_space) is kind and not np.any(getattr(envs.action_space, "start", 0))
    envs.reset()
    envs.step(torch.tensor(action))
    toys = [env.unwrapped for env in envs._envs.envs]
    assert [np.asarray(toy.actions[0]).tolist() for toy in toys] == received


def test_cartpole_gives_the_observations_of_gymnasium():
    envs = make_envs("CartPole-v1", 3, seed=7, max_episode_steps=15)
    own = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1", max_episode_steps=15)] * 3, autoreset_mode="SameStep")
    numbers = envs.reset()
    np.testing.assert_array_equal(frames_of(envs, numbers).numpy(), own.reset(seed=7)[0])
    generator = torch.Generator().manual_seed(0)
    truncations = terminations = 0
    for _ in range(60):
        action = torch.randint(2, (3,), generator=generator)
        step = envs.step(action)
        obs, reward, terminated, truncated, infos = own.step(action.numpy())
        np.testing.assert_array_equal(frames_of(envs, step.obs).numpy(), obs)
        np.testing.assert_array_equal(step.terminated.numpy(), terminated)
        np.testing.assert_array_equal(step.truncated.numpy(), truncated & ~terminated)
        for i in range(3):
            final = infos["final_obs"][i] if terminated[i] or truncated[i] else obs[i]
            np.testing.assert_array_equal(frames_of(envs, step.final_obs[i]).numpy(), final)
        truncations += step.truncated.sum().item()
        terminations += terminated.sum()
    assert truncations and terminations


def test_observations_that_never_repeat_overflow_the_table_and_stay_correct(monkeypatch):
    small_table = functools.partial(ObservationTable, capacity=20)
    monkeypatch.setattr("tasks.envs.ObservationTable", small_table)
    envs = make_envs("CartPole-v1", 4)
    own = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 4, autoreset_mode="SameStep")
    assert envs.observations.capacity == 20
    obs = envs.reset()
    own.reset(seed=1)
    for _ in range(6):
        obs = envs.observations.keep(obs)
        assert envs.observations.count <= 20 or not envs.observations.distinct
        for _ in range(10):
            obs = envs.step(torch.ones(4, dtype=torch.int64)).obs
            expected = own.step(np.ones(4, dtype=np.int64))[0]
            np.testing.assert_array_equal(frames_of(envs, obs).numpy(), expected)
    assert not envs.observations.distinct
    assert envs.observations.count < 60


def test_gymnasium_envs_restart_with_new_episodes_after_loading():
    envs = make_envs("CartPole-v1", 2, seed=3)
    numbers = envs.reset()
    first = frames_of(envs, numbers).clone()
    envs.step(torch.zeros(2, dtype=torch.int64))
    saved = through_a_file(envs.state_dict())

    def resumed(seed):
        other = make_envs("CartPole-v1", 2, seed=seed)
        other.reset()
        other.load_state_dict(saved)
        return frames_of(other, other.reset())

    frames, again = resumed(3), resumed(3)
    assert torch.equal(frames, again)
    assert not torch.equal(frames, first)
    with pytest.raises(ValueError, match="its seed must be 9"):
        resumed(9)


def test_no_seed_of_training_is_one_of_evaluation():
    envs = make_envs("CartPole-v1", 2, seed=3)
    for steps in range(200):
        envs.load_state_dict({**envs.state_dict(), "steps": steps})
        assert 0 <= envs._reset_seed <= FIRST_SEED - 2
