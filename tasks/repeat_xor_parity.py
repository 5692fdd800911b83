"""Repeat xor parity: say at every step what was shown k steps ago, turned round by every flip of the episode so far.

    step      0   1   2   3   4   5   6   7        delay k = 4
    card      1   0   0   1   1   1   0   0
    flip      .   x   .   .   x   .   .   x
    parity    0   1   1   1   0   0   0   1        of the flips up to now
    answer    0   1   1   1   1   0   0   0        card of k steps ago (0 before there is one) xor parity

Two things to remember at every step, which suit two kinds of memory. The last k cards, each for k steps, as in
RepeatPrevious of POPGym (Morad et al. 2023, https://arxiv.org/abs/2303.01859): this suits attention. And one bit that
any step may turn round, of a history without end, as in Parity (Lu et al. 2024, https://arxiv.org/abs/2405.17358):
this suits recurrence. Either of them alone is right half of the time, but for the first k steps, in which parity is
enough.

Observation (2,): card and flip, each -1 for 0 and 1 for 1. Actions: 0 or 1. Reward: 1 / length for the right answer,
-1 / length for the wrong one. An episode has `length` steps. Best return: 1; chance: 0; parity alone: k / length.
A task of this project.

    python ppo_palmer.py --env-id palmer/RepeatXorParity-v0 --num-steps 64 --gamma 0.9
    --env-kwargs '{"delay": 8, "length": 32, "flips": 0.5}'
"""

import gymnasium
import numpy as np
from gymnasium import spaces

ZERO, ONE, RIGHT, WRONG, EMPTY = (170, 200, 240), (30, 60, 140), (60, 180, 75), (220, 60, 60), (230, 230, 230)


class RepeatXorParity(gymnasium.Env):
    """delay: k, steps that a card has to be remembered. length: steps of an episode. flips: their share that flip."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, delay: int = 32, length: int = 96, flips: float = 0.1, render_mode: str | None = None):
        assert 1 <= delay < length, f"delay {delay}: must be from 1 to below length ({length})"
        assert 0 <= flips <= 1, f"flips {flips}: must be from 0 to 1"
        self.delay, self.length, self.flips, self.render_mode = delay, length, flips, render_mode
        self.max_steps = length
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        cards, flips = self.np_random.integers(2, size=self.length), self.np_random.random(self.length) < self.flips
        self.shown = np.stack((cards, flips), 1).astype(np.float32) * 2 - 1
        before = np.concatenate((np.zeros(self.delay, np.int64), cards[: -self.delay]))
        self.answers = (before + flips.cumsum()) % 2
        self.given: list[int] = []
        return self.shown[0].copy(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action), f"action {action}: must be 0 or 1"
        right = action == self.answers[len(self.given)]
        self.given.append(int(action))
        terminated = len(self.given) == self.length  # the last cards are shown once more
        t = min(len(self.given), self.length - 1)
        return self.shown[t].copy(), (1 if right else -1) / self.length, terminated, False, {}

    def render(self) -> np.ndarray:
        """Cards, flips and right answers up to now, light for 0 and dark for 1; below, which answers were right."""
        t = min(len(self.given), self.length - 1) + 1
        cells = np.full((4, self.length, 3), EMPTY, np.uint8)
        for row, bits in enumerate((*(self.shown[:t].T > 0), self.answers[:t])):
            cells[row, :t] = np.where(bits[:, None], ONE, ZERO)
        right = np.array(self.given, np.int64) == self.answers[: len(self.given)]
        cells[3, : len(right)] = np.where(right[:, None], RIGHT, WRONG)
        return cells.repeat(8, 0).repeat(8, 1)


gymnasium.register("palmer/RepeatXorParity-v0", entry_point=f"{__name__}:RepeatXorParity")
