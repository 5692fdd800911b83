"""CartPole and Pendulum without velocities: what is seen of one moment does not say how things move.

The agent must estimate velocities from a few past observations, so a short memory is enough. Everything but the
observation is Gymnasium's own: rewards, actions, ends of episodes and their limits. No success is defined here; the
return tells, as always (CartPole: at most 500; Pendulum: below 0, about -150 when it is balanced).

                         observation of the original                   observation here
    CartPoleNoVelocity   x, velocity of x, angle, velocity of angle    x, angle
    PendulumNoVelocity   cos(angle), sin(angle), velocity of angle     cos(angle), sin(angle)

https://gymnasium.farama.org/environments/classic_control/; hidden velocities as a test of memory: Ni et al.,
"Recurrent Model-Free RL Can Be a Strong Baseline for Many POMDPs", 2022, https://arxiv.org/abs/2110.05038

    python ppo_palmer.py --env-id palmer/CartPoleNoVelocity-v0
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv


class Visible(gymnasium.ObservationWrapper):
    """Of an observation vector only the numbers at `indices`."""

    def __init__(self, env: gymnasium.Env, indices: list[int]):
        super().__init__(env)
        self.indices = indices
        low, high = env.observation_space.low, env.observation_space.high
        self.observation_space = spaces.Box(low[indices], high[indices], dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[self.indices]


def cartpole(**kwargs: Any) -> gymnasium.Env:
    return Visible(CartPoleEnv(**kwargs), [0, 2])


def pendulum(**kwargs: Any) -> gymnasium.Env:
    return Visible(PendulumEnv(**kwargs), [0, 1])


gymnasium.register("palmer/CartPoleNoVelocity-v0", entry_point=f"{__name__}:cartpole", max_episode_steps=500)
gymnasium.register("palmer/PendulumNoVelocity-v0", entry_point=f"{__name__}:pendulum", max_episode_steps=200)
