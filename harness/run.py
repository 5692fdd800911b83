"""A training run: when it logs, evaluates, saves and ends, and where its files are.

It knows when, the script knows what: a Run never plays or learns. All processes have one; that of rank 0 writes.
"""

import time
from collections import deque
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from evaluate import describe, evaluate_policy
from harness.checkpoint import check_finite, pack, save_checkpoint, write_json
from harness.checks import check_run
from harness.ending import in_one_sentence
from harness.flags import MAY_CHANGE, Range
from harness.folder import RunFolder
from harness.freed_memory import keep_freed_memory
from harness.input_error import InputError, RunError
from harness.processes import any_process, choose_device, gather, join_processes, leave_processes
from harness.progress import Interrupt, Progress
from harness.randomness import random_state, seed_everything
from harness.resume import open_earlier, put_back
from replay.film import remove_leftovers
from replay.memory_picture import MemoryPicture

RECENT_EPISODES = 500  # the training success rate is that of the episodes that ended last
PROCESS_SEED = 1_000_000  # apart from one process's seed to the next one's
LEVELS = ("0.95", "0.99")  # of success; the summary tells when each was reached


@dataclass
class RunArgs:
    """Flags of a run: what is repeated, where it is written, when it is evaluated and when it ends."""

    preset: Literal["default", "report"] = "default"
    """default: small network for a laptop; report: the settings of the original publication"""
    seed: Annotated[int, Range(0, 99_999_999)] = 1
    """seed of everything random; with as many threads it gives the same run, bit for bit, on the CPU"""
    cuda: Annotated[bool, MAY_CHANGE] = True
    """use the GPU if there is one"""
    track: Annotated[bool, MAY_CHANGE] = False
    """also log to Weights & Biases, which reads WANDB_PROJECT (palmer), WANDB_ENTITY and WANDB_MODE"""
    capture_video: Annotated[bool, MAY_CHANGE] = False
    """film five episodes of every evaluation, in the run folder's videos/, and log a picture of gate and attention"""
    run_dir: str = ""
    """folder of this run; empty: runs/{env_id}__ppo_{agent}__{seed}__{unix_time}"""
    resume: Annotated[str, MAY_CHANGE] = ""
    """continue the run in this folder from its checkpoint"""
    checkpoint_every: Annotated[float, Range(0, 1e6), MAY_CHANGE] = 60.0
    """seconds between two checkpoints"""
    total_timesteps: Annotated[int, Range(1, 10**11), MAY_CHANGE] = 1_000_000
    """environment steps of the whole run"""
    stop_at_success: Annotated[float | None, Range(0, 1)] = None
    """end training earlier, once so large a share of the last 500 training episodes was solved; None: never"""
    eval_every: Annotated[int, Range(0, 10**11)] = 100_000
    """environment steps between two evaluations on the real environment (0: only at the end)"""
    eval_episodes: Annotated[int, Range(1, 1_000_000)] = 100
    """episodes of each evaluation while training"""
    final_eval_episodes: Annotated[int, Range(1, 1_000_000)] = 1000
    """episodes of the evaluation at the end"""


class Run:
    """One training run, new or resumed.

    args: the script's flags, with --resume those of the earlier run. step: environment steps made, of all processes.
    share_solved: of the last 500 episodes, those still to come counted as not solved.
    """

    def __init__(self, args: Any, algo: str):
        """Raises InputError for a flag out of its range and for a run that cannot be resumed."""
        self.algo = algo
        self.args, self._saved, self._lock = open_earlier(args, algo)
        self.device = choose_device(self.args.cuda)
        check_run(self.args, self.device)
        self.rank, self.processes = join_processes(self.device)
        self.env_seed = self.args.seed + self.rank * PROCESS_SEED
        seed_everything(self.args.seed)
        keep_freed_memory()
        self.step, self.seconds, self.milestones = 0, 0.0, {}
        self.recent: deque = deque(maxlen=RECENT_EPISODES)
        self._interrupt, self._stopped, self._folder, self._carry = Interrupt(), False, None, None
        self._previous_step, self._last_save = 0, time.monotonic()
        self._saved_step = self._saved and self._saved["step"]  # None before the first checkpoint

    def __enter__(self) -> "Run":
        self._interrupt.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        self._interrupt.__exit__()
        # An OSError is that of a disk that is full or gone, in whatever is written; what is said of it stands there.
        with in_one_sentence(self), ExitStack() as closing:
            closing.callback(leave_processes)
            if self._folder or self._lock:
                closing.callback(self._folder.close if self._folder else self._lock.release)
            if isinstance(error, RunError):
                error.args = (f"{error} ({self.step:,} steps were made before.)",)
                # A table's run goes on bit for bit or not at all, and of several processes the others know nothing of
                # the error and would not save with this one: there the last checkpoint stays.
                if self._carry is not None and not self._envs.exact_resume and self.processes == 1:
                    self._save(self._carry)
            elif isinstance(error, OSError | KeyboardInterrupt):
                raise error

    # ------------------------------------------------------------------------------------ start

    def restore(self, carry: Any, envs: Any, **parts: Any) -> Any:
        """Opens the run's folder; with --resume puts everything back as it was -> what the next rollout starts from.

        parts: what is saved beside `carry` and `envs` and is the same in all processes, with `state_dict` and
        `load_state_dict`.
        """
        self._envs, self._parts = envs, parts
        if self.args.stop_at_success is not None and not envs.tells_success:
            raise InputError(
                f"--stop-at-success {self.args.stop_at_success}: {self.args.env_id} does not tell what success is."
            )
        if self.rank > 0:  # from here on: the parameters are the same in all processes, the actions must not be
            torch.manual_seed(self.env_seed)
        if self._saved:
            carry = self._put_back(carry)
        if self.rank == 0:
            log_sizes = self._saved and self._saved["log_sizes"]
            path = self.args.resume or self.args.run_dir
            self._folder = RunFolder(path, self.args, self.algo, log_sizes, self._lock)
            if self._folder.videos.is_dir():
                remove_leftovers(self._folder.videos)
            self._progress = Progress(self.args.total_timesteps, start_step=self.step)
        if self._saved and not envs.exact_resume:
            self.note(f"{self.args.env_id}: its state cannot be saved, so all episodes restart.")
        if envs.max_episode_steps is None:
            self.note(f"{self.args.env_id}: no time limit is known; episodes may not end (see --max-episode-steps).")
        self._saved = None
        return carry

    def _put_back(self, carry: Any) -> Any:
        saved = self._saved
        carry = put_back(saved, self.rank, self.processes, self.args, self._parts, self._envs, carry)
        self.step, self.seconds, self.milestones = saved["step"], saved["seconds"], saved["milestones"]
        self.recent.extend(saved["recent"])
        return carry

    @property
    def num_envs(self) -> int:
        """This process's share of the environments. Raises InputError where they cannot be shared out."""
        args = self.args
        if args.num_envs % (args.num_minibatches * self.processes):
            raise InputError(
                f"--num-minibatches {args.num_minibatches}: times the number of processes ({self.processes}) it must "
                f"divide --num-envs {args.num_envs}, as a minibatch is a set of whole environments."
            )
        return args.num_envs // self.processes

    # ------------------------------------------------------------------------------------ every iteration

    @property
    def progress(self) -> float:
        return self.step / self.args.total_timesteps

    @property
    def share_solved(self) -> float:
        return sum(success for _, _, success in self.recent) / RECENT_EPISODES

    def goes_on(self) -> bool:
        """Is there another iteration? Its clock starts here and ends with `count`."""
        level = self.args.stop_at_success
        solved = level is not None and self.step > 0 and self.share_solved >= level
        self._began = time.monotonic()
        return not (self._stopped or solved) and self.step < self.args.total_timesteps

    def count(self, episodes: Tensor) -> None:
        """After an iteration: episodes (E, 3), return, length and success of those that ended in it."""
        self._previous_step, self.step = self.step, self.step + self.args.num_envs * self.args.num_steps
        self.seconds += time.monotonic() - self._began
        for finished in gather(episodes.tolist()):
            self.recent.extend(finished)
        for level in LEVELS:
            if self.share_solved >= float(level):
                self.milestones.setdefault(level, [self.step, self.seconds])

    def evaluate_when_due(self, policy: Any) -> dict[str, float | None]:
        """Where `--eval-every` says so, success, length and return on held-out episodes, to be logged."""
        every = self.args.eval_every
        if self.rank > 0 or not every or self.step // every == self._previous_step // every:
            return {}
        return self._evaluate(policy, self.args.eval_episodes)[1]

    def log(self, metrics: dict[str, float | None]) -> None:
        """One row of the logs, with what the run itself knows, and the progress line."""
        if self.rank > 0:
            return
        metrics = {"charts/SPS": self.step / self.seconds, **self._episode_metrics(), **metrics}
        self._folder.log(self.step, metrics)
        self._progress.update(
            self.step,
            sps=metrics["charts/SPS"],
            success_rate=metrics.get("train/success_rate"),
            length=metrics.get("charts/episodic_length"),
            episodic_return=metrics.get("charts/episodic_return"),
        )

    def note(self, text: str) -> None:
        """A sentence for the user, printed once, by one process."""
        if self.rank == 0:
            self._progress.note(text)

    def save_when_due(self, carry: Any) -> None:
        """Every `--checkpoint-every` seconds; sees to it that all processes stop and save together."""
        self._carry = carry
        due = time.monotonic() - self._last_save > self.args.checkpoint_every
        self._stopped, due = any_process(self._interrupt.requested, due)
        if due:
            self._save(carry)

    def _save(self, carry: Any) -> None:
        # Where episodes restart on resume, nothing of the running ones is worth its place.
        kept = pack(carry) if self._envs.exact_resume else None
        processes = gather({"envs": self._envs.state_dict(), "carry": kept, "random": random_state()})
        if self.rank == 0:
            payload = {
                "algo": self.algo,
                "args": asdict(self.args),
                **{name: part.state_dict() for name, part in self._parts.items()},
                "step": self.step,
                "seconds": self.seconds,
                "milestones": self.milestones,
                "recent": list(self.recent),
                "processes": processes,
                "log_sizes": self._folder.log_sizes(),
            }
            check_finite(payload, "checkpoint")  # which no file could be read with again
            save_checkpoint(self._folder.checkpoint_file, payload)
        self._last_save, self._saved_step = time.monotonic(), self.step

    def _episode_metrics(self) -> dict[str, float]:
        """Means over the episodes that ended last; empty before the first has ended."""
        if not self.recent:
            return {}
        returns, lengths, successes = (sum(column) / len(self.recent) for column in zip(*self.recent, strict=True))
        metrics = {"charts/episodic_return": returns, "charts/episodic_length": lengths}
        return metrics | {"train/success_rate": successes} if self._envs.tells_success else metrics

    # ------------------------------------------------------------------------------------ end

    def finish(self, policy: Any, carry: Any) -> dict[str, Any]:
        """Save, evaluate and tell -> the summary that is also written to the run's folder."""
        self._save(carry)
        self._interrupt.at_once = True  # nothing more is learned
        summary = {
            "algo": self.algo,
            "env_id": self.args.env_id,
            "seed": self.args.seed,
            "steps": self.step,
            "seconds": self.seconds,
            "sps": self.step / max(self.seconds, 1e-9),
            "evaluation": None,
            "greedy_evaluation": None,
        }
        for level in LEVELS:
            steps, seconds = self.milestones.get(level, (None, None))
            summary[f"steps_to_{level}"], summary[f"seconds_to_{level}"] = steps, seconds
        if self.rank == 0:
            self._progress.close()
            summary["run_dir"] = str(self._folder.path)
            if not self._stopped:
                self._final_evaluations(policy, summary)
            self._folder.say_what_next(self.algo, self._stopped)
        self._envs.close()
        return summary

    def _final_evaluations(self, policy: Any, summary: dict[str, Any]) -> None:
        episodes = self.args.final_eval_episodes
        summary["evaluation"], metrics = self._evaluate(policy, episodes)
        self._folder.log(self.step, metrics)
        print(describe(summary["evaluation"], self.args.env_id))
        summary["greedy_evaluation"] = evaluate_policy(
            policy, self.args, self.algo, self.step, episodes=episodes, seed=self.args.seed, greedy=True
        )
        print(describe(summary["greedy_evaluation"], self.args.env_id))
        write_json(self._folder.summary_file, summary)

    def _evaluate(self, policy: Any, episodes: int) -> tuple[dict[str, Any], dict[str, float | None]]:
        """Play the real environment with held-out seeds -> the evaluation, and what is logged of it."""
        video = picture = None
        if self.args.capture_video:
            self._folder.videos.mkdir(exist_ok=True)
            video, picture = self._folder.videos / f"step_{self.step}.mp4", MemoryPicture(policy)
        settings = {"episodes": episodes, "seed": self.args.seed, "video": video, "track": picture}
        evaluation = evaluate_policy(policy, self.args, self.algo, self.step, **settings)
        if video:
            self._folder.log_video(self.step, video)
            self._folder.log_picture(self.step, picture.draw())
        names = {"reward": "mean_return", "episode_length": "mean_length", "success_rate": "success_rate"}
        return evaluation, {f"evals/{name}": evaluation[key] for name, key in names.items()}
