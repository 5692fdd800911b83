"""Tasks as tables: a task with few states is a few look-ups a step, on any device, instead of a program.

Shape letters: N environments, S states, A actions, K distinct frames.
"""

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from harness.checkpoint import check_form, check_range
from tasks.observations import Frames, ObservationTable
from tasks.step import Step


@dataclass(frozen=True)
class Tables:
    """Everything that can happen in a task.

    States are ordered: those in which the episode goes on, then those that end it in failure (from `first_failure`),
    then in success (from `first_success`).

        reward for action a in state s, as step t of the episode = reward[s, a] * pay[t]
    """

    next_state: Tensor  # (S, A) int64; a state that ends the episode leads to itself
    reward: Tensor  # (S, A) float32
    pay: Tensor  # (max_steps + 1,) float32; its length is the task's own time limit
    observation: Tensor  # (S,) int64, number of what the agent sees
    first_failure: int
    first_success: int
    start_state: Tensor  # (Z,) int64, the states in which an episode can start
    start_cdf: Tensor  # (Z,) float64, their cumulative probability
    frames: Frames  # the K distinct frames
    space: spaces.Tuple  # of one frame


class TableEnvs:
    """N environments that advance by table look-ups, on CPU or GPU, without leaving the device.

    The class has its own random generator, seeded with `seed`. It draws on the CPU on every device, so the
    same seed gives the same episodes everywhere.
    """

    tells_success = True
    exact_resume = True

    def __init__(
        self,
        tables: Tables,
        num_envs: int,
        *,
        limit: int | None,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        """limit: episode steps, on top of the task's own limit; None for the latter alone."""
        self.num_envs = num_envs
        num_actions = tables.next_state.shape[1]
        own_limit = len(tables.pay) - 1
        self.action_space = spaces.Discrete(num_actions)
        self.max_episode_steps = own_limit if limit is None else min(limit, own_limit)
        frames = tuple(part.to(device) for part in tables.frames)
        self.observations = ObservationTable(tables.space, len(frames[0]), frames=frames, device=device)
        self._next_state = tables.next_state.flatten().to(device)  # at state * A + action
        self._observation = tables.observation.to(device)
        self._reward = tables.reward.flatten().to(device)  # at state * A + action
        self._pay = tables.pay.to(device)
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
        out_of_time = self._clock >= self.max_episode_steps
        ended = terminated | out_of_time
        reward = self._pay.index_select(0, self._clock) * self._reward.index_select(0, row)
        self._state = torch.where(ended, self._draw_starts(), arrived)
        self._clock.masked_fill_(ended, 0)
        return Step(
            obs=self._observation.index_select(0, self._state),
            reward=reward,
            terminated=terminated,
            truncated=out_of_time > terminated,
            final_obs=self._observation.index_select(0, arrived),
            success=arrived >= self._first_success,
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
        """Goes on where `state_dict` was taken, for the same environment and N, on any device.

        Raises ValueError for a state that cannot be one.
        """
        check_form(state, self.state_dict(), "envs")
        for name in ("state", "starts"):
            check_range(state[name], 0, self._first_failure - 1, name)
        check_range(state["clock"], 0, self.max_episode_steps - 1, "clock")
        if not 0 <= state["starts_used"] <= len(self._starts):
            raise ValueError(f"starts_used must be from 0 to {len(self._starts)}")
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
