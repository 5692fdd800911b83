"""One real environment: any Gymnasium id, with the observations and actions that agents here take."""

import difflib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import gymnasium
import minigrid  # noqa: F401  (importing it registers the MiniGrid ids)
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import TransformAction, TransformObservation
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import RGBImgPartialObsWrapper

from harness.flags import Range
from harness.input_error import InputError
from tasks import minigrid_memory
from tasks.observations import grid_space, plain_observation, plain_space

LARGEST_NUMBER = 1e14  # of an observation or a reward: sums of a billion squares of it are still finite in float32
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
    async_envs: bool = False
    """run Gymnasium environments in processes of their own: for those that are slower than the agent"""
    last_action: bool = False
    """give the agent its last action beside each observation, zero at an episode's start"""
    last_reward: bool = False
    """give the agent its last reward beside each observation, zero at an episode's start"""


def make_real_env(task: TaskArgs, render_mode: str | None = None) -> gymnasium.Env:
    """One environment of the Gymnasium or MiniGrid package, with the observations that agents here get.

    Of MiniGrid's observation only the image is used, as RGB of about 84x84 ("rgb") or as the k x k x 3 view of cell
    codes ("symbolic"), and the mission where episodes differ in it; the direction is dropped. Every observation is a
    tuple of parts, see `plain_space`; actions count from 0 or, where they are continuous, have bounds of -1 and 1; an
    info holds `is_success`, where the environment tells, and no more.

    Raises InputError for wrong arguments, an unknown id, spaces that cannot be used, and whatever the environment's
    constructor raises.
    """
    env = Success(make_native_env(task, render_mode))
    env = with_plain_actions(with_plain_observations(env, task.env_id), task.env_id)
    return LastStep(env, task.last_action, task.last_reward) if task.last_action or task.last_reward else env


def make_native_env(task: TaskArgs, render_mode: str | None = None) -> gymnasium.Env:
    """As `make_real_env`, but with observations, actions and infos as the package itself gives them.

    Only MiniGrid's are others: the image of the agent's view, and the mission where episodes differ in it.
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
    for name in ("observation_space", "action_space"):
        if not isinstance(getattr(env, name, None), spaces.Space):
            raise InputError(f"--env-id {task.env_id}: its {name} must be a space of Gymnasium's, and is none.")
    if isinstance(env.unwrapped, MiniGridEnv) and is_minigrid_view(env):
        return with_view(env, task.obs_mode, task.agent_view_size)
    if task.agent_view_size != TaskArgs.agent_view_size:
        raise InputError(
            f"--agent-view-size {task.agent_view_size}: must not be given, as {task.env_id} does not show a view of "
            "MiniGrid's."
        )
    return env


def check_picture(task: TaskArgs, flag: str) -> None:
    """Raises InputError, naming `flag`, where the environment cannot be filmed, and as `make_real_env` does."""
    refused = f"{flag}: {task.env_id} cannot be filmed, as"
    env = make_real_env(task)  # what is wrong without a film is none of the film's
    env.close()
    modes = env.metadata.get("render_modes") or []
    if "rgb_array" not in modes:
        raise InputError(f"{refused} rgb_array is none of its render_modes {modes}.")
    try:
        env = make_real_env(task, "rgb_array")
    except InputError as error:
        raise InputError(f"{refused} its constructor fails with {first_line(error.__cause__)}.") from error
    try:
        env.reset(seed=1)
        picture = env.render()
    except Exception as error:  # whatever an environment of one's own does, a package that is missing included
        raise InputError(f"{refused} drawing it fails with {first_line(error)}.") from error
    finally:
        env.close()
    if not (isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.shape[2:] == (3,)):
        shown = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise InputError(f"{refused} its render gives {shown}; must be an array (height, width, 3) of uint8.")


def env_kwargs(task: TaskArgs) -> dict[str, Any]:
    """--env-kwargs as a dict. Raises InputError if it is no JSON object."""
    try:
        kwargs = json.loads(task.env_kwargs)
    except (ValueError, TypeError):
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


def unusable(values: Any) -> float | None:
    """The first number of an observation's part or of a reward that nothing can be learned of, if there is one."""
    values = np.asarray(values)
    if values.dtype.kind != "f":
        return None
    bad = ~(np.abs(values) <= LARGEST_NUMBER)  # what is not finite is no smaller either
    return float(values[bad].flat[0]) if bad.any() else None


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


def is_minigrid_view(env: gymnasium.Env) -> bool:
    """Has nothing been made yet of what MiniGrid gives? A wrapper that did would have a space of its own."""
    space = env.observation_space
    return space is env.unwrapped.observation_space and isinstance(space, spaces.Dict) and "image" in space.spaces


def with_view(env: gymnasium.Env, obs_mode: str, agent_view_size: int) -> gymnasium.Env:
    """MiniGrid's image, of a view of that size, and its mission where that differs from episode to episode."""
    maze = env.unwrapped
    # Set here, as not every class of MiniGrid's takes it as an argument.
    maze.agent_view_size = agent_view_size
    image = spaces.Box(0, 255, (agent_view_size, agent_view_size, 3), np.uint8)
    maze.observation_space = spaces.Dict({**maze.observation_space.spaces, "image": image})
    if obs_mode == "rgb":
        env = RGBImgPartialObsWrapper(env, tile_size=RGB_PIXELS // agent_view_size)
        image = env.observation_space["image"]
    else:
        image = grid_space(agent_view_size)
    mission = env.observation_space["mission"]
    if getattr(mission, "ordered_placeholders", None) is None:  # the same words in every episode
        return TransformObservation(env, lambda obs: obs["image"], image)
    both = spaces.Dict({"image": image, "mission": mission})
    return TransformObservation(env, lambda obs: {key: obs[key] for key in both}, both)


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
    return TransformObservation(env, plain_observation(space), parts)


def with_plain_actions(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    """Discrete or MultiDiscrete (n,), counted from 0, or Box (n,), scaled to bounds of -1 and 1 if there are any."""
    return TransformAction(env, *plain_actions(env.action_space, env_id))


def plain_actions(space: spaces.Space, env_id: str) -> tuple[Callable[[np.ndarray], Any], spaces.Space]:
    """What makes an action of `space` of one that an agent here takes, and the space of the latter."""
    if isinstance(space, spaces.Discrete):
        return lambda action: int(action) + int(space.start), spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        plain, start = spaces.MultiDiscrete(space.nvec.flatten()), space.start
    elif isinstance(space, spaces.MultiBinary):
        plain, start = spaces.MultiDiscrete([2] * int(np.prod(space.shape))), 0
    elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and space.shape:
        return scaled_box(space)
    else:
        raise InputError(
            f"--env-id {env_id}: its actions are {space}, allowed are Discrete, MultiDiscrete, MultiBinary and Box "
            "of floats."
        )
    return lambda action: (action.reshape(space.shape) + start).astype(space.dtype), plain


def scaled_box(space: spaces.Box) -> tuple[Callable[[np.ndarray], np.ndarray], spaces.Box]:
    """What makes an action of `space` of one (n,), clipped to the bounds, and the space of the latter.

    Unbounded, as a Gaussian is: its probability is that of the action before it is clipped.
    """
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = np.where(bounded, space.low, -1.0), np.where(bounded, space.high, 1.0)
    middle, half = (low + high) / 2, (high - low) / 2

    def action_of(action: np.ndarray) -> np.ndarray:
        return np.clip(middle + half * action.reshape(space.shape), space.low, space.high).astype(space.dtype)

    return action_of, spaces.Box(-np.inf, np.inf, (int(np.prod(space.shape)),), np.float32)


class LastStep(gymnasium.Wrapper):
    """Adds a part to each observation: the last action, one-hot or as it is, and the last reward; zero at the start.

    As POPGym and RL^2 (Duan et al. 2016, https://arxiv.org/abs/1611.02779) do.
    """

    def __init__(self, env: gymnasium.Env, action: bool, reward: bool):
        super().__init__(env)
        self._action, self._reward = action, reward
        numbers = spaces.flatten_space(env.action_space) if action else spaces.Box(0, 0, (0,))
        unbounded = np.full(int(reward), np.inf, np.float32)
        low = np.concatenate((numbers.low, -unbounded)).astype(np.float32)
        high = np.concatenate((numbers.high, unbounded)).astype(np.float32)
        self._zero = np.zeros(len(low), np.float32)
        self.observation_space = spaces.Tuple((*env.observation_space, spaces.Box(low, high, dtype=np.float32)))

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, bool]]:
        obs, info = self.env.reset(**kwargs)
        return (*obs, self._zero), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, bool]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        last = last_step(self.env.action_space, action if self._action else None, reward if self._reward else None)
        return (*obs, last), reward, terminated, truncated, info


def last_step(space: spaces.Space, action: Any, reward: float | None) -> np.ndarray:
    """The part that `LastStep` adds, (n,) float32. action: of `space`. One that the agent is not given is None."""
    numbers = [] if action is None else [spaces.flatten(space, action)]
    return np.concatenate([*numbers, [] if reward is None else [reward]]).astype(np.float32)


def episode_limit(env: gymnasium.Env) -> int | None:
    """Largest number of steps of an episode in a real environment, None where that is not known."""
    # `max_steps` is MiniGrid's name for it: 0 in levels that choose a limit anew at each reset.
    limits = [env.spec.max_episode_steps if env.spec else None, getattr(env.unwrapped, "max_steps", None)]
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)
