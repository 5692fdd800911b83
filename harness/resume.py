"""An earlier run is believed only as far as it fits: what its files hold is compared with what the run itself makes.

A checkpoint may be damaged, of another run or made to do harm. First, before an environment or a network is made,
come its plain fields and the sizes of its network (`open_earlier`), then, part by part, all that is put back
(`put_back`). What does not fit ends in an InputError that says which field it is.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from evaluate import check_size
from harness.checkpoint import check_form, check_range, load_checkpoint, pack, unpack
from harness.flags import args_in_file, check_args, metadata
from harness.folder import cannot_write, is_duration, read_config
from harness.input_error import InputError, flag_of, shortened
from harness.lock import FolderLock, lock_folder
from harness.randomness import random_state, set_random_state
from harness.trust import only_if_repeated
from tasks import make_real_env

A = TypeVar("A")  # a script's dataclass of flags

MOST_STEPS = 10**13


def open_earlier(args: Any, algo: str) -> tuple[Any, dict[str, Any] | None, FolderLock | None]:
    """With --resume -> the arguments to go on with, the checkpoint, the lock of the folder; else the same arguments.

    Of several processes the first takes the lock. Raises InputError for flags, and for a run that cannot go on.
    """
    check_args(args)
    if not args.resume:
        return args, None, None
    folder = Path(args.resume)
    read_config(folder)  # before a lock is put into a folder that is no run's
    try:
        lock = lock_folder(folder, "--resume") if os.environ.get("RANK", "0") == "0" else FolderLock()
    except OSError as error:
        raise InputError(cannot_write(folder, error, "--resume")) from error
    try:
        args = resume_args(args)
        saved = load_checkpoint(folder / "checkpoint.pt", flag="--resume")
        check_saved(saved, args, algo)
    except BaseException:
        lock.release()
        raise
    return args, saved, lock


def resume_args(args: A) -> A:
    """The arguments to continue with: those stored in the folder `args.resume`, with what may change.

    Flags given now count: those on the command line or, for an object made by hand, the fields that differ
    from their default. Without `args.resume` the arguments come back as they are.

    Raises:
        InputError: no run or no checkpoint in the folder, a run of another script, or a given flag that
            differs from the run's and is not marked MAY_CHANGE.
    """
    if not args.resume:
        return args
    Args, folder = type(args), Path(args.resume)
    config = read_config(folder)
    if not (folder / "checkpoint.pt").is_file():
        raise InputError(
            f"--resume {folder}: the run has no checkpoint.pt, so it must be started again, with the command that "
            "started it."
        )

    defaults = dataclasses.asdict(Args())
    unknown = sorted(config["args"].keys() - defaults.keys())
    if unknown:
        raise InputError(
            f"--resume {folder}: the run of '{shortened(config['algo'])}' has the setting {shortened(unknown[0])}, "
            "which this script does not know; resume it with the script and version that started it."
        )
    # JSON knows no tuples.
    stored = {name: tuple(v) if isinstance(v, list) else v for name, v in config["args"].items()}
    stored = dataclasses.asdict(args_in_file(Args, stored, f"--resume {folder}: config.json"))
    now = dataclasses.asdict(args)
    given = getattr(args, "given_flags", {name for name in now if now[name] != defaults[name]})
    changeable = metadata(Args, str)
    for name in sorted(given - changeable.keys()):
        if now[name] != stored[name]:
            raise InputError(
                f"{flag_of(name)} {now[name]}: the run in {folder} was started with {stored[name]}, and only "
                f"{', '.join(map(flag_of, changeable))} may change on --resume."
            )
    only_if_repeated(stored, {name: now[name] for name in given}, f"--resume {folder}")
    return Args(**{**stored, **{name: now[name] for name in given}})


def misfit(args: Any, field: str, allowed: str) -> InputError:
    return InputError(
        f"--resume {args.resume}: '{shortened(field)}' in its checkpoint must be {allowed}; it is damaged or of "
        "another run."
    )


def check_saved(saved: dict[str, Any], args: Any, algo: str) -> None:
    """The fields that are no part's state, and the sizes of the network. Raises InputError."""
    if saved.get("algo") != algo:
        raise misfit(args, "algo", algo)
    check_settings(saved.get("args"), args)
    steps = args.num_envs * args.num_steps
    fields = {
        "step": (lambda x: type(x) is int and 0 <= x <= MOST_STEPS and x % steps == 0, f"a multiple of {steps:,}"),
        "seconds": (is_duration, "a number of seconds"),
        "milestones": (are_milestones, "steps and seconds by level of success"),
        "recent": (are_episodes, "return, length and success of episodes"),
        "log_sizes": (are_sizes, "the sizes of logs, metrics.jsonl among them"),
        "processes": (are_processes, "a list of each process's envs, carry and random"),
    }
    for name, (fits, allowed) in fields.items():
        if not fits(saved.get(name)):
            raise misfit(args, name, allowed)
    if "policy" in saved:
        env = make_real_env(args)
        env.close()
        check_size(algo, vars(args), env, saved["policy"], f"--resume {args.resume}")


def check_settings(settings: Any, args: Any) -> None:
    """Was the checkpoint written by a run of the same settings as config.json tells?"""
    if not isinstance(settings, dict):
        raise misfit(args, "args", "the settings of the run")
    free = {*metadata(type(args), str), "run_dir"}
    now = vars(args)
    for name, value in settings.items():
        if name not in now:
            raise misfit(args, name, "a setting that this script knows")
        if name not in free and (type(value), value) != (type(now[name]), now[name]):
            raise misfit(args, name, f"{now[name]}, as in config.json")


def are_milestones(x: Any) -> bool:
    def is_one(pair: Any) -> bool:
        steps, seconds = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        return type(steps) is int and 0 <= steps <= MOST_STEPS and is_duration(seconds)

    return isinstance(x, dict) and all(map(is_one, x.values()))


def are_episodes(x: Any) -> bool:
    return isinstance(x, list) and all(
        isinstance(row, list) and len(row) == 3 and all(type(number) is float for number in row) and 0 <= row[2] <= 1
        for row in x
    )


def are_sizes(x: Any) -> bool:
    return isinstance(x, dict) and "metrics.jsonl" in x and all(type(n) is int and n >= 0 for n in x.values())


def are_processes(x: Any) -> bool:
    keys = {"envs", "carry", "random"}
    return isinstance(x, list) and all(isinstance(process, dict) and process.keys() == keys for process in x)


@contextmanager
def fitting(args: Any, field: str) -> Iterator[None]:
    """What does not fit can fail in any way as it is put back."""
    try:
        yield
    except Exception as error:
        text = shortened(" ".join(str(error).split()).rstrip("."))
        raise misfit(args, field, f"as this run has it ({text})") from error


def put_back(
    saved: dict[str, Any], rank: int, processes: int, args: Any, parts: Mapping[str, Any], envs: Any, carry: Any
) -> Any:
    """Load what was saved, once it is known to fit -> the carry to go on from. carry: a fresh one."""
    if len(saved["processes"]) != processes:
        raise InputError(
            f"--resume {args.resume}: the run was trained by {len(saved['processes'])} processes and must go on with "
            f"as many, not {processes}."
        )
    mine = saved["processes"][rank]
    for name, part in parts.items():
        with fitting(args, name):
            state = saved[name]
            if isinstance(part, torch.nn.Module):
                check_form(state, part.state_dict(), name)
            part.load_state_dict(optimizer_state(state, part) if isinstance(part, torch.optim.Adam) else state)
    with fitting(args, "envs"):
        envs.load_state_dict(mine["envs"])
    if envs.exact_resume:
        with fitting(args, "carry"):
            check_carry(mine["carry"], carry, envs, getattr(args, "memory_length", 1))
            carry = unpack(mine["carry"], carry)
    else:
        carry = carry._replace(obs=envs.reset())
    with fitting(args, "random"):
        check_random(mine["random"])
        set_random_state(mine["random"])
    return carry


def optimizer_state(saved: Any, optimizer: torch.optim.Adam) -> dict[str, Any]:
    """Adam's moments and learning rate; its other settings are those that this run's optimiser has."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = saved["state"]
    if moments and moments.keys() != set(range(len(parameters))):
        raise ValueError(f"it must be of {len(parameters)} parameters")
    for number, state in moments.items():
        like = parameters[number]
        check_form(state, {"step": torch.zeros(()), "exp_avg": like, "exp_avg_sq": like}, "state")
        if state["step"] < 1 or (state["exp_avg_sq"] < 0).any():
            raise ValueError("what is counted or squared must be positive")
    groups = optimizer.state_dict()["param_groups"]
    for group, earlier in zip(groups, saved["param_groups"], strict=True):
        group["lr"] = earlier["lr"]
        if type(group["lr"]) is not float or not 0 <= group["lr"] <= 10:
            raise ValueError("lr must be from 0 to 10")
    return {"state": moments, "param_groups": groups}


def check_carry(saved: Any, carry: Any, envs: Any, memory_length: int) -> None:
    """Raises ValueError, or whatever else makes a misfit fail."""
    form = pack(carry)
    if "state" in form:  # a MemoryState: its caches hold the same number of steps, as many as there were
        h, c, clock, *caches = form["state"]
        steps = saved["state"][3].shape[2] if caches else 0
        if steps >= max(memory_length, 1):
            raise ValueError(f"a cache must be of less than {memory_length} steps")
        shapes = [(*cache.shape[:2], steps, cache.shape[3]) for cache in caches]
        form["state"] = [h, c, clock, *(torch.empty(shape, device="meta") for shape in shapes)]
    check_form(saved, form, "carry")
    if "state" in form:
        check_range(saved["state"][2], 0, envs.max_episode_steps or MOST_STEPS, "clock")
        check_range(saved["novelty"], 0, 1e6, "novelty")
        for name in ("obs", "past"):
            check_range(saved[name], 0, envs.observations.count - 1, name)


def check_random(saved: Any) -> None:
    """NumPy's generator reads at the position that it is given, wherever that is."""
    own = random_state()
    plain = [{**state, "cuda": [], "python": state["python"][:2]} for state in (saved, own)]
    check_form(*plain, "random")
    name, keys, position, has_gauss, _ = saved["numpy"]
    check_range(torch.tensor(keys), 0, 2**32 - 1, "numpy")
    if name != own["numpy"][0] or not 0 <= position <= len(keys) or has_gauss not in (0, 1):
        raise ValueError("NumPy's generator is another")
    if saved["python"][2] is not None and type(saved["python"][2]) is not float:
        raise ValueError("Python's generator is another")
    for state in saved["cuda"]:
        if state.dtype != torch.uint8 or state.ndim != 1:
            raise ValueError("a GPU's generator is another")
