"""Success rate, length and return of a trained agent, on the real environment with held-out seeds.

    python evaluate.py --checkpoint runs/RUN/checkpoint.pt
    python evaluate.py --checkpoint runs/RUN/checkpoint.pt --episodes 20 --video episodes.mp4

Whatever back end an agent was trained with, evaluation plays the environment of the Gymnasium or MiniGrid package
itself. Every episode has a seed of its own, from a range that training never uses, and every episode counts
exactly once: counting "the first n that end" would favour short ones.
"""

import dataclasses
import importlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro

from episode_video import EpisodeVideo
from experiment import load_checkpoint, run_script
from input_error import InputError
from memory_envs import find_spec, is_minigrid, make_real_env
from palmer_policy import MemoryPolicy

# Training seeds environments with small numbers, evaluation with these and larger ones.
FIRST_SEED = 1_000_000_000
# So many episodes belong to one evaluation seed; two evaluation seeds share none.
SEED_BLOCK = 1_000_000
PARALLEL = 64
VIDEO_EPISODES = 5
SCRIPTS = {"palmer": "ppo_palmer", "lstm": "ppo_lstm", "trxl": "ppo_trxl"}


@dataclass
class Args:
    checkpoint: str = tyro.MISSING
    """a run's checkpoint.pt"""
    env_id: str | None = None
    """environment to play; not given: the one that the agent was trained on"""
    episodes: int = 1000
    """number of episodes"""
    seed: int = 1
    """seed of the episodes and of the actions' sampling"""
    greedy: bool = False
    """take the most probable action instead of sampling"""
    max_episode_steps: int | None = None
    """episode limit in steps; 0: the environment's own; not given: as in training"""
    memory_length: int | None = None
    """steps that the Transformer sees; not given: as in training"""
    json: bool = False
    """print one JSON object and nothing else"""
    video: str | None = None
    """record the first episodes to this file, .mp4 or .gif"""


@dataclass
class Episode:
    """The running episode of one environment."""

    env: gym.Env
    obs: np.ndarray
    number: int
    length: int = 0
    total_reward: float = 0.0

    @classmethod
    def start(cls, env: gym.Env, number: int, seed: int) -> "Episode":
        return cls(env, env.reset(seed=FIRST_SEED + seed * SEED_BLOCK + number)[0], number)


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95% confidence interval of a proportion (Wilson 1927): never leaves [0, 1], and is right near 0 and 1."""
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def action_name(env: gym.Env, action: Any) -> str:
    """MiniGrid names its actions; elsewhere the number has to do."""
    names = getattr(env.unwrapped, "actions", None)
    return names(int(action)).name if names else str(action)


@torch.no_grad()
def play(
    policy: MemoryPolicy,
    envs: list[gym.Env],
    episodes: int,
    seed: int,
    greedy: bool,
    video: EpisodeVideo | None,
) -> Iterator[tuple[float, int, bool, bool]]:
    """Play `episodes` episodes in parallel -> of each, as it ends: return, length, was it terminated with a reward,
    was it cut off at the episode limit.

    The video shows the first episodes of the first environment.
    """
    device = next(policy.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    upcoming = iter(range(len(envs), episodes))
    running = [Episode.start(env, number, seed) for number, env in enumerate(envs)]
    state = policy.initial_state(len(running))
    recorded = 0
    while running:
        obs = torch.from_numpy(np.stack([episode.obs for episode in running])).to(device)
        start = torch.tensor([[episode.length == 0 for episode in running]], device=device)
        output, state = policy(obs[None], state, start)
        distribution = policy.distribution(output.logits[0])
        actions = (distribution.mode() if greedy else distribution.sample(generator)).cpu().numpy()

        for i, episode in enumerate(running):
            recording = video is not None and episode.env is envs[0] and recorded < VIDEO_EPISODES
            if recording:
                video.add(
                    episode.env.render(),
                    episode.obs,
                    gate=None if output.gate is None else output.gate[0, i].cpu().numpy(),
                    value=output.value[0, i].item(),
                    action=action_name(episode.env, actions[i]),
                    episode=recorded + 1,
                    step=episode.length,
                )
            episode.obs, reward, terminated, truncated, _ = episode.env.step(actions[i])
            episode.total_reward += float(reward)
            episode.length += 1
            if terminated or truncated:
                rewarded = bool(terminated and reward > 0)
                yield episode.total_reward, episode.length, rewarded, truncated and not terminated
                if recording:
                    video.end_episode(rewarded if is_minigrid(episode.env.spec) else None)
                    recorded += 1
                number = next(upcoming, None)
                running[i] = None if number is None else Episode.start(episode.env, number, seed)

        if None in running:
            left = [i for i, episode in enumerate(running) if episode is not None]
            running = [running[i] for i in left]
            state = state.select(torch.tensor(left, dtype=torch.int64, device=device))


def evaluate_policy(
    policy: MemoryPolicy,
    training: Any,
    algo: str,
    steps_trained: int,
    *,
    episodes: int,
    seed: int,
    greedy: bool = False,
    video: str | Path | None = None,
) -> dict[str, Any]:
    """Play held-out episodes -> what `--json` prints.

    training: the training script's arguments, of which env_id, obs_mode, agent_view_size and max_episode_steps
    count. Success rates are None where the environment is not of MiniGrid's, as nothing there says what success
    is. In a Memory maze what is neither a success nor a time-out ended at the wrong object. Lengths are in steps;
    returns are the environment's own, without discount or bonus.
    """
    recorder = EpisodeVideo(video) if video else None
    parallel = min(PARALLEL, episodes)
    if recorder:  # so that the environment on film plays several episodes
        parallel = max(1, min(parallel, episodes // VIDEO_EPISODES))
    envs = [
        make_real_env(
            training.env_id,
            obs_mode=training.obs_mode,
            agent_view_size=training.agent_view_size,
            max_episode_steps=training.max_episode_steps,
            render_mode="rgb_array" if recorder and i == 0 else None,
        )
        for i in range(parallel)
    ]
    played = list(play(policy, envs, episodes, seed, greedy, recorder))
    if recorder:
        recorder.close()
    totals, lengths, rewarded, timed_out = zip(*played, strict=True)
    successes = sum(rewarded)
    has_success = is_minigrid(find_spec(training.env_id))
    low, high = wilson_interval(successes, episodes) if has_success else (None, None)
    for env in envs:
        env.close()
    transformer = getattr(policy, "transformer", None)
    return {
        "env_id": training.env_id,
        "algo": algo,
        "episodes": episodes,
        "seed": seed,
        "success_rate": successes / episodes if has_success else None,
        "success_ci_low": low,
        "success_ci_high": high,
        "timeout_rate": sum(timed_out) / episodes,
        "mean_length": sum(lengths) / episodes,
        "mean_return": sum(totals) / episodes,
        "greedy": greedy,
        "steps_trained": steps_trained,
        "memory_length": getattr(transformer, "memory_length", None),
    }


def load_policy(file: str | Path) -> tuple[MemoryPolicy, Any, dict[str, Any]]:
    """The policy of a checkpoint, on the CPU -> policy, its training arguments, the checkpoint.

    Raises InputError if the file is missing, damaged, of an unknown algorithm, or does not fit its arguments.
    """
    checkpoint = load_checkpoint(file)
    if checkpoint["algo"] not in SCRIPTS:
        raise InputError(
            f"--checkpoint {file}: holds an agent of the algorithm {checkpoint['algo']}, allowed are "
            f"{', '.join(SCRIPTS)}."
        )
    script = importlib.import_module(SCRIPTS[checkpoint["algo"]])
    try:
        training = script.Args(**checkpoint["args"])
        env = make_real_env(training.env_id, obs_mode=training.obs_mode, agent_view_size=training.agent_view_size)
        num_observations = len(checkpoint["policy"]["recall.weight"])
        policy = script.make_agent(training, env.observation_space, env.action_space, num_observations)
        policy.load_state_dict(checkpoint["policy"])
    except (TypeError, KeyError, RuntimeError) as error:
        raise InputError(
            f"--checkpoint {file}: its parameters do not fit this version's {checkpoint['algo']} agent "
            f"({str(error).splitlines()[0]}); evaluate it with the version that saved it."
        ) from error
    env.close()
    return policy, training, checkpoint


def main(args: Args) -> dict[str, Any]:
    """Evaluate, print and return the result. Raises InputError on wrong input."""
    if args.episodes < 1:
        raise InputError(f"--episodes {args.episodes}: must be at least 1.")
    if not 0 <= args.seed < SEED_BLOCK:
        raise InputError(f"--seed {args.seed}: must be from 0 to {SEED_BLOCK - 1}.")
    policy, training, checkpoint = load_policy(args.checkpoint)
    trained_on = training.env_id
    if args.env_id is not None:
        training = dataclasses.replace(training, env_id=args.env_id)
    if args.max_episode_steps is not None:
        training = dataclasses.replace(training, max_episode_steps=args.max_episode_steps)
    check_fit(policy, training, trained_on)
    if args.memory_length is not None:
        set_memory_length(policy, checkpoint["algo"], args.memory_length)
    result = evaluate_policy(
        policy,
        training,
        checkpoint["algo"],
        checkpoint["step"],
        episodes=args.episodes,
        seed=args.seed,
        greedy=args.greedy,
        video=args.video,
    )
    print(json.dumps(result) if args.json else describe(result, trained_on))
    return result


def check_fit(policy: MemoryPolicy, training: Any, trained_on: str) -> None:
    """Raises InputError unless the agent's network fits the spaces of the environment to be played."""
    env = make_real_env(
        training.env_id,
        obs_mode=training.obs_mode,
        agent_view_size=training.agent_view_size,
        max_episode_steps=training.max_episode_steps,
    )
    here = (env.observation_space.shape, env.observation_space.dtype, env.action_space)
    there = (policy.observation_space.shape, policy.observation_space.dtype, policy.action_space)
    env.close()
    if here != there:
        raise InputError(
            f"--env-id {training.env_id}: its observations {here[0]} {here[1]} and actions {here[2]} must be "
            f"those of {trained_on}, on which the agent was trained: {there[0]} {there[1]} and {there[2]}."
        )


def set_memory_length(policy: MemoryPolicy, algo: str, memory_length: int) -> None:
    """Let the Transformer see so many steps: no parameter depends on it. Raises InputError where there is none."""
    if not hasattr(policy, "transformer"):
        raise InputError(f"--memory-length {memory_length}: must not be given, as {algo} agents have no Transformer.")
    if memory_length < 1:
        raise InputError(f"--memory-length {memory_length}: must be at least 1.")
    policy.transformer.memory_length = memory_length


def describe(result: dict[str, Any], trained_on: str) -> str:
    """The result in words."""
    lines = [
        f"{result['algo']} trained on {trained_on} for {result['steps_trained']:,} steps, playing "
        f"{result['env_id']}: {result['episodes']} episodes, seed {result['seed']}, "
        f"{'greedy' if result['greedy'] else 'sampled'} actions"
    ]
    if result["success_rate"] is not None:
        lines.append(
            f"success rate  {result['success_rate']:.3f}  "
            f"(95% Wilson interval {result['success_ci_low']:.3f} to {result['success_ci_high']:.3f})"
        )
    lines.append(f"time-outs     {result['timeout_rate']:.3f}")
    lines.append(f"mean length   {result['mean_length']:.1f} steps")
    lines.append(f"mean return   {result['mean_return']:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Args, {}, __doc__)
