"""Tasks. `make_envs` makes N environments of any; a task of this project is one small file, which registers its ids.

step.py            what an environment gives back
envs.py            N environments of one task: tables, or the Gymnasium package
real.py            one real environment, its flags, and what success is
observations.py    any observation as parts that an encoder takes, and a number for each
tables.py          tasks as look-ups;  minigrid_memory.py fills them;  vector_env.py gives them to other code
tmaze.py ...       one family of tasks each
"""

from tasks import (  # noqa: F401  (importing them registers their ids)
    masked_control,
    noisy_minigrid,
    parity,
    recall_xor_parity,
    repeat_and_parity,
    tmaze,
    vector_env,
)
from tasks.envs import make_envs
from tasks.real import TaskArgs, make_real_env
from tasks.step import Step

__all__ = ["Step", "TaskArgs", "make_envs", "make_real_env"]
