"""Train an agent without one part of the recipe that has no flag, to see what the part is worth.

    python -m study.without visit_budget ppo_palmer.py --env-id MiniGrid-MemoryS13-v0

    visit_budget     the visit bonus is paid in full however much an episode has earned of it
    rarity_beside    an observation's rarity is one minus the share of all episodes that showed it, whatever else
                     the running one has shown
    fading           the visit bonus fades with the steps of the run alone, not with success

All the rest is the script's own, its flags and its run's folder; --resume needs the same part named again.
"""

import importlib
import math
import sys
from types import ModuleType

import memory_aids
from harness.flags import run_script
from harness.input_error import InputError

SCRIPTS = ("ppo_palmer.py", "ppo_lstm.py", "ppo_trxl.py")


def no_visit_budget() -> None:
    memory_aids.VISIT_BUDGET = math.inf


def no_rarity_beside() -> None:
    memory_aids.rarity = lambda together, code, seen: 1 - together.diagonal()[code]


def no_fading() -> None:
    memory_aids.fading = lambda progress, solved: min(1.0, 4 * (1 - progress))


PARTS = {"visit_budget": no_visit_budget, "rarity_beside": no_rarity_beside, "fading": no_fading}


def without(part: str, script: str) -> ModuleType:
    """The training script, of which `part` is missing from now on in this process."""
    PARTS[part]()  # before the script is imported, and what it needs with it
    return importlib.import_module(script.removesuffix(".py"))


def main() -> None:
    part, script = (sys.argv[1:] + ["", ""])[:2]
    try:
        if part not in PARTS:
            raise InputError(f"PART {part!r}: must be of {', '.join(PARTS)}.")
        if script not in SCRIPTS:
            raise InputError(f"SCRIPT {script!r}: must be of {', '.join(SCRIPTS)}.")
    except InputError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    module = without(part, script)
    sys.argv = [script, *sys.argv[3:]]
    run_script(module.main, module.Args, module.PRESETS, module.__doc__)


if __name__ == "__main__":
    main()
