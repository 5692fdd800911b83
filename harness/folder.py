"""One run's folder: config.json, metrics.jsonl, TensorBoard events, checkpoint.pt, summary.json, videos/; wandb."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness.checkpoint import finite_or_none, write_json
from harness.input_error import InputError
from harness.lock import FolderLock, lock_folder
from harness.tensorboard import add_film, open_tensorboard
from harness.trust import repeated_flags

LARGEST_CONFIG = 10**7  # bytes of a config.json
TEMPORARY = tuple(f"{name}.tmp" for name in ("checkpoint.pt", "config.json", "summary.json"))
EVENTS = "events.out.tfevents.*"
CODE = (":(glob)**/*.py", ":(glob)**/*.sh", ":(glob)requirements*.txt")


class RunFolder:
    """One run's folder: config.json, metrics.jsonl, TensorBoard events, checkpoint.pt, summary.json, videos/.

    Args:
        path: the folder; "" creates runs/{env_id}__ppo_{algo}__{seed}__{unix time}.
        args: the script's dataclass of flags.
        algo: "palmer", "lstm" or "trxl".
        log_sizes: None for a new run. For a resumed run, what `log_sizes()` returned when the checkpoint was
            saved: the logs are cut back to it, so that no row is missing or written twice.
        lock: of a resumed run's folder, if it is held already.

    Raises:
        InputError: the folder cannot be written or already holds a run (--run-dir), does not fit the
            checkpoint (--resume), or wandb is missing or cannot start (--track).
    """

    def __init__(
        self,
        path: str | Path,
        args: Any,
        algo: str,
        log_sizes: dict[str, int] | None = None,
        lock: FolderLock | None = None,
    ):
        wandb = import_wandb() if args.track else None
        with ExitStack() as undo:
            if log_sizes is None:
                self.path, self._lock = create_folder(path, args, algo)
                undo.callback(self._lock.release)
                config = {"algo": algo, "args": dataclasses.asdict(args), **describe_session()}
                self._seconds_before = 0.0
            else:
                self.path, self._lock = Path(path), lock or lock_folder(path, "--resume")
                undo.callback(self._lock.release)
                config = read_config(self.path)
                if config["algo"] != algo:
                    raise InputError(f"--resume {path}: that is a run of '{config['algo']}', not of '{algo}'.")
                self._seconds_before = check_logs(self.path, log_sizes)
                config["args"] = dataclasses.asdict(args)
                config.setdefault("resumed", []).append(describe_session())

            self.checkpoint_file = self.path / "checkpoint.pt"
            self.summary_file = self.path / "summary.json"
            self.videos = self.path / "videos"
            self._repeated = repeated_flags(args)
            self._wandb = wandb
            self._wandb_run = None
            if wandb is not None:
                self._wandb_run = start_wandb(wandb, self.path, args, algo, config.get("wandb_id"))
                config["wandb_id"] = self._wandb_run.id
            flag = "--run-dir" if log_sizes is None else "--resume"
            try:
                remove_temporary(self.path)
                if log_sizes is not None:
                    cut_logs(self.path, log_sizes)
                write_json(self.path / "config.json", config)
                # Line buffering: a killed run loses no finished row.
                self._metrics = open(self.path / "metrics.jsonl", "a", buffering=1, encoding="utf-8")  # noqa: SIM115
                wait_for_later_name(self.path)
                threading.excepthook = hide_thread_errors
                self._tensorboard = open_tensorboard(self.path, args, algo)
            except OSError as error:
                raise InputError(cannot_write(self.path, error, flag)) from error
            self._started = time.monotonic()
            undo.pop_all()

    @property
    def seconds(self) -> float:
        """Seconds this run has taken, with earlier sessions up to the last row they left behind."""
        return self._seconds_before + time.monotonic() - self._started

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Write one row. NaN, infinity and None are null in metrics.jsonl and left out elsewhere."""
        row = {name: None if value is None else finite_or_none(float(value)) for name, value in metrics.items()}
        self._metrics.write(json.dumps({"step": step, "time": round(self.seconds, 3), **row}) + "\n")
        present = {name: value for name, value in row.items() if value is not None}
        for name, value in present.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb_run is not None:
            self._wandb_run.log(present, step=step)

    def log_video(self, step: int, file: Path) -> None:
        """Show a film of this run in TensorBoard and, when tracking, on wandb."""
        add_film(self._tensorboard, step, file)
        if self._wandb_run is not None:
            self._wandb_run.log({"video": self._wandb.Video(str(file), format="mp4")}, step=step)

    def log_picture(self, step: int, picture: Image.Image | None) -> None:
        """Show gate and attention there too; of an agent that has neither there is none."""
        if picture is not None:
            self._tensorboard.add_image("evals/memory", np.array(picture), step, dataformats="HWC")
            if self._wandb_run is not None:
                self._wandb_run.log({"memory": self._wandb.Image(picture)}, step=step)

    def log_sizes(self) -> dict[str, int]:
        """Bring all logs to disk and return {file name: bytes}, to be saved in the checkpoint."""
        self._tensorboard.flush()
        self._metrics.flush()
        sizes = {}
        for file in log_files(self.path):
            # Without fsync a power cut could keep the checkpoint and lose rows that it counts on.
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
            sizes[file.name] = file.stat().st_size
        return sizes

    def say_what_next(self, algo: str, stopped: bool) -> None:
        """The commands with which a user goes on."""
        print(f"run       {self.path}   (tensorboard --logdir {self.path.parent})")
        print(f"model     {self.checkpoint_file}")
        file = shlex.quote(str(self.checkpoint_file))
        print(f"evaluate  python evaluate.py --checkpoint {file}{self._repeated}")
        if self.videos.exists():
            print(f"videos    {self.videos}")
        if stopped:
            print(f"continue  {self.resume_command(algo)}")

    def resume_command(self, algo: str) -> str:
        return f"python ppo_{algo}.py --resume {shlex.quote(str(self.path))}{self._repeated}"

    def close(self) -> None:
        """Closes all that is open, even where writing the last of it fails."""
        with ExitStack() as closing:
            closing.callback(self._lock.release)
            if self._wandb_run is not None:
                closing.callback(self._wandb_run.finish)
            closing.callback(self._tensorboard.close)
            closing.callback(self._metrics.close)


def create_folder(path: str | Path, args: Any, algo: str) -> tuple[Path, FolderLock]:
    """Make a new run's folder, and lock it. An existing one is fine (it may hold a log) unless it holds a run that
    can be continued; of one that was killed before its first checkpoint the logs are dropped.
    """
    try:
        folder = Path(path) if path else new_folder(args, algo)
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder, "--run-dir")
    except OSError as error:
        raise InputError(cannot_write(Path(path or "runs"), error)) from error
    try:
        if (folder / "config.json").exists():
            if not was_killed_early(folder):
                raise InputError(
                    f"--run-dir {folder}: already holds a run; continue it with --resume {folder} or name another."
                )
            for file in log_files(folder):
                file.unlink(missing_ok=True)
    except InputError:
        lock.release()
        raise
    except OSError as error:
        lock.release()
        raise InputError(cannot_write(folder, error)) from error
    return folder, lock


def was_killed_early(folder: Path) -> bool:
    """Before its first checkpoint; a config.json that cannot be read may be anyone's."""
    try:
        read_config(folder)
    except InputError:
        return False
    return not any((folder / name).exists() for name in ("checkpoint.pt", "summary.json"))


def new_folder(args: Any, algo: str) -> Path:
    """A folder that no other process has made: runs/{env_id}__ppo_{algo}__{seed}__{unix time}."""
    unix_time, env_id = int(time.time()), re.sub(r"[^\w.-]", "_", args.env_id)
    while True:
        folder = Path("runs") / f"{env_id}__ppo_{algo}__{args.seed}__{unix_time}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            unix_time += 1


def cannot_write(folder: Path, error: OSError, flag: str = "--run-dir") -> str:
    return f"{flag} {folder}: cannot be written ({error.strerror}); name a folder that you may write to."


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of the run in `folder`. Raises InputError, naming --resume, if there is none that can be used."""
    file = folder / "config.json"
    try:
        if file.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"it is larger than {LARGEST_CONFIG:,} bytes")
        config = json.loads(file.read_text(encoding="utf-8"))
        parts = {"algo": str, "args": dict, "resumed": list, "wandb_id": str}
        if not all(isinstance(config[name], kind) for name, kind in parts.items() if name in config):
            raise ValueError("a part of it is of another type")
        config["algo"], config["args"]  # noqa: B018  a KeyError tells that this is someone else's config.json
        if not re.fullmatch(r"[\w-]{1,128}", config.get("wandb_id", "none")):
            raise ValueError("wandb_id is none")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"--resume {folder}: no run is stored there (no readable config.json); name the folder of a run."
        ) from error
    return config


def remove_temporary(folder: Path) -> None:
    """What a process that was killed while writing has left behind."""
    for name in TEMPORARY:
        (folder / name).unlink(missing_ok=True)


def hide_thread_errors(failed: Any) -> None:
    """TensorBoard's thread hands an OSError on to whoever writes next; printed as well it would be a traceback."""
    if not issubclass(failed.exc_type, OSError):
        threading.__excepthook__(failed)


def describe_session() -> dict[str, Any]:
    """What is needed to repeat this process: the command, its threads and the versions."""
    packages = ("torch", "gymnasium", "minigrid", "numpy")
    return {
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
            "commit": git_commit(),
        },
        "command": shlex.join(["python", *sys.orig_argv[1:]]),  # where Python lies is nobody else's business
        "threads": torch.get_num_threads(),
    }


def git_commit() -> str | None:
    """The project's commit, with "-dirty" if its code was changed since; None outside of its repository.

    Only code counts: tables, figures, agents and texts are written between the runs of one study.
    """
    here = Path(__file__).resolve().parent.parent
    # --git-dir, so that a repository around an unpacked copy of this one is not taken for it.
    git = ["git", "--git-dir", str(here / ".git"), "--work-tree", str(here)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *CODE], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("-dirty" if changed.returncode else "")


def log_files(folder: Path) -> list[Path]:
    return [folder / "metrics.jsonl", *sorted(folder.glob(EVENTS))]


def check_logs(folder: Path, log_sizes: Mapping[str, int]) -> float:
    """Can the logs be cut back to these sizes? -> the seconds of the last row that is left, 0 if there is none.

    Raises InputError before anything is changed. A link would have the file at its end cut.
    """
    for name, size in log_sizes.items():
        file = folder / name
        if not (name == "metrics.jsonl" or fnmatch(name, EVENTS)) or Path(name).name != name:
            raise InputError(f"--resume {folder}: the checkpoint names a log that is none; start a new run.")
        if file.is_symlink() or not file.is_file() or file.stat().st_size < size:
            raise InputError(
                f"--resume {folder}: {name} is missing or shorter than the {size} bytes it had at the "
                "checkpoint; restore it, or start a new run."
            )
    metrics = folder / "metrics.jsonl"
    try:
        with open(metrics, "rb") as opened:
            lines = opened.read(log_sizes["metrics.jsonl"]).splitlines(keepends=True)
        if not lines:
            return 0.0
        seconds = json.loads(lines[-1])["time"]
        if not lines[-1].endswith(b"\n") or not is_duration(seconds):
            raise ValueError("the last row is not whole")
        return float(seconds)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"--resume {folder}: the last row of metrics.jsonl is damaged; restore the file, or start a new run."
        ) from error


def is_duration(seconds: Any) -> bool:
    return type(seconds) in (int, float) and 0 <= seconds < 1e10


def cut_logs(folder: Path, log_sizes: Mapping[str, int]) -> None:
    """Cut the logs back to their sizes at the checkpoint and delete event files begun after it."""
    for file in log_files(folder):
        if file.name in log_sizes:
            os.truncate(file, log_sizes[file.name])
        else:
            file.unlink(missing_ok=True)


def wait_for_later_name(folder: Path) -> None:
    """Wait, a second at most, until a new event file gets a name that sorts after those in `folder`.

    TensorBoard reads event files in the order of their names, events.out.tfevents.{unix seconds}.{host}.{pid}, and
    drops what it then takes for steps out of order; in one and the same second the process number would decide.
    """
    newest = max((file.name.split(".")[3] for file in folder.glob(EVENTS)), default="")
    while str(int(time.time())) == newest:
        time.sleep(0.02)


def import_wandb() -> Any:
    """The wandb module: it takes a second to import, and only --track needs it."""
    try:
        import wandb
    except ImportError as error:
        raise InputError(
            "--track: the wandb package is missing; install it with: pip install -r requirements.txt."
        ) from error
    return wandb


def start_wandb(wandb: Any, folder: Path, args: Any, algo: str, run_id: str | None) -> Any:
    """Start a wandb run or, with a `run_id`, continue that one."""
    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "palmer"),  # wandb itself reads WANDB_ENTITY and WANDB_MODE
            name=folder.resolve().name,
            config={"algo": algo, **dataclasses.asdict(args)},
            dir=str(folder),
            id=run_id,
            resume="allow" if run_id else None,
        )
    except wandb.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--track: wandb did not start ({reason}); log in with `wandb login` or set WANDB_MODE=offline."
        ) from error
