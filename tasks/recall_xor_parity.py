"""Recall xor parity: a cue shown once says which exit is right, and every 1 on the way turns it round.

    step           0     1     2     3    ...   length   length + 1      exit 1
    observation   cue   bit          bit         bit      choose! ------<
                                                                         exit 0
    right exit = cue xor parity of the bits

Two things to remember in one episode: the cue, unchanged over the whole corridor, as in a T-maze, which suits
attention; and the parity, updated at every bit, which suits recurrence. If there is a bit at all, either of them
alone is right half of the time. (Recurrence can fold both into one bit: begin with the cue, flip it at every 1.)

Observation (3,): cue, bit, call to choose. A cue or a bit is -1 for 0 and 1 for 1, and 0 where there is none; the
call is 0 or 1. Actions: exit 0 or 1; the agent is carried along the corridor, and only its action at the call counts.
Reward: 1 for the right exit, -1 for the wrong one, 0 before, as in Parity. An episode has `length` + 2 steps.

`bits` sets how hard it is: an episode has 0 to `bits` of them, each number as likely, at random steps of the
corridor. Few bits are learned first and lead on to more. With `fixed` every episode has `bits` of them.
Best return: 1; chance: 0; recall of the cue alone: 1 / (`bits` + 1), and 0 if fixed. A task of this project.

    python ppo_palmer.py --env-id palmer/RecallXorParity-v0 --env-kwargs '{"length": 50, "bits": 10}'
"""

import gymnasium
import numpy as np
from gymnasium import spaces

WALL, FLOOR, ZERO, ONE = (40,) * 3, (230,) * 3, (170, 200, 240), (30, 60, 140)
RIGHT, WRONG, AGENT = (60, 180, 75), (220, 60, 60), (255, 140, 0)


class RecallXorParity(gymnasium.Env):
    """length: steps between cue and choice. bits: how many of them have a bit, at most or, with `fixed`, always."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, length: int = 20, bits: int = 5, fixed: bool = False, render_mode: str | None = None):
        assert 0 <= bits <= length, f"bits {bits}: must be from 0 to length ({length})"
        self.length, self.bits, self.fixed, self.render_mode = length, bits, fixed, render_mode
        self.max_steps = length + 2
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, bool]]:
        super().reset(seed=seed)
        count = self.bits if self.fixed else self.np_random.integers(self.bits, endpoint=True)
        cue, bits = self.np_random.integers(2), self.np_random.integers(2, size=count)
        self.shown = np.zeros((self.length + 2, 3), np.float32)  # the observations of the episode
        self.shown[0, 0] = 2 * cue - 1
        self.shown[self.np_random.permutation(self.length)[:count] + 1, 1] = 2 * bits - 1
        self.shown[-1, 2] = 1
        self.exit, self.t = (cue + bits.sum()) % 2, 0
        return self.shown[0].copy(), {"is_success": False}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, bool]]:
        assert self.action_space.contains(action), f"action {action}: must be 0 or 1"
        terminated = self.t == self.length + 1
        success = terminated and bool(action == self.exit)
        reward = 0.0
        if terminated:  # the last observation is the call to choose once more
            reward = 1.0 if success else -1.0
        else:
            self.t += 1
        return self.shown[self.t].copy(), reward, terminated, False, {"is_success": success}

    def render(self) -> np.ndarray:
        """The corridor with the bits up to now, light for 0 and dark for 1; the cue and the exits: above for 1."""
        cells = np.full((3, self.length + 2, 3), WALL, np.uint8)
        cells[1] = FLOOR
        cells[1, : self.t + 1][self.shown[: self.t + 1, 1] < 0] = ZERO
        cells[1, : self.t + 1][self.shown[: self.t + 1, 1] > 0] = ONE
        cells[1 - int(self.shown[0, 0]), 0] = ONE if self.shown[0, 0] > 0 else ZERO
        cells[2 - 2 * self.exit, -1], cells[2 * self.exit, -1] = RIGHT, WRONG
        picture = cells.repeat(16, 0).repeat(16, 1)
        picture[20:28, 16 * self.t + 4 : 16 * self.t + 12] = AGENT
        return picture


gymnasium.register("palmer/RecallXorParity-v0", entry_point=f"{__name__}:RecallXorParity")
