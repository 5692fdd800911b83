"""Data-parallel training: K processes, each with its share of the environments, take one and the same gradient step.

    torchrun --nproc-per-node=2 ppo_palmer.py --env-id MiniGrid-MemoryS13-v0

torchrun starts the processes and tells each its rank. Without torchrun there is one process of rank 0, and every
function here gives back what it was given.
"""

import importlib
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.input_error import InputError


def choose_device(cuda: bool) -> torch.device:
    """The GPU if asked for and there, otherwise the CPU. Of several GPUs each process on a machine takes its own.

    Raises InputError where the machine has fewer GPUs than processes.
    """
    if not cuda:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        print("--cuda: no usable GPU found, running on the CPU")
        return torch.device("cpu")
    local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= gpus:
        raise InputError(
            f"--cuda: process {local_rank} of this machine needs a GPU of its own, and there are {gpus}; start at "
            f"most {gpus} processes a machine, or use the CPU with --no-cuda."
        )
    # Also the current device, on which NCCL and everything that names no number then work.
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def join_processes(device: torch.device) -> tuple[int, int]:
    """Meet the other processes that torchrun started -> rank, number of processes."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and not dist.is_initialized():
        # Imported later, as torch.optim does, it keeps the group as a default argument of its functions: the group
        # then outlives leave_processes, and its threads now and then abort the process as Python ends.
        importlib.import_module("torch.distributed.nn.functional")
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return (dist.get_rank(), world_size) if world_size > 1 else (0, 1)


def leave_processes() -> None:
    """Ends the group and its threads."""
    if dist.is_initialized():
        dist.destroy_process_group()


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of every process's x, of any shape, on all of them."""
    if dist.is_initialized():
        x = x.clone()
        dist.all_reduce(x)
        x /= dist.get_world_size()
    return x


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the processes; in one message, as many small ones would be slow."""
    if dist.is_initialized():
        gradients = [p.grad for p in parameters if p.grad is not None]
        mean = mean_over_processes(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def gather(value: Any) -> list[Any]:
    """Every process's value, in the order of ranks."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def any_process(*flags: bool) -> list[bool]:
    """For each flag, whether it is set in any process: all must agree when to stop or to save."""
    return [any(column) for column in zip(*gather(flags), strict=True)]
