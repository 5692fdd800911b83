"""N environments of one task, as tables or from the Gymnasium package, which look the same from outside."""

import functools
import os
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.connection import wait
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch import Tensor

from harness.checkpoint import check_form
from harness.input_error import InputError, RunError
from tasks import minigrid_memory
from tasks.observations import ObservationTable
from tasks.real import (
    LARGEST_NUMBER,
    RGB_PIXELS,
    TaskArgs,
    episode_limit,
    first_line,
    make_real_env,
    requested_limit,
    unusable,
)
from tasks.step import Step
from tasks.tables import TableEnvs

LARGEST_SEED = 10**9  # held-out seeds start here


def make_envs(
    task: TaskArgs, num_envs: int, *, seed: int = 1, device: torch.device | str = "cpu"
) -> "TableEnvs | GymnasiumEnvs":
    """N environments of a task, with observation numbers and rewards on `device`. Raises InputError as needed."""
    is_maze = minigrid_memory.maze_of(task.env_id) is not None and task.env_kwargs == "{}"
    is_maze = is_maze and not (task.last_action or task.last_reward)
    if task.env_backend == "table" and not is_maze:
        raise InputError(
            f"--env-backend table: for {task.env_id} allowed are auto and gymnasium, tables exist only for "
            "MiniGrid-MemoryS<size>-v0 and MiniGrid-MemoryS<size>Random-v0."
        )
    if is_maze and task.env_backend != "gymnasium":
        tables = maze_tables(task.env_id, task.obs_mode, task.agent_view_size)
        return TableEnvs(tables, num_envs, limit=requested_limit(task), seed=seed, device=device)
    return GymnasiumEnvs(task, num_envs, seed=seed, device=device)


@functools.lru_cache(maxsize=8)
def maze_tables(env_id: str, obs_mode: str, agent_view_size: int) -> minigrid_memory.MazeTables:
    """A maze of MiniGrid Memory, enumerated in less than a second (S65: five). Raises InputError for wrong flags."""
    task = TaskArgs(env_id=env_id, obs_mode=obs_mode, agent_view_size=agent_view_size, max_episode_steps=0)
    tile_size = RGB_PIXELS // agent_view_size if obs_mode == "rgb" else None
    return minigrid_memory.enumerate_maze(make_real_env(task), tile_size)


def make_apart(task: TaskArgs) -> gymnasium.Env:
    """In a process of its own, which leaves the script's group: what Ctrl-C or a terminal that is closed sends to all
    of it would end the environments under the feet of an agent that has yet to save."""
    if parent_process() is not None and hasattr(os, "setpgid"):  # Gymnasium also makes one in the script itself
        os.setpgid(0, 0)
    return make_real_env(task)


class GymnasiumEnvs:
    """N environments of any Gymnasium package, one after the other on the CPU or each in a process of its own.

    Their inner state cannot be saved: after `load_state_dict` call `reset`, and new episodes begin.
    """

    exact_resume = False

    def __init__(self, task: TaskArgs, num_envs: int, *, seed: int = 1, device: torch.device | str = "cpu"):
        """Raises InputError as `make_real_env` does, and for whatever the environment's first reset raises."""
        probe = make_real_env(task)
        self.max_episode_steps = episode_limit(probe)  # before a reset, which may draw one for its episode alone
        try:
            probe.reset(seed=seed)
        except Exception as error:  # whatever an environment of one's own does
            raise InputError(f"--env-id {task.env_id}: its reset fails with {first_line(error)}.") from error
        self.tells_success = probe.get_wrapper_attr("tells")
        probe.close()
        make = functools.partial(make_apart if task.async_envs else make_real_env, task)
        same_step = AutoresetMode.SAME_STEP
        if task.async_envs:  # forked processes would inherit threads and locks
            self._envs = AsyncVectorEnv([make] * num_envs, copy=False, autoreset_mode=same_step, context="spawn")
        else:
            self._envs = SyncVectorEnv([make] * num_envs, copy=False, autoreset_mode=same_step)
        self.num_envs, self._task = num_envs, task
        self.action_space = self._envs.single_action_space
        self.observations = ObservationTable(self._envs.single_observation_space, device=device)
        self._device = torch.device(device)
        self._seed, self._steps = seed, 0
        self._reset_seed: int | None = seed

    def reset(self) -> Tensor:
        """Starts a new episode in every environment; observation numbers (N,) int64. Raises RunError as `step`."""
        batch, _ = self._attempt("reset", lambda: self._envs.reset(seed=self._reset_seed))
        self._reset_seed = None
        for part in batch:
            self._check_finite("first observation", part)
        return self.observations.number(batch)

    def step(self, action: Tensor) -> Step:
        """Takes `action`: (N,) int64, or (N, A) where an action has A parts.

        Raises RunError for whatever the environment raises, and for a reward or an observation that is not finite.
        """
        self._steps += 1
        made = self._attempt("step", lambda: self._envs.step(action.cpu().numpy()))
        batch, reward, terminated, truncated, infos = made
        reward = reward.astype(np.float32)
        self._check_finite("reward", reward)
        for part in batch:
            self._check_finite("observation", part)
        obs = final_obs = self.observations.number(batch)
        success = np.zeros_like(terminated)
        if "final_obs" in infos:
            ended = np.flatnonzero(infos["_final_obs"])
            final_obs = obs.clone()
            frames = zip(*infos["final_obs"][ended], strict=True)
            final = tuple(np.stack(part) for part in frames)
            for part in final:
                self._check_finite("last observation of an episode", part)
            final_obs[ended] = self.observations.number(final)
            success[ended] = infos["final_info"]["is_success"][ended]
        return Step(
            obs=obs,
            reward=torch.from_numpy(reward).to(self._device),
            terminated=torch.from_numpy(terminated).to(self._device),
            truncated=torch.from_numpy(truncated & ~terminated).to(self._device),
            final_obs=final_obs,
            success=torch.from_numpy(success).to(self._device),
        )

    def _attempt(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # whatever an environment of one's own does
            failed = f"--env-id {self._task.env_id}: its {what} fails"
            if self._task.async_envs and isinstance(error, (EOFError, ConnectionError)):
                # Of a process that ended by itself or was killed only the broken pipe tells.
                ended = wait([process.sentinel for process in self._envs.processes], timeout=10)
                for process in self._envs.processes:
                    process.join(10 if process.sentinel in ended else 0)  # its exit code comes a moment after
                codes = [process.exitcode for process in self._envs.processes if process.exitcode]
                for process in self._envs.processes:  # the package's own `close` would wait for this step
                    process.terminate()
                    process.join()
                self._envs.closed = True
                if codes:
                    raise RunError(f"{failed}, as its process ended with exit code {codes[0]}.") from None
            raise RunError(f"{failed} with {first_line(error)}.") from error

    def _check_finite(self, what: str, values: np.ndarray) -> None:
        """values (N, ...). Nothing that is not finite, or whose squares would not be, may reach the network."""
        if unusable(values) is not None:
            row, bad = next((row, bad) for row, bad in enumerate(map(unusable, values)) if bad is not None)
            raise RunError(
                f"--env-id {self._task.env_id}: a {what} is {bad} (environment {row} of {len(values)}, step "
                f"{self._steps} of each), and nothing is learned of what is not finite or beyond {LARGEST_NUMBER:g}."
            )

    def state_dict(self) -> dict[str, Any]:
        """What it takes to continue with episodes not played before."""
        return {"seed": self._seed, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave; call `reset` next. Raises ValueError for a state that cannot be one."""
        check_form(state, self.state_dict(), "envs")
        if state["seed"] != self._seed or state["steps"] < 0:
            raise ValueError(f"its seed must be {self._seed} and its steps 0 or more")
        self._steps = state["steps"]
        # Seeding with the first seed again would replay the episodes of the beginning.
        drawn = np.random.SeedSequence([self._seed, self._steps]).generate_state(1)[0]
        self._reset_seed = int(drawn) % (LARGEST_SEED - self.num_envs)

    def close(self) -> None:
        self._envs.close()
