"""The PPO loop of the three scripts: what it collects, what it learns from, and that all three are the same."""

import dataclasses
import math
import types
from pathlib import Path

import pytest
import torch
from toys import SCRIPTS, TOY, make_agent, make_policy, play, small_args, toy_rollout

import ppo_palmer
import tasks
from harness.input_error import RunError
from harness.run import Run
from palmer_policy import PolicyOutput
from tasks import TaskArgs


def make_envs(env_id, num_envs, seed=1, **flags):
    return tasks.make_envs(TaskArgs(env_id, **flags), num_envs, seed=seed)


def again(policy, envs, batch):
    """What the policy makes of a rollout, in one segment."""
    frames = tuple(part[batch.obs] for part in envs.observations.frames)
    return policy(frames, batch.state, batch.episode_start)[0]


def ratio(policy, envs, batch):
    distribution = policy.distribution(again(policy, envs, batch).logits)
    return (distribution.log_prob(batch.action) - batch.logprob).exp()


# ------------------------------------------------------------------------------- the policy that acted learns


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("num_envs, memory_length", [(6, 5), (6, 64), (1, 5)])
def test_first_minibatch_has_ratio_one_at_every_step(script, num_envs, memory_length):
    args = small_args(script, num_envs=num_envs, num_minibatches=1, memory_length=memory_length)
    envs = make_envs("MiniGrid-MemoryS7-v0", num_envs, max_episode_steps=17, seed=3)
    policy, aids, optimizer = make_agent(script, args, envs, learning_rate=3e-3)
    carry = script.first_carry(policy, envs, aids)
    carried = False
    for _ in range(3):
        batch, carry = play(script, args, policy, envs, aids, carry)
        assert (ratio(policy, envs, batch) - 1).abs().max() < 1e-4
        losses = script.update(args, policy, optimizer, aids, envs.observations, batch, 0.01)
        assert losses["first_minibatch_ratio_error"] < 1e-4
        moved = ratio(policy, envs, batch) - 1
        assert moved.abs().max() > 1e-3, "the test must be able to see a policy that differs"
        carried = carried or not batch.episode_start[0].all()
        assert batch.episode_start[1:].any(), "episodes start inside the rollout"
    assert carried, "state is carried over the rollout's border"


@pytest.mark.parametrize("script", SCRIPTS)
def test_bootstrap_value_is_the_value_that_the_next_step_computes(script):
    args = small_args(script)
    envs = make_envs("MiniGrid-MemoryS7-v0", args.num_envs, max_episode_steps=17, seed=3)
    policy, aids, _ = make_agent(script, args, envs)
    first, carry = script.rollout(args, policy, envs, script.first_carry(policy, envs, aids))
    second, _ = script.rollout(args, policy, envs, carry)
    torch.testing.assert_close(first.next_value, second.value[0], atol=1e-6, rtol=0)
    assert first.next_value.std() > 0


@pytest.mark.parametrize("capacity", [4096, 50])
def test_each_frame_is_encoded_once_a_rollout(capacity):
    """True last observations too; and where frames are not told apart, those of the rollout before, for the aids."""
    args = small_args(ppo_palmer, num_steps=12)
    envs = make_envs("CartPole-v1", args.num_envs, max_episode_steps=9)
    envs.observations.capacity = capacity
    policy, aids, _ = make_agent(ppo_palmer, args, envs)
    encoded = []
    policy.encoder.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0][0])))
    carry = ppo_palmer.first_carry(policy, envs, aids)
    timeouts = 0
    for _ in range(4):
        encoded.clear()
        batch, carry = play(ppo_palmer, args, policy, envs, aids, carry)
        assert sum(encoded) == envs.observations.count
        timeouts += (batch.timeout_value != 0).sum()
    assert timeouts
    assert envs.observations.distinct == (capacity == 4096)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "env_id, capacity", [("MiniGrid-MemoryS7-v0", None), ("CartPole-v1", 4096), ("CartPole-v1", 7)]
)
def test_a_rollout_knows_the_observations_before_it(script, env_id, capacity):
    args = small_args(script, num_envs=3, num_steps=4)
    envs = make_envs(env_id, 3)
    envs.observations.capacity = capacity or envs.observations.capacity
    policy, aids, _ = make_agent(script, args, envs)
    carry = script.first_carry(policy, envs, aids)
    shown = []
    for _ in range(4):
        batch, carry = script.rollout(args, policy, envs, carry)
        (frames,) = envs.observations.frames
        assert batch.past.shape == carry.past.shape == (4, 3)
        before = shown[-1] if shown else None
        if before is not None:
            assert torch.equal(frames[batch.past], before)
        shown.append(frames[batch.obs].clone())


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_not_finite_is_not_learned(script):
    args, policy, aids, batch, _ = toy_rollout(script)
    optimizer = torch.optim.Adam([*policy.parameters(), *aids.heads.parameters()])
    before = [parameter.clone() for parameter in policy.parameters()]
    args.norm_adv = False
    batch, _ = script.with_advantages(args, batch._replace(reward=batch.reward / 0))
    with pytest.raises(RunError, match="gradient"):
        script.update(args, policy, optimizer, aids, TOY.observations, batch, 0.0)
    assert all(torch.equal(old, new) for old, new in zip(before, policy.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------- time-outs


@pytest.mark.parametrize("script", SCRIPTS)
def test_timeouts_bootstrap_from_the_true_last_observation_with_the_memory_before_the_reset(script):
    _, policy, _, batch, _ = toy_rollout(script)
    (frames,) = TOY.observations.frames

    def value_after(numbers):  # of the last observation of an episode, played from its start
        obs = frames[torch.tensor(numbers)][:, None]
        start = torch.tensor([[t == 0] for t in range(len(numbers))])
        return policy((obs,), policy.initial_state(1), start)[0].value[-1, 0]

    expected = torch.zeros(5, 2)
    expected[2, 0] = value_after([0, 1, 0, 2])
    expected[4, 1] = value_after([2, 1, 2, 5])  # the terminated episode before it gets nothing
    torch.testing.assert_close(batch.timeout_value, expected, atol=1e-6, rtol=0)
    assert (batch.timeout_value != 0).tolist() == (expected != 0).tolist()
    assert batch.episode_start.tolist() == [[1, 1], [0, 0], [0, 1], [1, 0], [0, 0]]
    assert batch.done.tolist() == [[0, 0], [0, 1], [1, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize("script", SCRIPTS)
def test_terminated_and_out_of_time_at_once_is_a_termination(script):
    """The step limit falls on the very step that reaches the goal: nothing lies ahead."""
    args = small_args(script, num_envs=512, num_steps=60)
    envs = make_envs("MiniGrid-MemoryS7-v0", 512, max_episode_steps=9, seed=3)
    policy, aids, _ = make_agent(script, args, envs)
    torch.nn.init.zeros_(policy.actor.weight)  # all actions alike, so that some reach the goal late
    batch, _ = script.rollout(args, policy, envs, script.first_carry(policy, envs, aids))
    reward_at_limit = 1 - 0.9 * 9 / 245
    both = (batch.reward - reward_at_limit).abs() < 1e-6
    assert both.any() and batch.done[both].all()
    assert batch.timeout_value[both].abs().max() == 0


# ------------------------------------------------------------------------------- advantages


@pytest.mark.parametrize("script", SCRIPTS)
def test_advantages_against_the_definition(script):
    """GAE as a sum over the future of one episode, written without recursion."""
    args, _, _, batch, _ = toy_rollout(script, visit_bonus=0.25)
    advantage, returns = script.advantages(args, batch)
    T, N = batch.value.shape
    for n in range(N):
        for t in range(T):
            total, weight = 0.0, 1.0
            for k in range(t, T):
                if batch.done[k, n]:
                    ahead = batch.timeout_value[k, n]
                else:
                    ahead = batch.value[k + 1, n] if k + 1 < T else batch.next_value[n]
                total += weight * (batch.reward[k, n] + args.gamma * ahead - batch.value[k, n])
                if batch.done[k, n]:
                    break
                weight *= args.gamma * args.gae_lambda
            assert advantage[t, n].item() == pytest.approx(float(total), abs=1e-5)
    torch.testing.assert_close(returns, advantage + batch.value)


# ------------------------------------------------------------------------------- losses


def loss_of(script, ratio, advantage):
    """Policy loss of one step at a probability ratio, and its slope by the logit of the action."""
    args, policy, _, batch, _ = toy_rollout(script)
    batch = batch.select(torch.tensor([0]))
    logits = torch.zeros(5, 1, 3, requires_grad=True)
    batch = batch._replace(logprob=torch.full((5, 1), -math.log(3 * ratio)))
    batch = batch._replace(advantage=torch.full((5, 1), float(advantage)), returns=torch.zeros(5, 1))
    output = PolicyOutput(logits, torch.zeros(5, 1), memory=None, gate=None)
    _, losses, logratio = script.ppo_loss(args, policy, output, batch, torch.zeros(()))
    assert logratio.exp().allclose(torch.tensor(float(ratio)))
    losses["policy_loss"].backward()
    return losses["policy_loss"].item(), logits.grad.gather(-1, batch.action[..., None]).sum().item()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [
        (1, 2, -2, "-"),  # the policy that acted
        (0.5, 2, -1, "-"),  # a good action, less probable now
        (5, 2, -2.4, "0"),  # a good one, more probable: clipped at 1.2
        (0.5, -2, 1.6, "0"),  # a bad one, less probable: clipped at 0.8
        (2, -2, 4, "+"),  # a bad one, more probable
    ],
)
def test_clipped_loss_by_hand(script, ratio, advantage, loss, slope):
    found, by_logit = loss_of(script, ratio, advantage)
    assert found == pytest.approx(loss, rel=1e-5)
    assert ("0" if by_logit == 0 else "+" if by_logit > 0 else "-") == slope


# ------------------------------------------------------------------------------- episodes and schedules


@pytest.mark.parametrize("script", SCRIPTS)
def test_statistics_of_episodes_hold_the_true_reward_alone(script):
    args, _, _, batch, carry = toy_rollout(script, visit_bonus=0.25)
    ends = batch.episode[batch.done]
    assert ends[:, :3].tolist() == [[3.0, 2.0, 1.0], [1.0, 3.0, 0.0], [0.0, 3.0, 0.0]]
    # Behind them each reward times gamma for each step since.
    torch.testing.assert_close(ends[:, 3], torch.tensor([3.0, args.gamma, 0.0]))
    torch.testing.assert_close(carry.total, torch.tensor([[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]))


def test_what_is_annealed_is_linear_until_the_end_and_constant_when_switched_off():
    args = ppo_palmer.Args()
    assert [ppo_palmer.annealed(args, progress) for progress in (0, 0.25, 1, 1.5)] == [1.0, 0.75, 0.0, 0.0]
    args.anneal = False
    assert ppo_palmer.annealed(args, 0.7) == 1.0


def entropy_coefficient(progress, solved, spread=1.0, **flags):
    args = ppo_palmer.Args(**{"ent_coef": 0.0, "solved_ent_coef": 1.0} | flags)
    return ppo_palmer.entropy_coefficient(args, progress, solved, torch.tensor(spread)).item()


@pytest.mark.parametrize(
    "progress, solved, rise",
    [(0, 0, 0), (0, 0.9, 0), (0.5, 0.95, 0.5), (0, 1, 1), (0.6, 1, 1), (0.8, 1, 0.5), (0.8, 0.95, 0.25), (1, 1, 0)],
)
def test_a_sure_agent_tries_more_until_the_run_comes_to_its_end(progress, solved, rise):
    assert entropy_coefficient(progress, solved) == pytest.approx(rise)
    assert entropy_coefficient(progress, solved, spread=0.1) == pytest.approx(10 * rise), "in units of rewards"
    assert entropy_coefficient(progress, solved, solved_ent_coef=0.0) == 0
    left = 1 - progress
    assert entropy_coefficient(progress, solved, ent_coef=0.6) == pytest.approx(max(0.6 * left, rise)), "the least"
    assert entropy_coefficient(progress, 1.0, anneal=False) == 1, "which goes with the learning rate"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_spread_is_what_advantages_were_divided_by(script):
    args, _, _, batch, _ = toy_rollout(script, visit_bonus=0.25)
    plain, returns = script.advantages(args, batch)
    for norm_adv, least in ((True, 0.0), (True, 9.0), (False, 0.0)):
        args.norm_adv = norm_adv
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(script, "LEAST_SPREAD", least)
            found, spread = script.with_advantages(args, batch)
        expected = max(plain.std(correction=0).item(), least) if norm_adv else 1.0
        assert spread.item() == pytest.approx(expected) and torch.equal(found.returns, returns)
        torch.testing.assert_close(found.advantage * spread, plain - (plain.mean() if norm_adv else 0))


def test_a_few_first_episodes_prove_nothing():
    solved = Run.share_solved.fget
    assert solved(types.SimpleNamespace(recent=[(1.0, 9.0, 1.0)] * 9)) == 9 / 500
    assert solved(types.SimpleNamespace(recent=[(1.0, 9.0, 1.0)] * 450 + [(0.0, 9.0, 0.0)] * 50)) == 0.9


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("memory_length", [5, 30])
def test_fixed_shapes_give_the_same_numbers(script, memory_length):
    """What a GPU runs, on the CPU: whole caches behind the mask, every environment judged at a time-out."""
    rollouts, losses = [], []
    for fixed in (False, True):
        args = small_args(script, memory_length=memory_length)
        envs = make_envs("MiniGrid-MemoryS7-v0", args.num_envs, max_episode_steps=17, seed=3)
        policy, aids, optimizer = make_agent(script, args, envs)
        if fixed:
            policy.fix_shapes()
        carry = script.first_carry(policy, envs, aids)
        torch.manual_seed(5)
        for _ in range(3):
            batch, carry = play(script, args, policy, envs, aids, carry)
            losses.append(script.update(args, policy, optimizer, aids, envs.observations, batch, 0.01))
        rollouts.append(batch)
    assert torch.equal(rollouts[0].action, rollouts[1].action)
    for name in ("value", "logprob", "timeout_value", "reward"):
        torch.testing.assert_close(getattr(rollouts[0], name), getattr(rollouts[1], name), atol=1e-4, rtol=1e-3)
    assert (rollouts[0].timeout_value != 0).any()
    for varying, fixed in zip(losses[:3], losses[3:], strict=True):
        assert varying == pytest.approx(fixed, abs=1e-3)


@pytest.mark.parametrize("script", SCRIPTS)
def test_more_observations_than_can_be_told_apart(script):
    """Recall and bonus go on by what looks alike, and nothing suffers."""
    args = small_args(script, num_envs=2, num_steps=6, num_minibatches=1)
    envs = make_envs("CartPole-v1", 2, seed=1)
    envs.observations.capacity = 7  # overflows within the first rollout
    policy, aids, optimizer = make_agent(script, args, envs)
    carry = script.first_carry(policy, envs, aids)
    for _ in range(3):
        batch, carry = play(script, args, policy, envs, aids, carry)
        assert not envs.observations.distinct
        losses = script.update(args, policy, optimizer, aids, envs.observations, batch, 0.0)
        assert losses["first_minibatch_ratio_error"] < 1e-4
        assert 0 < losses["recall_loss"] < 1 and 0 <= losses["age_loss"] < 10
        assert ((batch.reward >= 1) & (batch.reward <= 1 + args.visit_bonus)).all()


# ------------------------------------------------------------------------------- one experiment, three arms

START = "the agent: all in which the three scripts differ"
END = "from here on the three scripts are the same again"


def split(text: str) -> tuple[str, str]:
    """A script's text without the block in which the three may differ, and that block."""
    lines = text.splitlines()
    marks = [i for i, line in enumerate(lines) if line.startswith("# ---") and line.endswith((START, END))]
    start, end = marks
    assert lines[start].endswith(START) and lines[end].endswith(END)
    return "\n".join(lines[: start + 1] + lines[end:]), "\n".join(lines[start:end])


TEXTS = [Path(script.__file__).read_text(encoding="utf-8") for script in SCRIPTS]


def test_the_three_scripts_are_one_text_outside_their_one_block():
    common = {split(text)[0] for text in TEXTS}
    assert len(common) == 1
    assert len({split(text)[1] for text in TEXTS}) == 3


@pytest.mark.parametrize(
    "old, new",
    [
        ("LEAST_SPREAD = 0.02", "LEAST_SPREAD = 0.03"),
        ('"""Play T steps in N environments."""', '"""Play T steps."""'),
        ("gamma: Annotated[float, Range(0, 1)] = 0.985", "gamma: Annotated[float, Range(0, 1)] = 0.99"),
        ("gamma=0.995", "gamma=0.99"),
        ("# http://joschu.net", "# See http://joschu.net"),
        ("losses = update(", "losses = again = update("),
    ],
)
def test_a_change_in_one_of_the_scripts_is_seen(old, new):
    for text in TEXTS:
        assert text.count(old) == 1
        assert split(text.replace(old, new))[0] != split(text)[0]
        assert split(text.replace("class Args(PPOArgs)", "class Args(object)"))[0] == split(text)[0]


def test_what_two_agents_have_in_common_stands_in_both_blocks_alike():
    """Flags with default, range and description; presets by name and value."""
    palmer, *others = (split(text)[1] for text in TEXTS)
    flags = [line for line in palmer.splitlines() if line.startswith("    ")]
    for other in others:
        own = [line for line in other.splitlines() if line.startswith("    ")]
        assert own and [line for line in flags if line in own] == own


def test_the_three_scripts_share_their_flags_defaults_and_presets():
    own = {"lstm_layers", "fixed_gate", "memory_length"}
    own |= {"trxl_layers", "trxl_heads", "trxl_ff_mult"}
    palmer = {field.name: field.default for field in dataclasses.fields(ppo_palmer.Args)}
    for script in SCRIPTS:
        flags = {field.name: field.default for field in dataclasses.fields(script.Args)}
        assert palmer.keys() - flags.keys() <= own
        for name, default in flags.items():
            assert default == palmer[name], name
        for name, preset in script.PRESETS.items():
            assert preset == {k: v for k, v in ppo_palmer.PRESETS[name].items() if k in flags}


def test_the_three_agents_share_encoder_heads_and_memories():
    envs = make_envs("MiniGrid-MemoryS7-v0", 1)
    shapes = []
    for script in SCRIPTS:
        policy = make_policy(script, script.Args(), envs)
        shapes.append({name: tuple(p.shape) for name, p in policy.named_parameters()})
    palmer, lstm, trxl = shapes
    assert lstm.items() <= palmer.items() and trxl.items() <= palmer.items()
    assert {name for name in palmer if name not in lstm and name not in trxl} == {
        "gate.linear.weight",
        "gate.linear.bias",
    }
