"""Search the settings that all agents share, with Optuna.

    python -m study.tune --study results/search/journal.log --trials 20
    python -m study.tune --study results/search/journal.log --show

One trial is one group of settings, the same for all three agents: it trains each of them on each environment, and
its value is the mean over these runs of

    log2 of the geometric mean of (steps to 0.95 success / 100k) and (seconds to it / 30),

less is better, -1 is half as much. A run that does not get there within its steps counts as one of twice as many.
Any number of processes, on any number of machines that share the file, may work on one study at once; a trial that is
worse than most after some of its runs is given up; a killed search goes on with the same command. Trial number n
trains with seed 1000 + n, so that no published result (seeds from 1 and from 11 on) was searched on.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from harness.flags import Range, check_args, run_script
from harness.input_error import InputError
from study.files import cannot_write

REPOSITORY = Path(__file__).resolve().parent.parent
STUDY_NAME = "palmer"
FIRST_SEED = 1000
ENVS = ("MiniGrid-MemoryS11-v0", "MiniGrid-MemoryS17Random-v0")
ALGOS = ("lstm", "trxl", "palmer")  # the cheapest first, so that a bad trial is given up early
SOLVED = 0.95


@dataclass
class Options:
    study: Path = Path("results/search/journal.log")
    """the study's journal; made if it does not exist"""
    trials: Annotated[int, Range(1, 100_000)] = 20
    """trials that this process runs"""
    total_timesteps: Annotated[int, Range(1, 10**11)] = 500_000
    """environment steps of each run, at most"""
    show: bool = False
    """print the best trials so far and search no further"""


# Tried first: the scripts' own.
DEFAULTS = {
    "learning_rate": 1e-3,
    "ent_coef": 1e-2,
    "1 - gamma": 0.015,
    "recall_coef": 2.0,
    "visit_bonus": 0.3,
    "update_epochs": 3,
    "num_minibatches": 4,
    "num_envs": 64,
}


def suggest(trial: optuna.Trial) -> dict[str, float | int]:
    """The settings of one trial, by the names of their flags."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 5e-4, 3e-3, log=True),
        "ent_coef": trial.suggest_float("ent_coef", 3e-3, 5e-2, log=True),
        "gamma": 1 - trial.suggest_float("1 - gamma", 0.01, 0.05, log=True),
        "recall_coef": trial.suggest_float("recall_coef", 0.5, 8, log=True),
        "visit_bonus": trial.suggest_float("visit_bonus", 0.1, 1.0, log=True),
        "update_epochs": trial.suggest_int("update_epochs", 2, 4),
        "num_minibatches": trial.suggest_categorical("num_minibatches", [2, 4, 8]),
        "num_envs": trial.suggest_categorical("num_envs", [32, 64, 128]),
    }


def train(algo: str, env_id: str, seed: int, settings: dict[str, float | int], total_timesteps: int) -> float:
    """Train until SOLVED or the end -> the value of the run, see above."""
    with tempfile.TemporaryDirectory() as folder:
        flags = settings | {
            "env_id": env_id,
            "seed": seed,
            "total_timesteps": total_timesteps,
            "run_dir": folder,
            "eval_every": 0,
            "final_eval_episodes": 1,
            "stop_at_success": SOLVED,
        }
        command = [sys.executable, f"ppo_{algo}.py"]
        for name, value in flags.items():
            command += ["--" + name.replace("_", "-"), str(value)]
        # One thread each: several searches share a machine well, and the seconds of a run can be compared.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr[-2000:]}")
        summary = json.loads(Path(folder, "summary.json").read_text(encoding="utf-8"))
    steps, seconds = summary[f"steps_to_{SOLVED}"], summary[f"seconds_to_{SOLVED}"]
    if steps is None:
        steps, seconds = 2 * summary["steps"], 2 * summary["seconds"]
    return 0.5 * (math.log2(steps / 100_000) + math.log2(seconds / 30))


def objective(trial: optuna.Trial, total_timesteps: int) -> float:
    settings = suggest(trial)
    values = []
    for algo in ALGOS:
        for env_id in ENVS:
            values.append(train(algo, env_id, FIRST_SEED + trial.number, settings, total_timesteps))
            trial.set_user_attr(f"{algo} {env_id}", values[-1])
            mean = sum(values) / len(values)
            trial.report(mean, len(values))
            if trial.should_prune():
                raise optuna.TrialPruned
    return mean


def show(study: optuna.Study, count: int = 10) -> None:
    """Print the best trials, and how many there are of each kind."""
    finished = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    for trial in sorted(finished, key=lambda trial: trial.value)[:count]:
        settings = "  ".join(f"{name} {value:.4g}" for name, value in trial.params.items())
        print(f"trial {trial.number:3d}  value {trial.value:5.2f}  {settings}")
    states = [trial.state.name for trial in study.trials]
    print(", ".join(f"{states.count(name)} {name.lower()}" for name in sorted(set(states))))


def journal(file: Path) -> JournalStorage:
    """Raises InputError for a file that is none: Optuna would append to it all the same."""
    try:
        with open(file, encoding="utf-8") as opened:
            known = "op_code" in json.loads(opened.readline() or '{"op_code": 0}')
    except FileNotFoundError:
        known = True
    except (OSError, ValueError, TypeError):
        known = False
    if not known:
        raise InputError(f"--study {file}: must be the journal of a search, and cannot be read as one.")
    return JournalStorage(JournalFileBackend(str(file)))


def main(options: Options) -> None:
    """Search and print the best trials. Raises InputError on wrong input."""
    check_args(options)
    if options.show:
        if not options.study.is_file():
            raise InputError(f"--study {options.study}: does not exist; make it by the same command without --show.")
        try:
            study = optuna.load_study(storage=journal(options.study), study_name=STUDY_NAME)
        except KeyError:
            raise InputError(f"--study {options.study}: must be the journal of a search, and holds none.") from None
        show(study)
        return
    if trouble := cannot_write(options.study):
        raise InputError(f"--study {options.study}: must be a file that can be written ({trouble}).")
    options.study.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=journal(options.study),
        study_name=STUDY_NAME,
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(multivariate=True, n_startup_trials=8, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )
    study.enqueue_trial(DEFAULTS, skip_if_exists=True)
    study.optimize(lambda trial: objective(trial, options.total_timesteps), n_trials=options.trials)
    show(study)


if __name__ == "__main__":
    run_script(main, Options, {}, __doc__)
