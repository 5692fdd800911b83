"""PPO with an LSTM: the agent of ppo_palmer.py with the short-term memory alone.

Source: Proximal Policy Optimization (Schulman et al. 2017, https://arxiv.org/abs/1707.06347), in the manner of
CleanRL (https://github.com/vwxyzjn/cleanrl); the policy is in palmer_policy.py, the environments in memory_envs.py.

    python ppo_lstm.py --env-id MiniGrid-MemoryS11-v0
    python evaluate.py --checkpoint runs/RUN/checkpoint.pt

One observation's way through this file: `rollout` plays T steps in N environments and keeps the memory state it
started from; `advantages` looks back over the rewards; `update` cuts the rollout into minibatches of whole
sequences, and `minibatch_step` runs one through the policy again, from that same state, so that the policy that
learns is the policy that acted; `main` repeats. ppo_palmer.py and ppo_trxl.py differ from this file in the policy,
`make_agent` and its flags alone.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from cuda_graphs import GraphedStep, graph_rollout
from distributed import (
    any_process,
    average_gradients,
    gather,
    join_processes,
    leave_processes,
    mean_over_processes,
)
from evaluate import describe, evaluate_policy
from experiment import (
    Interrupt,
    Progress,
    RunFolder,
    check_args,
    choose_device,
    load_checkpoint,
    random_state,
    resume_args,
    run_script,
    save_checkpoint,
    seed_everything,
    set_random_state,
    write_json,
)
from input_error import InputError
from memory_envs import make_envs
from palmer_policy import LSTMMemory, MemoryPolicy, MemoryState, empty_state

ALGO = "lstm"
RECENT_EPISODES = 500  # the training success rate is that of the episodes that ended last
LEAST_SPREAD = 0.02  # of advantages to normalise by; below it they are noise
PROCESS_SEED = 1_000_000  # apart from one process's seed to the next one's


@dataclass
class Args:
    exp_name: str = "ppo_lstm"
    """name of this experiment, part of the run folder's name"""
    preset: Literal["default", "report"] = "default"
    """default: small network for a laptop; report: the settings of the original publication"""
    seed: int = 1
    """seed of everything random; with as many threads it gives the same run, bit for bit, on the CPU"""
    torch_deterministic: bool = True
    """ask PyTorch for deterministic kernels (matters on a GPU)"""
    cuda: bool = True
    """use the GPU if there is one"""
    cuda_graphs: bool = False
    """on a GPU, replay policy steps and gradient steps as CUDA graphs"""
    track: bool = False
    """also log to Weights & Biases (needs `pip install wandb`)"""
    wandb_project_name: str = "palmer"
    """the Weights & Biases project"""
    wandb_entity: str | None = None
    """the Weights & Biases team"""
    capture_video: bool = False
    """film five episodes of every evaluation, in the run folder's videos/"""
    save_model: bool = True
    """save checkpoint.pt in the run folder, while training and at the end"""
    checkpoint_every: float = 60.0
    """seconds between two checkpoints"""
    run_dir: str = ""
    """folder of this run; empty: runs/{env_id}__{exp_name}__{seed}__{unix_time}"""
    resume: str = ""
    """continue the run in this folder from its checkpoint"""

    env_id: str = "MiniGrid-MemoryS13-v0"
    """the environment: MiniGrid-Memory of any odd size up to 65, or any other Gymnasium id with discrete actions"""
    env_backend: Literal["auto", "table", "gymnasium"] = "auto"
    """table: enumerated MiniGrid Memory, exact and fast; gymnasium: the real package; auto: table where possible"""
    obs_mode: Literal["rgb", "symbolic"] = "rgb"
    """MiniGrid observations: pictures of 84x84 pixels, or cells as (object, colour, state)"""
    agent_view_size: int = 3
    """side of the agent's square view in MiniGrid, in cells (odd, at least 3)"""
    max_episode_steps: int | None = None
    """episode limit in steps; 0: the environment's own; not given: 96 for MiniGrid Memory, its own elsewhere"""

    total_timesteps: int = 1_000_000
    """environment steps of the whole run"""
    stop_at_success: float | None = None
    """end training earlier, once so large a share of the last 500 training episodes was solved; None: never"""
    num_envs: int = 64
    """N, environments played at once"""
    num_steps: int = 32
    """T, steps of each environment in one rollout; gradients reach back this far at most"""
    num_minibatches: int = 4
    """minibatches an epoch, each a set of whole environments"""
    update_epochs: int = 3
    """passes over each rollout"""
    learning_rate: float = 1e-3
    """Adam's learning rate at the start"""
    final_learning_rate: float | None = 0.0
    """learning rate at the end of annealing; None: constant"""
    anneal_steps: int = 0
    """environment steps over which learning rate and entropy coefficient are annealed; 0: the whole run"""
    gamma: float = 0.985
    """discount factor"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    norm_adv: bool = True
    """divide the advantages of each rollout, and the entropy coefficient with them, by their standard deviation"""
    clip_coef: float = 0.2
    """PPO's clipping range of the probability ratio"""
    clip_vloss: bool = False
    """clip the value loss by the same range"""
    ent_coef: float = 2e-3
    """entropy coefficient at the start, in units of the reward"""
    final_ent_coef: float | None = 3e-4
    """entropy coefficient at the end of annealing; None: constant"""
    solved_ent_coef: float | None = 6e-3
    """entropy coefficient of an agent that solves everything, so that it finds shorter ways: reached between 0.97 and
    1 success, left again in the last two fifths of the run; None: success makes no difference"""
    vf_coef: float = 0.5
    """coefficient of the value loss"""
    max_grad_norm: float = 0.5
    """largest norm of the gradient"""
    target_kl: float | None = None
    """stop a rollout's epochs once the approximate KL divergence exceeds this"""
    recall_coef: float = 2.0
    """coefficient of the recall loss: predict from memory which observations this episode has shown (0: off)"""
    visit_bonus: float = 0.3
    """reward for an observation that is new in its episode, times its rarity beside what the episode has shown; fades
    out as success comes near 1, at the latest in the last quarter of the run (0: off)"""
    visit_budget: float = 4.0
    """sum of rarities after which an episode earns no more visit bonus: it decreases linearly up to there, so that
    an episode earns about visit_bonus x visit_budget / 2 at most, and solving it pays more than staying"""

    width: int = 128
    """D, width of encoder output, memories and hidden layer"""
    cnn: Literal["patch", "nature"] = "patch"
    """encoder of images: small patches seen once, or the larger one of Mnih et al. 2015"""
    lstm_layers: int = 1
    """L of the LSTM"""

    hidden: Literal["gated", "relu"] = "gated"
    """hidden layer of the policy and value heads: products of two linear layers, or one with ReLU"""
    forget: bool = False
    """empty the memory before every step, to see what the memory is worth"""

    eval_every: int = 100_000
    """environment steps between two evaluations on the real environment (0: only at the end)"""
    eval_episodes: int = 100
    """episodes of each evaluation while training"""
    final_eval_episodes: int = 1000
    """episodes of the evaluation at the end"""


PRESETS = {
    "default": {},
    "report": dict(
        num_envs=32,
        num_steps=512,
        total_timesteps=2_000_000,
        num_minibatches=8,
        update_epochs=3,
        gamma=0.995,
        learning_rate=2.75e-4,
        final_learning_rate=1e-5,
        anneal_steps=164_000_000,
        norm_adv=False,
        clip_coef=0.1,
        clip_vloss=True,
        ent_coef=1e-4,
        final_ent_coef=1e-6,
        solved_ent_coef=None,
        max_grad_norm=0.25,
        recall_coef=0.0,
        visit_bonus=0.0,
        width=384,
        cnn="nature",
        lstm_layers=3,
        hidden="relu",
    ),
}


class LSTMPolicy(MemoryPolicy):
    """PALMER without its Transformer and gate: z_t = h^L_t = LayerNorm(LSTM(x_t, h_{t-1}, c_{t-1}))."""

    def __init__(
        self,
        observation_space,
        action_space,
        num_observations: int,
        *,
        width: int,
        cnn: str,
        lstm_layers: int,
        hidden: str,
        forget: bool,
    ):
        super().__init__(observation_space, action_space, num_observations, width, cnn, hidden, forget)
        self.lstm = LSTMMemory(width, lstm_layers)

    def initial_state(self, batch: int) -> MemoryState:
        return empty_state(self, batch, lstm=self.lstm)

    def remember(self, x: Tensor, state: MemoryState, episode_start: Tensor) -> tuple[Tensor, None, MemoryState]:
        z, h, c = self.lstm(x, state.h, state.c, episode_start)
        return z, None, state._replace(h=h, c=c)


def make_agent(args: Args, observation_space, action_space, num_observations: int) -> MemoryPolicy:
    """The one function, with the policy that it makes, in which the three scripts differ."""
    return LSTMPolicy(
        observation_space,
        action_space,
        num_observations,
        width=args.width,
        cnn=args.cnn,
        lstm_layers=args.lstm_layers,
        hidden=args.hidden,
        forget=args.forget,
    )


class Carry(NamedTuple):
    """What passes from one rollout to the next, for N environments."""

    obs: Tensor  # (N,) int64, number of the observation to act on
    episode_start: Tensor  # (N,) bool, that observation is the first of its episode
    state: MemoryState  # memory before it
    seen: Tensor  # (N, K) bool, observations this episode has shown, the present one included
    episode_return: Tensor  # (N,) float, true rewards of the running episode so far
    episode_length: Tensor  # (N,) int64
    novelty: Tensor  # (N,) float, sum of the rarities that the running episode has met
    together: Tensor  # (K, K) float, share of recent episodes that showed both of two observations


class Rollout(NamedTuple):
    """T steps of N environments. All (T, N) unless said otherwise."""

    state: MemoryState  # memory of the N environments before the first step
    obs: Tensor  # int64
    episode_start: Tensor  # bool
    action: Tensor  # (T, N) or (T, N, components) int64
    logprob: Tensor
    value: Tensor
    reward: Tensor  # with the visit bonus
    done: Tensor  # bool, the step ended its episode
    timeout_value: Tensor  # value of the true last observation where the step ended in a time-out, else 0
    next_value: Tensor  # (N,) value of the observation after the last step
    seen: Tensor  # (T, N, K) bool, the recall target
    familiar: Tensor  # (K,) share of recent episodes that showed an observation
    episode: Tensor  # (T, N, 3), return, length and success of the episode so far
    gate: Tensor | None  # (4,) mean, least, largest and standard deviation of the gate's values


def first_carry(policy: MemoryPolicy, envs) -> Carry:
    """Fresh episodes in all N environments, with an empty memory."""
    obs, table = envs.reset(), envs.observations
    N, device = envs.num_envs, obs.device
    return Carry(
        obs=obs,
        episode_start=torch.ones(N, dtype=torch.bool, device=device),
        state=policy.initial_state(N),
        seen=F.one_hot(obs, table.capacity).bool() if table.distinct else obs.new_zeros(N, 0, dtype=torch.bool),
        episode_return=torch.zeros(N, device=device),
        episode_length=torch.zeros(N, dtype=torch.int64, device=device),
        novelty=torch.zeros(N, device=device),
        together=torch.zeros(0, 0, device=device),
    )


@torch.no_grad()
def rollout(args: Args, policy: MemoryPolicy, envs, carry: Carry, visit_bonus: float) -> tuple[Rollout, Carry]:
    """Play T steps in N environments."""
    T, N = args.num_steps, envs.num_envs
    table = envs.observations
    carry = carry._replace(obs=table.keep(carry.obs))
    obs, start, state, seen, episode_return, episode_length, novelty, together = carry
    if not table.distinct:
        seen, together = seen[:, :0], together[:0, :0]
    features = policy.encoder(table.frames)  # the parameters stand still, so each frame is encoded once
    everyone = torch.arange(N, device=obs.device)
    steps, gates = [], []
    for _ in range(T):
        output, state_after = policy.act(features[obs][None], state, start[None])
        distribution = policy.distribution(output.logits[0])
        action = distribution.sample()
        env_step = envs.step(action)
        features = encode_new(policy, table, features)
        done = env_step.terminated | env_step.truncated
        episode_return, episode_length = episode_return + env_step.reward, episode_length + 1

        # The memory as it was before the reset judges the true last observation.
        timeout_value = torch.zeros(N, device=obs.device)
        late = everyone if policy.fixed_shapes else env_step.truncated.nonzero().squeeze(1)
        if len(late):
            going_on = torch.zeros(1, len(late), dtype=torch.bool, device=obs.device)
            last, _ = policy.act(features[env_step.final_obs[late]][None], state_after.select(late), going_on)
            timeout_value[late] = last.value[0] * env_step.truncated[late]

        reward, seen_now = env_step.reward, seen
        if table.distinct:
            new = ~seen.gather(1, env_step.obs[:, None]).squeeze(1) & ~done
            together = room_for(together, table.count)
            worth = new * rarity(together, env_step.obs, seen)
            reward = reward + visit_bonus * worth * (1 - novelty / args.visit_budget).clamp_min(0)
            novelty = (novelty + worth) * ~done
            seen = (seen & ~done[:, None]).scatter(1, env_step.obs[:, None], True)

        steps.append(
            {
                "obs": obs,
                "episode_start": start,
                "action": action,
                "logprob": distribution.log_prob(action),
                "value": output.value[0],
                "reward": reward,
                "done": done,
                "timeout_value": timeout_value,
                "seen": seen_now,
                "episode": torch.stack((episode_return, episode_length, env_step.success), 1),
            }
        )
        gates.append(output.gate)
        obs, start, state = env_step.obs, done, state_after
        episode_return, episode_length = episode_return * ~done, episode_length * ~done

    next_value = policy.act(features[obs][None], state, start[None])[0].value[0]
    columns = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}
    batch = Rollout(
        **columns,
        state=carry.state,
        next_value=next_value,
        familiar=together.diagonal(),
        gate=gate_statistics(gates),
    )
    if table.distinct:
        together = share_of_episodes(together, batch.seen, batch.done)
    return batch, Carry(obs, start, state, seen, episode_return, episode_length, novelty, together)


def encode_new(policy: MemoryPolicy, table, features: Tensor) -> Tensor:
    """Encodings of all frames, `features` (K, D) with those added that were met since it was made."""
    if len(features) == table.count:
        return features
    return torch.cat((features, policy.encoder(table.frames[len(features) :])))


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
    return together + (showed.T @ showed - ended * together) / (ended + 500)


def gate_statistics(gates: list[Tensor | None]) -> Tensor | None:
    if gates[0] is None:
        return None
    gate = torch.cat(gates)
    return torch.stack((gate.mean(), gate.min(), gate.max(), gate.std()))


def advantages(args: Args, batch: Rollout) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016) -> advantages and returns, both (T, N).

    An episode that ran into its time limit goes on, unseen: its last step looks ahead to `timeout_value`. A
    terminated one has nothing ahead (timeout_value is 0 there).
    """
    advantage = torch.zeros_like(batch.value)
    next_value, next_advantage = batch.next_value, torch.zeros_like(batch.next_value)
    for t in reversed(range(len(advantage))):
        going_on = ~batch.done[t]
        ahead = next_value * going_on + batch.timeout_value[t]
        delta = batch.reward[t] + args.gamma * ahead - batch.value[t]
        advantage[t] = next_advantage = delta + args.gamma * args.gae_lambda * going_on * next_advantage
        next_value = batch.value[t]
    return advantage, advantage + batch.value


class Minibatch(NamedTuple):
    """The T steps of B environments that one gradient step learns from. All (T, B) unless said otherwise."""

    frames: Tensor  # (K, *shape), the frames that these steps show, each once
    obs: Tensor  # int64, number among `frames`
    episode_start: Tensor  # bool
    action: Tensor  # (T, B) or (T, B, components) int64
    logprob: Tensor
    value: Tensor
    advantage: Tensor
    returns: Tensor
    seen: Tensor  # (T, B, K') bool, the recall target
    familiar: Tensor  # (K',) share of recent episodes that showed an observation
    state: MemoryState  # memory of the B environments before the first step


def update(
    args: Args, policy: MemoryPolicy, optimizer, table, batch: Rollout, ent_coef: float, step: Callable | None = None
) -> dict[str, float]:
    """Several epochs of PPO over a rollout, in minibatches of whole environments -> averaged losses.

    step: `minibatch_step`, or the same recorded as a CUDA graph.
    """
    step = step or minibatch_step
    advantage, returns = advantages(args, batch)
    if args.norm_adv:
        # Gradients should be alike in all phases of learning, and a bit of entropy worth the same reward in all. With
        # the advantages alone divided by their spread, entropy would count for less and less as there is less left
        # to gain, and the policy would freeze on its first way to the goal.
        advantage = advantage - mean_over_processes(advantage.mean())
        std = mean_over_processes(advantage.square().mean()).sqrt().clamp_min(LEAST_SPREAD)
        advantage, ent_coef = advantage / std, ent_coef / std
    else:
        ent_coef = torch.tensor(ent_coef, device=advantage.device)
    count = table.count if table.distinct else 0
    rows = []
    for _ in range(args.update_epochs):
        order = torch.randperm(batch.obs.shape[1], device=batch.obs.device)
        for env in order.chunk(args.num_minibatches):
            frames, obs = distinct_frames(table, batch.obs[:, env], policy.fixed_shapes)
            minibatch = Minibatch(
                frames=frames,
                obs=obs,
                episode_start=batch.episode_start[:, env],
                action=batch.action[:, env],
                logprob=batch.logprob[:, env],
                value=batch.value[:, env],
                advantage=advantage[:, env],
                returns=returns[:, env],
                seen=batch.seen[:, env, :count],
                familiar=batch.familiar[:count],
                state=batch.state.select(env),
            )
            rows.append(step(args, policy, optimizer, minibatch, ent_coef))
        if args.target_kl is not None and mean_over_processes(rows[-1]["approx_kl"]) > args.target_kl:
            break
    losses = {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0] if name != "ratio_error"}
    losses["first_minibatch_ratio_error"] = rows[0]["ratio_error"]
    losses["explained_variance"] = 1 - (returns - batch.value).var() / returns.var()
    means = mean_over_processes(torch.stack(list(losses.values())))
    return dict(zip(losses, means.tolist(), strict=True))


def minibatch_step(
    args: Args, policy: MemoryPolicy, optimizer, batch: Minibatch, ent_coef: Tensor
) -> dict[str, Tensor]:
    """One gradient step of PPO -> its losses, each a number."""
    output, _ = policy(batch.frames, batch.state, batch.episode_start, batch.obs)
    distribution = policy.distribution(output.logits)
    logratio = distribution.log_prob(batch.action) - batch.logprob
    ratio = logratio.exp()

    clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    policy_loss = torch.max(-batch.advantage * ratio, -batch.advantage * clipped).mean()

    value_error = (output.value - batch.returns) ** 2
    if args.clip_vloss:
        near = batch.value + (output.value - batch.value).clamp(-args.clip_coef, args.clip_coef)
        value_error = torch.max(value_error, (near - batch.returns) ** 2)
    value_loss = 0.5 * value_error.mean()

    entropy = distribution.entropy().mean()
    loss = policy_loss + args.vf_coef * value_loss - ent_coef * entropy
    losses = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    count = len(batch.familiar)
    if args.recall_coef > 0 and count:
        losses["recall_loss"] = recall_loss(policy.recall_logits(output.memory, count), batch.seen, batch.familiar)
        loss = loss + args.recall_coef * losses["recall_loss"]

    optimizer.zero_grad()
    loss.backward()
    average_gradients(policy.parameters())
    nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm)
    optimizer.step()

    with torch.no_grad():  # http://joschu.net/blog/kl-approx.html
        losses["old_approx_kl"] = -logratio.mean()
        losses["approx_kl"] = (ratio - 1 - logratio).mean()
        losses["clipfrac"] = ((ratio - 1).abs() > args.clip_coef).float().mean()
        losses["ratio_error"] = (ratio - 1).abs().max()
    return {name: value.detach() for name, value in losses.items()}


def recall_loss(logits: Tensor, seen: Tensor, familiar: Tensor) -> Tensor:
    """Binary cross-entropy of "observation k was met in this episode", logits and seen (T, B, K).

    Weighted by how uncertain each observation is beforehand, p (1 - p) with p its share of recent episodes,
    familiar (K,): what every episode shows, or none, needs no memory. The constant lets nothing be forgotten.
    """
    weight = familiar * (1 - familiar) + 0.01
    loss = F.binary_cross_entropy_with_logits(logits, seen.float(), weight, reduction="sum")
    return loss / (weight.sum() * logits[..., 0].numel())


def distinct_frames(table, obs: Tensor, fixed_shapes: bool) -> tuple[Tensor, Tensor]:
    """The frames a minibatch needs, each once: obs (T, B) -> frames (K, *shape), index among them (T, B).

    With fixed shapes all that the table holds: counting would make a GPU wait.
    """
    if fixed_shapes and table.count <= obs.numel():
        return table.frames, obs
    numbers, index = obs.unique(return_inverse=True)
    return table.frames[numbers], index


def schedule(start: float, end: float | None, step: float, length: float) -> float:
    """Linear from `start` to `end` over `length` steps, then `end`; constant where no end is given."""
    return start if end is None else start + (end - start) * min(step / length, 1.0)


def set_learning_rate(optimizer, learning_rate: float, graph_device: torch.device | None) -> None:
    """As a number or, for a CUDA graph, which would go on with the number recorded, in a tensor that it reads."""
    for group in optimizer.param_groups:
        if graph_device is None:
            group["lr"] = learning_rate
        elif isinstance(group["lr"], Tensor) and group["lr"].device.type == graph_device.type:
            group["lr"].fill_(learning_rate)
        else:
            group["lr"], group["capturable"] = torch.tensor(learning_rate, device=graph_device), True


def exploration(progress: float, recent: deque) -> float:
    """Share of the visit bonus that is still paid, 1 to 0, after `progress` (0 to 1) of the run.

    All of it until half of the recent episodes were solved, then less, the more were, so that the agent finds the
    shortest way but goes on looking back while it still fails; where success stays away or is not known, less in the
    last quarter of the run.
    """
    return min(1.0, 4 * (1 - progress), 2 * (1 - share_solved(recent)))


def sureness(progress: float, recent: deque) -> float:
    """How far the entropy coefficient has risen to `solved_ent_coef`, 0 to 1, after `progress` (0 to 1) of the run.

    Chance is cheap for who knows the answer: it rises once 97% of the recent episodes were solved, and falls again
    over the last two fifths of the run, where the ways that were found are to be walked without detours.
    """
    return min(1.0, max(0.0, (share_solved(recent) - 0.97) / 0.03)) * min(1.0, 2.5 * (1 - progress))


def share_solved(recent: deque) -> float:
    """Of the last RECENT_EPISODES, those still to come counted as not solved."""
    return sum(success for _, _, success in recent) / RECENT_EPISODES


def main(args: Args) -> dict:
    """Train -> the summary that is also written to the run's folder. Raises InputError on wrong input."""
    args = resume_args(args, Args)
    device = choose_device(args.cuda)
    rank, num_processes = join_processes(device.type == "cuda")
    check_args(args, num_processes)
    saved = load_checkpoint(Path(args.resume, "checkpoint.pt"), flag="--resume") if args.resume else None
    seed_everything(args.seed, args.torch_deterministic)
    envs = make_envs(
        args.env_id,
        args.num_envs // num_processes,
        backend=args.env_backend,
        obs_mode=args.obs_mode,
        agent_view_size=args.agent_view_size,
        max_episode_steps=args.max_episode_steps,
        seed=args.seed + rank * PROCESS_SEED,
        device=device,
    )
    if args.stop_at_success is not None and not envs.has_success:
        raise InputError(f"--stop-at-success {args.stop_at_success}: {args.env_id} does not tell what success is.")
    table = envs.observations
    policy = make_agent(args, table.space, envs.action_space, table.capacity).to(device)
    if device.type == "cuda":
        policy.fix_shapes()
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    step_once = minibatch_step
    if args.cuda_graphs:
        minibatch = args.num_envs // args.num_minibatches * args.num_steps
        if device.type != "cuda" or num_processes > 1 or not envs.exact_resume or minibatch < table.count:
            raise InputError(
                f"--cuda-graphs: needs a GPU, one process, an environment that runs as a table, and minibatches of "
                f"at least as many steps as it has observations ({table.count}; here {minibatch} steps)."
            )
        graph_rollout(policy, args.num_envs)
        step_once = GraphedStep(minibatch_step)
    if rank > 0:  # from here on: the parameters are the same in all processes, the actions must not be
        torch.manual_seed(args.seed + rank * PROCESS_SEED)
    carry = first_carry(policy, envs)
    step, seconds, milestones, recent = 0, 0.0, {}, deque(maxlen=RECENT_EPISODES)
    if saved:
        policy.load_state_dict(saved["policy"])
        optimizer.load_state_dict(saved["optimizer"])
        step, seconds, milestones = saved["step"], saved["seconds"], saved["milestones"]
        recent.extend(saved["recent"])
        if len(saved["processes"]) != num_processes:
            raise InputError(
                f"--resume {args.resume}: the run was trained by {len(saved['processes'])} processes and must go on "
                f"with as many, not {num_processes}."
            )
        mine = saved["processes"][rank]
        envs.load_state_dict(mine["envs"])
        carry = load_carry(mine["carry"], device) if envs.exact_resume else first_carry(policy, envs)
        set_random_state(mine["random"])
    run = progress = None
    if rank == 0:  # one process writes
        run = RunFolder(args.resume or args.run_dir, args, ALGO, saved and saved["log_sizes"])
        progress = Progress(args.total_timesteps, start_step=step)
        if saved and not envs.exact_resume:
            progress.note(f"{args.env_id}: its state cannot be saved, so all episodes restart.")

    def save() -> None:
        mine = {"envs": envs.state_dict(), "carry": save_carry(carry), "random": random_state()}
        processes = gather(mine)
        if rank == 0:
            payload = {
                "algo": ALGO,
                "args": asdict(args),
                "policy": policy.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seconds": seconds,
                "milestones": milestones,
                "recent": list(recent),
                "processes": processes,
                "log_sizes": run.log_sizes(),
            }
            save_checkpoint(run.checkpoint_file, payload)

    last_save, stop, solved, warned = time.monotonic(), False, False, False
    with Interrupt() as interrupt:
        while step < args.total_timesteps and not (stop or solved):
            began = time.monotonic()
            anneal_steps = args.anneal_steps or args.total_timesteps
            learning_rate = schedule(args.learning_rate, args.final_learning_rate, step, anneal_steps)
            ent_coef = schedule(args.ent_coef, args.final_ent_coef, step, anneal_steps)
            visit_bonus = args.visit_bonus * exploration(step / args.total_timesteps, recent)
            if args.solved_ent_coef is not None:
                ent_coef += (args.solved_ent_coef - ent_coef) * sureness(step / args.total_timesteps, recent)
            set_learning_rate(optimizer, learning_rate, device if args.cuda_graphs else None)

            batch, carry = rollout(args, policy, envs, carry, visit_bonus)
            losses = update(args, policy, optimizer, table, batch, ent_coef, step_once)

            previous, step = step, step + args.num_envs * args.num_steps
            seconds += time.monotonic() - began
            for finished in gather(batch.episode[batch.done].tolist()):
                recent.extend(finished)
            solved = args.stop_at_success is not None and share_solved(recent) >= args.stop_at_success
            if rank == 0:
                metrics = {
                    "charts/learning_rate": learning_rate,
                    "charts/entropy_coefficient": ent_coef,
                    "charts/visit_bonus": visit_bonus,
                    "charts/SPS": step / seconds,
                    **{f"losses/{name}": value for name, value in losses.items()},
                    **gate_metrics(batch.gate),
                    **episode_metrics(recent, envs.has_success),
                }
                for level in ("0.95", "0.99"):
                    if share_solved(recent) >= float(level):
                        milestones.setdefault(level, [step, seconds])
                if not (table.distinct or warned) and (args.recall_coef or args.visit_bonus):
                    warned = True
                    progress.note(
                        f"{args.env_id} shows more than {table.capacity} distinct observations, so recall loss "
                        f"and visit bonus are off."
                    )
                progress.update(
                    step,
                    sps=step / seconds,
                    success_rate=metrics.get("train/success_rate"),
                    length=metrics.get("charts/episodic_length"),
                    episodic_return=metrics.get("charts/episodic_return"),
                )
                if args.eval_every and step // args.eval_every > previous // args.eval_every:
                    metrics |= eval_metrics(held_out(args, policy, run, step, args.eval_episodes))
                run.log(step, metrics)
            due = time.monotonic() - last_save > args.checkpoint_every
            stop, due = any_process(interrupt.requested, due)
            if due and args.save_model:
                save()
                last_save = time.monotonic()
        if args.save_model:
            save()

    summary = {
        "algo": ALGO,
        "env_id": args.env_id,
        "seed": args.seed,
        "steps": step,
        "seconds": seconds,
        "sps": step / max(seconds, 1e-9),
        "evaluation": None,
        "greedy_evaluation": None,
    }
    for level in ("0.95", "0.99"):
        summary[f"steps_to_{level}"], summary[f"seconds_to_{level}"] = milestones.get(level, (None, None))
    if rank == 0:
        progress.close()
        summary["run_dir"] = str(run.path)
        if not stop:
            summary["evaluation"] = held_out(args, policy, run, step, args.final_eval_episodes)
            run.log(step, eval_metrics(summary["evaluation"]))
            print(describe(summary["evaluation"], args.env_id))
            summary["greedy_evaluation"] = evaluate_policy(
                policy, args, ALGO, step, episodes=args.final_eval_episodes, seed=args.seed, greedy=True
            )
            print(describe(summary["greedy_evaluation"], args.env_id))
            write_json(run.summary_file, summary)
        run.close()
        print(f"run       {run.path}   (tensorboard --logdir {run.path.parent})")
        if args.save_model:
            print(f"model     {run.checkpoint_file}")
            print(f"evaluate  python evaluate.py --checkpoint {run.checkpoint_file}")
        if args.capture_video:
            print(f"videos    {run.videos}")
        if stop and args.save_model:
            print(f"continue  python ppo_{ALGO}.py --resume {run.path}")
    envs.close()
    leave_processes()
    return summary


def save_carry(carry: Carry) -> dict:
    """As plain values and tensors, which a checkpoint can hold."""
    return {**carry._asdict(), "state": carry.state.tensors()}


def load_carry(saved: dict, device: torch.device) -> Carry:
    state = MemoryState.from_tensors(saved["state"], device)
    return Carry(**{name: value.to(device) for name, value in saved.items() if name != "state"}, state=state)


def episode_metrics(recent: deque, has_success: bool) -> dict[str, float]:
    """Means over the episodes that ended last; empty before the first has ended."""
    if not recent:
        return {}
    returns, lengths, successes = (sum(column) / len(recent) for column in zip(*recent, strict=True))
    metrics = {"charts/episodic_return": returns, "charts/episodic_length": lengths}
    return metrics | {"train/success_rate": successes} if has_success else metrics


def gate_metrics(gate: Tensor | None) -> dict[str, float]:
    if gate is None:
        return {}
    names = ("agf_value", "min_gate_value", "max_gate_value", "std_gate_value")
    return {f"gates/{name}": value for name, value in zip(names, gate.tolist(), strict=True)}


def held_out(args: Args, policy: MemoryPolicy, run: RunFolder, step: int, episodes: int) -> dict:
    """Evaluate on the real environment with held-out seeds; leaves training's random state alone."""
    video = None
    if args.capture_video:
        run.videos.mkdir(exist_ok=True)
        video = run.videos / f"step_{step}.mp4"
    evaluation = evaluate_policy(policy, args, ALGO, step, episodes=episodes, seed=args.seed, video=video)
    if video:
        run.log_video(step, video)
    return evaluation


def eval_metrics(evaluation: dict) -> dict[str, float | None]:
    names = {"reward": "mean_return", "episode_length": "mean_length", "success_rate": "success_rate"}
    return {f"evals/{name}": evaluation[key] for name, key in names.items()}


if __name__ == "__main__":
    run_script(main, Args, PRESETS, __doc__)
