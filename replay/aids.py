"""The recall heads of a run's checkpoint, to be asked what an agent would answer; training goes on without this."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch

from harness.checkpoint import check_form
from harness.flags import Range, args_in_file
from harness.input_error import InputError, shortened
from memory_aids import MemoryAidArgs, MemoryAids
from palmer_policy import Width
from tasks import TaskArgs, make_envs


@dataclass
class Settings(MemoryAidArgs, TaskArgs):
    """The settings of a run that make its memory aids what they are."""

    num_steps: Annotated[int, Range(1, 65_536)] = 32
    width: Width = 128


def load_aids(checkpoint: dict[str, Any], task: TaskArgs, where: str) -> MemoryAids | None:
    """The memory aids that an agent learned with on `task`, None where its file holds none.

    Raises InputError, which begins with `where`, for aids that do not fit.
    """
    if "aids" not in checkpoint:
        return None
    saved, args = checkpoint["aids"], args_in_file(Settings, checkpoint["args"], where)
    envs = make_envs(replace(task, async_envs=False), 1)
    envs.reset()  # codes look at how an observation is made
    try:
        # Found out before they take any memory.
        with torch.device("meta"):
            planned = MemoryAids(args, envs, args.width, torch.device("meta"))
        check_form(saved["heads"], planned.heads.state_dict(), "heads")
        aids = MemoryAids(args, envs, args.width, torch.device("cpu"))
        aids.load_state_dict(saved)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{where}: its memory aids do not fit this version's ({shortened(error)}); use the version that saved it."
        ) from error
    finally:
        envs.close()
    return aids
