"""How many steps does a Memory maze take at least? The mean episode length of the best possible policy.

    python -m study.shortest_ways [--env-ids MiniGrid-MemoryS11-v0 ...]

Best is: never the wrong object, and as few steps as possible on average, knowing nothing but what a view of 3x3 cells
has shown in this episode. What such a policy knows is a belief: the states in which it may be, and how likely each
is. Actions and views are deterministic, so an episode passes through few beliefs (S17Random has thousands), and the
steps still to come from each are found by value iteration over all of them (Kaelbling et al. 1998,
https://doi.org/10.1016/S0004-3702(98)00023-X). Writes results/shortest/runs.csv.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.flags import run_script
from harness.input_error import InputError
from study.files import cannot_write, write_csv
from tasks.envs import maze_tables
from tasks.minigrid_memory import maze_of
from tasks.tables import Tables

VIEW = 3  # cells
MAZES = ("S11", "S13", "S13Random", "S17Random", "S33Random")  # on which agents were trained
MOVES = range(3)  # left, right, forward: MiniGrid's other actions do nothing in a Memory maze
TOLERANCE = 1e-9  # steps

Belief = tuple[tuple[int, float], ...]  # (state, how likely it is beside the least likely one), by state


@dataclass
class Options:
    env_ids: tuple[str, ...] = tuple(f"MiniGrid-Memory{name}-v0" for name in MAZES)
    """environments of MiniGrid Memory"""
    out: Path = Path("results/shortest/runs.csv")
    """the table to write"""


def beliefs_by_view(tables: Tables, weights: Iterable[tuple[int, float]]) -> list[tuple[float, Belief]]:
    """States and their weights -> for each view that they may show: its weight, and the belief that it leaves."""
    groups: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for state, weight in weights:
        groups[int(tables.observation[state])][state] += weight
    result = []
    for group in groups.values():
        least = min(group.values())
        belief = tuple((state, round(weight / least, 6)) for state, weight in sorted(group.items()))
        result.append((sum(group.values()), belief))
    return result


def successors(tables: Tables, belief: Belief) -> list[list[tuple[float, Belief]]]:
    """For each move that cannot end at the wrong object: probability and belief of each view that may follow.

    Where the move ends the episode nothing follows, and the probabilities add up to less than 1.
    """
    total = sum(weight for _, weight in belief)
    moves = []
    for action in MOVES:
        after = [(int(tables.next_state[state, action]), weight) for state, weight in belief]
        if not any(tables.first_failure <= state < tables.first_success for state, _ in after):
            going_on = [(state, weight) for state, weight in after if state < tables.first_failure]
            moves.append([(weight / total, next_) for weight, next_ in beliefs_by_view(tables, going_on)])
    return moves


def shortest_length(env_id: str) -> float:
    """Mean episode length of the best possible policy on a maze of MiniGrid Memory, in steps."""
    tables = maze_tables(env_id, "symbolic", VIEW)
    chances = torch.diff(tables.start_cdf, prepend=torch.zeros(1, dtype=torch.float64)).tolist()
    first = beliefs_by_view(tables, zip(tables.start_state.tolist(), chances, strict=True))

    moves: dict[Belief, list[list[tuple[float, Belief]]]] = {}
    frontier = [belief for _, belief in first]
    while frontier:
        belief = frontier.pop()
        if belief not in moves:
            moves[belief] = successors(tables, belief)
            frontier += [next_ for move in moves[belief] for _, next_ in move]

    # From below: the steps to come are at least 0, then at least those of one step more, until none is missing.
    steps_to_come, change = dict.fromkeys(moves, 0.0), 1.0
    while change > TOLERANCE:
        change = 0.0
        for belief, options in moves.items():
            steps = 1 + min(sum(chance * steps_to_come[next_] for chance, next_ in move) for move in options)
            change, steps_to_come[belief] = max(change, steps - steps_to_come[belief]), steps
    return sum(weight * steps_to_come[belief] for weight, belief in first)


def main(options: Options) -> None:
    """Compute, print and write the table. Raises InputError for any environment but a Memory maze."""
    if trouble := cannot_write(options.out):
        raise InputError(f"--out {options.out}: must be a file that can be written ({trouble}).")
    if not options.env_ids:
        raise InputError("--env-ids: none given; name at least one maze of MiniGrid Memory.")
    for env_id in options.env_ids:
        if maze_of(env_id) is None:
            raise InputError(f"--env-ids {env_id}: must be mazes of MiniGrid Memory.")
    rows = []
    for env_id in options.env_ids:
        rows.append({"env": env_id, "length": f"{shortest_length(env_id):.4f}"})
        print(f"{env_id}: {rows[-1]['length']} steps")
    write_csv(options.out, rows)


if __name__ == "__main__":
    run_script(main, Options, {}, __doc__)
