"""Repeat and parity: two answers at every step, one that attention remembers well and one that recurrence does.

    step      0   1   2   3   4   5   6   7        delay k = 4
    card      1   0   0   1   1   1   0   0
    flip      .   x   .   .   x   .   .   x
    repeat    0   0   0   0   1   0   0   1        the card of k steps ago, 0 before there is one
    parity    0   1   1   1   0   0   0   1        of the flips up to now

The first answer asks for the last k cards, each to be kept for k steps, as in RepeatPrevious of POPGym (Morad et al.
2023, https://arxiv.org/abs/2303.01859): this suits attention. The second asks for one bit that any step may turn
round, of a history without end, as in Parity (Lu et al. 2024, https://arxiv.org/abs/2405.17358): this suits
recurrence. Each step needs both, and each is rewarded by itself, so that it shows which of them an agent has.

Observation (2,): card and flip, each -1 for 0 and 1 for 1. Actions: two of 0 or 1, repeat and parity. Reward: for
each answer 1 / (2 length) if it is right and as much less if not. An episode has `length` steps. Best return: 1;
chance: 0; repeat alone or parity alone: 0.5. A task of this project.

    python ppo_palmer.py --env-id palmer/RepeatAndParity-v0 --num-steps 64 --gamma 0 --ent-coef 0.05
    --env-kwargs '{"delay": 8, "length": 32, "flips": 0.5}'
"""

import gymnasium
import numpy as np
from gymnasium import spaces

ZERO, ONE, RIGHT, WRONG, EMPTY = (170, 200, 240), (30, 60, 140), (60, 180, 75), (220, 60, 60), (230, 230, 230)


class RepeatAndParity(gymnasium.Env):
    """delay: k, steps that a card has to be remembered. length: steps of an episode. flips: their share that flip."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, delay: int = 32, length: int = 96, flips: float = 0.1, render_mode: str | None = None):
        assert 1 <= delay < length, f"delay {delay}: must be from 1 to below length ({length})"
        assert 0 <= flips <= 1, f"flips {flips}: must be from 0 to 1"
        self.delay, self.length, self.flips, self.render_mode = delay, length, flips, render_mode
        self.max_steps = length
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.MultiDiscrete([2, 2])

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        cards, flips = self.np_random.integers(2, size=self.length), self.np_random.random(self.length) < self.flips
        self.shown = np.stack((cards, flips), 1).astype(np.float32) * 2 - 1
        before = np.concatenate((np.zeros(self.delay, np.int64), cards[: -self.delay]))
        self.answers = np.stack((before, flips.cumsum() % 2), 1)  # (length, 2)
        self.right: list[np.ndarray] = []  # of each step, which answers were
        return self.shown[0].copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action), f"action {action}: must be two of 0 or 1"
        self.right.append(action == self.answers[len(self.right)])
        reward = (2.0 * self.right[-1] - 1).sum() / (2 * self.length)
        t = min(len(self.right), self.length - 1)  # the last card is shown once more
        return self.shown[t].copy(), float(reward), len(self.right) == self.length, False, {}

    def render(self) -> np.ndarray:
        """Cards and flips up to now, light for 0 and dark for 1; below, which answers were right: repeat, parity."""
        t = min(len(self.right), self.length - 1) + 1
        cells = np.full((4, self.length, 3), EMPTY, np.uint8)
        cells[:2, :t] = np.where(self.shown[:t].T[..., None] > 0, ONE, ZERO)
        if self.right:
            cells[2:, : len(self.right)] = np.where(np.stack(self.right, 1)[..., None], RIGHT, WRONG)
        return cells.repeat(8, 0).repeat(8, 1)


gymnasium.register("palmer/RepeatAndParity-v0", entry_point=f"{__name__}:RepeatAndParity")
