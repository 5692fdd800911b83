"""CUDA graphs: a step that always launches the same kernels is recorded once, then replayed without Python.

    python ppo_palmer.py --cuda-graphs --num-envs 4096

A policy step on a GPU is about a hundred kernels of a few microseconds each; starting them one by one from Python
takes longer than they do. See https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from palmer_policy import KeyValueCache, MemoryPolicy

# Calls before the recording, which must find everything allocated and initialised.
WARM_UP_CALLS = 3

pytree.register_pytree_node(
    KeyValueCache, lambda cache: ([cache.window], None), lambda windows, _: KeyValueCache(windows[0])
)


class GraphedStep:
    """`step(*inputs)`, recorded at its first calls and replayed from then on.

    step: takes and returns nested tuples and dicts of tensors, and other values, which must not change. It always
    launches the same kernels: shapes are fixed, nothing is looked at on the CPU. It may change parameters in place.

    The graph works on tensors of its own: inputs are copied into them and results out of them, so that callers may
    keep what they get. Raises ValueError if the shapes or the other values of a call differ from those recorded.
    """

    def __init__(self, step: Callable[..., Any]):
        self.step = step
        self.calls = 0
        self.graph = None

    def __call__(self, *inputs: Any) -> Any:
        if self.calls < WARM_UP_CALLS:
            self.calls += 1
            return self._on_side_stream(inputs)
        if self.graph is None:
            self.inputs = pytree.tree_map_only(Tensor, torch.clone, inputs)
            self.graph, self.outputs = self._record(self.inputs)
        for own, given in zip(pytree.tree_leaves(self.inputs), pytree.tree_leaves(inputs), strict=True):
            if isinstance(own, Tensor):
                if own.shape != given.shape:
                    raise ValueError(f"recorded with {tuple(own.shape)}, called with {tuple(given.shape)}")
                own.copy_(given)
            elif own is not given and own != given:
                raise ValueError(f"recorded with {own!r}, called with {given!r}")
        self.graph.replay()
        return pytree.tree_map_only(Tensor, torch.clone, self.outputs)

    def _on_side_stream(self, inputs: tuple) -> Any:
        """Recording wants its warm-up off the default stream."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self.step(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return outputs

    def _record(self, inputs: tuple) -> tuple[Any, Any]:
        """Nothing is computed yet: the kernels run at the first `replay`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.step(*inputs)
        return graph, outputs


def graph_rollout(policy: MemoryPolicy, num_envs: int, step: type[GraphedStep] = GraphedStep) -> None:
    """Let `policy.act` replay a graph for single steps of `num_envs` environments; all else stays as it is."""
    plain = policy.act
    graphed = step(plain)

    def act(x: Tensor, state: Any, episode_start: Tensor) -> Any:
        alike = x.shape[:2] == (1, num_envs) and not torch.is_grad_enabled()
        return (graphed if alike else plain)(x, state, episode_start)

    policy.act = act
