"""A repository with the real bash scripts, and a stand-in for each training script."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Stands for a training script: tells how it was called, and fails or stops where the test asks for it.
TRAINING_SCRIPT = """
import json, os, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = flags.get("--run-dir") or flags["--resume"]
with open("calls.jsonl", "a") as calls:
    threads = os.environ.get("OMP_NUM_THREADS")
    calls.write(json.dumps({"script": sys.argv[0], "flags": flags, "threads": threads}) + "\\n")
if flags["--seed"] == os.environ.get("FAILING_SEED"):
    sys.exit("error: --seed fails on purpose")
open(os.path.join(folder, "checkpoint.pt"), "w").close()
print("trained")
if flags["--seed"] == os.environ.get("STOPPING_SEED"):
    sys.exit(0)
algo = sys.argv[0].removeprefix("ppo_").removesuffix(".py")
seed = int(flags["--seed"])
summary = {
    "algo": algo, "env_id": flags["--env-id"], "seed": seed, "steps": 1000 * seed, "seconds": 60.0 * seed,
    "sps": 16.7, "run_dir": folder, "steps_to_0.95": 100 * seed, "seconds_to_0.95": 6.0,
    "steps_to_0.99": 500 if seed == 1 else None, "seconds_to_0.99": 30.0 if seed == 1 else None,
    "evaluation": {"success_rate": seed / 10, "success_ci_low": 0.05, "success_ci_high": 0.35,
                   "mean_length": 14.0},
}
json.dump(summary, open(os.path.join(folder, "summary.json"), "w"))
config = {"threads": 1, "versions": {"commit": "abc"}, "command": " ".join([sys.executable, *sys.argv])}
json.dump(config, open(os.path.join(folder, "config.json"), "w"))
with open(os.path.join(folder, "metrics.jsonl"), "w") as metrics:
    metrics.write(json.dumps({"step": 1000 * seed, "charts/SPS": 1.0}) + "\\n")
"""


def make_repository(folder):
    """The real scripts/, study/ and harness/, and stand-ins for the training scripts."""
    for part in ("scripts", "study", "harness"):
        shutil.copytree(ROOT / part, folder / part)
    (folder / "scripts" / "check_sweep.py").write_text("")  # it would look at the real scripts' flags
    for name in ("requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, folder)
    for algo in ("palmer", "lstm", "trxl"):
        (folder / f"ppo_{algo}.py").write_text(TRAINING_SCRIPT)
    return folder


def run(repository, script, *arguments, cwd=None, **environment):
    environment = {**os.environ, **environment}
    command = ["bash", str(repository / script), *arguments]
    return subprocess.run(command, cwd=cwd or repository, env=environment, capture_output=True, text=True)
