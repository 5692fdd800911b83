"""The unit in which rewards are learned."""

from typing import Any

import torch
from torch import Tensor

from harness.checkpoint import check_form
from harness.processes import gather

DECAY = 1 / 200  # a rollout: an outlier of long ago is forgotten


class ReturnScale:
    """The largest discounted return of late, in size: rewards divided by it are learned alike in any unit.

    Value loss, advantages and the price of entropy are then all in units of what can be gained at most. The largest
    and not a mean square, as that would be next to nothing where success is rare. 1 before the first reward.
    """

    def __init__(self, device: torch.device):
        self.value = torch.ones((), device=device)
        self._largest = torch.zeros((), device=device)

    def learn(self, discounted: Tensor) -> Tensor:
        """discounted (T, N), g_t = gamma g_{t-1} + r_t of the running episodes -> the scale from now on."""
        rollout = torch.stack([largest.to(discounted.device) for largest in gather(discounted.abs().max())]).max()
        self._largest = torch.maximum(rollout, self._largest * (1 - DECAY * (rollout > 0)))
        self.value = torch.where(self._largest > 0, self._largest, torch.ones_like(self._largest))
        return self.value

    def state_dict(self) -> dict[str, Any]:
        return {"largest": self._largest.cpu().clone(), "value": self.value.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for a state that cannot be one."""
        check_form(state, self.state_dict(), "scale")
        if state["largest"] < 0 or state["value"] <= 0:
            raise ValueError("a scale must be above 0")
        self._largest, self.value = (state[name].to(self.value.device) for name in ("largest", "value"))
