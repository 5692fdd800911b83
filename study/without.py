"""Train an agent without one part of the recipe that has no flag, to see what the part is worth.

    python -m study.without visit_budget ppo_palmer.py --env-id MiniGrid-MemoryS13-v0

    visit_budget     the visit bonus is paid in full however much an episode has earned of it
    rarity_beside    an observation's rarity is one minus the share of all episodes that showed it, whatever else
                     the running one has shown
    fading           the visit bonus fades with the steps of the run alone, not with success
    priced_entropy   the entropy coefficient is 0.01 of normalised advantages, CleanRL's, from start to end
    attention_norm   what attention adds is not normalised
    attention_scale  queries and keys start at their usual size

All the rest is the script's own, its flags and its run's folder; --resume needs the same part named again. Nothing
but this program can play an agent that it made without attention_norm.
"""

import importlib
import math
import sys
from collections.abc import Callable
from types import ModuleType

import torch
from torch import nn

import memory_aids
import palmer_policy
from harness.flags import run_script
from harness.input_error import InputError

CLEANRL_ENT_COEF = 0.01
SCRIPTS = ("ppo_palmer.py", "ppo_lstm.py", "ppo_trxl.py")


def change_layers(change: Callable[[palmer_policy.TransformerLayer], None]) -> None:
    """Call `change` on every layer of a Transformer that is made from now on."""
    initial = palmer_policy.TransformerLayer.__init__

    def changed(self: palmer_policy.TransformerLayer, *sizes: int) -> None:
        initial(self, *sizes)
        change(self)

    palmer_policy.TransformerLayer.__init__ = changed


def no_visit_budget() -> None:
    memory_aids.VISIT_BUDGET = math.inf


def no_rarity_beside() -> None:
    memory_aids.rarity = lambda together, code, seen: 1 - together.diagonal()[code]


def no_fading() -> None:
    memory_aids.fading = lambda progress, solved: min(1.0, 4 * (1 - progress))


def no_attention_norm() -> None:
    def change(layer: palmer_policy.TransformerLayer) -> None:
        layer.norm_attended = nn.Identity()

    change_layers(change)


def no_attention_scale() -> None:
    @torch.no_grad()
    def change(layer: palmer_policy.TransformerLayer) -> None:
        layer.query_key_value.weight[: 2 * len(layer.query_key_value.weight) // 3] /= palmer_policy.ATTENTION_SCALE

    change_layers(change)


def no_priced_entropy(script: ModuleType) -> None:
    step = script.minibatch_step
    script.minibatch_step = lambda *others: step(*others[:-1], torch.tensor(CLEANRL_ENT_COEF))


# What changes the modules that a script imports from comes before it is imported, the other after.
BEFORE = {
    "visit_budget": no_visit_budget,
    "rarity_beside": no_rarity_beside,
    "fading": no_fading,
    "attention_norm": no_attention_norm,
    "attention_scale": no_attention_scale,
}
AFTER = {"priced_entropy": no_priced_entropy}
PARTS = (*BEFORE, *AFTER)


def without(part: str, script: str) -> ModuleType:
    """The training script, of which `part` is missing from now on in this process."""
    if part in BEFORE:
        BEFORE[part]()
    module = importlib.import_module(script.removesuffix(".py"))
    if part in AFTER:
        AFTER[part](module)
    return module


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
