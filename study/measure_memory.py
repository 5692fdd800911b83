"""What the agents of the scorecard hold in their memories, and what each of them is worth.

    python -m study.measure_memory runs/scorecard results/scorecard

Plays held-out episodes with the final agents of all finished runs in the first folder. Writes, into the second, into
which rows of agents that the first has not are kept,

    cuts.csv       PALMER whole, with one memory cut off, and answering from one alone (see evaluate.py's --cut and
                   --alone): success and return
    gates.csv      PALMER's gate in each fifth of an episode: its mean, and the share of its elements that give more
                   than nine tenths to either memory
    ages.csv       for each age: how much the Transformer looks at the step so long ago, mean over layers and heads,
                   beside what an even look would give it; and how often recall by age picks the right frame, beside
                   a guess among the episode's different ones
    lengths.csv    agents of the parity task on longer streams
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro

from evaluate import SEED_BLOCK, answer_alone, cut_memory, evaluate_policy, load_policy, play
from harness.flags import Range, check_args, run_script
from harness.input_error import InputError
from replay.aids import load_aids
from study.files import cannot_write, with_kept, write_csv
from study.measure_chance import task_args
from study.scorecard import AGENTS, TASKS
from tasks import make_real_env

FIFTHS = 5
AGES = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 80, 96, 128)
LENGTHS = (25, 50, 100)  # of bit streams
CHANGES = ("none", "cut lstm", "cut transformer", "alone lstm", "alone transformer")
LONGEST = 256  # steps of an episode that are looked into


@dataclass
class Options:
    source: Annotated[Path, tyro.conf.Positional] = Path("runs/scorecard")
    """folder of the scorecard's runs"""
    target: Annotated[Path, tyro.conf.Positional] = Path("results/scorecard")
    """folder for the tables"""
    episodes: Annotated[int, Range(1, SEED_BLOCK)] = 200
    """episodes that success and return are of"""
    looked_into: Annotated[int, Range(1, SEED_BLOCK)] = 20
    """episodes that gate, attention and recall are of"""
    seed: Annotated[int, Range(0, 99_999_999)] = 1
    """seed of the episodes and of the actions' sampling"""


class Player(NamedTuple):
    """The final agent of a finished run."""

    task: str
    agent: str
    seed: int
    file: Path

    @property
    def key(self) -> dict[str, Any]:
        return {"task": self.task, "agent": self.agent, "seed": self.seed}

    def load(self) -> tuple[Any, Any, dict[str, Any]]:
        """Policy, task and checkpoint, anew: what is changed stays so."""
        args = task_args(self.task)
        return load_policy(self.file, args.env_id, args.env_kwargs)


class Looked(NamedTuple):
    """One episode, as far as it is looked into."""

    frames: tuple[torch.Tensor, ...]  # every part (T, *shape)
    memory: torch.Tensor  # (T, D)
    gate: np.ndarray | None  # (T, D)


def players(source: Path) -> list[Player]:
    """Raises InputError where there is no finished run."""
    found = []
    for summary in sorted(source.glob("*/*/*/summary.json")):
        task, agent, run = summary.parent.relative_to(source).parts
        if task in TASKS and agent in AGENTS:
            found.append(Player(task, agent, int(run.rsplit("__s", 1)[1]), summary.parent / "checkpoint.pt"))
    if not found:
        raise InputError(f"SOURCE {source}: must be a folder of the scorecard's runs, and holds no finished one.")
    return found


def played(player: Player, options: Options, change: str = "none", **changed: Any) -> dict[str, Any]:
    """Success and return over held-out episodes, with the actions that count on the scorecard; change: of CHANGES."""
    policy, task, checkpoint = player.load()
    for name, value in changed.items():
        setattr(task, name, value)
    if change != "none":
        how, memory = change.split()
        {"cut": cut_memory, "alone": answer_alone}[how](policy, checkpoint["algo"], memory)
    settings = {"episodes": options.episodes, "seed": options.seed}
    settings["greedy"] = TASKS[player.task].measure.startswith("greedy")
    result = evaluate_policy(policy, task, checkpoint["algo"], checkpoint["step"], **settings)
    return {"episodes": options.episodes, "success": result["success_rate"], "return": result["mean_return"]}


def looked_into(policy: Any, task: Any, episodes: int, seed: int) -> Iterator[Looked]:
    """The first steps of held-out episodes, with what the agent made of them."""
    moments = defaultdict(list)
    for moment in play(policy, [make_real_env(task) for _ in range(min(episodes, 16))], episodes, seed):
        if moment.end:
            seen = moments.pop(moment.episode)
            parts = zip(*(m.obs for m in seen), strict=True)
            frames = tuple(torch.from_numpy(np.stack(part)) for part in parts)
            memory = torch.stack([m.outputs.memory[0, m.row] for m in seen])
            yield Looked(frames, memory, None if seen[0].gate is None else np.stack([m.gate for m in seen]))
        elif moment.step < LONGEST:
            moments[moment.episode].append(moment)


def gate_rows(episodes: list[Looked]) -> list[dict[str, Any]]:
    """A row for each fifth of an episode."""
    parts = [np.array_split(episode.gate, FIFTHS) for episode in episodes]
    rows = []
    for fifth in range(FIFTHS):
        gate = np.concatenate([part[fifth] for part in parts])
        shares = {"mean": gate, "transformer": gate > 0.9, "lstm": gate < 0.1}
        rows.append({"fifth": fifth + 1} | {name: mean(share) for name, share in shares.items()})
    return rows


@torch.no_grad()
def age_rows(policy: Any, aids: Any, episodes: list[Looked]) -> list[dict[str, Any]]:
    """A row for each age that an episode has."""
    weight, even, right, guess = (defaultdict(list) for _ in range(4))
    head = aids.heads["age"] if aids is not None and "age" in aids.heads else None
    for frames, memory, _ in episodes:
        T = len(memory)
        start = torch.arange(T)[:, None] == 0
        attention = policy.attention(tuple(part[:, None] for part in frames), policy.initial_state(1), start)
        different, number = distinct(frames)
        candidates = policy.encoder(different)
        for age in (age for age in AGES if age < T):
            if attention is not None and age < policy.transformer.memory_length:
                looks = attention[:, 0].mean((0, 1)).diagonal(-age)  # (T - age,)
                weight[age].append(looks.mean().item())
                seen = np.minimum(np.arange(age, T) + 1, policy.transformer.memory_length)
                even[age].append((1 / seen).mean())
            if head is not None and age < head.age.num_embeddings:
                logits = head(memory[age:], torch.full((T - age,), age), candidates)
                right[age].append((logits.argmax(-1) == number[:-age]).float().mean().item())
                guess[age].append(1 / len(candidates))
    columns = {"attention": weight, "evenly": even, "recall": right, "guess": guess}
    ages = [age for age in AGES if any(age in column for column in columns.values())]
    return [{"age": age} | {name: mean(column[age]) for name, column in columns.items()} for age in ages]


def distinct(frames: tuple[torch.Tensor, ...]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """An episode's different frames, and of each step the number of its own."""
    flat = torch.cat([part.flatten(1).double() for part in frames], 1)
    _, number = flat.unique(dim=0, return_inverse=True)
    first = torch.stack([(number == n).nonzero()[0, 0] for n in range(int(number.max()) + 1)])
    return tuple(part[first] for part in frames), number


def mean(values: list[float] | np.ndarray) -> float | None:
    """None of nothing, as an episode of two steps has no third fifth."""
    return round(float(np.mean(values)), 4) if len(values) else None


def main(options: Options) -> None:
    """Raises InputError on wrong input, before anything is played."""
    check_args(options)
    if trouble := cannot_write(options.target / "cuts.csv"):
        raise InputError(f"TARGET {options.target}: must be a folder that can be written ({trouble}).")
    tables = defaultdict(list)
    for player in players(options.source):
        if player.agent == "palmer":
            for change in CHANGES:
                tables["cuts"].append(player.key | {"change": change} | played(player, options, change))
        policy, task, checkpoint = player.load()
        episodes = list(looked_into(policy, task, options.looked_into, options.seed))
        if player.agent == "palmer":
            tables["gates"] += [player.key | row for row in gate_rows(episodes)]
        aids = load_aids(checkpoint, task, str(player.file))
        tables["ages"] += [player.key | row for row in age_rows(policy, aids, episodes)]
        if player.task == "parity_25":
            for length in LENGTHS:
                kwargs = {"env_kwargs": f'{{"length": {length}, "fixed": true}}'}
                tables["lengths"].append(player.key | {"length": length} | played(player, options, **kwargs))
        print(player.file)
    for name, rows in tables.items():
        file = options.target / f"{name}.csv"
        write_csv(file, with_kept(file, rows, ("task", "agent", "seed")))


if __name__ == "__main__":
    run_script(main, Options, {}, __doc__)
