"""Parity: a stream of random bits, one a step; at its end the agent must say whether the ones were odd in number.

    step          0     1     2     3     4
    observation   1     0     1     1   answer!        the agent must take action 1, as there were three ones
    one-hot      010   100   010   010   001

One bit of memory is enough, but it has to be updated at every step, which suits recurrence. An agent with attention
alone, so Lu et al. find, fails in streams longer than those of its training.

Observation (3,): one-hot, the bit 0, the bit 1, or the call for an answer. Actions: 0 for even, 1 for odd; only the
one after the call counts. Reward: 1 for the right answer, -1 for the wrong one, 0 before. An episode has one step
for each bit and one for the answer. Best return: 1; chance: 0.

Lu et al., "Rethinking Transformers in Solving POMDPs", 2024, https://arxiv.org/abs/2405.17358, and their code
https://github.com/CTP314/TFPORL. As there: one-hot symbols with one for the end, actions before it ignored, the
number of bits uniform in training and fixed in tests. Not as there: the wrong answer costs 1 instead of 0, the third
action (no answer, -1) is left out, and `length` counts the bits alone, so that a stream of one is possible.

    python ppo_palmer.py --env-id palmer/Parity-v0                       1 to 25 bits
    --env-kwargs '{"length": 100, "fixed": true}'                        always 100 bits
"""

import gymnasium
import numpy as np
from gymnasium import spaces

ANSWER = 2  # the symbol after the bits 0 and 1
COLOURS = np.array([(170, 200, 240), (30, 60, 140), (255, 200, 0), (230, 230, 230)], np.uint8)  # the last: nothing


class Parity(gymnasium.Env):
    """length: the largest number of bits, or with `fixed` the number of bits in every episode."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, length: int = 25, fixed: bool = False, render_mode: str | None = None):
        assert length >= 1, f"length {length}: must be at least 1"
        self.length, self.fixed, self.render_mode = length, fixed, render_mode
        self.max_steps = length + 1
        self.observation_space = spaces.Box(0, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, bool]]:
        super().reset(seed=seed)
        count = self.length if self.fixed else self.np_random.integers(1, self.length, endpoint=True)
        self.symbols = np.append(self.np_random.integers(2, size=count), ANSWER)
        self.parity = self.symbols[:-1].sum() % 2
        self.t = 0
        return self.observe(), {"is_success": False}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, bool]]:
        assert self.action_space.contains(action), f"action {action}: must be 0 or 1"
        terminated = bool(self.symbols[self.t] == ANSWER)
        success = terminated and bool(action == self.parity)
        reward = 0.0
        if terminated:  # the last observation is the call for an answer once more
            reward = 1.0 if success else -1.0
        else:
            self.t += 1
        return self.observe(), reward, terminated, False, {"is_success": success}

    def observe(self) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[self.symbols[self.t]]

    def render(self) -> np.ndarray:
        """Above the symbols up to now, light for 0 and dark for 1; below the parity that they have at each step."""
        cells = np.full((2, self.length + 1), len(COLOURS) - 1)
        shown = self.symbols[: self.t + 1]
        cells[0, : len(shown)] = shown
        cells[1, : len(shown)] = np.cumsum(shown * (shown != ANSWER)) % 2
        picture = COLOURS[cells].repeat(16, 0).repeat(16, 1)
        picture[:, ::16] = 255  # a line between steps
        return picture


gymnasium.register("palmer/Parity-v0", entry_point=f"{__name__}:Parity")
