"""What PALMER's gate does within an episode: before the cue was seen, after it, and at the fork.

    python scripts/measure_gate.py pretrained/palmer__*.pt --out results/gate/runs.csv

Plays held-out episodes of the real environment with sampled actions. For each checkpoint and phase, one row: the
number of steps, the mean of the gate over steps and elements (1: Transformer, 0: LSTM), the standard deviation of its
mean over the steps, and `elements_moved`, the share of elements whose mean differs by more than 0.1 from that before
the cue.
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluate import FIRST_SEED, SEED_BLOCK, load_policy
from memory_envs import make_real_env
from palmer_policy import MemoryPolicy

PHASES = ("before the cue", "after the cue", "at the fork")


@dataclass
class Options:
    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """checkpoints of PALMER, trained on mazes of MiniGrid Memory"""
    out: Path = Path("results/gate/runs.csv")
    """the table to write"""
    episodes: int = 100
    """episodes of each checkpoint"""
    seed: int = 1
    """seed of the episodes"""


def phase_of(env: gym.Env, cue_seen: bool) -> str:
    """The fork is where the corridor ends, one column before the two objects."""
    if not cue_seen:
        return "before the cue"
    maze = env.unwrapped
    if maze.agent_pos[0] >= maze.success_pos[0] - 1:
        return "at the fork"
    return "after the cue"


@torch.no_grad()
def gates(policy: MemoryPolicy, env: gym.Env, episodes: int, seed: int) -> dict[str, list[torch.Tensor]]:
    """Play -> the gate (D,) of every step, by phase."""
    result = {phase: [] for phase in PHASES}
    generator = torch.Generator().manual_seed(seed)
    for number in range(episodes):
        obs, _ = env.reset(seed=FIRST_SEED + seed * SEED_BLOCK + number)
        state, start, cue_seen, ended = policy.initial_state(1), True, False, False
        while not ended:
            cue = (1, env.unwrapped.height // 2 - 1)
            cue_seen = cue_seen or env.unwrapped.agent_sees(*cue)
            output, state = policy(torch.from_numpy(obs)[None, None], state, torch.tensor([[start]]))
            result[phase_of(env, cue_seen)].append(output.gate[0, 0])
            action = policy.distribution(output.logits[0, 0]).sample(generator)
            obs, _, terminated, truncated, _ = env.step(int(action))
            start, ended = False, terminated or truncated
    return result


def main(options: Options) -> None:
    rows = []
    for file in options.checkpoints:
        policy, training, checkpoint = load_policy(file)
        if checkpoint["algo"] != "palmer":
            sys.exit(f"error: {file}: holds {checkpoint['algo']}, which has no gate")
        env = make_real_env(
            training.env_id,
            obs_mode=training.obs_mode,
            agent_view_size=training.agent_view_size,
            max_episode_steps=training.max_episode_steps,
        )
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
    with open(options.out, "w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
