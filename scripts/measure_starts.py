"""Where does an agent lose its episodes? Success by the column in which an episode starts.

    python scripts/measure_starts.py runs/larger/*S33Random*/checkpoint.pt --out results/starts/runs.csv

Plays held-out episodes of the real environment with sampled actions. For each checkpoint and each column of the maze,
one row: the episodes that start there (1 is the back of the room, larger numbers are nearer to the fork), the shares
of them that end at the right object, at the wrong one and out of time, the share in which the cue was in view at any
time, the share that end at the wrong object without it, their mean length in steps, and the mean value estimate at
their first and at their last step.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiment import run_script
from input_error import InputError

from scripts.collect_results import write_csv
from scripts.measure_gate import PHASES, Moment, load_player, play


@dataclass
class Options:
    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """checkpoints of any of the agents, trained on mazes of MiniGrid Memory"""
    out: Path = Path("results/starts/runs.csv")
    """the table to write"""
    episodes: int = 1000
    """episodes of each checkpoint"""
    seed: int = 1
    """seed of the episodes"""


def summary(episodes: list[tuple[Moment, Moment, int]]) -> dict[str, Any]:
    """(first step, last step, length) of each episode -> the row's figures."""
    ends = [last for _, last, _ in episodes]
    wrong = [last.terminated and last.reward <= 0 for last in ends]
    saw_cue = [last.phase != PHASES[0] for last in ends]
    return {
        "episodes": len(episodes),
        "success": round(fmean(last.terminated and last.reward > 0 for last in ends), 3),
        "wrong_object": round(fmean(wrong), 3),
        "out_of_time": round(fmean(last.truncated and not last.terminated for last in ends), 3),
        "saw_cue": round(fmean(saw_cue), 3),
        "wrong_without_cue": round(fmean(w and not saw for w, saw in zip(wrong, saw_cue, strict=True)), 3),
        "length": round(fmean(length for *_, length in episodes), 1),
        "first_value": round(fmean(first.output.value.item() for first, *_ in episodes), 3),
        "last_value": round(fmean(last.output.value.item() for last in ends), 3),
    }


def main(options: Options) -> None:
    if not options.checkpoints:
        raise InputError("CHECKPOINTS: none given; name at least one checkpoint file.")
    rows = []
    for file in options.checkpoints:
        policy, env, training, algo = load_player(file)
        by_column: dict[int, list[tuple[Moment, Moment, int]]] = defaultdict(list)
        for moment in play(policy, env, options.episodes, options.seed):
            if moment.first:
                first, length = moment, 0
            length += 1
            if moment.terminated or moment.truncated:
                by_column[first.column].append((first, moment, length))
        key = {"checkpoint": file.as_posix(), "algo": algo, "env": training.env_id, "seed": training.seed}
        for column, episodes in sorted(by_column.items()):
            rows.append(key | {"column": column} | summary(episodes))
        print(file, *summary([episode for group in by_column.values() for episode in group]).values(), sep="\t")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(options.out, rows)


if __name__ == "__main__":
    run_script(main, Options, {}, __doc__)
