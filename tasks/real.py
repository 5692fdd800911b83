"""One real environment: any Gymnasium id, with the observations and actions that agents here take."""

import difflib
import importlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import gymnasium
import minigrid  # noqa: F401  (importing it registers the MiniGrid ids)
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import TransformAction, TransformObservation
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import ImgObsWrapper, RGBImgPartialObsWrapper

from harness.flags import Range
from harness.input_error import InputError
from tasks import minigrid_memory
from tasks.observations import grid_space, plain_observation, plain_space

RGB_PIXELS = 84  # an RGB frame is the largest whole number of pixels a cell that fits in this


@dataclass
class TaskArgs:
    """Flags of the task, the same for training and evaluation."""

    env_id: str = "MiniGrid-MemoryS13-v0"
    """the environment: MiniGrid-Memory of any odd size up to 65, palmer/... of this project, or any Gymnasium id"""
    env_kwargs: str = "{}"
    """arguments of the environment's constructor, as JSON: '{"length": 100}'"""
    env_backend: Literal["auto", "table", "gymnasium"] = "auto"
    """table: enumerated MiniGrid Memory, exact and fast; gymnasium: the real package; auto: table where possible"""
    obs_mode: Literal["rgb", "symbolic"] = "rgb"
    """MiniGrid observations: pictures of 84x84 pixels, or cells as (object, colour, state)"""
    agent_view_size: Annotated[int, Range(3, 83)] = 3
    """side of the agent's square view in MiniGrid, in cells (odd)"""
    max_episode_steps: Annotated[int | None, Range(0, 1_000_000)] = None
    """episode limit in steps; 0: the environment's own; not given: 96 for MiniGrid Memory, its own elsewhere"""


def make_real_env(task: TaskArgs, render_mode: str | None = None) -> gymnasium.Env:
    """One environment of the Gymnasium or MiniGrid package, with the observations that agents here get.

    Of MiniGrid's observation only the image is used, as RGB of about 84x84 ("rgb") or as the k x k x 3 view
    of cell codes ("symbolic"); direction and mission text are dropped. Every observation is a tuple of parts, see
    `plain_space`; actions count from 0; an info holds `is_success`, where the environment tells, and no more.

    Raises InputError for wrong arguments, an unknown id, spaces that cannot be used, and whatever the environment's
    constructor raises.
    """
    if task.agent_view_size % 2 == 0:
        raise InputError(f"--agent-view-size {task.agent_view_size}: must be odd.")
    spec, kwargs = find_spec(task.env_id), env_kwargs(task)
    limit = requested_limit(task)
    if limit is not None and spec.max_episode_steps is not None:
        limit = min(limit, spec.max_episode_steps)
    if render_mode is not None:  # many constructors do not know it
        kwargs["render_mode"] = render_mode
    try:
        env = gymnasium.make(spec, max_episode_steps=limit, disable_env_checker=True, **kwargs)
    except Exception as error:  # whatever an environment of one's own does
        raise InputError(
            f"--env-id {task.env_id}: its constructor fails with {first_line(error)}; "
            "see --env-kwargs for its arguments."
        ) from error
    env = Success(env)
    if isinstance(env.unwrapped, MiniGridEnv) and is_minigrid_view(env.observation_space):
        env = with_view(env, task.obs_mode, task.agent_view_size)
    return with_plain_actions(with_plain_observations(env, task.env_id), task.env_id)


def env_kwargs(task: TaskArgs) -> dict[str, Any]:
    """--env-kwargs as a dict. Raises InputError if it is no JSON object."""
    try:
        kwargs = json.loads(task.env_kwargs)
    except ValueError:
        kwargs = None
    if not isinstance(kwargs, dict):
        raise InputError(
            f"--env-kwargs {task.env_kwargs}: must be a JSON object of constructor arguments, such as "
            "'{\"length\": 100}'."
        )
    return kwargs


def requested_limit(task: TaskArgs) -> int | None:
    """The episode limit to add to the environment's own one, None for none."""
    if task.max_episode_steps is None:
        return minigrid_memory.EPISODE_STEPS if minigrid_memory.maze_of(task.env_id) else None
    return task.max_episode_steps or None


def find_spec(env_id: str) -> EnvSpec:
    """Gymnasium's entry for `env_id` ("name-v0" or "module:name-v0"); adds Memory mazes of any legal size.

    Raises InputError for an id that is not registered, and for a module that cannot be imported.
    """
    minigrid_memory.register(env_id)
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
    except Exception as error:
        raise InputError(
            f"--env-id {env_id}: must name a module that can be imported; importing {module} fails with "
            f"{first_line(error)}."
        ) from error
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        near = difflib.get_close_matches(name, gymnasium.registry, n=3)
        near_text = f", near matches are {', '.join(near)}" if near else ""
        raise InputError(
            f"--env-id {env_id}: must be the id of an environment registered with Gymnasium{near_text}."
        ) from error


def first_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__} ({text})" if text else type(error).__name__


class Success(gymnasium.Wrapper):
    """The one place that says what success is; no other info is passed on, as nobody reads it.

    MiniGrid: an episode that ended, not by its time limit, with a reward. Elsewhere what the environment says itself,
    as `is_success` in the infos of reset and step; where it says nothing, `tells` is False.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, bool]]:
        obs, info = self.env.reset(**kwargs)
        self.tells = isinstance(self.unwrapped, MiniGridEnv) or "is_success" in info
        return obs, {"is_success": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, bool]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if isinstance(self.unwrapped, MiniGridEnv):
            success = bool(terminated and reward > 0)
        else:
            success = bool((terminated or truncated) and info.get("is_success", False))
        return obs, reward, terminated, truncated, {"is_success": success}


def is_minigrid_view(space: gymnasium.Space) -> bool:
    """Has nothing been made yet of what MiniGrid gives?"""
    return isinstance(space, spaces.Dict) and "image" in space.spaces


def with_view(env: gymnasium.Env, obs_mode: str, agent_view_size: int) -> gymnasium.Env:
    """MiniGrid's image alone, of a view of that size."""
    maze = env.unwrapped
    # Set here, as not every class of MiniGrid's takes it as an argument.
    maze.agent_view_size = agent_view_size
    image = spaces.Box(0, 255, (agent_view_size, agent_view_size, 3), np.uint8)
    maze.observation_space = spaces.Dict({**maze.observation_space.spaces, "image": image})
    if obs_mode == "rgb":
        return ImgObsWrapper(RGBImgPartialObsWrapper(env, tile_size=RGB_PIXELS // agent_view_size))
    return TransformObservation(env, lambda obs: obs["image"], grid_space(agent_view_size))


def with_plain_observations(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    """Every observation as a tuple of parts."""
    space = env.observation_space
    try:
        parts = plain_space(space)
    except ValueError as error:
        raise InputError(
            f"--env-id {env_id}: its observations are {space}, of which {error}; allowed are pictures, numbers, "
            "texts, and Dicts and Tuples of them."
        ) from error
    return TransformObservation(env, lambda obs: plain_observation(space, obs), parts)


def with_plain_actions(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    """Discrete or MultiDiscrete actions that count from 0."""
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        plain = spaces.Discrete(int(space.n))
    elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        plain = spaces.MultiDiscrete(space.nvec)
    else:
        raise InputError(f"--env-id {env_id}: its actions are {space}, allowed are Discrete and 1-D MultiDiscrete.")
    if np.any(space.start):
        env = TransformAction(env, lambda action: action + space.start, plain)
    return env


def episode_limit(env: gymnasium.Env) -> int | None:
    """Largest number of steps of an episode in a real environment, None where that is not known."""
    limits = [env.spec.max_episode_steps if env.spec else None]
    if isinstance(env.unwrapped, MiniGridEnv):
        limits.append(env.unwrapped.max_steps)  # 0 in levels that choose a limit anew at each reset
    return min((limit for limit in limits if limit), default=None)
