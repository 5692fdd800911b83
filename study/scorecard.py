"""The scorecard: one agent, every kind of memory. Trains each agent on each task, resumable.

    python -m study.scorecard --jobs 2 --seeds 11 12 13           all that is not finished
    python -m study.scorecard --tasks repeat_previous_medium --agents palmer lstm --seeds 1001
    python -m study.scorecard --tasks s13 --agents palmer no_fading               without a part of the recipe
    python -m study.scorecard --dry                               only print the commands, one a line
    python -m study.scorecard --but-for results/scorecard/runs.csv               what is not in that table yet

Runs go to runs/scorecard/TASK/AGENT/, one thread each. Finished runs (summary.json) are skipped, those with a
checkpoint are resumed. `python -m study.collect_results --add runs/scorecard results/scorecard` gathers what is
finished.

All agents get the defaults and, of a task, the settings that its entry in TASKS names. These are to be chosen on
seeds from 1000 on; results are to be of seeds from 11 on.
"""

import csv
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from harness.flags import Range, check_args, run_script
from harness.input_error import InputError

WITHOUT_FLAG = ("visit_budget", "rarity_beside", "fading")  # what study/without.py can take out


class Task(NamedTuple):
    """A row of the scorecard."""

    env_id: str
    steps: int  # of training
    measure: str  # column of runs.csv that counts: success or return, with sampled or with greedy actions
    best: float  # the largest possible value of the measure, or the best known one
    goal: float  # what PALMER should reach
    published: str = ""  # the best known agent's, and at how many steps
    flags: str = ""  # settings of all agents that differ from the defaults
    window: str = ""  # likewise, of those with a Transformer

    @property
    def tells(self) -> str:
        """success or return, whichever the measure is of, be the actions sampled or greedy."""
        return self.measure.removeprefix("greedy_")


MMER = "MMER at 15M steps"  # mean return of the best epoch, mean of three trials (Morad et al. 2023)
NI = "solved by a DQN with a Transformer (Ni et al. 2023)"
THEIR_TMAZE = "--last-action --last-reward"  # what the agents of the T-maze's authors see
# Where an action is judged at once, or is the last, and changes nothing of what comes: nothing to look ahead to.
JUDGED = "--gamma 0"
# Where the right answer is found late, as it has to be made of all that came, chance has to be kept up until then.
FOUND_LATE = "--ent-coef 0.2"


def popgym(name: str) -> str:
    return f"popgym:popgym-{name}-v0"


def maze(name: str) -> Task:
    return Task(f"MiniGrid-Memory{name}-v0", 1_000_000, "success", 1, 0.99, "0.50 at 2M steps (the original PALMER)")


def passive_tmaze(length: int, num_envs: int) -> dict[str, str]:
    """Settings for a corridor of `length` steps: a rollout is an episode, all of which the Transformer sees.

    A solved agent's entropy is for finding shorter ways. Here there is one way only, and in a long corridor a step
    too late, which costs 1 / length, is less than a nat of entropy would be worth: the agent would dither.
    """
    rollout = f"--num-envs {num_envs} --num-steps {length + 1}"
    return {
        "flags": f"--env-kwargs '{{\"length\": {length}}}' {THEIR_TMAZE} {rollout} --solved-ent-coef 0",
        "window": f"--memory-length {length + 1}",
    }


TASKS = {
    "s11": maze("S11"),
    "s13": maze("S13"),
    "s13random": maze("S13Random"),
    "s17random": maze("S17Random"),
    "noisy_s17random": Task("palmer/NoisyMemoryS17Random-v0", 600_000, "success", 1, 0.95),
    "repeat_first_medium": Task(
        popgym("RepeatFirstMedium"),
        1_200_000,
        "return",
        1,
        0.95,
        f"GRU 1.000, -0.42 at 3M steps; {MMER}",
        flags=f"--num-envs 16 --num-steps 416 {JUDGED}",
        window="--memory-length 416",
    ),
    "repeat_previous_medium": Task(
        popgym("RepeatPreviousMedium"),
        600_000,
        "return",
        1,
        0.95,
        f"best of 13 models 0.789, GRU -0.315; {MMER}",
        flags=f"--num-steps 64 {JUDGED}",
    ),
    "repeat_previous_hard": Task(
        popgym("RepeatPreviousHard"),
        1_000_000,
        "return",
        1,
        0.95,
        f"LMU 0.191, GRU -0.428; {MMER}",
        flags=f"--num-steps 128 {JUDGED}",
        window="--memory-length 128",
    ),
    "repeat_and_parity": Task(
        "palmer/RepeatAndParity-v0", 2_000_000, "return", 1, 0.95, flags=f"--num-steps 64 {JUDGED} {FOUND_LATE}"
    ),
    "autoencode_easy": Task(
        popgym("AutoencodeEasy"),
        1_000_000,
        "return",
        1,
        0.495,
        f"SHM 0.495 (Le et al. 2024), GRU -0.283; {MMER}",
        flags=f"--num-envs 32 --num-steps 104 {JUDGED}",
        window="--memory-length 104",
    ),
    "count_recall_easy": Task(
        popgym("CountRecallEasy"),
        1_000_000,
        "return",
        1,
        0.509,
        f"LSTM 0.509, GRU 0.177; {MMER}",
        flags=f"--num-steps 64 {JUDGED} {FOUND_LATE}",
    ),
    "count_recall_medium": Task(
        popgym("CountRecallMedium"),
        2_000_000,
        "return",
        1,
        -0.40,
        f"best -0.519; {MMER}",
        flags=f"--num-steps 104 {JUDGED} {FOUND_LATE}",
        window="--memory-length 104",
    ),
    "concentration_easy": Task(
        popgym("ConcentrationEasy"),
        1_500_000,
        "return",
        1,
        0.107,
        f"FFM 0.107; {MMER}",
        # Which card is turned decides what can be turned next, and yet more is learned without looking ahead.
        flags=f"--last-action --num-steps 104 {JUDGED} {FOUND_LATE}",
        window="--memory-length 104",
    ),
    "noisy_cartpole_hard": Task(
        popgym("NoisyPositionOnlyCartPoleHard"), 2_000_000, "return", 1, 0.404, f"0.404; {MMER}"
    ),
    "cartpole": Task(
        "palmer/CartPoleNoVelocity-v0",
        100_000,
        "greedy_return",
        500,
        500,
        "RecurrentPPO of sb3-contrib 500 at 100k steps",
        flags="--num-envs 8 --num-steps 64 --gamma 0.98",
    ),
    "pendulum": Task(
        "palmer/PendulumNoVelocity-v0",
        300_000,
        "greedy_return",
        -157,
        -218,
        "RecurrentPPO of sb3-contrib -218 at 100k steps",
        flags="--num-envs 8 --num-steps 128 --gamma 0.9 --vf-coef 20",
    ),
    "tmaze_passive_100": Task(
        "palmer/TMazePassive-v0", 600_000, "success", 1, 0.95, f"{NI}, 2M steps", **passive_tmaze(100, 32)
    ),
    "tmaze_passive_250": Task(
        "palmer/TMazePassive-v0", 1_000_000, "success", 1, 0.95, f"{NI}, 4M steps", **passive_tmaze(250, 16)
    ),
    "tmaze_passive_500": Task(
        "palmer/TMazePassive-v0", 1_000_000, "success", 1, 0.95, f"{NI}, 4M steps", **passive_tmaze(500, 8)
    ),
    "tmaze_active_50": Task(
        "palmer/TMazeActive-v0", 600_000, "success", 1, 0.95, f"{NI}, 2M steps", flags=THEIR_TMAZE
    ),
    "parity_25": Task(
        "palmer/Parity-v0",
        2_000_000,
        "success",
        1,
        0.99,
        "an LSTM solves it, a Transformer does not (Lu et al. 2024)",
        flags=f"--num-envs 8 --num-steps 128 {JUDGED} {FOUND_LATE}",
    ),
    "recall_xor_parity": Task(
        "palmer/RecallXorParity-v0", 600_000, "success", 1, 0.95, flags=f"{JUDGED} {FOUND_LATE}"
    ),
}
AGENTS = {  # script and flags
    "palmer": ("palmer", ""),
    "palmer_fixed_gate": ("palmer", "--fixed-gate 0.5"),
    "palmer_no_age": ("palmer", "--age-coef 0"),
    "lstm": ("lstm", ""),
    "trxl": ("trxl", ""),
}
# PALMER without one part of its recipe, trained when asked for by name: by a flag, or by study/without.py.
ABLATIONS = {
    "no_recall": ("palmer", "--recall-coef 0"),
    "no_recall_at_all": ("palmer", "--recall-coef 0 --age-coef 0"),
    "no_visit_bonus": ("palmer", "--visit-bonus 0"),
    "plain_ppo": ("palmer", "--recall-coef 0 --age-coef 0 --visit-bonus 0"),
    "no_solved_entropy": ("palmer", "--solved-ent-coef 0"),
    "no_memory": ("palmer", "--forget"),
}
ABLATIONS |= {f"no_{part}": ("palmer", "") for part in WITHOUT_FLAG}


@dataclass
class Options:
    tasks: tuple[str, ...] = tuple(TASKS)
    """tasks to train on"""
    agents: tuple[str, ...] = tuple(AGENTS)
    """agents to train"""
    seeds: Annotated[tuple[int, ...], Range(0, 99_999_999)] = (11, 12, 13)
    """seeds of each; all tasks and agents with one seed come before the next"""
    jobs: Annotated[int, Range(1, 1024)] = 1
    """runs at a time"""
    out: Path = Path("runs/scorecard")
    """folder for the runs"""
    but_for: Path | None = None
    """a table of results (runs.csv), whose runs are left out"""
    dry: bool = False
    """only print the commands"""


def folder_of(options: Options, task: str, agent: str, seed: int) -> Path:
    return options.out / task / agent / f"{(AGENTS | ABLATIONS)[agent][0]}__{task}__s{seed}"


def known_runs(table: Path) -> set[tuple[str, str, int]]:
    """Task, agent and seed of the runs in a table; raises InputError where it is none."""
    try:
        with open(table, newline="", encoding="utf-8") as opened:
            return {(*row["experiment"].split("/"), int(row["seed"])) for row in csv.DictReader(opened)}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"--but-for {table}: must be a runs.csv of collect_results ({error}).") from error


def command(options: Options, task: str, agent: str, seed: int) -> list[str]:
    """The run's command; one with a checkpoint goes on, another starts from the beginning."""
    algo, flags = (AGENTS | ABLATIONS)[agent]
    row, folder = TASKS[task], folder_of(options, task, agent, seed)
    start = ["--resume" if (folder / "checkpoint.pt").exists() else "--run-dir", str(folder)]
    window = "" if algo == "lstm" else row.window
    settings = shlex.split(f"{row.flags} {window} {flags}")
    steps = ["--total-timesteps", str(row.steps), "--eval-every", "0"]
    part = agent.removeprefix("no_")
    program = ["-m", "study.without", part] if agent in ABLATIONS and part in WITHOUT_FLAG else []
    return [*program, f"ppo_{algo}.py", "--env-id", row.env_id, "--seed", str(seed), *start, *steps, *settings]


def run(options: Options, task: str, agent: str, seed: int) -> bool:
    """Train one agent to its end -> whether it came there."""
    folder = folder_of(options, task, agent, seed)
    if (folder / "summary.json").exists():
        return True
    folder.mkdir(parents=True, exist_ok=True)
    # One thread: networks this small gain little from a second, which another run uses better.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / "train.log", "a", encoding="utf-8") as log:
        words = [sys.executable, *command(options, task, agent, seed)]
        subprocess.run(words, env=environment, stdout=log, stderr=log)
    ended = (folder / "summary.json").exists()
    print(f"{'ended' if ended else 'UNFINISHED'}: {folder}", flush=True)
    return ended


def main(options: Options) -> None:
    """Raises InputError for names that are not known, SystemExit(1) where a run did not finish."""
    check_args(options)
    for flag, names, known in (("--tasks", options.tasks, TASKS), ("--agents", options.agents, AGENTS | ABLATIONS)):
        for name in names:
            if name not in known:
                raise InputError(f"{flag} {name}: must be of {', '.join(known)}.")
    there = known_runs(options.but_for) if options.but_for else set()
    runs = [(task, agent, seed) for seed in options.seeds for task in options.tasks for agent in options.agents]
    runs = [which for which in runs if which not in there]
    if options.dry:
        for which in runs:
            print(shlex.join(["python", *command(options, *which)]))
        return
    with ThreadPoolExecutor(options.jobs) as pool:
        ended = list(pool.map(lambda which: run(options, *which), runs))
    if not all(ended):
        print(f"{ended.count(False)} runs are unfinished; the same command goes on with them", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_script(main, Options, {}, __doc__)
