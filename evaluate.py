"""Success rate, length and return of a trained agent, on the real environment with held-out seeds.

    python evaluate.py --checkpoint runs/RUN/checkpoint.pt
    python evaluate.py --checkpoint runs/RUN/checkpoint.pt --episodes 20 --video episodes.mp4
    python evaluate.py --checkpoint runs/RUN/checkpoint.pt --page episodes.html

Whatever back end an agent was trained with, evaluation plays the environment of the Gymnasium or MiniGrid package
itself. Every episode has a seed of its own, from a range that training never uses, and every episode counts
exactly once: counting "the first n that end" would favour short ones.

`play` is the one loop that plays: it yields moments, which evaluation counts, a film and a page draw and the study
measures. `load_agent` gives a trained agent to other programs. Nothing that trains is loaded here.
"""

import harness.starting  # noqa: F401  # isort: skip  # first: Ctrl-C may come while the others are imported
import json
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import gymnasium as gym
import numpy as np
import torch
import tyro

from harness.agent import Agent, Batch, choose_actions
from harness.checkpoint import check_form, load_checkpoint
from harness.flags import Range, args_in_file, check_args, check_value, run_script
from harness.input_error import InputError, RunError, flag_of, shortened
from harness.trust import must_be_repeated, only_if_repeated
from palmer_policy import POLICIES, MemoryPolicy, MemoryState, PolicyOutput, make_policy, setting_hints
from replay.film import Film
from replay.memory_picture import MemoryPicture
from replay.page import PAGED_EPISODES, Page, Track
from tasks import TaskArgs, make_real_env
from tasks.real import LARGEST_NUMBER, check_picture, episode_limit, first_line, unusable

FIRST_SEED = 1_000_000_000  # training seeds environments with smaller numbers
SEED_BLOCK, SEED_BLOCKS = 1_000_000, 1000  # episodes of one evaluation seed; seeds that share none, all below 2**31
PARALLEL = 64  # episodes at once
UNLIMITED_STEPS = 1000  # where an environment has no time limit, an evaluated episode is cut here
FILMED_EPISODES = 5
TAKEN_OUT = {"gate_floor": Annotated[float, Range(0, 0)]}  # of earlier versions: the one value that is as none here


@dataclass
class Args:
    checkpoint: str = tyro.MISSING
    """a run's checkpoint.pt"""
    env_id: str | None = None
    """environment to play; not given: the one that the agent was trained on"""
    env_kwargs: str | None = None
    """arguments of its constructor, as JSON; not given: as in training"""
    episodes: Annotated[int | None, Range(1, SEED_BLOCK)] = None
    """number of episodes; not given: 1000, with --page 3"""
    seed: Annotated[int, Range(0, 99_999_999)] = 1
    """seed of the episodes and of the actions' sampling; episodes repeat after a thousand seeds"""
    greedy: bool = False
    """take the most probable action instead of sampling"""
    max_episode_steps: Annotated[int | None, Range(0, 1_000_000)] = None
    """episode limit in steps; 0: the environment's own; not given: as in training"""
    memory_length: Annotated[int | None, Range(1, 65_536)] = None
    """steps that the Transformer sees; not given: as in training"""
    cut: Literal["lstm", "transformer"] | None = None
    """leave this memory nothing but the present step, to see what it is worth; the other one keeps all"""
    alone: Literal["lstm", "transformer"] | None = None
    """let PALMER answer from this memory alone, as if its gate gave all to it"""
    json: bool = False
    """print one JSON object and nothing else"""
    video: str | None = None
    """record the first episodes to this file, .mp4 or .gif"""
    page: str | None = None
    """write the first ten episodes to this file, .html, to be played in a browser with what the agent remembers"""
    beside: str | None = None
    """with --page: a second checkpoint.pt, which plays the same episodes beside the first"""


class Moment(NamedTuple):
    """One step of an episode: what is shown, what the agent makes of it and does; and, last, how the episode ended.

    An episode of n steps has n + 1 moments. In the last one there is no output and no action; before it the
    environment is as it is when the agent has seen the observation and has not yet acted.
    """

    env: gym.Env
    slot: int  # number of `env` among those played at once
    episode: int  # number of the episode
    step: int  # actions taken before
    obs: tuple[np.ndarray, ...]  # the frame
    outputs: PolicyOutput | None  # of all episodes that are running, (1, B, ...)
    states: MemoryState | None  # likewise, the memory after this observation
    row: int  # this episode's among them
    action: Any  # None at the end
    reward: float  # that the action before this moment earned
    total_reward: float  # since the episode's start
    end: Literal["terminated", "truncated"] | None
    success: bool | None  # None where the task does not tell

    @property
    def gate(self) -> np.ndarray | None:
        """(D,), 1 = Transformer; None where the agent has none."""
        gate = self.outputs.gate
        return None if gate is None else gate[0, self.row].cpu().numpy()

    @property
    def value(self) -> float:
        return self.outputs.value[0, self.row].item()


@dataclass
class Episode:
    """The running episode of one environment."""

    env: gym.Env
    slot: int
    number: int
    obs: tuple[np.ndarray, ...]
    length: int = 0
    reward: float = 0.0
    total_reward: float = 0.0
    end: str | None = None
    success: bool | None = None

    @classmethod
    def start(cls, env: gym.Env, slot: int, number: int, seed: int) -> "Episode":
        with blamed(env, "reset"):
            obs, _ = env.reset(seed=held_out_seed(seed, number))
        check_numbers(env, *obs)
        return cls(env, slot, number, obs)

    def act(self, action: Any, limit: int | None) -> None:
        with blamed(self.env, "step"):
            self.obs, reward, terminated, truncated, info = self.env.step(action)
        self.length, self.reward = self.length + 1, float(reward)
        check_numbers(self.env, *self.obs, self.reward)
        self.total_reward += self.reward
        truncated = truncated or (limit is not None and self.length >= limit)
        self.end = "terminated" if terminated else "truncated" if truncated else None
        self.success = info["is_success"] if self.env.get_wrapper_attr("tells") else None

    def moment(self, outputs: Any = None, states: Any = None, row: int = -1, action: Any = None) -> Moment:
        return Moment(
            self.env,
            self.slot,
            self.number,
            self.length,
            self.obs,
            outputs,
            states,
            row,
            action,
            self.reward,
            self.total_reward,
            self.end,
            self.success,
        )


@contextmanager
def blamed(env: gym.Env, what: str) -> Iterator[None]:
    """Raises RunError for whatever an environment of one's own raises."""
    try:
        yield
    except Exception as error:
        raise RunError(f"{id_of(env)}: its {what} fails with {first_line(error)}.") from error


def check_numbers(env: gym.Env, *values: Any) -> None:
    """Raises RunError for an observation or a reward of which no agent can make anything."""
    for value in values:
        if (bad := unusable(value)) is not None:
            raise RunError(
                f"{id_of(env)}: a number of an observation or reward is {bad}, and nothing is made of what is not "
                f"finite or beyond {LARGEST_NUMBER:g}."
            )


def id_of(env: gym.Env) -> str:
    return env.spec.id if env.spec else type(env.unwrapped).__name__


def held_out_seed(seed: int, episode: int) -> int:
    """The environment's seed for an episode of an evaluation: never one of training's, and below 2**31."""
    return FIRST_SEED + seed % SEED_BLOCKS * SEED_BLOCK + episode


@torch.no_grad()
def play(
    policy: MemoryPolicy, envs: list[gym.Env], episodes: int, seed: int, greedy: bool = False
) -> Iterator[Moment]:
    """Play held-out episodes, as many at once as there are environments -> their moments, each episode's in order.

    Raises RunError for an agent whose outputs are not finite, and for whatever an environment raises.
    """
    device = next(policy.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    limit = UNLIMITED_STEPS if episode_limit(envs[0]) is None else None
    upcoming = iter(range(len(envs), episodes))
    running = [Episode.start(env, slot, slot, seed) for slot, env in enumerate(envs)]
    state = policy.initial_state(len(running))
    while running:
        frames = tuple(np.stack(part) for part in zip(*(episode.obs for episode in running), strict=True))
        start = np.array([episode.length == 0 for episode in running])
        actions, output, state = choose_actions(policy, frames, state, start, generator, greedy)

        for i, episode in enumerate(running):
            yield episode.moment(output, state, i, actions[i])
            episode.act(actions[i], limit)
            if episode.end:
                yield episode.moment()
                number = next(upcoming, None)
                running[i] = None if number is None else Episode.start(episode.env, episode.slot, number, seed)

        if None in running:
            left = [i for i, episode in enumerate(running) if episode is not None]
            running = [running[i] for i in left]
            state = state.select(torch.tensor(left, dtype=torch.int64, device=device))


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95% confidence interval of a proportion (Wilson 1927): never leaves [0, 1], and is right near 0 and 1."""
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def filmed(moments: Iterable[Moment], film: Film) -> Iterator[Moment]:
    """The same moments; those of the first episodes of the first environment are drawn as they pass."""
    recorded = 0
    for moment in moments:
        if moment.slot == 0 and recorded < FILMED_EPISODES:
            if moment.end:
                film.end_episode(moment.success)
                recorded += 1
            else:
                film.add(moment, episode=recorded + 1)
        yield moment


def tracked(moments: Iterable[Moment], track: Track | MemoryPicture) -> Iterator[Moment]:
    """The same moments, which a page or a picture takes as they pass."""
    for moment in moments:
        track.add(moment)
        yield moment


def evaluate_policy(
    policy: MemoryPolicy,
    task: TaskArgs,
    algo: str,
    steps_trained: int,
    *,
    episodes: int,
    seed: int,
    greedy: bool = False,
    video: str | Path | None = None,
    track: Track | MemoryPicture | None = None,
) -> dict[str, Any]:
    """Play held-out episodes -> what `--json` prints.

    Success rates are None where the task does not tell what success is. In a maze of MiniGrid Memory what is neither
    a success nor a time-out ended at the wrong object. Lengths are in steps; returns are the environment's own,
    without discount or bonus.
    """
    parallel = min(PARALLEL, episodes)
    if video:  # so that the environment on film plays several episodes
        parallel = max(1, min(parallel, episodes // FILMED_EPISODES))
    drawn = min(parallel, PAGED_EPISODES) if isinstance(track, Track) and can_be_drawn(task) else int(bool(video))
    with Film(video) if video else nullcontext() as film:
        envs = [make_real_env(task, "rgb_array" if slot < drawn else None) for slot in range(parallel)]
        limit = episode_limit(envs[0]) or UNLIMITED_STEPS  # before a reset, which may draw one for its episode alone
        moments = play(policy, envs, episodes, seed, greedy)
        moments = tracked(moments, track) if track else moments
        # Without their observations: a million pictures are gigabytes.
        ends = [moment._replace(obs=()) for moment in (filmed(moments, film) if film else moments) if moment.end]
    for env in envs:
        env.close()
    tells = ends[0].success is not None
    successes = sum(bool(end.success) for end in ends)
    low, high = wilson_interval(successes, episodes) if tells else (None, None)
    return {
        "env_id": task.env_id,
        "algo": algo,
        "episodes": episodes,
        "seed": seed,
        "success_rate": successes / episodes if tells else None,
        "success_ci_low": low,
        "success_ci_high": high,
        "timeout_rate": sum(end.end == "truncated" for end in ends) / episodes,
        "mean_length": sum(end.step for end in ends) / episodes,
        "mean_return": sum(end.total_reward for end in ends) / episodes,
        "step_limit": limit,
        "greedy": greedy,
        "steps_trained": steps_trained,
        "memory_length": getattr(getattr(policy, "transformer", None), "memory_length", None),
    }


def load_agent(
    file: str | Path,
    *,
    batch: int | None = None,
    seed: int = 1,
    env_id: str | None = None,
    env_kwargs: str | None = None,
) -> Agent:
    """A trained agent to act with, see `Agent`; on the CPU.

        agent = load_agent("checkpoint.pt")
        action = agent.act(observation)

    Args:
        file: a run's checkpoint.pt.
        batch: None for one environment, N for N at once.
        seed: of the actions' sampling, as evaluate.py's.
        env_id, env_kwargs: environment to play, and its constructor's arguments as JSON; None: as in training. To be
            given where it was trained with a module of its own or with such arguments: no file is trusted with these.

    Raises InputError, a ValueError, in one sentence, as `load_policy` does, and for a batch or seed that cannot be.
    """
    for name, value, kinds in (("file", file, str | Path), ("env_id", env_id, str | None)):
        if not isinstance(value, kinds):
            raise InputError(f"load_agent: {name} {shortened(value)}: must be a text.")
    try:
        check_value("batch", batch, Batch)
        check_value("seed", seed, get_type_hints(Args, include_extras=True)["seed"])
    except InputError as error:
        raise InputError(f"load_agent: {str(error).removeprefix('--')}") from error
    policy, trained_on, _ = load_policy(file, env_id, env_kwargs)
    return Agent(policy, task_to_play(policy, trained_on, env_id=env_id, env_kwargs=env_kwargs), batch, seed)


def can_be_drawn(task: TaskArgs) -> bool:
    try:
        check_picture(task, "--page")
    except InputError:
        return False
    return True


def load_policy(
    file: str | Path, env_id: str | None = None, env_kwargs: str | None = None, flag: str = "--checkpoint"
) -> tuple[MemoryPolicy, TaskArgs, dict[str, Any]]:
    """The policy of a checkpoint, on the CPU -> policy, the task it was trained on, the checkpoint.

    env_id, env_kwargs: those of the command line. Where the file's own could run code they stand for these, and must.

    Raises InputError, naming `flag`, if the file is missing, damaged, of an unknown algorithm, or does not fit its
    arguments.
    """
    checkpoint, where = load_checkpoint(file, flag), f"{flag} {file}"
    algo, settings, given = (
        checkpoint.get("algo"),
        checkpoint.get("args"),
        {"env_id": env_id, "env_kwargs": env_kwargs},
    )
    if not isinstance(algo, str) or algo not in POLICIES:
        raise InputError(
            f"{where}: holds an agent of the algorithm {shortened(algo)}, allowed are {', '.join(POLICIES)}."
        )
    needed = {"seed", *(field.name for field in fields(TaskArgs))}
    if not isinstance(settings, dict) or not needed <= settings.keys():
        raise InputError(f"{where}: lacks arguments of its training; evaluate it with the version that saved it.")
    if type(checkpoint.get("step")) is not int or checkpoint["step"] < 0:
        raise InputError(f"{where}: its step must be a number of steps; it is damaged.")
    task = check_settings(algo, settings, where)
    only_if_repeated(settings, given, where)
    task = replace(task, **{name: given[name] for name in given if must_be_repeated(name, getattr(task, name))})
    env = make_real_env(task)
    env.close()
    check_size(algo, settings, env, checkpoint.get("policy"), where)
    policy = make_policy(algo, settings, env.observation_space, env.action_space)
    policy.load_state_dict(checkpoint["policy"])
    return policy, task, checkpoint


def check_settings(algo: str, settings: dict[str, Any], where: str) -> TaskArgs:
    """The task that a file names -> it, once all settings that are read here are what flags may be.

    Those that only training reads may be anything. Raises InputError that begins with `where`.
    """
    hints = setting_hints(algo) | TAKEN_OUT | {"seed": get_type_hints(Args, include_extras=True)["seed"]}
    try:
        for name in hints.keys() & settings.keys():
            check_value(name, settings[name], hints[name])
    except InputError as error:
        raise InputError(f"{where}: holds {error}") from error
    return args_in_file(TaskArgs, settings, where)


def check_size(algo: str, settings: dict[str, Any], env: gym.Env, saved: Any, where: str) -> None:
    """Are `saved` parameters those of this agent? Found out before it takes any memory; raises InputError."""
    try:
        with torch.device("meta"):
            planned = make_policy(algo, settings, env.observation_space, env.action_space)
        check_form(saved, planned.state_dict(), "policy")
    except (ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{where}: its parameters do not fit this version's {algo} agent ({shortened(error)}); use the version "
            "that saved it."
        ) from error


class Player(NamedTuple):
    """A checkpoint's agent, and the task that it plays."""

    policy: MemoryPolicy
    task: TaskArgs
    trained_on: TaskArgs
    checkpoint: dict[str, Any]
    where: str  # flag and file


def main(args: Args) -> dict[str, Any]:
    """Evaluate, print and return the result; with --beside the other agent's is in it. Raises InputError on wrong
    input.
    """
    check_args(args)
    # Environments print, too: of --json's output they must be no part.
    with redirect_stdout(sys.stderr) if args.json else nullcontext():
        results = evaluate(args)
    words = [describe(*result) for result in results]
    (result, _), *others = results
    if others:
        result["beside"] = others[0][0]
    print(json.dumps(result) if args.json else "\n\n".join(words))
    return result


def evaluate(args: Args) -> list[tuple[dict[str, Any], str]]:
    """The result, and the id of the environment that the agent was trained on; with --beside of two agents."""
    if args.beside is not None and args.page is None:
        raise InputError(f"--beside {args.beside}: must be given with --page, where the two agents stand.")
    players = [load_player(args, "--checkpoint", args.checkpoint)]
    if args.beside is not None:
        players.append(load_player(args, "--beside", args.beside))
        check_same_episodes(*players)
    if args.video:
        check_picture(players[0].task, "--video")
    settings = {"episodes": args.episodes or (3 if args.page else 1000), "seed": args.seed, "greedy": args.greedy}
    results = []
    with Page(args.page) if args.page is not None else nullcontext() as page:
        tracks = [begin_track(page, player, settings) if page else None for player in players]
        for player, track, video in zip(players, tracks, (args.video, None), strict=False):
            algo, step = player.checkpoint["algo"], player.checkpoint["step"]
            result = evaluate_policy(player.policy, player.task, algo, step, **settings, video=video, track=track)
            result |= {name: memory for name in ("cut", "alone") if (memory := getattr(args, name)) is not None}
            results.append((result, player.checkpoint["args"]["env_id"]))
    return results


def load_player(args: Args, flag: str, file: str) -> Player:
    """The agent of a flag's file, set up as the command line says. Raises InputError."""
    policy, trained_on, checkpoint = load_policy(file, args.env_id, args.env_kwargs, flag)
    changed = {name: getattr(args, name) for name in ("env_id", "env_kwargs", "max_episode_steps")}
    task = task_to_play(policy, trained_on, **changed)
    # What stands beside may be another kind of agent.
    if args.memory_length is not None and (flag == "--checkpoint" or hasattr(policy, "transformer")):
        set_memory_length(policy, checkpoint["algo"], args.memory_length)
    if args.cut is not None and (flag == "--checkpoint" or hasattr(policy, args.cut)):
        cut_memory(policy, checkpoint["algo"], args.cut)
    if args.alone is not None and (flag == "--checkpoint" or hasattr(policy, "gate")):
        answer_alone(policy, checkpoint["algo"], args.alone)
    return Player(policy, task, trained_on, checkpoint, f"{flag} {file}")


def check_same_episodes(player: Player, beside: Player) -> None:
    """Raises InputError where two agents do not play the same task, and so not the same episodes."""
    for name in ("env_id", "env_kwargs", "max_episode_steps"):
        one, other = getattr(player.task, name), getattr(beside.task, name)
        if one != other:
            raise InputError(
                f"{beside.where}: plays with {flag_of(name)} {other}, {player.where} with {one}; must be the "
                f"same, so that the episodes are: give {flag_of(name)}."
            )


def begin_track(page: Page, player: Player, settings: dict[str, Any]) -> Track:
    """An agent's place on the page."""
    from replay.aids import load_aids  # here, as it loads what only training and a page need

    about = {"algo": player.checkpoint["algo"], "file": player.where.split(" ", 1)[1], "env_id": player.task.env_id}
    about |= {"trained_on": player.trained_on.env_id, "steps_trained": player.checkpoint["step"], **settings}
    return page.track(player.policy, load_aids(player.checkpoint, player.trained_on, player.where), **about)


def task_to_play(policy: MemoryPolicy, trained_on: TaskArgs, **changed: Any) -> TaskArgs:
    """The task that the agent was trained on, with those of `changed` that are not None.

    Raises InputError unless the agent's network fits the spaces of the environment to be played.
    """
    task = replace(trained_on, **{name: value for name, value in changed.items() if value is not None})
    env = make_real_env(task)
    env.close()
    both = env.observation_space, policy.observation_space
    here, there = ([(part.shape, part.dtype) for part in space] for space in both)
    if here != there or env.action_space != policy.action_space:
        raise InputError(
            f"--env-id {task.env_id}: its observations {both[0]} and actions {env.action_space} must be like those "
            f"of {trained_on.env_id}, on which the agent was trained: {both[1]} and {policy.action_space}."
        )
    return task


def set_memory_length(policy: MemoryPolicy, algo: str, memory_length: int) -> None:
    """Let the Transformer see so many steps: no parameter depends on it. Raises InputError where there is none."""
    if not hasattr(policy, "transformer"):
        raise InputError(f"--memory-length {memory_length}: must not be given, as {algo} agents have no Transformer.")
    policy.transformer.memory_length = memory_length


def cut_memory(policy: MemoryPolicy, algo: str, memory: str) -> None:
    """Leave the LSTM or the Transformer nothing but the present step. Raises InputError where there is none."""
    if not hasattr(policy, memory):
        raise InputError(f"--cut {memory}: must be a memory that the agent has, and {algo} agents lack this one.")
    getattr(policy, memory).cut = True


def answer_alone(policy: MemoryPolicy, algo: str, memory: str) -> None:
    """Let the gate give all to the LSTM or to the Transformer. Raises InputError where there is no gate."""
    if not hasattr(policy, "gate"):
        raise InputError(f"--alone {memory}: must not be given, as {algo} agents have one memory and no gate.")
    policy.gate.fixed = float(memory == "transformer")


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
    if "cut" in result:
        lines.append(f"memory cut    {result['cut']}: nothing but the present step")
    if "alone" in result:
        lines.append(f"memory alone  {result['alone']}: the gate gives all to it")
    lines.append(f"time-outs     {result['timeout_rate']:.3f}  (at {result['step_limit']:,} steps)")
    lines.append(f"mean length   {result['mean_length']:.1f} steps")
    lines.append(f"mean return   {result['mean_return']:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Args, {}, __doc__)
