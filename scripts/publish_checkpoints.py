"""Strip checkpoints to what playing needs, for pretrained/.

    python scripts/publish_checkpoints.py runs/main pretrained --seed 1

Keeps the policy, its training arguments and the step; leaves out the optimiser, the environments and the random
state, with which training would go on. The files work with evaluate.py and scripts/measure_gate.py.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiment import load_checkpoint, save_checkpoint

KEPT = ("algo", "args", "policy", "step")


@dataclass
class Options:
    source: Annotated[Path, tyro.conf.Positional]
    """folder of run folders"""
    target: Annotated[Path, tyro.conf.Positional]
    """folder for the stripped files, {algo}__{env}.pt"""
    seed: int = 1
    """publish the runs of this seed"""


def main(options: Options) -> None:
    options.target.mkdir(parents=True, exist_ok=True)
    for file in sorted(options.source.glob(f"*__s{options.seed}/checkpoint.pt")):
        if not (file.parent / "summary.json").exists():
            sys.exit(f"error: {file.parent}: has not finished, finish it before publishing")
        checkpoint = load_checkpoint(file)
        name = file.parent.name.removesuffix(f"__s{options.seed}")
        target = options.target / f"{name}.pt"
        # Where the run lay says nothing to others.
        arguments = checkpoint["args"] | {"run_dir": "", "resume": ""}
        save_checkpoint(target, {key: checkpoint[key] for key in KEPT} | {"args": arguments})
        print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
