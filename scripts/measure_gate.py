"""What PALMER's gate does within an episode: before the cue was seen, after it, and at the fork.

    python scripts/measure_gate.py pretrained/palmer__*.pt --out results/gate/runs.csv

Plays held-out episodes of the real environment with sampled actions. For each checkpoint and phase, one row: the
number of steps, the mean of the gate over steps and elements (1: Transformer, 0: LSTM), the standard deviation of its
mean over the steps, and `elements_moved`, the share of elements whose mean differs by more than 0.1 from that before
the cue.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import gymnasium as gym
import torch
import tyro
from minigrid.minigrid_env import MiniGridEnv

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiment import run_script
from input_error import InputError
from memory_envs import make_real_env, memory_maze

from evaluate import FIRST_SEED, SEED_BLOCK, load_policy
from palmer_policy import MemoryPolicy, PolicyOutput
from scripts.collect_results import write_csv

PHASES = ("before the cue", "after the cue", "at the fork")


@dataclass
class Options:
    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """checkpoints of PALMER, trained on mazes of MiniGrid Memory"""
    out: Path = Path("results/gate/runs.csv")
    """the table to write"""
    episodes: int = 100
    """episodes of each checkpoint"""
    seed: int = 1
    """seed of the episodes"""


class Moment(NamedTuple):
    """One step of an episode of a Memory maze."""

    first: bool  # of its episode
    column: int  # of the maze, in which the agent stands, 1 at the back of the room
    phase: str  # one of PHASES
    output: PolicyOutput
    reward: float  # of the action that was taken then; success is a terminated step with a reward
    terminated: bool
    truncated: bool


def phase_of(maze: MiniGridEnv, cue_seen: bool) -> str:
    """The fork is where the corridor ends, one column before the two objects."""
    if not cue_seen:
        return "before the cue"
    if maze.agent_pos[0] >= maze.success_pos[0] - 1:
        return "at the fork"
    return "after the cue"


@torch.no_grad()
def play(policy: MemoryPolicy, env: gym.Env, episodes: int, seed: int) -> Iterator[Moment]:
    """Held-out episodes with sampled actions, one after the other, step by step."""
    generator = torch.Generator().manual_seed(seed)
    maze = env.unwrapped
    for number in range(episodes):
        obs, _ = env.reset(seed=FIRST_SEED + seed * SEED_BLOCK + number)
        state, first, cue_seen, ended = policy.initial_state(1), True, False, False
        while not ended:
            cue_seen = cue_seen or maze.agent_sees(1, maze.height // 2 - 1)
            column, phase = int(maze.agent_pos[0]), phase_of(maze, cue_seen)
            output, state = policy(torch.from_numpy(obs)[None, None], state, torch.tensor([[first]]))
            action = policy.distribution(output.logits[0, 0]).sample(generator)
            obs, reward, terminated, truncated, _ = env.step(int(action))
            yield Moment(first, column, phase, output, float(reward), terminated, truncated)
            first, ended = False, terminated or truncated


def gates(policy: MemoryPolicy, env: gym.Env, episodes: int, seed: int) -> dict[str, list[torch.Tensor]]:
    """Play -> the gate (D,) of every step, by phase."""
    result = {phase: [] for phase in PHASES}
    for moment in play(policy, env, episodes, seed):
        result[moment.phase].append(moment.output.gate[0, 0])
    return result


def load_player(file: Path) -> tuple[MemoryPolicy, gym.Env, Any, str]:
    """A checkpoint -> policy, the real environment it was trained on, its training arguments and its algorithm.

    Raises InputError where there is no checkpoint or its environment is not of the Memory family.
    """
    policy, training, checkpoint = load_policy(file)
    if memory_maze(training.env_id) is None:
        raise InputError(f"{file}: was trained on {training.env_id}; must be a maze of MiniGrid Memory.")
    env = make_real_env(
        training.env_id,
        obs_mode=training.obs_mode,
        agent_view_size=training.agent_view_size,
        max_episode_steps=training.max_episode_steps,
    )
    return policy, env, training, checkpoint["algo"]


def main(options: Options) -> None:
    if not options.checkpoints:
        raise InputError("CHECKPOINTS: none given; name at least one checkpoint file.")
    rows = []
    for file in options.checkpoints:
        policy, env, training, algo = load_player(file)
        if algo != "palmer":
            raise InputError(f"{file}: holds {algo}, which has no gate; must be a checkpoint of palmer.")
        by_phase = {
            phase: torch.stack(steps)
            for phase, steps in gates(policy, env, options.episodes, options.seed).items()
            if steps
        }
        first = by_phase[PHASES[0]].mean(0)
        for phase, gate in by_phase.items():
            rows.append(
                {
                    "env": training.env_id,
                    "seed": training.seed,
                    "phase": phase,
                    "steps": len(gate),
                    "mean": round(gate.mean().item(), 3),
                    "std": round(gate.mean(1).std().item(), 3),
                    "elements_moved": round(((gate.mean(0) - first).abs() > 0.1).float().mean().item(), 3),
                }
            )
            print(*rows[-1].values(), sep="\t")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(options.out, rows)


if __name__ == "__main__":
    run_script(main, Options, {}, __doc__)
