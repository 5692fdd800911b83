"""What surrounds the learning, the same for every training script.

Flags and presets, one folder per run, checkpoints, the progress line, random states, Ctrl-C. Nothing here
knows of environments, policies or PPO.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
import torch
import tyro
from torch.utils.tensorboard import SummaryWriter

from input_error import InputError

A = TypeVar("A")  # a training script's dataclass of flags

CHECKPOINT_FORMAT = 1  # raise it when the meaning of a saved field changes

# Everything else decides what is learned, so a resumed run keeps it.
CHANGEABLE_ON_RESUME = (
    "total_timesteps",
    "checkpoint_every",
    "track",
    "wandb_project_name",
    "wandb_entity",
    "cuda",
    "save_model",
    "capture_video",
    "resume",
)


# ---------------------------------------------------------------- flags


def parse_args(Args: type[A], presets: Mapping[str, Mapping[str, Any]], description: str | None = None) -> A:
    """Read the command line into `Args`, a dataclass with a default for every field.

    The values of `--preset NAME` become the defaults, so any further flag overrides them and `--help` shows
    them. The returned object carries `given_flags`, the names of the fields set on the command line, for
    `resume_args`.
    """
    # The preset is needed before the real parsing. nargs="?" leaves a missing value for tyro to report.
    preset_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    preset_parser.add_argument("--preset", nargs="?", default="default")
    preset = preset_parser.parse_known_args()[0].preset
    defaults = Args(preset=preset, **presets[preset]) if preset in presets else Args()

    args = tyro.cli(Args, default=defaults, description=description)
    flags = {word.split("=")[0][2:].replace("-", "_") for word in sys.argv[1:] if word.startswith("--")}
    names = {field.name for field in dataclasses.fields(Args)}
    args.given_flags = {name for name in names if name in flags or f"no_{name}" in flags}
    return args


def run_script(
    main: Callable[[A], Any],
    Args: type[A],
    presets: Mapping[str, Mapping[str, Any]],
    algo_description: str,
) -> None:
    """Parse the command line and call `main(args)`; wrong input ends in one sentence and exit code 2."""
    try:
        main(parse_args(Args, presets, algo_description))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def resume_args(args: A, Args: type[A]) -> A:
    """The arguments to continue with: those stored in the folder `args.resume`, with what may change.

    Flags given now count: those on the command line or, for an `Args` built by hand, the fields that differ
    from their default. Without `args.resume` the arguments come back as they are.

    Raises:
        InputError: no run or no checkpoint in the folder, a run of another script, or a given flag that
            differs from the run's and is not in CHANGEABLE_ON_RESUME.
    """
    if not args.resume:
        return args
    folder = Path(args.resume)
    config = read_config(folder)
    if not (folder / "checkpoint.pt").is_file():
        raise InputError(
            f"--resume {folder}: the run has no checkpoint.pt, so it must be started again; "
            "a folder can be resumed once its first checkpoint is written"
        )

    defaults = dataclasses.asdict(Args())
    unknown = sorted(config["args"].keys() - defaults.keys())
    if unknown:
        raise InputError(
            f"--resume {folder}: the run of '{config['algo']}' has the setting {unknown[0]}, which this "
            "script does not know; resume it with the script and version that started it"
        )
    # JSON knows no tuples.
    stored = {name: tuple(v) if isinstance(v, list) else v for name, v in config["args"].items()}
    stored = {**defaults, **stored}
    now = dataclasses.asdict(args)
    given = getattr(args, "given_flags", {name for name in now if now[name] != defaults[name]})
    for name in sorted(given - set(CHANGEABLE_ON_RESUME)):
        if now[name] != stored[name]:
            allowed = ", ".join(map(flag_of, CHANGEABLE_ON_RESUME[:-1]))
            raise InputError(
                f"{flag_of(name)} {now[name]}: the run in {folder} was started with {stored[name]}, and only "
                f"{allowed} may change on --resume"
            )
    return Args(**{**stored, **{name: now[name] for name in given}})


AT_LEAST_1 = [
    "total_timesteps",
    "num_envs",
    "num_steps",
    "num_minibatches",
    "update_epochs",
    "eval_episodes",
    "final_eval_episodes",
    "width",
    "lstm_layers",
    "trxl_layers",
    "trxl_heads",
    "trxl_ff_mult",
    "memory_length",
]
AT_LEAST_0 = [
    "seed",
    "checkpoint_every",
    "eval_every",
    "anneal_steps",
    "final_learning_rate",
    "ent_coef",
    "final_ent_coef",
    "solved_ent_coef",
    "vf_coef",
    "recall_coef",
    "visit_bonus",
]
ABOVE_0 = ["learning_rate", "visit_budget", "clip_coef", "max_grad_norm", "target_kl"]
FROM_0_TO_1 = ["gamma", "gae_lambda", "stop_at_success", "gate_floor", "fixed_gate"]


def check_args(args: Any, num_processes: int) -> None:
    """Check what needs no environment and no network. Raises InputError for the first flag out of its range."""
    for names, fits, allowed in (
        (AT_LEAST_1, lambda value: value >= 1, "at least 1"),
        (AT_LEAST_0, lambda value: value >= 0, "at least 0"),
        (ABOVE_0, lambda value: value > 0, "above 0"),
        (FROM_0_TO_1, lambda value: 0 <= value <= 1, "from 0 to 1"),
    ):
        for name in names:
            value = getattr(args, name, None)  # not every script has every flag, and some may be left open
            if value is not None and not fits(value):
                raise InputError(f"{flag_of(name)} {value}: must be {allowed}.")
    if args.num_envs % (args.num_minibatches * num_processes):
        raise InputError(
            f"--num-minibatches {args.num_minibatches}: times the number of processes ({num_processes}) it must "
            f"divide --num-envs {args.num_envs}, as a minibatch is a set of whole environments."
        )


def flag_of(name: str) -> str:
    """The command-line flag of a field: total_timesteps -> --total-timesteps."""
    return "--" + name.replace("_", "-")


# ---------------------------------------------------------------- the run's folder


class RunFolder:
    """One run's folder: config.json, metrics.jsonl, TensorBoard events, checkpoint.pt, summary.json, videos/.

    Args:
        path: the folder; "" creates runs/{env_id}__{exp_name}__{seed}__{unix time}.
        args: the script's dataclass of flags.
        algo: "palmer", "lstm" or "trxl".
        log_sizes: None for a new run. For a resumed run, what `log_sizes()` returned when the checkpoint was
            saved: the logs are cut back to it, so that no row is missing or written twice.

    Raises:
        InputError: the folder cannot be written or already holds a run (--run-dir), does not fit the
            checkpoint (--resume), or wandb is missing or cannot start (--track).
    """

    def __init__(self, path: str | Path, args: Any, algo: str, log_sizes: dict[str, int] | None = None):
        wandb = import_wandb() if args.track else None
        if log_sizes is None:
            self.path = create_folder(path, args)
            config = {"algo": algo, "args": dataclasses.asdict(args), **describe_session()}
        else:
            self.path = Path(path)
            config = read_config(self.path)
            if config["algo"] != algo:
                raise InputError(f"--resume {path}: that is a run of '{config['algo']}', not of '{algo}'")
            cut_logs(self.path, log_sizes)
            config["args"] = dataclasses.asdict(args)
            config.setdefault("resumed", []).append(describe_session())

        self.checkpoint_file = self.path / "checkpoint.pt"
        self.summary_file = self.path / "summary.json"
        self.videos = self.path / "videos"
        self._wandb = wandb
        self._wandb_run = None
        if wandb is not None:
            self._wandb_run = start_wandb(wandb, self.path, args, algo, config.get("wandb_id"))
            config["wandb_id"] = self._wandb_run.id
        try:
            write_json(self.path / "config.json", config)
            # Line buffering: a killed run loses no finished row.
            self._metrics = open(self.path / "metrics.jsonl", "a", buffering=1, encoding="utf-8")  # noqa: SIM115
            wait_for_later_name(self.path)
            self._tensorboard = SummaryWriter(str(self.path), flush_secs=10)
        except OSError as error:
            raise InputError(cannot_write(self.path, error)) from error
        self._seconds_before = seconds_logged(self.path / "metrics.jsonl")
        self._started = time.monotonic()

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

    def log_video(self, step: int, file: str | Path) -> None:
        """Show a video file of this run on wandb, when tracking."""
        if self._wandb_run is not None:
            self._wandb_run.log({"video": self._wandb.Video(str(file), format="mp4")}, step=step)

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

    def close(self) -> None:
        self._metrics.close()
        self._tensorboard.close()
        if self._wandb_run is not None:
            self._wandb_run.finish()


def create_folder(path: str | Path, args: Any) -> Path:
    """Make a new run's folder. An existing one is fine (it may hold a log) unless it holds a run."""
    if path:
        folder = Path(path)
    else:
        unix_time = int(time.time())
        while True:
            name = f"{args.env_id.replace('/', '_')}__{args.exp_name}__{args.seed}__{unix_time}"
            folder = Path("runs") / name
            if not folder.exists():
                break
            unix_time += 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(cannot_write(folder, error)) from error
    if (folder / "config.json").exists():
        raise InputError(
            f"--run-dir {folder}: already holds a run; continue it with --resume {folder} or name another"
        )
    return folder


def cannot_write(folder: Path, error: OSError) -> str:
    return f"--run-dir {folder}: cannot be written ({error.strerror}); name a folder that you may write to"


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of the run in `folder`. Raises InputError, naming --resume, if there is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["algo"], config["args"]  # noqa: B018  a KeyError tells that this is someone else's config.json
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--resume {folder}: no run is stored there (no readable config.json); name the folder of a run"
        ) from error
    return config


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
    """The project's commit, with "-dirty" if files were changed since; None outside of its repository.

    What changes in results/ does not count: tables are written there between the runs of one study.
    """
    here = Path(__file__).resolve().parent
    # --git-dir, so that a repository around an unpacked copy of this one is not taken for it.
    git = ["git", "--git-dir", str(here / ".git"), "--work-tree", str(here)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":/", ":!/results"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("-dirty" if changed.returncode else "")


def log_files(folder: Path) -> list[Path]:
    return [folder / "metrics.jsonl", *sorted(folder.glob("events.out.tfevents.*"))]


def cut_logs(folder: Path, log_sizes: Mapping[str, int]) -> None:
    """Cut the logs back to their sizes at the checkpoint and delete event files begun after it."""
    for name, size in log_sizes.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size < size:
            raise InputError(
                f"--resume {folder}: {name} is missing or shorter than the {size} bytes it had at the "
                "checkpoint; restore it, or start a new run"
            )
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
    newest = max((file.name.split(".")[3] for file in folder.glob("events.out.tfevents.*")), default="")
    while str(int(time.time())) == newest:
        time.sleep(0.02)


def seconds_logged(metrics_file: Path) -> float:
    """The "time" of the last row, 0 if there is none."""
    lines = metrics_file.read_text(encoding="utf-8").splitlines()
    return json.loads(lines[-1])["time"] if lines else 0.0


def write_json(file: Path, value: Any) -> None:
    """Write valid JSON (NaN and infinity become null) in one piece: a reader never sees half a file."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(json.dumps(finite_or_none(value), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, file)


def finite_or_none(value: Any) -> Any:
    """`value` with None for every float that JSON cannot hold, inside dicts and lists too."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def import_wandb() -> Any:
    """The wandb module: only --track needs it, so it is no requirement."""
    try:
        import wandb
    except ImportError as error:
        raise InputError("--track needs the wandb package; install it with: pip install wandb") from error
    return wandb


def start_wandb(wandb: Any, folder: Path, args: Any, algo: str, run_id: str | None) -> Any:
    """Start a wandb run or, with a `run_id`, continue that one."""
    try:
        return wandb.init(
            project=args.wandb_project_name,
            entity=args.wandb_entity or None,
            name=folder.resolve().name,
            config={"algo": algo, **dataclasses.asdict(args)},
            dir=str(folder),
            id=run_id,
            resume="allow" if run_id else None,
        )
    except wandb.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--track: wandb did not start ({reason}); log in with `wandb login` or set WANDB_MODE=offline"
        ) from error


# ---------------------------------------------------------------- checkpoints


def save_checkpoint(file: str | Path, payload: dict[str, Any]) -> None:
    """Save `payload` (tensors and plain values, with the key "algo") in one piece.

    Whatever interrupts it, `file` holds either the previous checkpoint or the new one, whole.
    """
    file = Path(file)
    temporary = file.with_name(file.name + ".tmp")
    try:
        with open(temporary, "wb") as opened:
            torch.save({"format": CHECKPOINT_FORMAT, **payload}, opened)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(
    file: str | Path, map_location: str | torch.device = "cpu", flag: str = "--checkpoint"
) -> dict[str, Any]:
    """Load what `save_checkpoint` wrote. Only tensors and plain values are read, never code.

    Raises:
        InputError: naming `flag` and the file, if it is missing, damaged or not one of this project's.
    """
    if not Path(file).is_file():
        raise InputError(f"{flag} {file}: there is no such file; name a run's checkpoint.pt")
    try:
        payload = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged file can fail in any way inside zip, pickle or torch
        raise InputError(f"{flag} {file}: the file is damaged or no checkpoint; name a checkpoint.pt") from error
    if not isinstance(payload, dict) or "algo" not in payload or payload.get("format") != CHECKPOINT_FORMAT:
        raise InputError(
            f"{flag} {file}: not a checkpoint of this project, or of another version of it "
            f"(format {CHECKPOINT_FORMAT} is read here)"
        )
    return payload


# ---------------------------------------------------------------- the progress line


class Progress:
    """Progress on one line: rewritten in place on a terminal, a full line every 10 s in a file."""

    def __init__(self, total_steps: int, start_step: int = 0, stream: TextIO | None = None):
        self.total_steps = total_steps
        self.start_step = start_step
        self.stream = stream or sys.stdout
        self.on_terminal = self.stream.isatty()
        self.interval = 0.25 if self.on_terminal else 10.0  # seconds
        self._line = ""  # the newest line, shown or not
        self._shown = ""
        self._shown_at = -math.inf
        self._started = time.monotonic()

    def update(
        self,
        step: int,
        *,
        sps: float,
        success_rate: float | None,
        length: float | None,
        episodic_return: float | None,
        force: bool = False,
    ) -> None:
        """Tell where the run is. Shows the success rate or, where it is None, the return."""
        now = time.monotonic()
        parts = [
            f"{step:,}/{self.total_steps:,} steps",
            f"{100 * step / self.total_steps:3.0f}%",
            f"{sps:,.0f} steps/s",
            f"return {number(episodic_return, 3)}" if success_rate is None else f"success {success_rate:.3f}",
            f"length {number(length, 1)}",
        ]
        if step > self.start_step:
            seconds_a_step = (now - self._started) / (step - self.start_step)
            parts.append(f"{clock(max(0, self.total_steps - step) * seconds_a_step)} left")
        self._line = "  ".join(parts)
        if force or step >= self.total_steps or now - self._shown_at >= self.interval:
            self._show(now)

    def note(self, text: str) -> None:
        """Print a line of its own; on a terminal the progress line moves below it."""
        if self.on_terminal and self._shown:
            self.stream.write("\r" + " " * len(self._shown) + "\r" + text + "\n" + self._shown)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Show the newest line if that is still to be done, and leave the line."""
        if self._line and self._shown != self._line:
            self._show(time.monotonic())
        if self.on_terminal and self._shown:
            self.stream.write("\n")
            self.stream.flush()

    def _show(self, now: float) -> None:
        if self.on_terminal:
            # A line wider than the terminal would wrap, and "\r" only returns to the start of its last row.
            line = self._line[: shutil.get_terminal_size().columns - 1]
            self.stream.write("\r" + line.ljust(len(self._shown)))
            self._shown = line
        else:
            self.stream.write(self._line + "\n")
            self._shown = self._line
        self.stream.flush()
        self._shown_at = now


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def clock(seconds: float) -> str:
    """3725 -> 1:02:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


# ---------------------------------------------------------------- randomness and device


def seed_everything(seed: int, torch_deterministic: bool) -> None:
    """Seed Python, NumPy and torch (CPU and GPUs)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = torch_deterministic
    torch.backends.cudnn.benchmark = False  # it picks kernels by timing them, which differs from run to run


def random_state() -> dict[str, Any]:
    """All generators' states, as tensors and plain values that a checkpoint can hold."""
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state()
    version, words, next_gaussian = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        # Asking an unused GPU for its state would start CUDA in a CPU run.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [name, keys.tolist(), position, has_gauss, cached_gaussian],
        "python": [version, list(words), next_gaussian],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put all generators back to what `random_state` returned; GPUs only if there are as many as then."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([gpu_state.cpu() for gpu_state in state["cuda"]])
    name, keys, position, has_gauss, cached_gaussian = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached_gaussian))
    version, words, next_gaussian = state["python"]
    random.setstate((version, tuple(words), next_gaussian))


def choose_device(cuda: bool) -> torch.device:
    """The GPU if asked for and there, otherwise the CPU. The device is never made torch's default."""
    if cuda and torch.cuda.is_available():
        return torch.device("cuda")
    if cuda:
        print("--cuda: no usable GPU found, running on the CPU")
    return torch.device("cpu")


# ---------------------------------------------------------------- stopping


class Interrupt:
    """While entered, the first Ctrl-C (or SIGTERM) only sets `requested`; a second one stops at once.

    Outside of the main thread signals cannot be caught, and it does nothing.
    """

    def __init__(self):
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for signal_number in (signal.SIGINT, signal.SIGTERM):
                self._previous[signal_number] = signal.signal(signal_number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for signal_number, previous in self._previous.items():
            signal.signal(signal_number, previous or signal.SIG_DFL)
        self._previous = {}

    def _handle(self, signal_number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # os.write, because print may be what the signal interrupted.
        os.write(2, b"\nstopping after this iteration; once more to stop at once\n")
