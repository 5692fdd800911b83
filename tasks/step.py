"""What environments give back, whatever they are made of."""

from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """What one action did in each of N environments; an ended episode has already been reset.

    obs: (N,) int64, observation to act on next: the first of a new episode where the old one ended.
    reward: (N,) float32, the environment's own reward.
    terminated: (N,) bool, the episode reached its end.
    truncated: (N,) bool, time ran out; never true where `terminated` is (both at once is a termination).
    final_obs: (N,) int64, the observation the action led to, before any reset (== obs within an episode).
    success: (N,) bool, the episode ended in success; False where the task does not tell.
    """

    obs: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_obs: Tensor
    success: Tensor
