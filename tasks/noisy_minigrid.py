"""MiniGrid Memory in noisy pictures: the mazes are MiniGrid's own, but no picture is ever seen twice.

    #####     #K#      K a key, B a ball, > the agent, which sees 3x3 cells from its own on as 84x84 pixels
    #K..#######.#
    #.....>.....#      The object in the room on the left comes again at the fork on the right: the agent has to
    #...#######.#      step beside the one of the same kind.
    #####     #B#

Without noise there are only some 60 different pictures in a maze, and each of them can be learned by heart. Here
every pixel, in each of its three colours, is off by up to `noise` grey levels, anew in every picture, and clipped to
0..255. Success: the right way at the fork, within 96 steps. Actions and rewards are those of MiniGrid:
https://minigrid.farama.org/environments/minigrid/MemoryEnv/

    python ppo_palmer.py --env-id palmer/NoisyMemoryS13-v0
    --env-kwargs '{"size": 21, "noise": 50}'                 a maze of another odd size, more noise
"""

from typing import Any

import gymnasium
import numpy as np
from minigrid.envs import MemoryEnv
from minigrid.wrappers import ImgObsWrapper, RGBImgPartialObsWrapper


class NoisyPicture(gymnasium.ObservationWrapper):
    """Adds to every number of a uint8 picture an integer of its own, uniform in -noise..noise."""

    def __init__(self, env: gymnasium.Env, noise: int = 30):
        super().__init__(env)
        self.noise, self.rng = noise, np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:  # the 1 makes it another stream than that of the maze, which gets the seed alone
            self.rng = np.random.default_rng((seed, 1))
        return super().reset(seed=seed, options=options)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        noise = self.rng.integers(-self.noise, self.noise, observation.shape, np.int16, endpoint=True)
        return np.clip(observation + noise, 0, 255).astype(np.uint8)


class MemoryWithSuccess(MemoryEnv):
    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, bool]]:
        return super().reset(**kwargs)[0], {"is_success": False}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, bool]]:
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"is_success": bool(terminated and reward > 0)}


def noisy_memory(size: int, random_length: bool, noise: int = 30, agent_view_size: int = 3, render_mode=None):
    maze = MemoryWithSuccess(size, random_length, agent_view_size=agent_view_size, render_mode=render_mode)
    return NoisyPicture(ImgObsWrapper(RGBImgPartialObsWrapper(maze, tile_size=84 // agent_view_size)), noise)


for name, size in (("S11", 11), ("S13", 13), ("S13Random", 13), ("S17Random", 17)):
    maze = {"size": size, "random_length": name.endswith("Random")}
    gymnasium.register(f"palmer/NoisyMemory{name}-v0", f"{__name__}:noisy_memory", max_episode_steps=96, kwargs=maze)
