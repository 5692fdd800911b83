"""What makes an agent look and remember: the recall loss and the first-visit bonus.

Reward comes late and says nothing of what should have been remembered. Two aids fill the gap; both are off at 0.

- **Recall loss.** From the memory vector z_t a linear head predicts which observations this episode has shown, each
  weighted by how uncertain it is beforehand. Memory then holds the cue before the policy knows what it is good for.
  (Predicting the past from a recurrent state: Trinh et al. 2018, https://arxiv.org/abs/1803.00144.)
- **First-visit bonus.** A reward for an observation that is new in its episode, times its rarity: what every episode
  shows earns nothing, what tells one from another goes on earning. (Bonuses within an episode: Henaff et al. 2022,
  https://arxiv.org/abs/2210.05805.)

Shape letters: T steps, B sequences, N environments, D width, K distinct observations.
"""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.flags import Range

RECENT_EPISODES = 500  # over which shares of episodes are averaged


@dataclass
class MemoryAidArgs:
    """Flags of the two aids."""

    recall_coef: Annotated[float, Range(0, 1000)] = 2.0
    """coefficient of the recall loss: predict from memory which observations this episode has shown (0: off)"""
    visit_bonus: Annotated[float, Range(0, 1000)] = 0.3
    """reward for an observation that is new in its episode, times its rarity beside what the episode has shown; fades
    out as success comes near 1, at the latest in the last quarter of the run (0: off)"""
    visit_budget: Annotated[float, Range(0, 1e6, above=True)] = 4.0
    """sum of rarities after which an episode earns no more visit bonus: it decreases linearly up to there, so that
    an episode earns about visit_bonus x visit_budget / 2 at most, and solving it pays more than staying"""


class Episodes(NamedTuple):
    """What the running episodes of N environments have shown before their present observation."""

    seen: Tensor  # (N, K) bool
    novelty: Tensor  # (N,) float, sum of the rarities met


class MemoryAids:
    """Both aids, with the statistics that all episodes share.

    together (K, K): share of recent episodes that showed both of two observations.
    """

    def __init__(self, args: MemoryAidArgs, envs: Any):
        self.args, self.table = args, envs.observations
        self.together = self.familiar = torch.zeros(0, 0)

    def first_episodes(self, num_envs: int, device: torch.device) -> Episodes:
        """Of N episodes that have shown nothing yet."""
        K = self.table.capacity
        return Episodes(
            torch.zeros(num_envs, K, dtype=torch.bool, device=device), torch.zeros(num_envs, device=device)
        )

    def first_visits(self, batch: Any, carry: Any, fading: float) -> tuple[Any, Any]:
        """Call once a rollout -> the rollout with the bonus in its `reward` and `seen`, and the carry.

        fading: the share of the bonus that is paid, see `fading`.
        """
        seen, novelty = carry.episodes
        self.together = room_for(self.together.to(seen.device), self.table.count)
        rewards, targets = [], []
        for t, obs in enumerate(batch.obs):
            done = batch.done[t]
            seen = seen.scatter(1, obs[:, None], True)
            targets.append(seen)
            # The observation that the step led to; none where the episode ended, as nobody acts on it.
            led_to = batch.obs[t + 1] if t + 1 < len(batch.obs) else carry.obs
            new = ~seen.gather(1, led_to[:, None]).squeeze(1) & ~done
            worth = new * rarity(self.together, led_to, seen)
            left = (1 - novelty / self.args.visit_budget).clamp_min(0)
            rewards.append(batch.reward[t] + self.args.visit_bonus * fading * worth * left)
            novelty = (novelty + worth) * ~done
            seen = seen & ~done[:, None]
        batch = batch._replace(reward=torch.stack(rewards), seen=torch.stack(targets))
        self.familiar = self.together.diagonal()
        self.together = share_of_episodes(self.together, batch.seen, batch.done)
        return batch, carry._replace(episodes=Episodes(seen, novelty))

    def recall_loss(self, policy: Any, memory: Tensor, seen: Tensor) -> Tensor:
        """Call once a minibatch: memory z (T, B, D), seen (T, B, K) bool -> the loss."""
        count = len(self.familiar)
        logits = policy.recall_logits(memory, count)
        return recall_loss(logits, seen[..., :count], self.familiar)

    def state_dict(self) -> dict[str, Any]:
        return {"together": self.together}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.together = state["together"]


def recall_loss(logits: Tensor, seen: Tensor, familiar: Tensor) -> Tensor:
    """Binary cross-entropy of "observation k was met in this episode", logits and seen (T, B, K).

    Weighted by how uncertain each observation is beforehand, p (1 - p) with p its share of recent episodes,
    familiar (K,): what every episode shows, or none, needs no memory. The constant lets nothing be forgotten.
    """
    weight = familiar * (1 - familiar) + 0.01
    loss = F.binary_cross_entropy_with_logits(logits, seen.float(), weight, reduction="sum")
    return loss / (weight.sum() * logits[..., 0].numel())


def room_for(together: Tensor, count: int) -> Tensor:
    """`together` with rows and columns of zeros for observations that were met since it was made."""
    missing = count - len(together)
    return F.pad(together, (0, missing, 0, missing)) if missing else together


def rarity(together: Tensor, obs: Tensor, seen: Tensor) -> Tensor:
    """How little an observation was to be expected in its episode, 1 to 0: obs (N,), seen (N, K') bool -> (N,).

    One minus the share of recent episodes that showed it, or, where that is more, their share among those that showed
    another observation that this episode has shown too. What every episode shows thus stops earning the visit bonus,
    and so does a second view of the same object; what tells one episode from another, as the cue does, goes on
    earning it.

        together  corridor  ball  ball, nearer  key      A first ball has rarity 1 - 0.5, though the corridor has been
        corridor    1.0     0.5       0.4       0.5      seen: 0.5 / 1.0 is no more. The ball from nearer, after the
        ball        0.5     0.5       0.4        0       ball, has 1 - 0.4 / 0.5 = 0.2.
    """
    K = len(together)
    share = together.diagonal()
    beside = together[obs] / (share + 1e-3) * seen[:, :K]  # 1e-3: a guard where hardly an episode has ended
    return (1 - torch.maximum(share[obs], beside.amax(1))).clamp_min(0)


def share_of_episodes(together: Tensor, seen: Tensor, done: Tensor) -> Tensor:
    """Move the shares (K, K) of episodes that showed two observations towards those of the episodes that ended.

    seen (T, N, K') and done (T, N), both bool. A running average over about the last 500 episodes; the diagonal is
    the share of those that showed an observation.
    """
    showed = seen[done][:, : len(together)].float()  # (episodes that ended, K)
    ended = len(showed)
    return together + (showed.T @ showed - ended * together) / (ended + RECENT_EPISODES)


def fading(progress: float, solved: float) -> float:
    """Share of the visit bonus that is still paid, 1 to 0, after `progress` (0 to 1) of the run.

    All of it until half of the recent episodes were solved, then less, the more were, so that the agent finds the
    shortest way but goes on looking back while it still fails; where success stays away or is not known, less in the
    last quarter of the run.
    """
    return min(1.0, 4 * (1 - progress), 2 * (1 - solved))
