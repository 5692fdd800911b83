"""Where does an agent lose its episodes? Success by the column in which an episode starts.

    python -m study.measure_starts runs/scorecard/s13/{palmer,no_recall}/*/checkpoint.pt

Plays held-out episodes of the real environment with sampled actions. For each checkpoint and each column of the maze,
one row: the episodes that start there (1 is the back of the room, larger numbers are nearer to the fork), the shares
of them that end at the right object, at the wrong one and out of time, the share in which the cue was in view at any
time, the share that end at the wrong object without it, their mean length in steps, and the mean value estimate at
their first and at their last step.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NamedTuple

import tyro

from evaluate import SEED_BLOCK, Moment
from harness.flags import Range, check_args, run_script
from harness.input_error import InputError
from study.files import cannot_write, write_csv
from study.measure_gate import PHASES, load_players, with_phases


@dataclass
class Options:
    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """checkpoints of any of the agents, trained on mazes of MiniGrid Memory"""
    out: Path = Path("results/starts/runs.csv")
    """the table to write"""
    episodes: Annotated[int, Range(1, SEED_BLOCK)] = 1000
    """episodes of each checkpoint"""
    seed: Annotated[int, Range(0, 99_999_999)] = 1
    """seed of the episodes and of the actions' sampling"""


class Episode(NamedTuple):
    """What is counted of an episode."""

    column: int  # of the maze, in which it starts, 1 at the back of the room
    length: int
    first_value: float  # estimate before the first action
    last_value: float  # before the last one
    saw_cue: bool
    success: bool
    wrong_object: bool
    out_of_time: bool


def episodes_of(moments: Iterable[Moment]) -> Iterator[Episode]:
    for moment, phase in with_phases(moments):
        if moment.step == 0:
            column, first_value = int(moment.env.unwrapped.agent_pos[0]), moment.value
        if not moment.end:
            last_value = moment.value
            continue
        yield Episode(
            column,
            moment.step,
            first_value,
            last_value,
            saw_cue=phase != PHASES[0],
            success=moment.success,
            wrong_object=moment.end == "terminated" and not moment.success,
            out_of_time=moment.end == "truncated",
        )


def summary(episodes: list[Episode]) -> dict[str, Any]:
    """The row's figures."""
    return {
        "episodes": len(episodes),
        "success": round(fmean(episode.success for episode in episodes), 3),
        "wrong_object": round(fmean(episode.wrong_object for episode in episodes), 3),
        "out_of_time": round(fmean(episode.out_of_time for episode in episodes), 3),
        "saw_cue": round(fmean(episode.saw_cue for episode in episodes), 3),
        "wrong_without_cue": round(fmean(episode.wrong_object and not episode.saw_cue for episode in episodes), 3),
        "length": round(fmean(episode.length for episode in episodes), 1),
        "first_value": round(fmean(episode.first_value for episode in episodes), 3),
        "last_value": round(fmean(episode.last_value for episode in episodes), 3),
    }


def main(options: Options) -> None:
    """Measure, print and write the table. Raises InputError on wrong input."""
    check_args(options)
    if trouble := cannot_write(options.out):
        raise InputError(f"--out {options.out}: must be a file that can be written ({trouble}).")
    rows = []
    for player in load_players(options.checkpoints):
        episodes = list(episodes_of(player.moments(options.episodes, options.seed)))
        by_column: dict[int, list[Episode]] = defaultdict(list)
        for episode in episodes:
            by_column[episode.column].append(episode)
        key = {"checkpoint": player.file.as_posix(), "algo": player.algo, "env": player.env_id, "seed": player.seed}
        for column, started in sorted(by_column.items()):
            rows.append(key | {"column": column} | summary(started))
        print(player.file, *summary(episodes).values(), sep="\t")
    write_csv(options.out, rows)


if __name__ == "__main__":
    run_script(main, Options, {}, __doc__)
