"""Random generators: seeded at the start, saved and put back on resume."""

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (CPU and GPUs)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False  # it picks kernels by timing them, which differs from run to run


def random_state() -> dict[str, Any]:
    """All generators' states, as tensors and plain values that a checkpoint can hold."""
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state()
    version, words, next_gaussian = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        # Asking an unused GPU for its state would start CUDA in a CPU run.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [name, keys.tolist(), position, has_gauss, cached_gaussian],
        "python": [version, list(words), next_gaussian],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put all generators back to what `random_state` returned; GPUs only if there are as many as then."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([gpu_state.cpu() for gpu_state in state["cuda"]])
    name, keys, position, has_gauss, cached_gaussian = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached_gaussian))
    version, words, next_gaussian = state["python"]
    random.setstate((version, tuple(words), next_gaussian))
