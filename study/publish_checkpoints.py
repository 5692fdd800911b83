"""Strip checkpoints to what playing needs, for pretrained/.

    python -m study.publish_checkpoints runs/scorecard/s13/palmer pretrained

Keeps the policy, its training arguments, the step, and the heads of the memory aids, which the page asks; leaves out
the optimiser, the environments and the random state, with which training would go on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.flags import Range, check_args, run_script
from harness.input_error import InputError
from study.files import cannot_write

KEPT = ("algo", "args", "policy", "aids", "step")


@dataclass
class Options:
    source: Annotated[Path, tyro.conf.Positional] = tyro.MISSING
    """folder of run folders"""
    target: Annotated[Path, tyro.conf.Positional] = tyro.MISSING
    """folder for the stripped files, {algo}__{task}.pt"""
    seed: Annotated[int, Range(0, 99_999_999)] = 11
    """publish the runs of this seed"""


def main(options: Options) -> None:
    """Write the stripped files. Raises InputError, before any is written, unless all can be."""
    check_args(options)
    ending = f"__s{options.seed}"
    if trouble := cannot_write(options.target / "agent.pt"):
        raise InputError(f"TARGET {options.target}: must be a folder that can be written ({trouble}).")
    files = sorted(options.source.glob(f"*{ending}/checkpoint.pt"))
    if not files:
        raise InputError(
            f"SOURCE {options.source}: holds no run of seed {options.seed} (no *{ending}/checkpoint.pt)."
        )
    published = {}
    for file in files:
        if not (file.parent / "summary.json").exists():
            raise InputError(f"{file.parent}: has not finished; finish it before publishing.")
        checkpoint = load_checkpoint(file, flag="SOURCE")
        if missing := [key for key in KEPT if key not in checkpoint]:
            raise InputError(f"SOURCE {file}: lacks {missing[0]}; publish checkpoints of finished runs.")
        # Where the run lay says nothing to others.
        arguments = checkpoint["args"] | {"run_dir": "", "resume": ""}
        name = file.parent.name.removesuffix(ending)
        published[name] = {key: checkpoint[key] for key in KEPT} | {"args": arguments}

    options.target.mkdir(parents=True, exist_ok=True)
    for name, checkpoint in published.items():
        target = options.target / f"{name}.pt"
        save_checkpoint(target, checkpoint)
        print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(main, Options, {}, __doc__)
