"""MiniGrid Memory: see an object, walk down a corridor, turn towards the object of the same kind.

https://minigrid.farama.org/environments/minigrid/MemoryEnv/

    #############      O is the object to remember, > the agent. At the fork, where the corridor ends, the right way
    #####........      is the one towards the object of the same kind as O, here up or down by chance.
    #O..>....   O
    #####.......K

A maze is small. All its layouts, all places an agent can be in and everything it can see there fit in a few tables,
which are filled once by asking the real environment (`enumerate_maze`).
"""

import itertools
import math
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import gymnasium
import numpy as np
import torch
from minigrid.minigrid_env import MiniGridEnv
from torch import Tensor

from harness.input_error import InputError
from tasks.tables import Tables

# The smallest mazes that MiniGrid's generator can draw; the largest is our choice, as the tables take time.
SMALLEST_SIZE = 5
SMALLEST_RANDOM_SIZE = 7
LARGEST_SIZE = 65
EPISODE_STEPS = 96  # default limit
ID = re.compile(r"MiniGrid-MemoryS([1-9]\d*)(Random)?-v0")

ONGOING, FAILURE, SUCCESS = range(3)
Place = tuple[int, int, int]  # the agent's column, row and heading (0..3)
Layout = tuple  # MiniGrid's code of the object in each cell, row by row, None where a cell is empty


def maze_of(env_id: str) -> tuple[int, bool] | None:
    """Size and whether the corridor is random for an id of the Memory family, None for any other id.

    Raises InputError for a size that cannot be played.
    """
    match = ID.fullmatch(env_id)
    if match is None:
        return None
    size, random_length = int(match[1]), match[2] is not None
    smallest = SMALLEST_RANDOM_SIZE if random_length else SMALLEST_SIZE
    if size % 2 == 0 or not smallest <= size <= LARGEST_SIZE:
        raise InputError(f"--env-id {env_id}: the size must be an odd number from {smallest} to {LARGEST_SIZE}.")
    return size, random_length


def register(env_id: str) -> None:
    """Adds a maze of a legal size that MiniGrid itself does not name. Raises InputError for another size."""
    size_and_kind = maze_of(env_id)
    if size_and_kind and env_id not in gymnasium.registry:
        size, random_length = size_and_kind
        gymnasium.register(
            id=env_id,
            entry_point="minigrid.envs:MemoryEnv",
            kwargs={"size": size, "random_length": random_length},
        )


@dataclass(frozen=True)
class MazeTables(Tables):
    """A maze's tables, with what each state stands for."""

    layouts: tuple[Layout, ...]
    places: Tensor  # (S, 4) int64: layout, column, row, heading of each state


@dataclass
class Maze:
    """One layout of the real environment."""

    attributes: dict[str, Any]  # all attributes of the MiniGrid environment, as its maze generator left them
    starts: dict[Place, Fraction]  # probability that an episode starts here, in this layout


def enumerate_maze(real_env: gymnasium.Env, tile_size: int | None) -> MazeTables:
    """Plays the real environment through all its random choices, places and actions and writes it all down.

    real_env: as `make_real_env` makes it, without another time limit than its own. tile_size: pixels of a cell in its
    pictures; None where it shows codes of cells.
    """
    real_env.reset(seed=0)
    env = real_env.unwrapped
    mazes = list_mazes(env)

    states: list[tuple[int, int, Place]] = []  # outcome, number of the layout, place
    successors = []
    for number, (layout, maze) in enumerate(mazes.items()):
        vars(env).update(maze.attributes)
        outcomes, places_after = explore(env, list(maze.starts))
        if maze_layout(env) != layout or env.carrying:
            raise RuntimeError("an action changed the maze, so places are not all of its state")
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

    attributes = [maze.attributes for maze in mazes.values()]
    views = [(attributes[layout], place) for _, layout, place in states]
    observation, frames = observe_states(env, views, tile_size)

    start_state, start_chance = [], []
    for layout, maze in enumerate(mazes.values()):
        start_state += [index[layout, place] for place in maze.starts]
        start_chance += maze.starts.values()
    start_cdf = [float(p) for p in itertools.accumulate(start_chance)]
    outcomes_in_order = [outcome for outcome, _, _ in states]
    first_failure, first_success = outcomes_in_order.index(FAILURE), outcomes_in_order.index(SUCCESS)
    next_state = torch.tensor(next_state)
    arrives = (next_state >= first_success) & (torch.arange(len(states)) < first_failure)[:, None]
    return MazeTables(
        next_state=next_state,
        reward=arrives.float(),
        observation=observation,
        first_failure=first_failure,
        first_success=first_success,
        start_state=torch.tensor(start_state),
        start_cdf=torch.tensor(start_cdf, dtype=torch.float64),
        pay=torch.tensor(success_rewards(env), dtype=torch.float32),
        frames=(frames,),
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
