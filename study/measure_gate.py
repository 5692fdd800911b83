"""What PALMER's gate does within an episode: before the cue was seen, after it, and at the fork.

    python -m study.measure_gate pretrained/palmer__*.pt --out results/gate/runs.csv

Plays held-out episodes of the real environment with sampled actions. For each checkpoint and phase, one row: the
number of steps, the mean of the gate over steps and elements (1: Transformer, 0: LSTM), the standard deviation of its
mean over the steps, and `elements_moved`, the share of elements whose mean differs by more than 0.1 from that before
the cue.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import gymnasium as gym
import torch
import tyro
from minigrid.minigrid_env import MiniGridEnv

from evaluate import SEED_BLOCK, Moment, load_policy, play
from harness.flags import Range, check_args, run_script
from harness.input_error import InputError
from palmer_policy import MemoryPolicy
from study.files import cannot_write, write_csv
from tasks import make_real_env
from tasks.minigrid_memory import maze_of

PHASES = ("before the cue", "after the cue", "at the fork")


@dataclass
class Options:
    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """checkpoints of PALMER, trained on mazes of MiniGrid Memory"""
    out: Path = Path("results/gate/runs.csv")
    """the table to write"""
    episodes: Annotated[int, Range(1, SEED_BLOCK)] = 100
    """episodes of each checkpoint"""
    seed: Annotated[int, Range(0, 99_999_999)] = 1
    """seed of the episodes and of the actions' sampling"""


class Player(NamedTuple):
    """A trained agent and the maze that it was trained on."""

    file: Path
    algo: str
    seed: int  # of its training
    env_id: str
    env: gym.Env
    policy: MemoryPolicy

    def moments(self, episodes: int, seed: int) -> Iterator[Moment]:
        """Held-out episodes, one after the other."""
        return play(self.policy, [self.env], episodes, seed)


def load_players(files: tuple[Path, ...]) -> list[Player]:
    """Raises InputError where there is no checkpoint or its environment is not of the Memory family."""
    if not files:
        raise InputError("CHECKPOINTS: none given; name at least one checkpoint file.")
    players = []
    for file in files:
        policy, task, checkpoint = load_policy(file)
        if maze_of(task.env_id) is None:
            raise InputError(f"{file}: was trained on {task.env_id}; must be a maze of MiniGrid Memory.")
        seed = checkpoint["args"]["seed"]
        players.append(Player(file, checkpoint["algo"], seed, task.env_id, make_real_env(task), policy))
    return players


def with_phases(moments: Iterable[Moment]) -> Iterator[tuple[Moment, str]]:
    """Each moment with its phase; an episode's last one, on which nobody acts, has that of the moment before."""
    for moment in moments:
        maze = moment.env.unwrapped
        if moment.step == 0:
            cue_seen = False
        if not moment.end:
            cue_seen = cue_seen or maze.agent_sees(1, maze.height // 2 - 1)
            phase = phase_of(maze, cue_seen)
        yield moment, phase


def phase_of(maze: MiniGridEnv, cue_seen: bool) -> str:
    """The fork is where the corridor ends, one column before the two objects."""
    if not cue_seen:
        return "before the cue"
    if maze.agent_pos[0] >= maze.success_pos[0] - 1:
        return "at the fork"
    return "after the cue"


def gates(moments: Iterable[Moment]) -> dict[str, torch.Tensor]:
    """The gate of every step, by phase: (steps, D)."""
    by_phase = {phase: [] for phase in PHASES}
    for moment, phase in with_phases(moments):
        if not moment.end:
            by_phase[phase].append(torch.from_numpy(moment.gate))
    return {phase: torch.stack(steps) for phase, steps in by_phase.items() if steps}


def main(options: Options) -> None:
    """Measure, print and write the table. Raises InputError on wrong input."""
    check_args(options)
    if trouble := cannot_write(options.out):
        raise InputError(f"--out {options.out}: must be a file that can be written ({trouble}).")
    players = load_players(options.checkpoints)
    for player in players:
        if player.algo != "palmer":
            raise InputError(
                f"{player.file}: holds {player.algo}, which has no gate; must be a checkpoint of palmer."
            )
    rows = []
    for player in players:
        by_phase = gates(player.moments(options.episodes, options.seed))
        if PHASES[0] not in by_phase:
            raise InputError(f"--episodes {options.episodes}: all begin with the cue in view, so there must be more.")
        first = by_phase[PHASES[0]].mean(0)
        for phase, gate in by_phase.items():
            rows.append(
                {
                    "env": player.env_id,
                    "seed": player.seed,
                    "phase": phase,
                    "steps": len(gate),
                    "mean": round(gate.mean().item(), 3),
                    "std": round(gate.mean(1).std().item(), 3) if len(gate) > 1 else None,
                    "elements_moved": round(((gate.mean(0) - first).abs() > 0.1).float().mean().item(), 3),
                }
            )
            print(*rows[-1].values(), sep="\t")
    write_csv(options.out, rows)


if __name__ == "__main__":
    run_script(main, Options, {}, __doc__)
