"""Environments in batches: MiniGrid Memory as lookup tables, everything else through Gymnasium.

A Memory maze is small. All its layouts, all places an agent can be in and everything it can see there fit in
a few tables, which are filled once by asking the real MiniGrid environment (`build_tables`). N environments
then advance by indexing those tables (`TableEnvs`), a thousand times faster than by running MiniGrid. Every
other environment runs through Gymnasium (`GymnasiumEnvs`). The two look the same from outside.

Observations are handed out as numbers. `ObservationTable` keeps the frame behind each number, so a rollout
stores 8 bytes a step and an encoder has to look only once at each distinct frame.

Shape letters: N environments, B frames of a batch, S states, A actions, K distinct observations.
"""

import difflib
import functools
import importlib
import itertools
import math
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import gymnasium
import minigrid  # noqa: F401  (importing it registers the MiniGrid ids)
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import FlattenObservation, TransformAction, TransformObservation
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import ImgObsWrapper, RGBImgPartialObsWrapper
from torch import Tensor

from input_error import InputError

# The smallest mazes that MiniGrid's generator can draw; the largest is our choice, as the tables take time.
SMALLEST_SIZE = 5
SMALLEST_RANDOM_SIZE = 7
LARGEST_SIZE = 65
MEMORY_EPISODE_STEPS = 96  # default limit for the Memory family
RGB_PIXELS = 84  # an RGB frame is the largest whole number of pixels a cell that fits in this
GYMNASIUM_CAPACITY = 4096  # distinct observations of a Gymnasium environment that are told apart

MEMORY_ID = re.compile(r"MiniGrid-MemoryS([1-9]\d*)(Random)?-v0")


class Step(NamedTuple):
    """What one action did in each of N environments; an ended episode has already been reset.

    obs: (N,) int64, observation to act on next: the first of a new episode where the old one ended.
    reward: (N,) float32, the environment's own reward.
    terminated: (N,) bool, the episode reached its end.
    truncated: (N,) bool, time ran out; never true where `terminated` is (both at once is a termination).
    final_obs: (N,) int64, the observation the action led to, before any reset (== obs within an episode).
    success: (N,) bool, the episode ended in success (MiniGrid: a termination with reward; elsewhere False).
    """

    obs: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_obs: Tensor
    success: Tensor


# ---------------------------------------------------------------------------------- numbered observations


class ObservationTable:
    """Gives every distinct observation a number and keeps its frame.

    space: Box of one observation. capacity: largest number of distinct observations that are told apart.
    count: frames held now. distinct: whether a number stands for one distinct observation. It turns False for
    good once more than `capacity` were met; from then on every frame gets a new number without a look-up,
    and numbers live until the next `keep`.
    """

    def __init__(
        self,
        space: spaces.Box,
        capacity: int = GYMNASIUM_CAPACITY,
        *,
        frames: Tensor | None = None,
        device: torch.device | str = "cpu",
    ):
        """Starts with `frames` (K, *space.shape), all different, as numbers 0..K-1, or empty."""
        self.space = space
        self.capacity = capacity
        dtype = torch.from_numpy(np.empty(0, space.dtype)).dtype
        self._empty = torch.empty((0, *space.shape), dtype=dtype, device=device)
        self._fill(self._empty if frames is None else frames, distinct=True)

    @property
    def frames(self) -> Tensor:
        """(K, *space.shape) frames by number: a view, valid until the next `number` or `keep`."""
        return self._storage[: self.count]

    def number(self, batch: np.ndarray) -> Tensor:
        """Numbers (B,) int64 of the frames in `batch` (B, *space.shape); frames not met before are added."""
        batch = np.ascontiguousarray(batch, dtype=self.space.dtype)
        if not self.distinct:
            return self._append(batch)
        numbers, new_frames = [], []
        for frame in batch:
            key = frame.tobytes()
            if key not in self._number_of:
                self._number_of[key] = self.count + len(new_frames)
                new_frames.append(frame)
            numbers.append(self._number_of[key])
        if self.count + len(new_frames) > self.capacity:
            self.distinct = False
            self._number_of = {}
            return self._append(batch)
        if new_frames:
            self._append(np.stack(new_frames))
        return torch.tensor(numbers, device=self._storage.device)

    def keep(self, current: Tensor) -> Tensor:
        """Call at the start of a rollout with the numbers (N,) in use; returns the numbers to use instead.

        While observations are distinct nothing changes. Afterwards all other frames are dropped and the
        current ones become 0..N-1, so that the table holds one rollout and no more.
        """
        if self.distinct:
            return current
        kept = self._storage[current]
        self.count = len(kept)
        self._storage[: self.count] = kept
        return torch.arange(self.count, device=self._storage.device)

    def state_dict(self) -> dict[str, Any]:
        """The frames by number; none once numbers are not distinct, as those do not outlive a rollout."""
        frames = self.frames if self.distinct else self._empty
        return {"frames": frames.cpu().clone(), "distinct": self.distinct}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self._fill(state["frames"].to(self._empty.device, copy=True), distinct=state["distinct"])

    def _fill(self, frames: Tensor, distinct: bool) -> None:
        self._storage, self.count, self.distinct = frames, len(frames), distinct
        self._number_of = {frame.tobytes(): number for number, frame in enumerate(frames.cpu().numpy())}

    def _append(self, batch: np.ndarray) -> Tensor:
        first, self.count = self.count, self.count + len(batch)
        if self.count > len(self._storage):
            larger = self._storage.new_empty((max(self.count, 2 * len(self._storage)), *self.space.shape))
            larger[:first] = self._storage[:first]
            self._storage = larger
        self._storage[first : self.count] = torch.from_numpy(batch)
        return torch.arange(first, self.count, device=self._storage.device)


# ---------------------------------------------------------------------------------- one real environment


def make_real_env(
    env_id: str,
    *,
    obs_mode: str = "rgb",
    agent_view_size: int = 3,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
) -> gymnasium.Env:
    """One environment of the Gymnasium or MiniGrid package, with the observations that agents here get.

    Of MiniGrid's observation only the image is used, as RGB of about 84x84 ("rgb") or as the k x k x 3 view
    of cell codes ("symbolic"), both uint8; direction and mission text are dropped. Any other environment
    gives uint8 images as they are and everything else flattened to a float32 vector; `obs_mode` and
    `agent_view_size` mean nothing to it. Actions count from 0.

    max_episode_steps: None for 96 steps in the Memory family and the environment's own limit elsewhere, 0 for
    its own, n for n; its own holds as well, so the smaller one counts.

    Raises InputError for wrong arguments, an unknown id, or spaces that cannot be used.
    """
    if obs_mode not in ("rgb", "symbolic"):
        raise InputError(f"--obs-mode {obs_mode}: allowed are rgb and symbolic.")
    if agent_view_size % 2 == 0 or not 3 <= agent_view_size < RGB_PIXELS:
        raise InputError(f"--agent-view-size {agent_view_size}: must be an odd number from 3 to {RGB_PIXELS - 1}.")
    limit = requested_limit(env_id, max_episode_steps)
    spec = find_spec(env_id)
    if limit is not None and spec.max_episode_steps is not None:
        limit = min(limit, spec.max_episode_steps)
    minigrid_kwargs = {"agent_view_size": agent_view_size} if is_minigrid(spec) else {}
    try:
        env = gymnasium.make(spec, max_episode_steps=limit, render_mode=render_mode, **minigrid_kwargs)
    except gymnasium.error.Error as error:
        raise InputError(f"--env-id {env_id}: Gymnasium cannot make this environment ({error}).") from error
    if is_minigrid(spec):
        if obs_mode == "rgb":
            env = RGBImgPartialObsWrapper(env, tile_size=RGB_PIXELS // agent_view_size)
        env = ImgObsWrapper(env)
    return with_plain_actions(with_plain_observations(env, env_id), env_id)


def memory_maze(env_id: str) -> tuple[int, bool] | None:
    """Size and whether the corridor is random for an id of the Memory family, None for any other id.

    Raises InputError for a size that cannot be played.
    """
    match = MEMORY_ID.fullmatch(env_id)
    if match is None:
        return None
    size, random_length = int(match[1]), match[2] is not None
    smallest = SMALLEST_RANDOM_SIZE if random_length else SMALLEST_SIZE
    if size % 2 == 0 or not smallest <= size <= LARGEST_SIZE:
        raise InputError(f"--env-id {env_id}: the size must be an odd number from {smallest} to {LARGEST_SIZE}.")
    return size, random_length


def requested_limit(env_id: str, max_episode_steps: int | None) -> int | None:
    """The episode limit to add to the environment's own one, None for none. Raises InputError below 0."""
    if max_episode_steps is None:
        return MEMORY_EPISODE_STEPS if memory_maze(env_id) else None
    if max_episode_steps < 0:
        raise InputError(
            f"--max-episode-steps {max_episode_steps}: must be at least 1, or 0 for the environment's own."
        )
    return max_episode_steps or None


def find_spec(env_id: str) -> EnvSpec:
    """Gymnasium's entry for `env_id` ("name-v0" or "module:name-v0"); adds Memory mazes of any legal size.

    Raises InputError for an id that is not registered.
    """
    maze = memory_maze(env_id)
    if maze and env_id not in gymnasium.registry:
        size, random_length = maze
        gymnasium.register(
            id=env_id,
            entry_point="minigrid.envs:MemoryEnv",
            kwargs={"size": size, "random_length": random_length},
        )
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(name)
    except (ImportError, gymnasium.error.Error) as error:
        near = difflib.get_close_matches(name, gymnasium.registry, n=3)
        near_text = f", near matches are {', '.join(near)}" if near else ""
        raise InputError(
            f"--env-id {env_id}: must be the id of an environment registered with Gymnasium{near_text}."
        ) from error


def is_minigrid(spec: EnvSpec) -> bool:
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    return isinstance(creator, type) and issubclass(creator, MiniGridEnv)


def with_plain_observations(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    """uint8 images stay as they are, every other observation becomes a float32 vector."""
    if not env.observation_space.is_np_flattenable:
        raise InputError(
            f"--env-id {env_id}: its observations are {env.observation_space}, "
            "allowed are spaces that Gymnasium can flatten to a vector of fixed length."
        )
    space = env.observation_space
    is_image = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3
    if not isinstance(space, spaces.Box) or (len(space.shape) != 1 and not is_image):
        env = FlattenObservation(env)
        space = env.observation_space
    dtype = np.uint8 if is_image else np.float32
    with np.errstate(over="ignore"):  # a float64 bound beyond float32 becomes infinite, as it means to
        low, high = space.low.astype(dtype), space.high.astype(dtype)
    # np.array also copies, as an environment that reuses its buffer would overwrite the final observation.
    plain_space = spaces.Box(low, high, dtype=dtype)
    return TransformObservation(env, functools.partial(np.array, dtype=dtype), plain_space)


def with_plain_actions(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    """Discrete or MultiDiscrete actions that count from 0."""
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        plain_space = spaces.Discrete(int(space.n))
    elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        plain_space = spaces.MultiDiscrete(space.nvec)
    else:
        raise InputError(f"--env-id {env_id}: its actions are {space}, allowed are Discrete and 1-D MultiDiscrete.")
    if np.any(space.start):
        env = TransformAction(env, lambda action: action + space.start, plain_space)
    return env


def episode_limit(env: gymnasium.Env) -> int | None:
    """Largest number of steps of an episode in a real environment, None where that is not known."""
    limits = [env.spec.max_episode_steps]
    if isinstance(env.unwrapped, MiniGridEnv):
        limits.append(env.unwrapped.max_steps)  # 0 in levels that choose a limit anew at each reset
    return min((limit for limit in limits if limit), default=None)


# ---------------------------------------------------------------------------------- tables of a Memory maze

ONGOING, FAILURE, SUCCESS = range(3)
Place = tuple[int, int, int]  # the agent's column, row and heading (0..3)
Layout = tuple  # MiniGrid's code of the object in each cell, row by row, None where a cell is empty


@dataclass(frozen=True)
class MemoryTables:
    """Everything that can happen in a Memory environment.

    A state is a layout and the agent's place in it. States are ordered: those in which the episode goes on,
    then those that end it in failure (from `first_failure`), then in success (from `first_success`).
    """

    next_state: Tensor  # (S, A) int64; a state that ends the episode leads to itself
    observation: Tensor  # (S,) int64, number of what the agent sees
    first_failure: int
    first_success: int
    start_state: Tensor  # (Z,) int64, the states in which an episode can start
    start_cdf: Tensor  # (Z,) float64, their cumulative probability
    reward: Tensor  # (max_steps + 1,) float32, reward for success after t steps
    frames: Tensor  # (K, height, width, 3) uint8, the distinct observations
    space: spaces.Box  # of one observation
    layouts: tuple[Layout, ...]
    places: Tensor  # (S, 4) int64: layout, column, row, heading of each state


@dataclass
class Maze:
    """One layout of the real environment."""

    attributes: dict[str, Any]  # all attributes of the MiniGrid environment, as its maze generator left them
    starts: dict[Place, Fraction]  # probability that an episode starts here, in this layout


@functools.lru_cache(maxsize=8)
def build_tables(env_id: str, obs_mode: str, agent_view_size: int) -> MemoryTables:
    """Plays the real environment through all its random choices, places and actions and writes it all down.

    Raises InputError as `make_real_env` does.
    """
    real_env = make_real_env(env_id, obs_mode=obs_mode, agent_view_size=agent_view_size, max_episode_steps=0)
    real_env.reset(seed=0)
    env = real_env.unwrapped
    mazes = list_mazes(env)

    states: list[tuple[int, int, Place]] = []  # outcome, number of the layout, place
    successors = []
    for number, (layout, maze) in enumerate(mazes.items()):
        vars(env).update(maze.attributes)
        outcomes, places_after = explore(env, list(maze.starts))
        if maze_layout(env) != layout or env.carrying:
            raise RuntimeError(f"an action changed the maze of {env_id}, so places are not all of its state")
        states += [(outcome, number, place) for place, outcome in outcomes.items()]
        successors.append(places_after)
    states.sort(key=lambda state: state[0])
    index = {(layout, place): i for i, (_, layout, place) in enumerate(states)}

    next_state = []
    for i, (outcome, layout, place) in enumerate(states):
        if outcome == ONGOING:
            next_state.append([index[layout, after] for after in successors[layout][place]])
        else:
            next_state.append([i] * int(env.action_space.n))

    tile_size = RGB_PIXELS // agent_view_size if obs_mode == "rgb" else None
    attributes = [maze.attributes for maze in mazes.values()]
    views = [(attributes[layout], place) for _, layout, place in states]
    observation, frames = observe_states(env, views, tile_size)

    start_state, start_chance = [], []
    for layout, maze in enumerate(mazes.values()):
        start_state += [index[layout, place] for place in maze.starts]
        start_chance += maze.starts.values()
    start_cdf = [float(p) for p in itertools.accumulate(start_chance)]
    outcomes_in_order = [outcome for outcome, _, _ in states]
    return MemoryTables(
        next_state=torch.tensor(next_state),
        observation=observation,
        first_failure=outcomes_in_order.index(FAILURE),
        first_success=outcomes_in_order.index(SUCCESS),
        start_state=torch.tensor(start_state),
        start_cdf=torch.tensor(start_cdf, dtype=torch.float64),
        reward=torch.tensor(success_rewards(env), dtype=torch.float32),
        frames=frames,
        space=real_env.observation_space,
        layouts=tuple(mazes),
        places=torch.tensor([[layout, *place] for _, layout, place in states]),
    )


def list_mazes(env: MiniGridEnv) -> dict[Layout, Maze]:
    """Every layout that the maze generator can draw, with the chances of every start in it."""
    mazes: dict[Layout, Maze] = {}
    for probability in draw_every_maze(env):
        maze = mazes.setdefault(maze_layout(env), Maze(dict(vars(env)), {}))
        place = agent_place(env)
        maze.starts[place] = maze.starts.get(place, Fraction(0)) + probability
    return mazes


def draw_every_maze(env: MiniGridEnv) -> Iterator[Fraction]:
    """Runs MiniGrid's own maze generator once for every sequence of random choices it can make.

    Yields the probability of each sequence; `env` then is in the state the generator left it in.
    """
    unfinished: list[list[int]] = [[]]
    while unfinished:
        script = unfinished.pop()
        made = run_generator(env, script)
        choices = [choice for choice, _ in made]
        for depth in range(len(script), len(made)):
            unfinished += [[*choices[:depth], other] for other in made[depth][1][1:]]
        yield Fraction(1, math.prod(len(options) for _, options in made))


def run_generator(env: MiniGridEnv, script: list[int]) -> list[tuple[int, range]]:
    """Draws the maze whose first random choices are those of `script` and whose others are the first option.

    Returns each choice made and the options there were, all equally likely.
    """
    made: list[tuple[int, range]] = []

    def choose(low: int, high: int) -> int:
        choice = script[len(made)] if len(made) < len(script) else low
        made.append((choice, range(low, high)))
        return choice

    env._rand_int = choose  # MiniGrid makes all its discrete choices through this method
    env._gen_grid(env.width, env.height)
    del env._rand_int
    return made


def explore(env: MiniGridEnv, starts: list[Place]) -> tuple[dict[Place, int], dict[Place, list[Place]]]:
    """Takes every action in every place that can be reached from `starts`.

    Returns the outcome of being in each place, and the places that the actions lead to from each place where
    the episode goes on.
    """
    env.gen_obs = dict  # the view costs ten times as much as the move and is asked for once a place, later
    outcomes = dict.fromkeys(starts, ONGOING)
    successors: dict[Place, list[Place]] = {}
    frontier = deque(starts)
    while frontier:
        place = frontier.popleft()
        successors[place] = []
        for action in range(int(env.action_space.n)):
            put_agent(env, place)
            _, reward, terminated, _, _ = env.step(action)
            outcome = (SUCCESS if reward > 0 else FAILURE) if terminated else ONGOING
            after = agent_place(env)
            if after not in outcomes and outcome == ONGOING:
                frontier.append(after)
            if outcomes.setdefault(after, outcome) != outcome:
                raise RuntimeError(f"place {after} has two outcomes, so it is not all of the state")
            successors[place].append(after)
    del env.gen_obs
    return outcomes, successors


def put_agent(env: MiniGridEnv, place: Place) -> None:
    column, row, env.agent_dir = place
    env.agent_pos = (column, row)
    env.step_count = 0


def maze_layout(env: MiniGridEnv) -> Layout:
    return tuple(cell.encode() if cell else None for cell in env.grid.grid)


def agent_place(env: MiniGridEnv) -> Place:
    column, row = env.agent_pos
    return int(column), int(row), int(env.agent_dir)


def observe_states(
    env: MiniGridEnv, states: list[tuple[dict[str, Any], Place]], tile_size: int | None
) -> tuple[Tensor, Tensor]:
    """Looks around in every state: cell codes where `tile_size` is None, else RGB with such cells.

    Returns the number of the observation in each state (S,) and the distinct frames (K, height, width, 3).
    """
    number_of_view: dict[bytes, int] = {}  # RGB depends on the visible cells alone: those are rendered once
    number_of_frame: dict[bytes, int] = {}
    frames, numbers = [], []
    for attributes, place in states:
        vars(env).update(attributes)
        put_agent(env, place)
        view = env.gen_obs()["image"]
        if view.tobytes() not in number_of_view:
            frame = view if tile_size is None else env.get_frame(tile_size=tile_size, agent_pov=True)
            number = number_of_frame.setdefault(frame.tobytes(), len(frames))
            if number == len(frames):
                frames.append(frame)
            number_of_view[view.tobytes()] = number
        numbers.append(number_of_view[view.tobytes()])
    return torch.tensor(numbers), torch.from_numpy(np.stack(frames))


def success_rewards(env: MiniGridEnv) -> list[float]:
    """MiniGrid's reward for success after 0, 1, ... max_steps steps."""
    rewards = []
    for steps in range(env.max_steps + 1):
        env.step_count = steps
        rewards.append(env._reward())
    return rewards


# ---------------------------------------------------------------------------------- batches of environments


class TableEnvs:
    """N Memory environments that advance by table look-ups, on CPU or GPU, without leaving the device.

    The class has its own random generator, seeded with `seed`. It draws on the CPU on every device, so the
    same seed gives the same episodes everywhere.
    """

    has_success = True
    exact_resume = True

    def __init__(
        self,
        tables: MemoryTables,
        num_envs: int,
        *,
        limit: int | None,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        """limit: episode steps, on top of MiniGrid's own limit; None for the latter alone."""
        self.num_envs = num_envs
        num_actions = tables.next_state.shape[1]
        own_limit = len(tables.reward) - 1
        self.action_space = spaces.Discrete(num_actions)
        self.max_episode_steps = own_limit if limit is None else min(limit, own_limit)
        frames = tables.frames.to(device)
        self.observations = ObservationTable(tables.space, len(frames), frames=frames, device=device)
        self._next_state = tables.next_state.flatten().to(device)  # at state * A + action
        self._observation = tables.observation.to(device)
        self._reward = tables.reward.to(device)
        self._first_failure, self._first_success = tables.first_failure, tables.first_success
        self._start_state = tables.start_state.to(device)
        self._start_cdf = tables.start_cdf.to(device)
        self._device = torch.device(device)
        self._generator = torch.Generator().manual_seed(seed)
        self._state = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._clock = torch.zeros(num_envs, dtype=torch.int64, device=device)  # steps taken in the episode
        # Start states are drawn for many steps at once, a row (N,) for each; they wait here to be used.
        rows = max(128, 2**16 // num_envs)
        self._starts = torch.zeros(rows, num_envs, dtype=torch.int64, device=device)
        self._starts_used = rows
        self.reset()

    def reset(self, seed: int | None = None) -> Tensor:
        """Starts a new episode everywhere, seeding the generator anew if `seed` is given; obs (N,)."""
        if seed is not None:
            self._generator.manual_seed(seed)
            self._starts_used = len(self._starts)
        self._state = self._draw_starts().clone()
        self._clock.zero_()
        return self._observation.index_select(0, self._state)

    def step(self, action: Tensor) -> Step:
        """Takes `action` (N,) int64, each from 0 to A-1; not checked, as that would wait for a GPU."""
        row = torch.add(action, self._state, alpha=int(self.action_space.n))
        arrived = self._next_state.index_select(0, row)
        self._clock += 1
        terminated = arrived >= self._first_failure
        success = arrived >= self._first_success
        out_of_time = self._clock >= self.max_episode_steps
        ended = terminated | out_of_time
        reward = self._reward.index_select(0, self._clock) * success
        self._state = torch.where(ended, self._draw_starts(), arrived)
        self._clock.masked_fill_(ended, 0)
        return Step(
            obs=self._observation.index_select(0, self._state),
            reward=reward,
            terminated=terminated,
            truncated=out_of_time > terminated,
            final_obs=self._observation.index_select(0, arrived),
            success=success,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on bit for bit."""
        return {
            "state": self._state.cpu().clone(),
            "clock": self._clock.cpu().clone(),
            "starts": self._starts.cpu().clone(),
            "starts_used": self._starts_used,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, for the same environment and N, on any device."""
        self._state.copy_(state["state"])
        self._clock.copy_(state["clock"])
        self._starts.copy_(state["starts"])
        self._starts_used = state["starts_used"]
        self._generator.set_state(state["generator"].cpu())

    def close(self) -> None:
        """Nothing to release; for the same interface as GymnasiumEnvs."""

    def _draw_starts(self) -> Tensor:
        if self._starts_used == len(self._starts):
            uniform = torch.rand(self._starts.shape, dtype=torch.float64, generator=self._generator)
            drawn = torch.searchsorted(self._start_cdf, uniform.to(self._device), right=True)
            self._starts = self._start_state[drawn]
            self._starts_used = 0
        self._starts_used += 1
        return self._starts[self._starts_used - 1]


class GymnasiumEnvs:
    """N environments of any Gymnasium package with discrete actions, one after the other on the CPU.

    Their inner state cannot be saved: after `load_state_dict` call `reset`, and new episodes begin.
    """

    exact_resume = False

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        obs_mode: str = "rgb",
        agent_view_size: int = 3,
        max_episode_steps: int | None = None,
        seed: int = 1,
        device: torch.device | str = "cpu",
    ):
        """Arguments as for `make_envs`. Raises InputError as `make_real_env` does."""
        make_one = functools.partial(
            make_real_env,
            env_id,
            obs_mode=obs_mode,
            agent_view_size=agent_view_size,
            max_episode_steps=max_episode_steps,
        )
        self._envs = SyncVectorEnv([make_one] * num_envs, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
        assert self._envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        self.num_envs = num_envs
        self.action_space = self._envs.single_action_space
        self.max_episode_steps = episode_limit(self._envs.envs[0])
        self.has_success = isinstance(self._envs.envs[0].unwrapped, MiniGridEnv)
        self.observations = ObservationTable(self._envs.single_observation_space, GYMNASIUM_CAPACITY, device=device)
        self._device = torch.device(device)
        self._seed = seed
        self._reset_seed: int | None = seed
        self._steps = 0

    def reset(self) -> Tensor:
        """Starts a new episode in every environment; observation numbers (N,) int64."""
        batch, _ = self._envs.reset(seed=self._reset_seed)
        self._reset_seed = None
        return self.observations.number(batch)

    def step(self, action: Tensor) -> Step:
        """Takes `action`: (N,) int64, or (N, A) where an action has A parts."""
        batch, reward, terminated, truncated, infos = self._envs.step(action.cpu().numpy())
        self._steps += 1
        obs = final_obs = self.observations.number(batch)
        if "final_obs" in infos:
            ended = np.flatnonzero(infos["_final_obs"])
            final_obs = obs.clone()
            final_obs[ended] = self.observations.number(np.stack(infos["final_obs"][ended]))
        success = terminated & (reward > 0) if self.has_success else np.zeros_like(terminated)
        return Step(
            obs=obs,
            reward=torch.from_numpy(reward.astype(np.float32)).to(self._device),
            terminated=torch.from_numpy(terminated).to(self._device),
            truncated=torch.from_numpy(truncated & ~terminated).to(self._device),
            final_obs=final_obs,
            success=torch.from_numpy(success).to(self._device),
        )

    def state_dict(self) -> dict[str, Any]:
        """The numbered observations, and what it takes to continue with episodes not played before."""
        return {"seed": self._seed, "steps": self._steps, "observations": self.observations.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave; call `reset` next."""
        self._seed, self._steps = state["seed"], state["steps"]
        # Seeding with the first seed again would replay the episodes of the beginning.
        self._reset_seed = int(np.random.SeedSequence([self._seed, self._steps]).generate_state(1)[0])
        self.observations.load_state_dict(state["observations"])

    def close(self) -> None:
        self._envs.close()


def make_envs(
    env_id: str,
    num_envs: int,
    *,
    backend: str = "auto",
    obs_mode: str = "rgb",
    agent_view_size: int = 3,
    max_episode_steps: int | None = None,
    seed: int = 1,
    device: torch.device | str = "cpu",
) -> TableEnvs | GymnasiumEnvs:
    """N environments `env_id` with observation numbers and rewards on `device`.

    backend: "table" for the Memory family as tables, "gymnasium" for the package itself, "auto" for tables
    where there are any. The other arguments are those of `make_real_env`. Raises InputError for wrong ones.
    """
    if num_envs < 1:
        raise InputError(f"--num-envs {num_envs}: must be at least 1.")
    if backend not in ("auto", "table", "gymnasium"):
        raise InputError(f"--env-backend {backend}: allowed are auto, table and gymnasium.")
    is_memory = memory_maze(env_id) is not None
    if backend == "table" and not is_memory:
        raise InputError(
            f"--env-backend table: for {env_id} allowed are auto and gymnasium, tables exist only for "
            "MiniGrid-MemoryS<size>-v0 and MiniGrid-MemoryS<size>Random-v0."
        )
    if is_memory and backend != "gymnasium":
        limit = requested_limit(env_id, max_episode_steps)
        tables = build_tables(env_id, obs_mode, agent_view_size)
        return TableEnvs(tables, num_envs, limit=limit, seed=seed, device=device)
    return GymnasiumEnvs(
        env_id,
        num_envs,
        obs_mode=obs_mode,
        agent_view_size=agent_view_size,
        max_episode_steps=max_episode_steps,
        seed=seed,
        device=device,
    )


# ---------------------------------------------------------------------------------- the tables for other code


class MemoryVectorEnv(VectorEnv):
    """The tables as a Gymnasium vector environment, for code that expects one.

        gymnasium.make_vec("memory_envs:palmer/MemoryS13-v0", num_envs=64, obs_mode="symbolic")
        gymnasium.make_vec("memory_envs:palmer/Memory-v0", num_envs=64, env_id="MiniGrid-MemoryS25Random-v0")

    Observations are frames (N, height, width, 3) uint8; episodes reset in the same step (SAME_STEP), the true
    last frame is in infos["final_obs"]. An episode that ends and runs out of time at once is not truncated.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        env_id: str = "MiniGrid-MemoryS13-v0",
        obs_mode: str = "rgb",
        agent_view_size: int = 3,
        max_episode_steps: int | None = None,
    ):
        """Arguments as for `make_envs`. Raises InputError for wrong ones."""
        self.num_envs = num_envs
        self._envs = make_envs(
            env_id,
            num_envs,
            backend="table",
            obs_mode=obs_mode,
            agent_view_size=agent_view_size,
            max_episode_steps=max_episode_steps,
            seed=int(self.np_random.integers(2**31)),
        )
        self._frames = self._envs.observations.frames.numpy()
        self.single_observation_space = self._envs.observations.space
        self.single_action_space = self._envs.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts a new episode in every environment; `options` has no effect."""
        super().reset(seed=seed)
        return self._frames[self._envs.reset(seed=seed).numpy()], {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes actions (N,). Raises ValueError for one that does not exist."""
        actions = np.asarray(actions, dtype=np.int64)
        if not self.action_space.contains(actions):
            raise ValueError(f"actions {actions} are not in {self.action_space}")
        step = self._envs.step(torch.from_numpy(actions))
        terminated, truncated = step.terminated.numpy(), step.truncated.numpy()
        ended = terminated | truncated
        infos: dict[str, Any] = {}
        if ended.any():
            final_obs = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(ended):
                final_obs[i] = self._frames[step.final_obs[i]].copy()
            infos = {
                "final_obs": final_obs,
                "_final_obs": ended,
                "final_info": {},
                "_final_info": ended.copy(),
            }
        reward = step.reward.numpy().astype(np.float64)
        return self._frames[step.obs.numpy()], reward, terminated, truncated, infos


gymnasium.register(id="palmer/Memory-v0", vector_entry_point=MemoryVectorEnv)
for maze_name in ("S7", "S9", "S11", "S13", "S13Random", "S17Random"):
    gymnasium.register(
        id=f"palmer/Memory{maze_name}-v0",
        vector_entry_point=MemoryVectorEnv,
        kwargs={"env_id": f"MiniGrid-Memory{maze_name}-v0"},
    )
