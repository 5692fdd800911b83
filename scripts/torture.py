"""Does to tiny runs what must never cost one: kills, damage, foreign files, a full disk, two processes at once.

    python -m scripts.torture --minutes 10 --seed 1
    python -m scripts.torture --seed 1 --only 17            # case 17 of that seed again

Each case is drawn from the seed and its number. A run that was stopped must go on bit for bit as the one that was
not; whatever else is done to a file must end in one sentence, never in a traceback or in what it asks for. Signals
come at a function call counted beforehand, not at a time, so that a case is the same on a busy machine.
"""

import contextlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

import evaluate
import ppo_lstm
import ppo_palmer
import ppo_trxl
from harness.archive import CHECKSUM
from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.flags import Range, check_args, run_script
from harness.input_error import InputError, RunError
from scripts.children import count_calls, run_child, signal_at, start_child
from scripts.tampering import identical, mutated

SCRIPTS = (ppo_palmer, ppo_lstm, ppo_trxl)
TINY = dict(env_id="MiniGrid-MemoryS5-v0", obs_mode="symbolic", max_episode_steps=8, num_envs=4, num_steps=8)
TINY |= dict(num_minibatches=2, update_epochs=1, width=8, total_timesteps=256, eval_every=96, eval_episodes=2)
TINY |= dict(final_eval_episodes=2, checkpoint_every=0.0, cuda=False)


@dataclass
class Options:
    minutes: Annotated[float, Range(0, 1e5)] = 5.0
    """how long to go on"""
    cases: Annotated[int | None, Range(1, 10**9)] = None
    """a number of cases instead"""
    seed: Annotated[int, Range(0, 10**9)] = 1
    """of all that is drawn"""
    only: Annotated[int | None, Range(0, 10**9)] = None
    """this case alone"""


def flags(script: Any, **changed: Any) -> Any:
    attention = {} if script is ppo_lstm else {"trxl_heads": 2, "memory_length": 6}
    return script.Args(**TINY | attention | changed)


# ------------------------------------------------------------------------------------ processes


def start_or_resume(script: Any, folder: Path, **changed: Any) -> Any:
    if (folder / "checkpoint.pt").exists():
        return script.Args(resume=str(folder))
    return flags(script, run_dir=str(folder), **changed)


def rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock decides."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("time", "charts/SPS")} for line in lines]


class Rig:
    """The uninterrupted runs, to copy and to compare with."""

    def __init__(self, folder: Path):
        self.folder, self.calls = folder, {}
        with contextlib.redirect_stdout(io.StringIO()):  # what is imported on the way here need not be in each child
            ppo_palmer.main(flags(ppo_palmer, run_dir=str(folder / "first"), total_timesteps=32))
        for script in SCRIPTS:
            calls = folder / f"{script.ALGO}.calls"
            counting = count_calls(calls, until="say_what_next")  # after it there is nothing to lose
            code = run_child(script, flags(script, run_dir=str(self.whole(script))), folder / "log", counting)
            assert code == 0, (folder / "log").read_text()
            self.calls[script] = int(calls.read_text())

    def whole(self, script: Any) -> Path:
        return self.folder / f"whole_{script.ALGO}"

    def copy(self, script: Any) -> Path:
        """A run that another one may spoil."""
        folder = self.folder / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.whole(script), folder)
        return folder

    def compare(self, script: Any, folder: Path) -> None:
        assert rows(folder) == rows(self.whole(script)), "other rows than without interruption"
        a, b = (load_checkpoint(run / "checkpoint.pt") for run in (folder, self.whole(script)))
        for part in ("policy", "optimizer", "aids", "scale", "processes", "recent", "step"):
            assert identical(a[part], b[part]), f"another {part} than without interruption"
        assert not list(folder.glob("*.tmp")), "a temporary file is left"

    def finish(self, script: Any, folder: Path, log: Path) -> None:
        """Goes on until the end, undisturbed, and compares."""
        code = run_child(script, start_or_resume(script, folder), log)
        assert code == 0, f"ends with {code}"
        self.compare(script, folder)


def check_log(log: Path) -> None:
    assert not log.exists() or "Traceback" not in log.read_text(), "a traceback"


# ------------------------------------------------------------------------------------ what is done


def killed(rig: Rig, rng: random.Random, folder: Path) -> None:
    script, log = rng.choice(SCRIPTS), folder / "log"
    for _ in range(rng.randint(1, 3)):
        if not (folder / "run" / "summary.json").exists():
            number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
            at = signal_at(rng.randint(1, rig.calls[script]), number)
            code = run_child(script, start_or_resume(script, folder / "run"), log, at)
            assert code in (0, 130, -number), f"signal {number} ends it with {code}"
            check_log(log)
    rig.finish(script, folder / "run", log)


def flipped(rig: Rig, rng: random.Random, folder: Path) -> None:
    """Bits, ends and stretches, in a checkpoint with a checksum and in one of the format before it."""
    whole = rig.whole(rng.choice(SCRIPTS)) / "checkpoint.pt"
    file, old = folder / "damaged.pt", rng.random() < 0.3
    data = bytearray(whole.read_bytes())
    if old:
        torch.save({**load_checkpoint(whole), "format": 2}, file)
        data = bytearray(file.read_bytes())
    before, at = bytes(data), rng.randrange(len(data))
    kind = rng.choice(["bit", "end", "zeros", "more"])
    if kind == "bit":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "end":
        del data[at:]
    elif kind == "zeros":
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    else:
        data[at:at] = rng.randbytes(rng.randint(1, 99))
    file.write_bytes(data)
    try:
        loaded = load_checkpoint(file)
    except InputError:
        return
    # The bytes between the entries of a zip have no CRC, and mean nothing.
    assert bytes(data) == before or (old and identical(loaded, {**load_checkpoint(whole), "format": 2})), "unnoticed"


def tampered(rig: Rig, rng: random.Random, folder: Path) -> None:
    """One field of a file is missing or another."""
    script = rng.choice(SCRIPTS)
    run = rig.copy(script)
    name = rng.choice(["checkpoint.pt", "checkpoint.pt", "config.json", "metrics.jsonl"])
    if name == "checkpoint.pt":
        save_checkpoint(run / name, mutated(load_checkpoint(run / name), rng))
    elif name == "config.json":
        (run / name).write_text(json.dumps(mutated(json.loads((run / name).read_text()), rng)))
    else:
        size, lines = (run / name).stat().st_size, (run / name).read_text().splitlines()
        lines[-2] = json.dumps(mutated(json.loads(lines[-2]), rng))
        (run / name).write_text("\n".join(lines).ljust(size + 99) + "\n")
    with contextlib.redirect_stdout(io.StringIO()):
        for work in (
            lambda: evaluate.main(evaluate.Args(checkpoint=str(run / "checkpoint.pt"), episodes=2)),
            lambda: script.main(script.Args(resume=str(run), total_timesteps=320)),
        ):
            with contextlib.suppress(InputError, RunError):
                work()


def full_disk(rig: Rig, rng: random.Random, folder: Path) -> None:
    """No file may grow beyond a size, or one call of the system fails."""
    script, log, run = rng.choice(SCRIPTS), folder / "log", folder / "run"
    largest = (rig.whole(script) / "checkpoint.pt").stat().st_size

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    def break_call() -> None:
        name, real, calls = broken, getattr(os, broken), iter(range(10**9))

        def failing(*arguments: Any) -> Any:
            if next(calls) == number:
                raise OSError(error, os.strerror(error))
            return real(*arguments)

        setattr(os, name, failing)

    size, number = rng.choice([rng.randrange(5000), rng.randrange(largest)]), rng.randrange(12)
    broken, error = rng.choice(["fsync", "replace"]), rng.choice([5, 28, 30, 122])  # EIO, ENOSPC, EROFS, EDQUOT
    code = run_child(script, start_or_resume(script, run), log, rng.choice([limit, break_call]))
    assert code in (0, 1, 2), f"ends with {code}"
    check_log(log)
    assert code or (run / "summary.json").exists(), "ends well without a summary"
    rig.finish(script, run, log)


def payload(rig: Rig, rng: random.Random, folder: Path) -> None:
    """A pickle that calls what it should not."""
    made = folder / "made"
    module, name, argument = rng.choice(
        [
            ("os", "mkdir", str(made)),
            ("posix", "system", f"mkdir {made}"),
            ("builtins", "exec", f"import os; os.mkdir({str(made)!r})"),
            ("builtins", "bytearray", 10**13),
            ("torch", "load", str(rig.whole(ppo_lstm) / "checkpoint.pt")),
            ("torch.storage", "UntypedStorage", 10**13),
            ("numpy", "zeros", 10**13),
        ]
    )
    call = b"c%s\n%s\n" % (module.encode(), name.encode()) + pickle.dumps((argument,), 2)[2:-1] + b"R"
    huge = b"r\xff\xff\xff\x7f" if rng.random() < 0.2 else b""  # a memo of 2**31 values
    whole = rig.whole(ppo_lstm) / "checkpoint.pt"
    file = folder / "payload.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(file, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("/data.pkl"):
                data = data[:2] + call + huge + b"0" + data[2:] if rng.random() < 0.5 else data[:-1] + call + b"."
            target.writestr(entry.filename, data)
    assert CHECKSUM not in file.read_bytes()
    with contextlib.suppress(InputError):
        load_checkpoint(file)
        raise AssertionError("loaded")
    assert not made.exists(), "the payload was executed"


def two_at_once(rig: Rig, rng: random.Random, folder: Path) -> None:
    script, log, run = rng.choice(SCRIPTS), folder / "log", folder / "run"
    at = signal_at(rng.randint(rig.calls[script] // 2, rig.calls[script]), signal.SIGKILL)
    run_child(script, start_or_resume(script, run), log, at)
    both = [start_child(script, start_or_resume(script, run), log) for _ in range(2)]
    for process in both:
        process.join()
    codes = sorted(process.exitcode for process in both)
    # One after the other both go well; the second then finds the run finished, or is in time to be refused.
    assert codes in ([0, 0], [0, 2]), f"end with {codes}"
    check_log(log)
    rig.finish(script, run, log)


KINDS = (killed, killed, flipped, tampered, full_disk, payload, two_at_once)


def main(options: Options) -> None:
    """Raises RunError at the first failure."""
    check_args(options)
    torch.set_num_threads(1)  # threads do not survive a fork
    end, counts, case = time.monotonic() + 60 * options.minutes, Counter(), options.only or 0
    with tempfile.TemporaryDirectory() as made:
        rig = Rig(Path(made))
        while options.only in (None, case) and (case < options.cases if options.cases else time.monotonic() < end):
            rng, folder = random.Random(f"{options.seed} {case}"), Path(made, "case")
            folder.mkdir()
            kind = KINDS[case % len(KINDS)]
            try:
                kind(rig, rng, folder)
            except Exception as error:
                traceback.print_exc()
                log = (folder / "log").read_text()[-2000:] if (folder / "log").exists() else ""
                again = f"python -m scripts.torture --seed {options.seed} --only {case}"
                raise RunError(f"{kind.__name__}: {error}; again with: {again}\n{log}") from None
            shutil.rmtree(folder)
            counts[kind.__name__] += 1
            case += 1
    print("  ".join(f"{name} {number}" for name, number in counts.items()))


if __name__ == "__main__":
    run_script(main, Options, {}, __doc__)
