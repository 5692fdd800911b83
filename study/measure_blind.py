"""What a player without memory gets on ConcentrationEasy: how much of a score there tells of memory?

python -m study.measure_blind          -> results/search/blind_player.csv
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import gymnasium
import numpy as np

from harness.flags import Range, check_args, run_script
from harness.input_error import InputError
from study.files import cannot_write, write_csv
from study.scorecard import TASKS


@dataclass
class Options:
    out: Path = Path("results/search/blind_player.csv")
    """table to write"""
    episodes: Annotated[int, Range(1, 1_000_000)] = 1000
    """games, of seeds from 0 on"""


def turn(observation: np.ndarray, face_down: np.ndarray, rng: np.random.Generator) -> int:
    """One of the cards that lie face down, each as probable as another: observation, face_down (n,)."""
    return int(rng.choice(np.flatnonzero(observation == face_down)))


def mean_return(episodes: int) -> float:
    env, rng, total = gymnasium.make(TASKS["concentration_easy"].env_id), np.random.default_rng(1), 0.0
    face_down = env.observation_space.nvec - 1  # the largest number stands for a card's back
    for seed in range(episodes):
        observation, done = env.reset(seed=seed)[0], False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(turn(observation, face_down, rng))
            total, done = total + reward, terminated or truncated
    return total / episodes


def main(options: Options) -> None:
    """Raises InputError on wrong input."""
    check_args(options)
    if trouble := cannot_write(options.out):
        raise InputError(f"--out {options.out}: must be a file that can be written ({trouble}).")
    mean = round(mean_return(options.episodes), 4)
    write_csv(options.out, [{"task": "concentration_easy", "episodes": options.episodes, "return": mean}])


if __name__ == "__main__":
    run_script(main, Options, {}, __doc__)
