"""Two processes that meet as torchrun's do, for the tests."""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD_SIZE = 2


def _as_torchrun_would(rank: int, port: int, function: Callable[..., None], *args: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(WORLD_SIZE),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    torch.set_num_threads(1)
    function(rank, *args)


def spawn_pair(function: Callable[..., None], *args: Any) -> None:
    """function(rank, *args) in two processes, which have yet to join; it must be of a module's top level.

    They find each other at a store that is there before them and holds its port. One that was only found to be free
    could be another's by the time it is used.
    """
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    mp.spawn(_as_torchrun_would, args=(store.port, function, *args), nprocs=WORLD_SIZE)
