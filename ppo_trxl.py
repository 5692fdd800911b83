"""PPO for agents that remember: ppo_palmer.py, ppo_lstm.py and ppo_trxl.py are three arms of one experiment.

Source: Proximal Policy Optimization (Schulman et al. 2017, https://arxiv.org/abs/1707.06347), in the manner of
CleanRL (https://github.com/vwxyzjn/cleanrl). Which agent this script trains is said in the one block in which the
three differ, "the agent"; the policies are in palmer_policy.py, what makes them remember is in memory_aids.py.

    python ppo_palmer.py --env-id MiniGrid-MemoryS13-v0
    python evaluate.py --checkpoint runs/RUN/checkpoint.pt

One observation's way through this file: `rollout` plays T steps in N environments and keeps the memory state it
started from; `advantages` looks back over the rewards; `update` cuts the rollout into minibatches of whole sequences,
and `minibatch_step` runs one through the policy again, from that same state, so that the policy that learns is the
policy that acted; `main` repeats.

Shape letters: T steps, N environments of a rollout, B of a minibatch, P steps before a rollout, D width, C codes.
"""

import harness.starting  # noqa: F401  # isort: skip  # first: Ctrl-C may come while the others are imported
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from harness.flags import Range, run_script
from harness.input_error import RunError
from harness.processes import average_gradients, mean_over_processes
from harness.return_scale import ReturnScale
from harness.run import Run, RunArgs
from memory_aids import MemoryAidArgs, MemoryAids, fading
from palmer_policy import MemoryPolicy, MemoryState, PolicyOutput, gate_metrics, make_policy
from tasks import Step, TaskArgs, make_envs
from tasks.observations import Encodings

LEAST_SPREAD = 0.02  # of advantages to normalise by; below it they are noise


@dataclass
class PPOArgs(MemoryAidArgs, RunArgs, TaskArgs):
    """PPO's flags and the policy's; those of task, run and aids are declared where they are used."""

    num_envs: Annotated[int, Range(1, 65_536)] = 64
    """N, environments played at once"""
    num_steps: Annotated[int, Range(1, 65_536)] = 32
    """T, steps of each environment in one rollout; gradients reach back this far at most"""
    num_minibatches: Annotated[int, Range(1, 65_536)] = 4
    """minibatches an epoch, each a set of whole environments"""
    update_epochs: Annotated[int, Range(1, 1000)] = 3
    """passes over each rollout"""
    learning_rate: Annotated[float, Range(0, 10, above=True)] = 1e-3
    """Adam's learning rate at the start"""
    anneal: bool = True
    """bring learning rate and entropy coefficient linearly to 0 over the run"""
    gamma: Annotated[float, Range(0, 1)] = 0.985
    """discount factor"""
    gae_lambda: Annotated[float, Range(0, 1)] = 0.95
    """lambda of generalised advantage estimation"""
    norm_adv: bool = True
    """normalise the advantages of each rollout by their mean and standard deviation"""
    clip_coef: Annotated[float, Range(0, 1000, above=True)] = 0.2
    """PPO's clipping range of the probability ratio"""
    clip_vloss: bool = False
    """clip the value loss by the same range"""
    ent_coef: Annotated[float, Range(0, 1000)] = 0.01
    """entropy coefficient at the start"""
    solved_ent_coef: Annotated[float, Range(0, 1000)] = 6e-3
    """least entropy coefficient of an agent that solves everything, in units of the largest return, so that it finds
    shorter ways and what it misses; comes from 90% of success on and, with --anneal, goes in the last two fifths of
    the run (0: off)"""
    vf_coef: Annotated[float, Range(0, 1000)] = 0.5
    """coefficient of the value loss"""
    max_grad_norm: Annotated[float, Range(0, 1e6, above=True)] = 0.5
    """largest norm of the gradient"""

    width: Annotated[int, Range(1, 8192)] = 128
    """D, width of encoder output, memories and hidden layer"""
    cnn: Literal["patch", "nature"] = "patch"
    """encoder of pictures: small patches seen once, or the larger one of Mnih et al. 2015"""
    norm_obs: bool | None = None
    """normalise numbers by their running mean and variance; None: those that are not bounded within [-10, 10]"""
    forget: bool = False
    """empty the memory before every step, to see what the memory is worth"""


# ------------------------------------------------------------------ the agent: all in which the three scripts differ
# PPO-TrXL: PALMER's long-term memory alone (TrXLPolicy).

ALGO = "trxl"


@dataclass
class Args(PPOArgs):
    """All flags of this script."""

    trxl_layers: Annotated[int, Range(1, 64)] = 1
    """L of the Transformer"""
    trxl_heads: Annotated[int, Range(1, 512)] = 4
    """H, attention heads"""
    trxl_ff_mult: Annotated[int, Range(1, 64)] = 2
    """width of the Transformer's feed-forward layers, in multiples of D"""
    memory_length: Annotated[int, Range(1, 65_536)] = 64
    """M, steps the Transformer sees, the present one included"""


REPORT = dict(trxl_layers=3, trxl_ff_mult=1, memory_length=119)


# ------------------------------------------------------------------ from here on the three scripts are the same again

PRESETS = {
    "default": {},
    # The original's settings. It annealed over 164M steps, which moves nothing by more than 1.3% within its 2M.
    "report": dict(
        num_envs=32,
        num_steps=512,
        total_timesteps=2_000_000,
        num_minibatches=8,
        gamma=0.995,
        learning_rate=2.75e-4,
        anneal=False,
        norm_adv=False,
        clip_coef=0.1,
        clip_vloss=True,
        ent_coef=1e-4,
        solved_ent_coef=0.0,
        max_grad_norm=0.25,
        recall_coef=0.0,
        age_coef=0.0,
        visit_bonus=0.0,
        width=384,
        cnn="nature",
        **REPORT,
    ),
}


class Carry(NamedTuple):
    """What passes from one rollout to the next, for N environments."""

    obs: Tensor  # (N,) int64, number of the observation to act on
    episode_start: Tensor  # (N,) bool, that observation is the first of its episode
    state: MemoryState  # memory before it
    total: Tensor  # (N, 3) float, of the running episode: return, length, rewards discounted by their age
    past: Tensor  # (P, N) int64, numbers of the P observations before, whatever episode they are of
    seen: Tensor  # (N, C) bool, what the running episode has shown before it
    novelty: Tensor  # (N,) float, sum of the rarities that the running episode has met


class Rollout(NamedTuple):
    """T steps of N environments. All (T, N) unless said otherwise."""

    state: MemoryState  # memory of the N environments before the first step
    past: Tensor  # (P, N) int64, observations before the first step
    obs: Tensor  # int64
    episode_start: Tensor  # bool
    action: Tensor  # (T, N) or (T, N, components) int64
    logprob: Tensor
    value: Tensor
    reward: Tensor
    done: Tensor  # bool, the step ended its episode
    timeout_value: Tensor  # value of the true last observation where the step ended in a time-out, else 0
    next_value: Tensor  # (N,) value of the observation after the last step
    episode: Tensor  # (T, N, 4), of the episode so far: return, length, success, rewards discounted by their age
    gate: Tensor | None  # (T, N, D), 1 = Transformer, 0 = LSTM
    features: Encodings  # of all observations above, by number, as the policy that acted encoded them
    seen: Tensor | None = None  # (T, N, C) bool, what the episode has shown
    advantage: Tensor | None = None  # as `with_advantages` normalises it
    returns: Tensor | None = None  # what values are to be

    def select(self, env: Tensor) -> "Rollout":
        """The steps of the environments `env` (B,) alone."""
        tensors = {name: value for name, value in self._asdict().items() if isinstance(value, Tensor)}
        chosen = {name: value[env] if name == "next_value" else value[:, env] for name, value in tensors.items()}
        return self._replace(**chosen, state=self.state.select(env))


def first_carry(policy: MemoryPolicy, envs: Any, aids: MemoryAids) -> Carry:
    """Fresh episodes in all N environments, with an empty memory."""
    obs, N = envs.reset(), envs.num_envs
    start = torch.ones(N, dtype=torch.bool, device=obs.device)
    total = torch.zeros(N, 3, device=obs.device)
    past = obs.expand(aids.past_steps, N)
    return Carry(obs, start, policy.initial_state(N), total, past, *aids.nothing_seen(N, obs.device))


@torch.no_grad()
def rollout(args: Args, policy: MemoryPolicy, envs: Any, carry: Carry) -> tuple[Rollout, Carry]:
    """Play T steps in N environments."""
    table = envs.observations
    numbers = table.keep(torch.cat((carry.past, carry.obs[None])))
    past, obs = numbers[:-1], numbers[-1]
    start, state, total = carry.episode_start, carry.state, carry.total
    features = Encodings(policy.encoder, table)
    steps = []
    for _ in range(args.num_steps):
        output, state_after = policy.act(features[obs][None], state, start[None])
        distribution = policy.distribution(output.logits[0])
        action = distribution.sample()
        step = envs.step(action)
        done = step.terminated | step.truncated
        total = torch.stack((total[:, 0] + step.reward, total[:, 1] + 1, args.gamma * total[:, 2] + step.reward), 1)
        steps.append(
            {
                "obs": obs,
                "episode_start": start,
                "action": action,
                "logprob": distribution.log_prob(action),
                "value": output.value[0],
                "reward": step.reward,
                "done": done,
                "timeout_value": timeout_values(policy, features, step, state_after),
                "episode": torch.cat((total[:, :2], step.success[:, None], total[:, 2:]), 1),
                "gate": None if output.gate is None else output.gate[0],
            }
        )
        obs, start, state, total = step.obs, done, state_after, total * ~done[:, None]

    next_value = policy.act(features[obs][None], state, start[None])[0].value[0]
    columns = {k: None if v is None else torch.stack([step[k] for step in steps]) for k, v in steps[0].items()}
    batch = Rollout(**columns, state=carry.state, past=past, next_value=next_value, features=features)
    past = torch.cat((past, batch.obs))[len(batch.obs) :]
    return batch, Carry(obs, start, state, total, past, carry.seen, carry.novelty)


def timeout_values(policy: MemoryPolicy, features: Encodings, step: Step, state: MemoryState) -> Tensor:
    """Values (N,) of true last observations where a step ran out of time, else 0; state: memory before the reset."""
    values = torch.zeros_like(step.reward)
    everyone = torch.arange(len(values), device=values.device)
    late = everyone if policy.fixed_shapes else step.truncated.nonzero().squeeze(1)
    if len(late):
        going_on = torch.zeros(1, len(late), dtype=torch.bool, device=values.device)
        last, _ = policy.act(features[step.final_obs[late]][None], state.select(late), going_on)
        values[late] = last.value[0] * step.truncated[late]
    return values


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


def with_advantages(args: Args, batch: Rollout) -> tuple[Rollout, Tensor]:
    """The rollout with `advantage` and `returns`, and the spread by which advantages were divided, 1 if by none."""
    advantage, returns = advantages(args, batch)
    spread = torch.ones_like(batch.next_value[0])
    if args.norm_adv:
        advantage = advantage - mean_over_processes(advantage.mean())
        spread = mean_over_processes(advantage.square().mean()).sqrt().clamp_min(LEAST_SPREAD)
    return batch._replace(advantage=advantage / spread, returns=returns), spread


def update(
    args: Args, policy: MemoryPolicy, optimizer: Any, aids: MemoryAids, table: Any, batch: Rollout, ent_coef: Tensor
) -> dict[str, float]:
    """Several epochs of PPO over a rollout, in minibatches of whole environments -> averaged losses."""
    rows = []
    for _ in range(args.update_epochs):
        for env in torch.randperm(batch.obs.shape[1], device=batch.obs.device).chunk(args.num_minibatches):
            rows.append(minibatch_step(args, policy, optimizer, aids, table, batch.select(env), ent_coef))
    losses = {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0] if name != "ratio_error"}
    losses["first_minibatch_ratio_error"] = rows[0]["ratio_error"]
    losses["explained_variance"] = 1 - (batch.returns - batch.value).var() / batch.returns.var()
    return dict(zip(losses, mean_over_processes(torch.stack(list(losses.values()))).tolist(), strict=True))


def minibatch_step(
    args: Args, policy: MemoryPolicy, optimizer: Any, aids: MemoryAids, table: Any, batch: Rollout, ent_coef: Tensor
) -> dict[str, Tensor]:
    """One gradient step of PPO on T steps of B environments -> its losses, each a number."""
    frames, obs = table.distinct_frames(batch.obs, policy.fixed_shapes)
    output, _ = policy.act(F.embedding(obs, policy.encoder(frames)), batch.state, batch.episode_start)
    loss, losses, logratio = ppo_loss(args, policy, output, batch, ent_coef)
    for name, (aid_loss, coefficient) in aids.losses(policy, output.memory, batch).items():
        losses[name] = aid_loss
        loss = loss + coefficient * aid_loss

    parameters = optimizer.param_groups[0]["params"]
    optimizer.zero_grad()
    loss.backward()
    average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
    if not norm.isfinite():
        raise RunError(f"a gradient is {norm.item()} at a loss of {loss.item()}; what is not finite is not learned.")
    optimizer.step()

    with torch.no_grad():  # http://joschu.net/blog/kl-approx.html
        ratio = logratio.exp()
        losses["old_approx_kl"] = -logratio.mean()
        losses["approx_kl"] = (ratio - 1 - logratio).mean()
        losses["clipfrac"] = ((ratio - 1).abs() > args.clip_coef).float().mean()
        losses["ratio_error"] = (ratio - 1).abs().max()
    return {name: value.detach() for name, value in losses.items()}


def ppo_loss(
    args: Args, policy: MemoryPolicy, output: PolicyOutput, batch: Rollout, ent_coef: Tensor
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """PPO's loss on T steps of B environments -> it, its parts, log of the probability ratios (T, B)."""
    distribution = policy.distribution(output.logits)
    logratio = distribution.log_prob(batch.action) - batch.logprob
    ratio = logratio.exp()
    clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    policy_loss = torch.max(-batch.advantage * ratio, -batch.advantage * clipped).mean()
    value_error = (output.value - batch.returns) ** 2
    if args.clip_vloss:
        near = batch.value + (output.value - batch.value).clamp(-args.clip_coef, args.clip_coef)
        value_error = torch.max(value_error, (near - batch.returns) ** 2)
    value_loss, entropy = 0.5 * value_error.mean(), distribution.entropy().mean()
    losses = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    return policy_loss + args.vf_coef * value_loss - ent_coef * entropy, losses, logratio


def annealed(args: Args, progress: float) -> float:
    """Share of learning rate and entropy coefficient that is left after `progress` (0 to 1) of the run."""
    return max(0.0, 1 - progress) if args.anneal else 1.0


def entropy_coefficient(args: Args, progress: float, solved: float, spread: Tensor) -> Tensor:
    """What a nat of entropy is worth beside advantages divided by `spread`, with a share `solved` of recent episodes.

    Advantages shrink as an agent gets better, and are blown up all the more: it freezes on its first way to the goal.
    Chance is cheap for who knows the answer; from 90% solved on it is priced in rewards, until it is time to walk
    without detours.
    """
    left = annealed(args, progress)
    sure = min(1.0, max(0.0, (solved - 0.9) / 0.1)) * min(1.0, 2.5 * left)
    return (sure * args.solved_ent_coef / spread).clamp_min(left * args.ent_coef)


def main(args: Args) -> dict[str, Any]:
    """Train -> the summary that is also written to the run's folder. Raises InputError on wrong input."""
    with Run(args, ALGO) as run:
        args = run.args  # with --resume those of the earlier run
        envs = make_envs(args, run.num_envs, seed=run.env_seed, device=run.device)
        table = envs.observations
        policy = make_policy(ALGO, vars(args), table.space, envs.action_space).to(run.device)
        policy.fix_shapes(run.device.type == "cuda")
        aids = MemoryAids(args, envs, args.width, run.device)
        learned = [*policy.parameters(), *aids.heads.parameters()]
        optimizer = torch.optim.Adam(learned, lr=args.learning_rate, eps=1e-5, fused=True)
        scale = ReturnScale(run.device)
        carry = first_carry(policy, envs, aids)
        carry = run.restore(carry, envs, policy=policy, optimizer=optimizer, aids=aids, scale=scale)

        while run.goes_on():
            learning_rate = annealed(args, run.progress) * args.learning_rate
            bonus = fading(run.progress, run.share_solved)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

            batch, carry = rollout(args, policy, envs, carry)
            batch = batch._replace(reward=batch.reward / scale.learn(batch.episode[..., 3]))
            batch, carry = aids.first_visits(batch, carry, bonus)
            batch, spread = with_advantages(args, batch)
            ent_coef = entropy_coefficient(args, run.progress, run.share_solved, spread)
            losses = update(args, policy, optimizer, aids, table, batch, ent_coef)
            policy.encoder.learn_statistics(table.frames, batch.obs)

            run.count(batch.episode[batch.done][:, :3])
            metrics = {"charts/learning_rate": learning_rate, "charts/entropy_coefficient": ent_coef.item()}
            metrics["charts/visit_bonus"] = args.visit_bonus * bonus
            metrics |= {f"losses/{name}": value for name, value in losses.items()} | gate_metrics(batch.gate)
            run.log(metrics | run.evaluate_when_due(policy))
            run.save_when_due(carry)
        return run.finish(policy, carry)


if __name__ == "__main__":
    run_script(main, Args, PRESETS, __doc__)
