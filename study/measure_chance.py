"""What a random agent gets on those of the scorecard's tasks that count by return: 1,000 held-out episodes each.

python -m study.measure_chance          -> results/scorecard/chance.csv
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import ppo_lstm
from evaluate import UNLIMITED_STEPS, Episode
from harness.flags import Range, check_args, run_script
from harness.input_error import InputError
from study.files import cannot_write, write_csv
from study.scorecard import TASKS
from tasks import TaskArgs, make_real_env


@dataclass
class Options:
    tasks: tuple[str, ...] = tuple(name for name, task in TASKS.items() if task.measure != "success")
    """tasks to play"""
    out: Path = Path("results/scorecard/chance.csv")
    """table to write"""
    episodes: Annotated[int, Range(1, 1_000_000)] = 1000
    """episodes of each task"""


def task_args(name: str) -> TaskArgs:
    """The task's environment, as its agents see it."""
    words = ["--env-id", TASKS[name].env_id, *shlex.split(TASKS[name].flags)]
    return tyro.cli(ppo_lstm.Args, args=words)


def mean_return(name: str, episodes: int) -> float:
    """Of an agent that draws its actions at random: one as probable as another where they can be counted, else from a
    normal distribution that is clipped to the bounds."""
    env, seed = make_real_env(task_args(name)), 1
    env.action_space.seed(seed)
    total = 0.0
    for number in range(episodes):
        episode = Episode.start(env, 0, number, seed)
        while not episode.end:
            episode.act(env.action_space.sample(), UNLIMITED_STEPS)
        total += episode.total_reward
    env.close()
    return total / episodes


def main(options: Options) -> None:
    """Raises InputError on wrong input."""
    check_args(options)
    if unknown := [name for name in options.tasks if name not in TASKS]:
        raise InputError(f"--tasks {unknown[0]}: must be of {', '.join(TASKS)}.")
    if trouble := cannot_write(options.out):
        raise InputError(f"--out {options.out}: must be a file that can be written ({trouble}).")
    means = [(name, round(mean_return(name, options.episodes), 4)) for name in options.tasks]
    write_csv(options.out, [{"task": name, "episodes": options.episodes, "return": mean} for name, mean in means])


if __name__ == "__main__":
    run_script(main, Options, {}, __doc__)
