"""The PPO loop of the three scripts: what it collects, what it learns from, and that all three are the same."""

import dataclasses
import inspect
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from memory_envs import ObservationTable, Step, make_envs

import ppo_lstm
import ppo_palmer
import ppo_trxl

SCRIPTS = [ppo_palmer, ppo_lstm, ppo_trxl]
PHASES = [
    "Carry",
    "Rollout",
    "first_carry",
    "rollout",
    "encode_new",
    "room_for",
    "rarity",
    "share_of_episodes",
    "gate_statistics",
    "advantages",
    "Minibatch",
    "update",
    "minibatch_step",
    "recall_loss",
    "distinct_frames",
    "schedule",
    "set_learning_rate",
    "exploration",
    "sureness",
    "share_solved",
    "main",
    "save_carry",
    "load_carry",
    "episode_metrics",
    "gate_metrics",
    "held_out",
    "eval_metrics",
]


def small_args(script, **flags):
    args = script.Args(width=16, num_envs=6, num_steps=20, num_minibatches=2, visit_bonus=0.5)
    flags = {"memory_length": 5, "trxl_heads": 2, "trxl_layers": 2, "lstm_layers": 2} | flags
    for name, value in flags.items():
        if hasattr(args, name):
            setattr(args, name, value)
    return args


def make_policy(script, args, envs):
    torch.manual_seed(0)
    policy = script.make_agent(args, envs.observations.space, envs.action_space, envs.observations.capacity)
    torch.nn.init.normal_(policy.actor.weight, std=0.3)  # so that memory moves the probabilities
    return policy


class ScriptedEnvs:
    """Environments that play given observation numbers, whatever the agent does.

    script: for each environment, its first observation and then for each step a dict with the number of the
    observation that it leads to, and optionally reward, how its episode ends, and the next one's first observation.
    """

    def __init__(self, first: list[int], steps: list[list[dict]], num_observations: int = 6):
        self.num_envs, self.first, self.script, self.t = len(first), first, steps, 0
        frames = torch.randn(num_observations, 4, generator=torch.Generator().manual_seed(0))
        self.observations = ObservationTable(spaces.Box(-9, 9, (4,)), num_observations, frames=frames)
        self.action_space = spaces.Discrete(3)

    def reset(self):
        self.t = 0
        return torch.tensor(self.first)

    def step(self, action):
        rows = [env[self.t] for env in self.script]
        self.t += 1
        ends = [row.get("end") for row in rows]
        return Step(
            obs=torch.tensor([row.get("next", row["obs"]) for row in rows]),
            reward=torch.tensor([float(row.get("reward", 0)) for row in rows]),
            terminated=torch.tensor([end == "terminated" for end in ends]),
            truncated=torch.tensor([end == "truncated" for end in ends]),
            final_obs=torch.tensor([row["obs"] for row in rows]),
            success=torch.tensor(
                [end == "terminated" and row.get("reward", 0) > 0 for row, end in zip(rows, ends, strict=True)]
            ),
        )


TOY = ScriptedEnvs(
    first=[0, 1],
    steps=[
        [
            {"obs": 1},
            {"obs": 0, "reward": 1.0},
            {"obs": 2, "end": "truncated", "next": 3},
            {"obs": 3},
            {"obs": 4, "reward": 2.0},
        ],
        [
            {"obs": 2},
            {"obs": 3, "reward": 3.0, "end": "terminated", "next": 2},
            {"obs": 1},
            {"obs": 2},
            {"obs": 5, "end": "truncated", "next": 0},
        ],
    ],
)


def toy_rollout(script, visit_bonus=0.0):
    args = small_args(script, num_envs=2, num_steps=5)
    policy = make_policy(script, args, TOY)
    return args, policy, *script.rollout(args, policy, TOY, script.first_carry(policy, TOY), visit_bonus)


# ------------------------------------------------------------------------------- the policy that acted learns


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("num_envs, memory_length", [(6, 5), (6, 64), (1, 5)])
def test_first_minibatch_has_ratio_one_at_every_step(script, num_envs, memory_length):
    args = small_args(script, num_envs=num_envs, num_minibatches=1, memory_length=memory_length)
    envs = make_envs("MiniGrid-MemoryS7-v0", num_envs, max_episode_steps=17, seed=3)
    policy = make_policy(script, args, envs)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    carry = script.first_carry(policy, envs)
    carried = False
    for _ in range(3):
        batch, carry = script.rollout(args, policy, envs, carry, args.visit_bonus)
        output, _ = policy(envs.observations.frames, batch.state, batch.episode_start, batch.obs)
        ratio = (policy.distribution(output.logits).log_prob(batch.action) - batch.logprob).exp()
        assert (ratio - 1).abs().max() < 1e-4
        losses = script.update(args, policy, optimizer, envs.observations, batch, 0.01)
        assert losses["first_minibatch_ratio_error"] < 1e-4
        after, _ = policy(envs.observations.frames, batch.state, batch.episode_start, batch.obs)
        moved = (policy.distribution(after.logits).log_prob(batch.action) - batch.logprob).exp() - 1
        assert moved.abs().max() > 1e-3, "the test must be able to see a policy that differs"
        carried = carried or not batch.episode_start[0].all()
        assert batch.episode_start[1:].any(), "episodes start inside the rollout"
    assert carried, "state is carried over the rollout's border"


@pytest.mark.parametrize("script", SCRIPTS)
def test_bootstrap_value_is_the_value_that_the_next_step_computes(script):
    args = small_args(script)
    envs = make_envs("MiniGrid-MemoryS7-v0", args.num_envs, max_episode_steps=17, seed=3)
    policy = make_policy(script, args, envs)
    first, carry = script.rollout(args, policy, envs, script.first_carry(policy, envs), 0.0)
    second, _ = script.rollout(args, policy, envs, carry, 0.0)
    torch.testing.assert_close(first.next_value, second.value[0], atol=1e-6, rtol=0)
    assert first.next_value.std() > 0


# ------------------------------------------------------------------------------------------------- time-outs


@pytest.mark.parametrize("script", SCRIPTS)
def test_timeouts_bootstrap_from_the_true_last_observation_with_the_memory_before_the_reset(script):
    _, policy, batch, _ = toy_rollout(script)
    frames = TOY.observations.frames

    def value_after(numbers):  # of the last observation of an episode, played from its start
        obs = frames[torch.tensor(numbers)][:, None]
        start = torch.tensor([[t == 0] for t in range(len(numbers))])
        return policy(obs, policy.initial_state(1), start)[0].value[-1, 0]

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
    policy = make_policy(script, args, envs)
    torch.nn.init.zeros_(policy.actor.weight)  # all actions alike, so that some reach the goal late
    batch, _ = script.rollout(args, policy, envs, script.first_carry(policy, envs), 0.0)
    reward_at_limit = 1 - 0.9 * 9 / 245
    both = (batch.reward - reward_at_limit).abs() < 1e-6
    assert both.any() and batch.done[both].all()
    assert batch.timeout_value[both].abs().max() == 0


# ------------------------------------------------------------------------------- advantages


@pytest.mark.parametrize("script", SCRIPTS)
def test_advantages_against_the_definition(script):
    """GAE as a sum over the future of one episode, written without recursion."""
    args, _, batch, _ = toy_rollout(script, visit_bonus=0.25)
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


# ------------------------------------------------------------------------------- recall and first visits


@pytest.mark.parametrize("script", SCRIPTS)
def test_recall_target_and_visit_bonus_by_hand(script):
    _, _, batch, carry = toy_rollout(script, visit_bonus=0.25)
    seen = [[set(row.nonzero().flatten().tolist()) for row in step] for step in batch.seen]
    assert seen == [
        [{0}, {1}],
        [{0, 1}, {1, 2}],
        [{0, 1}, {2}],
        [{3}, {1, 2}],
        [{3}, {1, 2}],
    ]
    # New observations of the episode: 1 at step 0 and 4 at step 4; 2 at step 0 and 1 at step 2. The first
    # observation of an episode and the last one, which nobody acts on, earn nothing.
    assert batch.reward.tolist() == [[0.25, 0.25], [1.0, 3.0], [0.0, 0.25], [0.0, 0.0], [2.25, 0.0]]
    assert [set(row.nonzero().flatten().tolist()) for row in carry.seen] == [{3, 4}, {0}]
    # Episode statistics hold the true reward alone.
    assert batch.episode[batch.done].tolist() == [[3.0, 2.0, 1.0], [1.0, 3.0, 0.0], [0.0, 3.0, 0.0]]


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_most_episodes_show_earns_less(script):
    """Three episodes ended, showing {0, 1}, {1, 2} and {1, 2}: their shares enter with weight 3 / (3 + 500)."""
    args, policy, batch, carry = toy_rollout(script)
    together = torch.zeros(6, 6)
    together[:3, :3] = torch.tensor([[1, 1, 0], [1, 3, 2], [0, 2, 2]]) / 3
    torch.testing.assert_close(carry.together, 3 / 503 * together)
    assert batch.familiar.tolist() == [0] * 6
    together = torch.diag(torch.tensor([0, 0.2, 0.4, 0, 1.0, 0]))
    start = script.first_carry(policy, TOY)._replace(together=together)
    batch, _ = script.rollout(args, policy, TOY, start, visit_bonus=0.25)
    expected = [[0.2, 0.15], [1.0, 3.0], [0.0, 0.2], [0.0, 0.0], [2.0, 0.0]]
    torch.testing.assert_close(batch.reward, torch.tensor(expected))
    torch.testing.assert_close(batch.familiar, together.diagonal())


def test_rarity_by_hand():
    """The table in the docstring: corridor, ball, ball from nearer, key; six environments with different pasts."""
    together = torch.tensor([[1.0, 0.5, 0.4, 0.5], [0.5, 0.5, 0.4, 0.0], [0.4, 0.4, 0.4, 0.0], [0.5, 0.0, 0.0, 0.5]])
    past = [{}, {0}, {0, 1}, {0, 2}, {0, 1, 2}, {0, 1}]
    obs = torch.tensor([0, 1, 2, 1, 3, 0])
    seen = torch.tensor([[k in shown for k in range(5)] for shown in past])  # one more than has been met
    expected = torch.tensor([0, 0.5, 0.2, 0, 0.5, 0])
    torch.testing.assert_close(ppo_palmer.rarity(together, obs, seen), expected, atol=3e-3, rtol=0)
    # What has not been met before is as rare as can be.
    together = ppo_palmer.room_for(together, 5)
    assert together.shape == (5, 5)
    assert ppo_palmer.rarity(together, torch.tensor([4]), seen[4:5]).item() == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_episode_that_has_met_much_earns_less(script):
    """The first episodes have met rarities of 2 and 9 of a budget of 8: 6/8 of the bonus is left, and none."""
    args, policy, _, _ = toy_rollout(script)
    args.visit_budget = 8.0  # not the default
    start = script.first_carry(policy, TOY)._replace(novelty=torch.tensor([2.0, 9.0]))
    batch, carry = script.rollout(args, policy, TOY, start, visit_bonus=0.25)
    expected = [[0.1875, 0.0], [1.0, 3.0], [0.0, 0.25], [0.0, 0.0], [2.25, 0.0]]
    torch.testing.assert_close(batch.reward, torch.tensor(expected))
    # Counted anew in every episode, by rarity: observation 4 at step 4 was new and never seen before.
    assert carry.novelty.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_recall_loss_teaches_memory_and_zero_switches_it_off(script):
    args, policy, batch, _ = toy_rollout(script)
    before = policy.recall.weight.clone()
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    args.recall_coef = 0.0
    assert "recall_loss" not in script.update(args, policy, optimizer, TOY.observations, batch, 0.0)
    assert torch.equal(policy.recall.weight, before)
    args.recall_coef, args.update_epochs = 1.0, 1
    first = script.update(args, policy, optimizer, TOY.observations, batch, 0.0)["recall_loss"]
    for _ in range(60):
        last = script.update(args, policy, optimizer, TOY.observations, batch, 0.0)["recall_loss"]
    assert last < 0.2 * first


def test_recall_asks_most_for_what_is_uncertain():
    """By hand: weights p (1 - p) + 0.01 of 0.01, 0.26 and 0.01, and a loss of ln 2 for observation 1 alone."""
    logits, seen = torch.tensor([[[9e9, 0.0, -9e9]]]).expand(2, 3, 3), torch.tensor([1, 1, 0]).bool().expand(2, 3, 3)
    loss = ppo_palmer.recall_loss(logits, seen, torch.tensor([1.0, 0.5, 0.0]))
    assert loss.item() == pytest.approx(math.log(2) * 0.26 / 0.28)


@pytest.mark.parametrize(
    "progress, solved, share",
    [
        (0.1, 0, 1),
        (0.5, 250, 1),
        (0.5, 375, 0.5),
        (0.1, 450, 0.2),
        (0.1, 500, 0),
        (0.75, 0, 1),
        (0.875, 0, 0.5),
        (1, 0, 0),
    ],
)
def test_the_visit_bonus_fades_with_success_and_at_the_end(progress, solved, share):
    recent = [(1.0, 9.0, 1.0)] * solved + [(0.0, 9.0, 0.0)] * (500 - solved)
    assert ppo_palmer.exploration(progress, recent) == pytest.approx(share)
    assert ppo_palmer.exploration(0.0, []) == 1


@pytest.mark.parametrize(
    "progress, solved, rise",
    [(0.1, 0, 0), (0.1, 485, 0), (0.1, 490, 1 / 3), (0.6, 500, 1), (0.8, 500, 0.5), (0.8, 490, 1 / 6), (1, 500, 0)],
)
def test_a_sure_agent_tries_more_until_the_run_comes_to_its_end(progress, solved, rise):
    recent = [(1.0, 9.0, 1.0)] * solved + [(0.0, 9.0, 0.0)] * (500 - solved)
    assert ppo_palmer.sureness(progress, recent) == pytest.approx(rise)
    assert ppo_palmer.sureness(0.0, [(1.0, 9.0, 1.0)] * 9) == 0, "a few first episodes prove nothing"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("memory_length", [5, 30])
def test_fixed_shapes_give_the_same_numbers(script, memory_length):
    """What a GPU runs, on the CPU: whole caches behind the mask, every environment judged at a time-out."""
    rollouts, losses = [], []
    for fixed in (False, True):
        args = small_args(script, memory_length=memory_length)
        envs = make_envs("MiniGrid-MemoryS7-v0", args.num_envs, max_episode_steps=17, seed=3)
        policy = make_policy(script, args, envs)
        if fixed:
            policy.fix_shapes()
        optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
        carry = script.first_carry(policy, envs)
        torch.manual_seed(5)
        for _ in range(3):
            batch, carry = script.rollout(args, policy, envs, carry, args.visit_bonus)
            losses.append(script.update(args, policy, optimizer, envs.observations, batch, 0.01))
        rollouts.append(batch)
    assert torch.equal(rollouts[0].action, rollouts[1].action)
    for name in ("value", "logprob", "timeout_value", "reward"):
        torch.testing.assert_close(getattr(rollouts[0], name), getattr(rollouts[1], name), atol=1e-4, rtol=1e-3)
    assert (rollouts[0].timeout_value != 0).any()
    for varying, fixed in zip(losses[:3], losses[3:], strict=True):
        assert varying == pytest.approx(fixed, abs=1e-3)


@pytest.mark.parametrize("script", SCRIPTS)
def test_more_observations_than_can_be_told_apart(script):
    """Recall and bonus switch off; nothing else suffers."""
    args = small_args(script, num_envs=2, num_steps=6, num_minibatches=1)
    envs = make_envs("CartPole-v1", 2, seed=1)
    envs.observations.capacity = 7  # overflows within the first rollout
    policy = make_policy(script, args, envs)
    optimizer = torch.optim.Adam(policy.parameters())
    carry = script.first_carry(policy, envs)
    for _ in range(3):
        batch, carry = script.rollout(args, policy, envs, carry, 0.5)
        losses = script.update(args, policy, optimizer, envs.observations, batch, 0.0)
        assert losses["first_minibatch_ratio_error"] < 1e-4
        assert "recall_loss" not in losses
    assert batch.reward.tolist() == np.ones((6, 2)).tolist()


# ------------------------------------------------------------------------------- one experiment, three arms


@pytest.mark.parametrize("name", PHASES)
def test_the_three_scripts_share_their_loop_to_the_letter(name):
    sources = {inspect.getsource(getattr(script, name)) for script in SCRIPTS}
    assert len(sources) == 1


def test_no_function_escapes_the_comparison():
    for script in SCRIPTS:
        own = {
            name
            for name, value in vars(script).items()
            if getattr(value, "__module__", None) == script.__name__ and callable(value)
        }
        policy_class = {name for name in own if name.endswith("Policy")}
        assert own - policy_class == {*PHASES, "Args", "make_agent"}


def test_the_three_scripts_share_their_flags_defaults_and_presets():
    own = {"exp_name", "lstm_layers", "gate_floor", "fixed_gate", "memory_length", "positions"}
    own |= {"trxl_layers", "trxl_heads", "trxl_ff_mult"}
    palmer = {field.name: field.default for field in dataclasses.fields(ppo_palmer.Args)}
    for script in SCRIPTS:
        flags = {field.name: field.default for field in dataclasses.fields(script.Args)}
        assert palmer.keys() - flags.keys() <= own
        for name, default in flags.items():
            assert name == "exp_name" or default == palmer[name], name
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
