"""A trained agent for any program: it takes an environment's observations and gives that environment's actions.

from evaluate import load_agent

agent = load_agent("checkpoint.pt")
env = agent.make_env()  # or gymnasium.make(...): MiniGrid alone needs the agent's own view
observation, info = env.reset()
action = agent.act(observation)
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from harness.flags import Range
from harness.input_error import InputError, RunError, shortened
from palmer_policy import MemoryPolicy, MemoryState, PolicyOutput
from tasks.observations import batch_rows, check_observation, plain_observation
from tasks.real import TaskArgs, last_step, make_native_env, plain_actions

Batch = Annotated[int | None, Range(1, 65_536)]  # environments at once


def choose_actions(
    policy: MemoryPolicy,
    frames: Sequence[np.ndarray],
    state: MemoryState,
    episode_start: np.ndarray,
    generator: torch.Generator,
    greedy: bool,
) -> tuple[np.ndarray, PolicyOutput, MemoryState]:
    """One step of B episodes: frames, every part (B, *shape), episode_start (B,) bool -> actions, output, new state.

    Actions count from 0, or are means and samples before they are scaled and clipped: (B,), or (B, A) where an action
    has A parts; the output is (1, B, ...). To be called without gradients.

    Raises RunError for an agent whose outputs are not finite.
    """
    device = generator.device
    parts = tuple(torch.from_numpy(part)[None].to(device) for part in frames)
    output, state = policy(parts, state, torch.from_numpy(episode_start)[None].to(device))
    if not output.logits.isfinite().all():
        raise RunError("the agent's outputs are not finite, so it cannot choose an action.")
    distribution = policy.distribution(output.logits[0])
    actions = distribution.mode() if greedy else distribution.sample(generator)
    return actions.cpu().numpy(), output, state


class Agent:
    """Acts in one environment, or in N at once, and remembers what it has seen; made by `evaluate.load_agent`.

    Attributes:
        observation_space, action_space: of one environment, as `make_env` makes it.
        needs_reward: whether the agent was trained with --last-reward.
        task: what it plays.
        policy: its network.
    """

    def __init__(self, policy: MemoryPolicy, task: TaskArgs, batch: int | None, seed: int):
        """batch: None for one environment, N for N at once. seed: of the actions' sampling."""
        self.policy, self.task, self.needs_reward = policy, task, task.last_reward
        env = self.make_env()
        env.close()
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._batch, self._rows = batch, batch or 1
        self._plain = plain_observation(self.observation_space)
        self._native, self._plain_actions = plain_actions(self.action_space, task.env_id)
        self._generator = torch.Generator().manual_seed(seed)
        self._state = policy.initial_state(self._rows)
        self._starts = np.ones(self._rows, bool)  # whose next step is the first of an episode
        self._actions: np.ndarray | None = None  # the last ones, as the policy gave them

    def make_env(self, render_mode: str | None = None) -> gym.Env:
        """An environment of the agent's task, with observations that `act` takes and actions that it gives.

        It is what `gymnasium.make` makes. Only MiniGrid's observations are others: the image of the agent's view, as
        pixels or cell codes as in training, with the mission beside it where episodes differ in it.

        Raises InputError where it cannot be made.
        """
        return make_native_env(self.task, render_mode)

    @torch.no_grad()
    def act(self, observation: Any, reward: Any = None, episode_start: Any = None, greedy: bool = False) -> Any:
        """The action for an observation, both as the environment has them; the agent remembers both.

        With a batch of N: observations with N rows in each part, as Gymnasium's vector environments give them, or a
        list of N; rewards and starts (N,); the actions come as an array with N rows.

        reward: of the last action, for agents with `needs_reward`; of no account at an episode's start.
        episode_start: True where the observation is the first of its episode, like `reset` before this call. After
            loading and after `reset` it is so by itself.
        greedy: take the most probable action instead of sampling.

        Raises:
            InputError: an observation, reward or start that cannot be; the memory is as before.
            RunError: the agent's outputs are not finite.
        """
        starts = self._starts
        if episode_start is not None:
            starts = starts | self._per_row("episode_start", episode_start, "b", "True or False")
        frames = self._frames(observation)
        if self.task.last_action or self.task.last_reward:
            frames.append(self._last_steps(reward, starts))
        actions, _, self._state = choose_actions(self.policy, frames, self._state, starts, self._generator, greedy)
        self._starts, self._actions = np.zeros(self._rows, bool), actions
        native = [self._native(action) for action in actions]
        return native[0] if self._batch is None else np.stack(native)

    def reset(self, rows: Any = None) -> None:
        """The next observation begins an episode: of all environments, or of those in `rows`, numbers or (N,) bool.

        Raises InputError for rows that there are not.
        """
        try:
            self._starts[slice(None) if rows is None else rows] = True
        except IndexError as error:
            raise InputError(
                f"reset: rows {shortened(rows)} must be numbers of environments, below {self._rows}, or as many "
                "truth values."
            ) from error

    def _frames(self, observation: Any) -> list[np.ndarray]:
        """Every part (N, *shape) of what the encoder takes, but for the last step."""
        space, rows = self.observation_space, [observation]
        try:
            if self._batch is not None:
                rows = batch_rows(space, self._view(observation), self._rows)
            rows = [self._view(row) for row in rows]
            for row in rows:
                check_observation(space, row)
        except ValueError as error:
            allowed = shortened(" ".join(str(space).split()))
            several = "" if self._batch is None else f", with {self._rows} rows in each part"
            raise InputError(
                f"act: the observation {error}; it must be as agent.make_env() gives it, of {allowed}{several}."
            ) from error
        return [np.stack(part) for part in zip(*map(self._plain, rows), strict=True)]

    def _view(self, observation: Any) -> Any:
        """Of MiniGrid's own observations the image, where an agent takes that alone."""
        if isinstance(observation, Mapping) and not isinstance(self.observation_space, spaces.Dict):
            return observation.get("image", observation)
        return observation

    def _last_steps(self, reward: Any, starts: np.ndarray) -> np.ndarray:
        """The part that tells of the last action and reward, (N, n), zero at an episode's start."""
        part = np.zeros((self._rows, *self.policy.observation_space[-1].shape), np.float32)
        going = np.flatnonzero(~starts)
        if self.needs_reward and going.size:
            if reward is None:
                raise InputError(
                    "act: needs reward=, that of the last action, as this agent was trained with --last-reward; "
                    "where an episode starts, call reset() before or give episode_start=True."
                )
            reward = self._per_row("reward", reward, "biuf", "a number")
        for row in going:
            part[row] = last_step(
                self._plain_actions,
                self._actions[row] if self.task.last_action else None,
                reward[row] if self.needs_reward else None,
            )
        return part

    def _per_row(self, name: str, value: Any, kinds: str, allowed: str) -> np.ndarray:
        """`value` as an array (N,). kinds: letters of the dtypes that it may have."""
        try:
            array = np.asarray(value)
        except ValueError:  # lists of different lengths
            array = np.empty(0, object)
        shape = () if self._batch is None else (self._rows,)
        if array.shape != shape or array.dtype.kind not in kinds or not np.isfinite(array).all():
            several = "" if self._batch is None else f" for each of {self._rows} environments"
            raise InputError(f"act: {name}={shortened(value)}: must be {allowed}{several}.")
        return array.reshape(self._rows)
