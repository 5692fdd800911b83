"""The memory aids: what recall asks for and teaches, what the first-visit bonus pays and how it fades, and codes."""

import functools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toys import SCRIPTS, TOY, make_agent, small_args, toy_rollout

import memory_aids
import ppo_palmer
from memory_aids import Codes, fading, rarity, recall_loss, says_nothing, shares
from tasks.observations import ObservationTable, plain_space


def numbers(seen):
    """Rows of truth values as the numbers of those that are true."""
    return [set(row.nonzero().flatten().tolist()) for row in seen]


# ------------------------------------------------------------------------------- first visits


@pytest.mark.parametrize("script", SCRIPTS)
def test_recall_target_and_visit_bonus_by_hand(script):
    _, _, _, batch, carry = toy_rollout(script, visit_bonus=0.25)
    assert [numbers(step) for step in batch.seen] == [
        [{0}, {1}],
        [{0, 1}, {1, 2}],
        [{0, 1}, {2}],
        [{3}, {1, 2}],
        [{3}, {1, 2}],
    ]
    # New observations of the episode: 1 at step 0 and 4 at step 4, which has a reward of its own; 2 at step 0 and 1
    # at step 2. The first observation of an episode and the last one, which nobody acts on, earn nothing.
    assert batch.reward.tolist() == [[0.25, 0.25], [1.0, 3.0], [0.0, 0.25], [0.0, 0.0], [2.0, 0.0]]
    # Carried on: what was shown before the present observation, which the next rollout counts in.
    assert numbers(carry.seen) == [{3}, set()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_was_seen_passes_over_the_border_of_a_rollout(script):
    args, policy, aids, _, _ = toy_rollout(script, visit_bonus=0.25)
    halves = []
    carry = script.first_carry(policy, TOY, aids)
    aids.together = aids.together * 0
    for steps in (2, 3):
        args.num_steps = steps
        batch, carry = script.rollout(args, policy, TOY, carry)
        together = aids.together
        batch, carry = aids.first_visits(batch, carry, 1.0)
        aids.together = together  # the same shares in both halves, as in one rollout
        halves.append(batch)
    _, _, _, whole, end = toy_rollout(script, visit_bonus=0.25)
    for name in ("seen", "reward"):
        assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(whole, name))
    assert torch.equal(carry.seen, end.seen) and torch.equal(carry.novelty, end.novelty)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_of_a_bonus_that_fades_a_share_is_paid(share):
    args = small_args(ppo_palmer, num_envs=2, num_steps=5, visit_bonus=0.25)
    policy, aids, _ = make_agent(ppo_palmer, args, TOY)
    batch, carry = ppo_palmer.rollout(args, policy, TOY, ppo_palmer.first_carry(policy, TOY, aids))
    paid = aids.first_visits(batch, carry, share)[0].reward - batch.reward
    expected = torch.tensor([[0.25, 0.25], [0, 0], [0, 0.25], [0, 0], [0, 0]])
    torch.testing.assert_close(paid, share * expected)


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_most_episodes_show_earns_less(script):
    """Three episodes ended, showing {0, 1}, {1, 2} and {1, 2}: the first of all, so that shares are theirs."""
    args, policy, aids, _, _ = toy_rollout(script, visit_bonus=0.25)
    together = torch.zeros(6, 6)
    together[:3, :3] = torch.tensor([[1, 1, 0], [1, 3, 2], [0, 2, 2]]) / 3
    torch.testing.assert_close(aids.together, together)
    assert aids.familiar.tolist() == [0] * 6, "of the episodes before this rollout"
    together = torch.diag(torch.tensor([0, 0.2, 0.4, 0, 1.0, 0]))
    aids.together = together.clone()
    start = script.first_carry(policy, TOY, aids)
    batch, _ = aids.first_visits(*script.rollout(args, policy, TOY, start), 1.0)
    expected = [[0.2, 0.15], [1.0, 3.0], [0.0, 0.2], [0.0, 0.0], [2.0, 0.0]]
    torch.testing.assert_close(batch.reward, torch.tensor(expected))
    torch.testing.assert_close(aids.familiar, together.diagonal())


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_episode_that_has_met_much_earns_less(script, monkeypatch):
    """The first episodes have met rarities of 2 and 9 of a budget of 8: 6/8 of the bonus is left, and none."""
    args = small_args(script, num_envs=2, num_steps=5, visit_bonus=0.25)
    monkeypatch.setattr(memory_aids, "VISIT_BUDGET", 8.0)
    policy, aids, _ = make_agent(script, args, TOY)
    start = script.first_carry(policy, TOY, aids)._replace(novelty=torch.tensor([2.0, 9.0]))
    batch, carry = aids.first_visits(*script.rollout(args, policy, TOY, start), 1.0)
    expected = [[0.1875, 0.0], [1.0, 3.0], [0.0, 0.25], [0.0, 0.0], [2.0, 0.0]]
    torch.testing.assert_close(batch.reward, torch.tensor(expected))
    # Counted anew in every episode, by what it was paid for.
    assert carry.novelty.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("parts", [[5], [2, 3], [1, 1, 3]])
def test_each_first_visit_leaves_less_for_the_next_in_and_across_rollouts(parts):
    """No episode ends; the first environment shows something new at every step, the second at two of them."""
    args = small_args(ppo_palmer, num_envs=2, num_steps=5, visit_bonus=0.25)
    policy, aids, _ = make_agent(ppo_palmer, args, TOY)
    batch, _ = ppo_palmer.rollout(args, policy, TOY, ppo_palmer.first_carry(policy, TOY, aids))
    obs = torch.tensor([[0, 0], [1, 0], [2, 1], [3, 1], [4, 2], [5, 2]])
    carry, paid, t = ppo_palmer.first_carry(policy, TOY, aids), [], 0
    for steps in parts:
        here = torch.zeros(steps, 2)
        part = batch._replace(obs=obs[t : t + steps], reward=here, done=here.bool())
        t += steps
        part, carry = aids.first_visits(part, carry._replace(obs=obs[t]), 1.0)
        paid.append(part.reward)
    left = [[1.0, 0.0], [0.75, 1.0], [0.5, 0.0], [0.25, 0.75], [0.0, 0.0]]
    torch.testing.assert_close(torch.cat(paid), 0.25 * torch.tensor(left))
    assert carry.novelty.tolist() == [5.0, 2.0]


def test_the_bonus_is_for_steps_on_which_the_reward_says_nothing():
    nothing = [[0, 0, 0], [0, 1, -2]]
    price = [[-0.1, -0.1, 5], [-0.1, -0.1, -0.1]]
    alive = [[1, 1, 1], [1, 1, 0]]
    assert says_nothing(torch.tensor(nothing)).tolist() == [[True, True, True], [True, False, False]]
    assert says_nothing(torch.tensor(price)).tolist() == [[True, True, False], [True, True, True]]
    assert not says_nothing(torch.tensor(alive)).any()


def test_rarity_by_hand():
    """The table in the docstring: corridor, ball, ball from nearer, key; six environments with different pasts."""
    together = torch.zeros(5, 5)
    together[:4, :4] = torch.tensor(
        [[1.0, 0.5, 0.4, 0.5], [0.5, 0.5, 0.4, 0.0], [0.4, 0.4, 0.4, 0.0], [0.5, 0.0, 0.0, 0.5]]
    )
    past = [{}, {0}, {0, 1}, {0, 2}, {0, 1, 2}, {0, 1}, {0, 1, 2}]
    code = torch.tensor([0, 1, 2, 1, 3, 0, 4])
    seen = torch.tensor([[k in shown for k in range(5)] for shown in past])
    expected = torch.tensor([0, 0.5, 0.2, 0, 0.5, 0, 1])  # the last has not been met before: as rare as can be
    torch.testing.assert_close(rarity(together, code, seen), expected, atol=3e-3, rtol=0)


# ------------------------------------------------------------------------------- shares of episodes


def test_shares_are_a_mean_at_first_and_a_running_average_of_500_episodes_then():
    both = torch.tensor([[4.0, 1.0], [1.0, 2.0]])
    first = shares(torch.zeros(2, 2), both, 4, 0)
    torch.testing.assert_close(first, both / 4)
    second = shares(first, torch.tensor([[0.0, 0.0], [0.0, 6.0]]), 6, 4)
    torch.testing.assert_close(second, torch.tensor([[4.0, 1.0], [1.0, 8.0]]) / 10)
    assert torch.equal(shares(second, torch.zeros(2, 2), 0, 10), second), "no episode has ended"
    assert torch.equal(shares(torch.zeros(2, 2), torch.zeros(2, 2), 0, 0), torch.zeros(2, 2))
    late = shares(torch.full((1, 1), 0.5), torch.full((1, 1), 100.0), 100, 500)
    assert late.item() == pytest.approx(0.5 + (100 - 50) / 600)


@pytest.mark.parametrize("counted, episodes", [(0, 3), (7, 10), (499, 500), (500, 500)])
def test_an_episode_counts_for_one_in_as_many_as_were_counted(counted, episodes):
    """Of the toy's three episodes one shows {0, 1} and two {1, 2}."""
    args, policy, aids, _, _ = toy_rollout(ppo_palmer)
    aids.together, aids.episodes = torch.full((6, 6), 0.5), counted
    start = ppo_palmer.first_carry(policy, TOY, aids)
    aids.first_visits(*ppo_palmer.rollout(args, policy, TOY, start), 1.0)
    showed = torch.zeros(6, 6)
    showed[:3, :3] = torch.tensor([[1.0, 1, 0], [1, 3, 2], [0, 2, 2]])
    torch.testing.assert_close(aids.together, (0.5 * counted + showed) / (counted + 3))
    assert aids.episodes == episodes


def test_aids_go_on_as_they_were_saved():
    args, policy, aids, batch, carry = toy_rollout(ppo_palmer, visit_bonus=0.25)
    _, other, _ = make_agent(ppo_palmer, args, TOY)
    other.load_state_dict(aids.state_dict())
    assert torch.equal(other.together, aids.together) and other.episodes == aids.episodes == 3
    batch, carry = ppo_palmer.rollout(args, policy, TOY, ppo_palmer.first_carry(policy, TOY, aids))
    for ours, theirs in zip(
        other.first_visits(batch, carry, 1.0)[0], aids.first_visits(batch, carry, 1.0)[0], strict=True
    ):
        assert not isinstance(ours, torch.Tensor) or torch.equal(ours, theirs)


# ------------------------------------------------------------------------------- recall


@pytest.mark.parametrize("script", SCRIPTS)
def test_recall_loss_teaches_memory_and_zero_switches_it_off(script):
    args, policy, aids, batch, _ = toy_rollout(script)
    optimizer = torch.optim.Adam([*policy.parameters(), *aids.heads.parameters()], lr=1e-2)
    before = aids.heads["seen"].weight.clone()
    args.recall_coef = args.age_coef = 0.0
    losses = script.update(args, policy, optimizer, aids, TOY.observations, batch, 0.0)
    assert "recall_loss" not in losses and "age_loss" not in losses
    assert torch.equal(aids.heads["seen"].weight, before)
    args.recall_coef, args.update_epochs = 1.0, 1
    first = script.update(args, policy, optimizer, aids, TOY.observations, batch, 0.0)["recall_loss"]
    for _ in range(60):
        last = script.update(args, policy, optimizer, aids, TOY.observations, batch, 0.0)["recall_loss"]
    assert last < 0.2 * first


def test_recall_by_age_teaches_memory():
    args, policy, aids, batch, _ = toy_rollout(ppo_palmer)
    args.recall_coef, args.update_epochs = 0.0, 1
    optimizer = torch.optim.Adam([*policy.parameters(), *aids.heads.parameters()], lr=1e-2)
    update = functools.partial(ppo_palmer.update, args, policy, optimizer, aids, TOY.observations, batch, 0.0)
    losses = [update()["age_loss"] for _ in range(60)]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_recall_that_is_off_has_no_head(script):
    kinds = {(1.0, 0.0): {"seen"}, (0.0, 1.0): {"age"}, (1.0, 1.0): {"seen", "age"}, (0.0, 0.0): set()}
    for (recall_coef, age_coef), heads in kinds.items():
        args = small_args(script, recall_coef=recall_coef, age_coef=age_coef, num_envs=2, num_steps=5)
        policy, aids, _ = make_agent(script, args, TOY)
        assert set(aids.heads) == heads
        assert aids.past_steps == (args.num_steps if age_coef else 0)
        batch, _ = script.rollout(args, policy, TOY, script.first_carry(policy, TOY, aids))
        assert batch.past.shape == (aids.past_steps, 2)


def test_recall_asks_most_for_what_is_uncertain():
    """By hand: weights p (1 - p) + 0.01 of 0.01, 0.26 and 0.01, and a loss of ln 2 for observation 1 alone."""
    logits, seen = torch.tensor([[[9e9, 0.0, -9e9]]]).expand(2, 3, 3), torch.tensor([1, 1, 0]).bool().expand(2, 3, 3)
    logits, seen = logits.repeat(1, 1, 2), seen.repeat(1, 1, 2)  # as much again, so that it counts in full
    loss = recall_loss(logits, seen, torch.tensor([1.0, 0.5, 0.0, 1.0, 0.5, 0.0]))
    assert loss.item() == pytest.approx(math.log(2) * 0.52 / 0.56)


def test_recall_asks_little_where_little_is_uncertain():
    """A loss of ln 2 for each of two observations, by how many of the episodes show them."""
    logits, seen = torch.zeros(2, 3, 2), torch.ones(2, 3, 2).bool()
    for share, expected in ((0.5, 1), (0.9, 0.2 / 0.5), (1.0, 0.02 / 0.5)):
        loss = recall_loss(logits, seen, torch.tensor([share, share]))
        assert loss.item() == pytest.approx(math.log(2) * expected)


# ------------------------------------------------------------------------------- fading


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
    assert fading(progress, solved / 500) == pytest.approx(share)
    assert fading(0.0, 0.0) == 1


# ------------------------------------------------------------------------------- codes


@pytest.mark.parametrize("high", [1, 255, np.inf])
def test_codes_tell_pictures_apart_whatever_their_bounds(high):
    table = ObservationTable(plain_space(spaces.Box(-high, high, (9, 9, 3))), capacity=50)
    pictures = np.random.default_rng(0).uniform(-1, 1, (5, 9, 9, 3)).astype(np.float32)
    table.number((pictures * min(high, 300),))
    assert Codes(table).learn()[0].tolist() == [0, 1, 2, 3, 4]
