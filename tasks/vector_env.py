"""The table mazes as a Gymnasium vector environment, for code that expects one."""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from harness.flags import check_args
from harness.input_error import InputError
from tasks.envs import make_envs
from tasks.real import TaskArgs


class MazeVectorEnv(VectorEnv):
    """A maze of MiniGrid Memory as a Gymnasium vector environment, for code that expects one.

        gymnasium.make_vec("tasks:palmer/MemoryS13-v0", num_envs=64, obs_mode="symbolic")
        gymnasium.make_vec("tasks:palmer/Memory-v0", num_envs=64, env_id="MiniGrid-MemoryS25Random-v0")

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
        """Arguments as in `TaskArgs`. Raises InputError for wrong ones."""
        self.num_envs = num_envs
        task = TaskArgs(env_id, "{}", "table", obs_mode, agent_view_size, max_episode_steps)
        check_args(task)
        if num_envs < 1:
            raise InputError(f"--num-envs {num_envs}: must be at least 1.")
        self._envs = make_envs(task, num_envs, seed=int(self.np_random.integers(2**31)))
        self._frames = self._envs.observations.frames[0].numpy()
        self.single_observation_space = self._envs.observations.space[0]
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


gymnasium.register(id="palmer/Memory-v0", vector_entry_point=MazeVectorEnv)
for maze_name in ("S7", "S9", "S11", "S13", "S13Random", "S17Random"):
    gymnasium.register(
        id=f"palmer/Memory{maze_name}-v0",
        vector_entry_point=MazeVectorEnv,
        kwargs={"env_id": f"MiniGrid-Memory{maze_name}-v0"},
    )
