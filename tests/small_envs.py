"""Small Gymnasium environments, one a kind of what users bring along. `Case/Name-v0` is registered on import.

    PYTHONPATH=tests python ppo_palmer.py --env-id small_envs:Case/NoRenderMode-v0 --total-timesteps 4096 \
        --eval-every 0 --final-eval-episodes 4
"""

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Plain(gym.Env):
    """Eight steps, random observations, reward 1."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(3)
    length = 8

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def observe(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def pay(self, action):
        return 1.0

    def about(self):
        return {}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), self.about()

    def step(self, action):
        reward = self.pay(action)
        self.t += 1
        return self.observe(), reward, self.t >= self.length, False, self.about()

    def render(self):
        return np.zeros((40, 60, 3), np.uint8)


class Bit(Plain):
    """Repeat the bit that is shown: 8 steps, `scale` for each right answer, half of it by chance."""

    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    scale = 1.0

    def show(self):
        return np.eye(2, dtype=np.float32)[self.bit]

    def observe(self):
        self.bit = int(self.np_random.integers(2))
        return self.show()

    def pay(self, action):
        return self.scale * float(int(action) == self.bit)


class Bit100(Bit):
    """Rewards a hundred times as large, which are learned as well."""

    scale = 100.0


class Stripes(Bit):
    """Fine stripes, across or down, at a random place of a grey picture (84, 84, 1): a CNN sees which."""

    shape = (84, 84, 1)
    observation_space = spaces.Box(0, 255, shape, np.uint8)

    def show(self):
        patch = np.full((28, 28), 100)
        patch[::2] = 200
        picture = np.full((84, 84), 100)
        row, column = self.np_random.integers(0, 56, 2)
        picture[row : row + 28, column : column + 28] = patch.T if self.bit else patch
        picture = picture + self.np_random.integers(-30, 30, picture.shape)
        return picture.clip(0, 255).astype(np.uint8).reshape(self.shape)


class Window(Bit):
    """The last ten prices of eight goods, near 25,000: the bit is whether they rise."""

    observation_space = spaces.Box(-np.inf, np.inf, (10, 8), np.float32)

    def show(self):
        slope = 100.0 if self.bit else -100.0
        prices = 25_000 + slope * np.arange(10)[:, None] / 10 + self.np_random.normal(0, 10, (10, 8))
        return prices.astype(np.float32)


class StripesNoChannel(Stripes):
    """The same pictures without a channel axis."""

    shape = (84, 84)
    observation_space = spaces.Box(0, 255, shape, np.uint8)


class NoRenderMode(Plain):
    """A constructor without render_mode, as in most of POPGym."""

    def __init__(self):
        super().__init__(None)


class NaNReward(Plain):
    """NaN once in a thousand rewards."""

    def pay(self, action):
        return float("nan") if self.np_random.random() < 0.001 else 1.0


class GrowingInfo(Plain):
    """An info of changing length, which nobody reads."""

    def about(self):
        return {"visited": np.arange(int(self.np_random.integers(1, 4)))}


class TinyPicture(Plain):
    """A uint8 picture of 8x8 pixels, no MiniGrid cell codes."""

    observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)

    def observe(self):
        return self.np_random.integers(0, 256, (8, 8, 3)).astype(np.uint8)


class Endless(Plain):
    """No time limit and no end."""

    length = 10**9


class OwnActions(Plain):
    """Has an attribute `actions` of its own, which is not MiniGrid's."""

    actions = ("left", "right", "up")


class Continuous(Plain):
    """Box actions; the reward is highest at (0.5, -0.5)."""

    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def pay(self, action):
        return 1.0 - float(np.square(np.asarray(action) - (0.5, -0.5)).sum())


class Switches(Plain):
    """MultiBinary actions."""

    action_space = spaces.MultiBinary(4)


CASES = [
    Bit,
    Bit100,
    Stripes,
    Window,
    StripesNoChannel,
    NoRenderMode,
    NaNReward,
    GrowingInfo,
    TinyPicture,
    Endless,
    OwnActions,
    Continuous,
    Switches,
]
for case in CASES:
    limit = None if case is Endless else 50
    gym.register(id=f"Case/{case.__name__}-v0", entry_point=case, max_episode_steps=limit)
