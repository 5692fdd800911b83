"""What is refused before a run makes anything: sizes beyond the memory there is, and films of what has no picture."""

import os
from typing import Any

import torch

from harness.flags import flag_of
from harness.input_error import InputError
from tasks.real import check_picture, requested_limit

SIZES = ("num_envs", "num_steps", "width", "memory_length", "lstm_layers", "trxl_layers", "trxl_ff_mult")


def check_run(args: Any, device: torch.device) -> None:
    """args: a training script's flags, each in its range. Raises InputError where `device` cannot train with them."""
    needed, there = bytes_needed(args, device), bytes_there(device)
    if there is not None and needed > there:
        sizes = ", ".join(f"{flag_of(name)} {getattr(args, name)}" for name in SIZES if hasattr(args, name))
        raise InputError(
            f"{sizes}: together these take about {needed / 1e9:,.0f} GB of memory, and "
            f"{'the GPU' if device.type == 'cuda' else 'this machine'} has {there / 1e9:,.0f} GB; make them smaller."
        )
    if args.capture_video:
        check_picture(args, "--capture-video")


def bytes_needed(args: Any, device: torch.device) -> float:
    """About what a process allocates for all but observations.

    By the measurements of study/benchmark_speed.py on a CPU no more than what is taken, and of large runs hardly
    less: what is refused would not have fitted.
    """
    T, D = args.num_steps, args.width
    N = args.num_envs / int(os.environ.get("WORLD_SIZE", "1"))
    lstm, transformer = getattr(args, "lstm_layers", 0), getattr(args, "trxl_layers", 0)
    weights = (8 * lstm + (4 + 2 * getattr(args, "trxl_ff_mult", 0)) * transformer + 8) * D**2 + T * D
    # A memory longer than the episodes is free, but where shapes are fixed.
    cached = getattr(args, "memory_length", 0)
    limit = requested_limit(args)
    if limit is not None and device.type == "cpu":
        cached = min(cached, limit)
    keys_values = 2 * cached * transformer * D  # of an environment
    activations = (18 + 18 * lstm + 30 * transformer) * D  # of a step of a minibatch
    return 4 * (
        4 * weights  # with gradients and Adam's two moments
        + 3.5 * N * keys_values  # before and after a rollout, growing, in a minibatch
        + N * T * (2 * D + 100)  # gates and encodings, and what is known of each step
        + N / args.num_minibatches * T * activations
    )


def bytes_there(device: torch.device) -> int | None:
    """Memory that a process has on `device`; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return machine // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
