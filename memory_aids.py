"""What makes an agent look and remember: recall of what it has seen, recall by age, and a bonus for first visits.

Reward comes late and says nothing of what should have been remembered. Three aids fill the gap; each is off at 0.

- **Recall.** From the memory vector z_t a linear head predicts which observations this episode has shown, each
  weighted by how uncertain it is beforehand. Memory then holds the cue before the policy knows what it is good for.
- **Recall by age.** From z_t and an age k, drawn anew for each step, a head picks the frame of k steps ago among
  those of the minibatch. It teaches order, which the first recall does not ask for. (Predicting the past from a
  recurrent state: Trinh et al. 2018, https://arxiv.org/abs/1803.00144.)
- **First-visit bonus.** A reward for an observation that is new in its episode, times its rarity: what every episode
  shows earns nothing, what tells one from another goes on earning. Paid only where the task's own reward is silent,
  and up to a budget: an agent that earns more by looking on than by solving the task stays until its time is up.
  (Bonuses within an episode: Henaff et al. 2022, https://arxiv.org/abs/2210.05805.)

The first and the last need not an observation but a number for what looks the same: its code (`Codes`).

Shape letters: T steps, B sequences, N environments, D width, K distinct frames, C codes, P past steps.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from harness.checkpoint import check_form, check_range
from harness.flags import Range
from harness.processes import gather
from palmer_policy import episode_clock
from tasks.observations import BUCKETS, GRID_VALUES, Frames, is_grid, keys, picture_scale

RECENT_EPISODES = 500  # over which shares of episodes are averaged
CODES = 256  # most codes where observations are not a table's
# Sum of rarities after which an episode earns no more visit bonus: it decreases linearly up to there, so that an
# episode earns about twice the bonus at most, 0.6 by default, where the soonest solution earns 1.
VISIT_BUDGET = 4.0
CUE = 0.5  # p (1 - p) of two codes, one of which each episode shows
NEAR = 0.03  # root mean square difference of looks, up to which two are one code; noise of 30 grey levels makes 0.014
BLOCK = 7  # pixels of a picture that are averaged before looks are compared
DIGITS = (BUCKETS - 1).bit_length()  # binary ones, of a word's number


@dataclass
class MemoryAidArgs:
    """Flags of the aids."""

    recall_coef: Annotated[float, Range(0, 1000)] = 2.0
    """coefficient of the recall loss: predict from memory which observations this episode has shown (0: off)"""
    age_coef: Annotated[float, Range(0, 1000)] = 0.1
    """coefficient of the loss of recall by age: which frame was shown k steps ago, for k up to the steps of a
    rollout? 1 is a guess's loss (0: off)"""
    visit_bonus: Annotated[float, Range(0, 1000)] = 0.3
    """reward for an observation that is new in its episode, times its rarity beside what the episode has shown, at
    steps on which the task's own says nothing, up to a budget an episode; fades out as success comes near 1, at the
    latest in the last quarter of the run (0: off)"""


class MemoryAids:
    """The three aids, with the statistics that all episodes and processes share.

    heads: the parameters that learn beside the policy's. codes: what counts as the same observation.
    together (C, C): share of recent episodes that showed both of two codes.
    """

    def __init__(self, args: Any, envs: Any, width: int, device: torch.device):
        """args: a script's flags, MemoryAidArgs among them."""
        self.args, self.table = args, envs.observations
        # What the agent itself did and earned is no view of the task.
        self.codes = Codes(self.table, last_step=args.last_action or args.last_reward)
        self.past_steps = args.num_steps if args.age_coef > 0 else 0  # P, that a rollout keeps
        self.heads = nn.ModuleDict()  # only what is on
        if args.recall_coef > 0:
            self.heads["seen"] = SeenHead(width, self.codes.capacity)
        if args.age_coef > 0:
            self.heads["age"] = AgeHead(width, args.num_steps)
        self.heads.to(device)
        self.together = torch.zeros(self.codes.capacity, self.codes.capacity, device=device)
        self.familiar = self.together.diagonal()
        self.episodes = 0  # that the shares are made of, up to RECENT_EPISODES

    def nothing_seen(self, num_envs: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """`seen` (N, C) and `novelty` (N,) of N episodes that have shown nothing yet."""
        seen = torch.zeros(num_envs, self.codes.capacity, dtype=torch.bool, device=device)
        return seen, torch.zeros(num_envs, device=device)

    def first_visits(self, batch: Any, carry: Any, fading: float) -> tuple[Any, Any]:
        """Call once a rollout -> the rollout with the bonus in its `reward` and the codes `seen`, and the carry.

        fading: the share of the bonus that is paid, see `fading`.
        """
        # Frames of smaller numbers are of the steps before; where they never repeat they were looked at then.
        code_of, again = self.codes.learn(0 if self.table.distinct else int(min(batch.obs.min(), carry.obs.min())))
        seen, novelty = carry.seen, carry.novelty
        if again:  # codes began anew, and with them all that was counted by code
            self.together, self.episodes, seen = self.together * 0, 0, seen & False
        code, last = code_of[batch.obs], code_of[carry.obs]
        silent = says_nothing(batch.reward)
        rewards, targets = [], []
        for t in range(len(code)):
            done = batch.done[t]
            seen = seen.scatter(1, code[t, :, None], True)
            targets.append(seen)
            # The observation that the step led to; none where the episode ended, as nobody acts on it.
            led_to = code[t + 1] if t + 1 < len(code) else last
            new = ~seen.gather(1, led_to[:, None]).squeeze(1) & ~done
            worth = new * silent[t] * rarity(self.together, led_to, seen)
            left = (1 - novelty / VISIT_BUDGET).clamp_min(0)
            rewards.append(batch.reward[t] + self.args.visit_bonus * fading * worth * left)
            novelty = (novelty + worth) * ~done
            seen = seen & ~done[:, None]
        batch = batch._replace(reward=torch.stack(rewards), seen=torch.stack(targets))
        self.familiar = self.together.diagonal()
        self._count_episodes(batch.seen[batch.done])
        return batch, carry._replace(seen=seen, novelty=novelty)

    def losses(self, policy: Any, memory: Tensor, batch: Any) -> dict[str, tuple[Tensor, float]]:
        """Call once a minibatch, memory: z (T, B, D) -> each loss with its coefficient."""
        losses = {}
        if self.args.recall_coef > 0:
            C = self.codes.count
            loss = recall_loss(self.heads["seen"](memory, C), batch.seen[..., :C], self.familiar[:C])
            losses["recall_loss"] = loss, self.args.recall_coef
        if self.args.age_coef > 0:
            losses["age_loss"] = self._age_loss(policy, memory, batch), self.args.age_coef
        return losses

    def _age_loss(self, policy: Any, memory: Tensor, batch: Any) -> Tensor:
        """Cross-entropy of "which frame was shown k steps ago?" among the answers to all of a minibatch's questions.

        In units of that of a guess, so that four cards and five hundred pictures weigh the same.
        """
        age, answer = questions(batch, self.args.num_steps)
        age, answer, z = age.flatten(), answer.flatten(), memory.flatten(0, 1)
        numbers, index = self.table.distinct_numbers(answer, policy.fixed_shapes)
        # As the rollout encoded them: without gradient, as encodings would learn to be told apart instead of
        # remembered, and once, as pictures cost more than all the rest.
        candidates = batch.features[numbers]
        # With fixed shapes there are more frames than answers.
        other = torch.ones(len(candidates), dtype=torch.bool, device=index.device).index_fill(0, index, False)
        logits = self.heads["age"](z, age, candidates).masked_fill(other, -math.inf)
        loss = F.cross_entropy(logits, index, reduction="none")
        guess = (~other).sum().clamp_min(2).log()
        return (loss * (age > 0)).sum() / (age > 0).sum().clamp_min(1) / guess

    def state_dict(self) -> dict[str, Any]:
        return {
            "heads": self.heads.state_dict(),
            "codes": self.codes.state_dict(),
            "together": self.together.cpu().clone(),
            "episodes": self.episodes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for a state that cannot be one."""
        check_form({**state, "codes": None}, {**self.state_dict(), "codes": None}, "aids")
        check_range(state["together"], 0, 1.001, "together")
        if not 0 <= state["episodes"] <= RECENT_EPISODES:
            raise ValueError(f"episodes must be from 0 to {RECENT_EPISODES}")
        self.heads.load_state_dict(state["heads"])
        self.codes.load_state_dict(state["codes"])
        self.together = state["together"].to(self.together.device)
        self.episodes = state["episodes"]

    def _count_episodes(self, showed: Tensor) -> None:
        """Moves the shares towards the episodes that ended in any process: showed (E, C) bool, which codes."""
        counts = gather((showed.float().T @ showed.float(), len(showed)))
        ended = sum(number for _, number in counts)
        both = sum(count.to(self.together.device) for count, _ in counts)
        self.together = shares(self.together, both, ended, self.episodes)
        self.episodes = min(self.episodes + ended, RECENT_EPISODES)


class SeenHead(nn.Linear):
    """Memory z (..., D) -> logits (..., C) of "code c was met in this episode", for the first C codes."""

    def __init__(self, width: int, codes: int):
        super().__init__(width, codes)
        nn.init.orthogonal_(self.weight, 0.1)
        nn.init.zeros_(self.bias)

    def forward(self, z: Tensor, C: int) -> Tensor:
        return F.linear(z, self.weight[:C], self.bias[:C])


class AgeHead(nn.Module):
    """Which frame was shown k steps ago?

    logit(c) = query . key(c) / sqrt(D),  query = MLP(W z * e_k + z),  key(c) = W LayerNorm(encoding of frame c)
    """

    def __init__(self, width: int, ages: int):
        super().__init__()
        self.age = nn.Embedding(ages + 1, width)
        self.held = nn.Linear(width, width)
        self.query = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.key = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, z: Tensor, age: Tensor, frames: Tensor) -> Tensor:
        """z (Q, D), age (Q,), encoded frames (K, D) -> logits (Q, K)."""
        query = self.query(self.held(z) * self.age(age) + z)
        return query @ self.key(frames).T / math.sqrt(z.shape[-1])


def questions(batch: Any, most: int) -> tuple[Tensor, Tensor]:
    """For each step an age k, at most `most`, and the number of the frame of k steps ago, both (T, B).

    past  7 8   obs  9 5 6   episode  . 0 | 1 2 0      the episode of 8 began before the rollout, 6 starts another
                             age          1 2 0        k = 0: nothing to ask
                             answer       8 8 6
    """
    position, _ = episode_clock(batch.state.clock, batch.episode_start)
    age = draw_ages(position, len(batch.past), most)
    steps = torch.arange(len(age), device=age.device)[:, None] + len(batch.past)
    return age, torch.cat((batch.past, batch.obs)).gather(0, steps - age)


def draw_ages(position: Tensor, past: int, most: int) -> Tensor:
    """An age for each step, uniform from 1 to what the episode, the P kept steps or `most` allow; 0 where none is.

    position (T, B): steps of the episode before this one.

        position  0 1 2 3 0 1   with P = 0: ages from  - 1 1..2 1..3 - 1
    """
    T = len(position)
    reach = torch.arange(past, past + T, device=position.device)[:, None]
    allowed = torch.minimum(position, reach).clamp_max(most)
    drawn = 1 + (torch.rand(position.shape, device=position.device) * allowed).long()
    return torch.minimum(drawn, allowed)  # rounding could reach one further


def recall_loss(logits: Tensor, seen: Tensor, familiar: Tensor) -> Tensor:
    """Binary cross-entropy of "code c was met in this episode", logits and seen (T, B, C).

    Weighted by how uncertain each code is beforehand, p (1 - p) with p its share of recent episodes,
    familiar (C,): what every episode shows, or none, needs no memory. The constant lets nothing be forgotten.
    Where all codes together are less uncertain than a cue of two kinds, the loss counts for less: there is little to
    be held, and a memory that is to do something else, such as to count, would be kept from it.
    """
    weight = familiar * (1 - familiar) + 0.01
    loss = F.binary_cross_entropy_with_logits(logits, seen.float(), weight, reduction="sum")
    return loss / (weight.sum().clamp_min(CUE) * logits[..., 0].numel())


def rarity(together: Tensor, code: Tensor, seen: Tensor) -> Tensor:
    """How little an observation was to be expected in its episode, 1 to 0: code (N,), seen (N, C) bool -> (N,).

    One minus the share of recent episodes that showed it, or, where that is more, their share among those that showed
    another observation that this episode has shown too. What every episode shows thus stops earning the visit bonus,
    and so does a second view of the same object; what tells one episode from another, as the cue does, goes on
    earning it.

        together  corridor  ball  ball, nearer  key      A first ball has rarity 1 - 0.5, though the corridor has been
        corridor    1.0     0.5       0.4       0.5      seen: 0.5 / 1.0 is no more. The ball from nearer, after the
        ball        0.5     0.5       0.4        0       ball, has 1 - 0.4 / 0.5 = 0.2.
    """
    share = together.diagonal()
    beside = together[code] / (share + 1e-3) * seen  # 1e-3: a guard where hardly an episode has ended
    return (1 - torch.maximum(share[code], beside.amax(1))).clamp_min(0)


def says_nothing(reward: Tensor) -> Tensor:
    """Steps that earn what most steps earn, nothing or a price: reward (T, N) -> (T, N) bool.

    The bonus is for where reward is silent. Where every step is told how good it was, as in control tasks, it would
    pay for states that the task does not want, such as a falling pole.
    """
    return (reward == reward.median()) & (reward <= 0)


def shares(together: Tensor, both: Tensor, ended: int, counted: int) -> Tensor:
    """Move the shares (C, C) of episodes that showed two codes towards those of `ended` episodes that ended.

    both (C, C): of these, the number that showed both. The mean over all episodes until RECENT_EPISODES were
    counted, from then on a running average over about as many.
    """
    return together + (both - ended * together) / max(ended + counted, 1)


def fading(progress: float, solved: float) -> float:
    """Share of the visit bonus that is still paid, 1 to 0, after `progress` (0 to 1) of the run.

    All of it until half of the recent episodes were solved, then less, the more were, so that the agent finds the
    shortest way but goes on looking back while it still fails; where success stays away or is not known, less in the
    last quarter of the run.
    """
    return min(1.0, 4 * (1 - progress), 2 * (1 - solved))


# ---------------------------------------------------------------------------------- codes


class Codes:
    """A number for what looks the same, the same in all processes.

    - Tables: the observation's own number.
    - Observations that repeat: a number for each, up to CODES; those met later count as the nearest one.
    - Else, as with noise on every picture: the number of the nearest prototype, a look that was stored because none
      was near by then. Once CODES are stored, the nearest one counts, near or not.

    capacity: largest number of codes.
    """

    def __init__(self, table: Any, last_step: bool = False):
        """last_step: the last part of a frame is the agent's last action and reward, at which codes do not look."""
        self.table, self.exact = table, table.complete
        self.parts = len(table.space) - last_step
        self.capacity = table.count if self.exact else CODES
        self.near = 0.0
        self.prototypes: Tensor | None = None  # (C', F) looks
        self.spread: list[Tensor] = []  # of each part that is measured by it: its elements' standard deviations
        self._number_of: dict[bytes, int] = {}  # of each prototype, where only equal looks are one code

    @property
    def count(self) -> int:
        """C, codes in use."""
        return self.capacity if self.exact else len(self.prototypes)

    def learn(self, first: int = 0) -> tuple[Tensor, bool]:
        """Stores prototypes for what is near none -> code of each of the table's frames, and did codes restart?

        first: frames with smaller numbers are not looked at, and get code 0.
        """
        device = self.table.frames[0].device
        if self.exact:
            return torch.arange(self.table.count, device=device), False
        frames = tuple(part[first:] for part in self.table.frames[: self.parts])
        restart = self.near == 0 and not all(gather(self.table.distinct))
        if restart:
            self.near, self.prototypes = NEAR, None
        if self.prototypes is None:
            self.spread = gather([spread_of(numbers) for numbers in self._measured(frames)])[0]
        looks = self._looks(frames)
        if self.prototypes is None:
            self.prototypes = looks[:0]
        for far in gather(self._far(looks)):
            self._store(far.to(device))
        return F.pad(self._codes(looks), (first, 0)), restart

    def of(self, frames: Frames) -> Tensor:
        """Codes (K,) of K frames, which are not learned; -1 for one that is none of a table's."""
        if not self.exact:
            return self._codes(self._looks(frames[: self.parts]))
        known, asked = (keys(tuple(part.cpu().numpy() for part in some)) for some in (self.table.frames, frames))
        number_of = {key: number for number, key in enumerate(known)}
        return torch.tensor([number_of.get(key, -1) for key in asked])

    def state_dict(self) -> dict[str, Any]:
        return {"near": self.near, "prototypes": self.prototypes, "spread": self.spread}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for a state that cannot be one."""
        near, prototypes, spread = state["near"], state["prototypes"], state["spread"]
        if type(near) is not float or near not in (0.0, NEAR) or (self.exact and prototypes is not None):
            raise ValueError("its codes are of another task")
        self.near, self.prototypes, self.spread, self._number_of = near, None, [], {}
        if prototypes is None:
            return
        frames = tuple(part[:1] for part in self.table.frames[: self.parts])
        check_form(spread, [numbers[0].float() for numbers in self._measured(frames)], "spread")
        if any((part <= 0).any() for part in spread):
            raise ValueError("a spread must be above 0")
        self.spread = [part.to(frames[0].device) for part in spread]
        check_form(prototypes, self._looks(frames).expand(len(prototypes), -1), "prototypes")
        if len(prototypes) > self.capacity:
            raise ValueError(f"prototypes must be {self.capacity} at most")
        self.prototypes = prototypes.to(frames[0].device)

    def _far(self, looks: Tensor) -> Tensor:
        """Those near no prototype, a few times as many as can be stored at most."""
        if len(self.prototypes) == self.capacity:
            return looks[:0]
        if self.near:
            return looks[self._distance(looks).amin(1) > self.near][: 4 * CODES]
        known = self._numbers()
        return looks[torch.tensor([key not in known for key in rows_as_bytes(looks)], dtype=torch.bool)]

    def _store(self, looks: Tensor) -> None:
        """One by one, as each may be near the one before."""
        while len(looks) and len(self.prototypes) < self.capacity:
            self.prototypes = torch.cat((self.prototypes, looks[:1]))
            looks = self._far(looks[1:])

    def _codes(self, looks: Tensor) -> Tensor:
        """Of each look the first prototype that is near, or else the nearest one.

        The first, so that no prototype stored later changes a code.
        """
        if self.near:
            distance = self._distance(looks)
            near = distance <= self.near
            return torch.where(near.any(1), near.int().argmax(1), distance.argmin(1))
        known, keys = self._numbers(), rows_as_bytes(looks)
        other = torch.tensor([key not in known for key in keys], dtype=torch.bool)
        codes = torch.tensor([known.get(key, 0) for key in keys], device=looks.device)
        if other.any():
            codes[other] = self._distance(looks[other]).argmin(1)
        return codes

    def _distance(self, looks: Tensor) -> Tensor:
        """(K, F) -> (K, C'), to each prototype."""
        if not len(self.prototypes):
            return looks.new_full((len(looks), 1), math.inf)
        # A matrix product would be sooner, but makes no distance of numbers that are large beside their spread.
        mode = "donot_use_mm_for_euclid_dist" if self.spread else "use_mm_for_euclid_dist_if_necessary"
        return torch.cdist(looks, self.prototypes, compute_mode=mode)

    def _numbers(self) -> dict[bytes, int]:
        """Number of each prototype; a hash, as equal looks need no distances."""
        for number in range(len(self._number_of), len(self.prototypes)):
            self._number_of[rows_as_bytes(self.prototypes[number : number + 1])[0]] = number
        return self._number_of

    def _measured(self, frames: Frames) -> list[Tensor]:
        """(K, n), each part whose unit nothing but its spread tells: vectors, and pictures whose bounds tell none."""
        parts = zip(frames, self.table.space, strict=False)
        return [part if is_vector(part) else pooled(part) for part, space in parts if unit_is_unknown(part, space)]

    def _looks(self, frames: Frames) -> Tensor:
        """What is compared: (K, F), pictures pooled, cells one-hot, words by the binary digits of their numbers, as
        those of neighbouring numbers are no more alike than others, all else in tenths of its first spread.

        Each part counts as much as any other: the square of a distance is the sum of their mean squares.
        """
        looks, spread = [], iter(zip(self._measured(frames), self.spread, strict=True))
        for part, space in zip(frames, self.table.space, strict=False):
            if part.ndim == 4 and is_grid(space):
                look = F.one_hot(part.long(), max(GRID_VALUES)).flatten(1).float()
            elif unit_is_unknown(part, space):
                numbers, deviation = next(spread)
                look = numbers / (10 * deviation)
            elif part.ndim == 4:
                look = pooled(part) * picture_scale(space)
            else:
                look = (part[..., None] >> torch.arange(DIGITS, device=part.device) & 1).flatten(1).float()
            looks.append(look / math.sqrt(look.shape[1]))
        return torch.cat(looks, 1)


def pooled(pictures: Tensor) -> Tensor:
    """(K, height, width, channels) -> (K, F), means over blocks of 7x7 pixels; small pictures as they are."""
    K, height, width, channels = pictures.shape
    if min(height, width) < 4 * BLOCK:
        return pictures.flatten(1).float()
    rows, columns = height // BLOCK, width // BLOCK
    # By NumPy, in whole numbers and rows first: six times as fast as an average pool of floats.
    array = pictures[:, : rows * BLOCK, : columns * BLOCK].cpu().numpy()
    whole = np.uint16 if array.dtype == np.uint8 else np.float32
    strips = np.add.reduce(array.reshape(K, rows, BLOCK, columns * BLOCK * channels), axis=2, dtype=whole)
    blocks = strips.reshape(K, rows, columns, BLOCK, channels).sum(3, dtype=np.float32)
    return torch.from_numpy(blocks.reshape(K, -1) / BLOCK**2).to(pictures.device)


def rows_as_bytes(looks: Tensor) -> list[bytes]:
    return [row.tobytes() for row in looks.cpu().numpy()]


def is_vector(part: Tensor) -> bool:
    """Numbers, and not words, which are whole."""
    return part.ndim == 2 and part.is_floating_point()


def unit_is_unknown(part: Tensor, space: Any) -> bool:
    return is_vector(part) or (part.ndim == 4 and not is_grid(space) and picture_scale(space) is None)


def spread_of(vector: Tensor) -> Tensor:
    """(K, n) -> (n,), standard deviations; 1 for what is always the same, as there is nothing to measure it by."""
    spread = vector.double().std(0, correction=0)
    return torch.where(spread > 0, spread, 1).clamp(1e-30, 1e30).float()
