"""The small tasks: what is seen, what is rewarded, how long it takes; best, blind and guessing policies."""

import functools
import warnings
from collections import Counter

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from minigrid.wrappers import ImgObsWrapper, RGBImgPartialObsWrapper

from tasks import noisy_minigrid  # its package registers all ids

RIGHT, UP, LEFT, DOWN = range(4)
OWN = ("TMazePassive", "TMazeActive", "Parity", "RecallXorParity", "RepeatAndParity")
NOISY = ("NoisyMemoryS11", "NoisyMemoryS13", "NoisyMemoryS13Random", "NoisyMemoryS17Random")
MASKED = ("CartPoleNoVelocity", "PendulumNoVelocity")


def make(name, **kwargs):
    return gymnasium.make(f"palmer/{name}-v0", **kwargs)


def play(env, policy, seed=None, tells=True):
    """One episode: its observations, its rewards, and whether it succeeded; `policy` gets the observations so far."""
    obs, info = env.reset(seed=seed)
    assert info == ({"is_success": False} if tells else {})
    seen, rewards, terminated = [obs], [], False
    while not terminated:
        obs, reward, terminated, truncated, info = env.step(policy(seen))
        seen.append(obs)
        rewards.append(reward)
        assert not truncated and list(info) == ["is_success"] * tells
        assert not tells or (type(info["is_success"]) is bool and (terminated or not info["is_success"]))
    return seen, rewards, info.get("is_success")


def success_rate(env, policy, episodes=400):
    env.reset(seed=1)
    return np.mean([play(env, policy)[2] for _ in range(episodes)])


# ------------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize("name", OWN + NOISY + MASKED)
def test_gymnasium_accepts_it(name):
    env = make(name, disable_env_checker=True)
    env = env.unwrapped if name in OWN else env
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*different from the unwrapped version.*")
        warnings.filterwarnings("ignore", ".*symmetric and normalized.*")  # Pendulum's own actions, -2..2
        # "human", which MiniGrid, CartPole and Pendulum offer, would open a window.
        check_env(env, skip_render_check=name not in OWN)


@pytest.mark.parametrize("name", OWN + NOISY + MASKED)
def test_it_has_a_picture(name):
    env = make(name, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    assert before.dtype == np.uint8 and before.ndim == 3 and before.shape[2] == 3
    action = {"PendulumNoVelocity": np.ones(1, np.float32), "RepeatAndParity": np.array([0, 0])}.get(name, 0)
    for _ in range(5):  # enough for CartPole to move by a pixel
        if any(env.step(action)[2:4]):
            break
    assert (env.render() != before).any()
    env.close()


@pytest.mark.parametrize("name", OWN + NOISY + MASKED)
def test_a_seed_repeats_what_follows(name):
    def some_steps(seed):
        env = make(name)
        env.action_space.seed(0)
        env.reset(seed=seed)
        steps = []
        for _ in range(4):  # later resets without a seed go on from the first
            steps.append(env.reset()[0])
            steps += [env.step(env.action_space.sample())[0] for _ in range(2)]
        return np.array(steps)

    assert np.array_equal(some_steps(5), some_steps(5))
    assert any(not np.array_equal(some_steps(5), some_steps(seed)) for seed in range(6, 16))


@pytest.mark.parametrize("name", OWN)
def test_a_wrong_action_is_refused(name):
    env = make(name).unwrapped
    env.reset(seed=0)
    several = np.array([0, 2]), np.array([0]), np.array([0.5, 0])
    for action in several if name == "RepeatAndParity" else (-1, env.action_space.n, 0.5):
        with pytest.raises(AssertionError):
            env.step(action)


# ------------------------------------------------------------------------------------------ T-maze


def recalled_turn(seen):
    """Up or down, as the oracle said; it said nothing else before the junction."""
    return UP if sum(obs[1] for obs in seen if obs[0] == 0) > 0 else DOWN


def passive_best(seen):
    return recalled_turn(seen) if seen[-1][0] else RIGHT


def active_best(seen):
    return LEFT if len(seen) == 1 else passive_best(seen)


@pytest.mark.parametrize(
    ("name", "best", "detour"), [("TMazePassive", passive_best, 0), ("TMazeActive", active_best, 2)]
)
@pytest.mark.parametrize("length", [1, 5, 50])
def test_tmaze_best_policy(name, best, detour, length):
    env = make(name, length=length)
    goals = Counter()
    for seed in range(20):
        seen, rewards, success = play(env, best, seed)
        assert success and rewards == [0.0] * (length + detour) + [1.0]
        goals[recalled_turn(seen[:-1])] += 1
    assert goals[UP] >= 5 and goals[DOWN] >= 5


@pytest.mark.parametrize("name", ["TMazePassive", "TMazeActive"])
def test_tmaze_policies_without_memory(name):
    env = make(name, length=6)
    # Walks, then turns up; in the active maze it arrives two steps early and stands in the arm until the end.
    assert success_rate(env, lambda seen: UP if seen[-1][0] else RIGHT) == pytest.approx(0.5, abs=0.1)
    assert success_rate(env, lambda seen: env.action_space.sample()) < 0.1
    _, rewards, success = play(env, lambda seen: UP)
    assert sum(rewards) == pytest.approx(-1) and rewards[-1] == 0 and not success


def test_tmaze_passive_by_hand():
    env = make("TMazePassive", length=4)
    goal = 1 if play(env, lambda seen: RIGHT, seed=3)[0][0][1] > 0 else -1
    actions = [RIGHT, LEFT, UP, RIGHT, RIGHT]
    seen, rewards, success = play(env, lambda seen: actions[len(seen) - 1], seed=3)
    # The oracle says it once; going back, it is silent. From the second step on the agent is behind.
    assert np.array_equal(seen, [(0, goal), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)])
    assert rewards == [0.0, -0.25, -0.25, -0.25, 0.0] and not success

    # The wall at the near end holds: one step is lost, and the agent is at the junction when time is over.
    seen, rewards, _ = play(env, lambda seen: LEFT if len(seen) == 1 else RIGHT, seed=3)
    assert np.array_equal(seen[-1], (1, 0)) and rewards == [-0.25] * 4 + [0.0]

    env = make("TMazePassive", length=1)
    for turn, side in ((UP, 1), (DOWN, -1)):
        seen, rewards, success = play(env, lambda seen, turn=turn: [RIGHT, turn][len(seen) - 1], seed=3)
        assert np.array_equal(seen, [(0, goal), (1, 0), (1, side)])
        assert rewards == [0.0, float(side == goal)] and success == (side == goal)


def test_tmaze_active_by_hand():
    env = make("TMazeActive", length=2)
    seen, rewards, success = play(env, lambda seen: [RIGHT, RIGHT, UP, RIGHT, LEFT][len(seen) - 1], seed=0)
    # Silent about the goal: it never was at the oracle. In the arm there are walls on either side.
    assert np.array_equal(seen, [(0, 0), (0, 0), (1, 0), (1, 1), (1, 1), (1, 1)])
    assert rewards[:4] == [0.0] * 4 and rewards[4] == float(success)
    goal = 1 if success else -1
    seen, rewards, _ = play(env, lambda seen: [LEFT, LEFT, RIGHT, LEFT, RIGHT][len(seen) - 1], seed=0)
    assert np.array_equal(seen, [(0, 0), (0, goal), (0, 0), (0, 0), (0, 0), (0, 0)])
    assert rewards == [0.0, -0.5, -0.5, -0.5, 0.0]


# ------------------------------------------------------------------------------------------ parity


def parity_of(seen):
    return int(sum(obs[1] for obs in seen)) % 2


@pytest.mark.parametrize("kwargs", [{}, {"length": 1}, {"length": 50, "fixed": True}])
def test_parity_best_policy(kwargs):
    env = make("Parity", **kwargs)
    for seed in range(30):
        seen, rewards, success = play(env, parity_of, seed)
        assert success and rewards == [0.0] * (len(seen) - 2) + [1.0]
        assert play(env, lambda seen: 1 - parity_of(seen), seed)[1] == [0.0] * (len(seen) - 2) + [-1.0]


def test_parity_says_nothing_but_bits_and_one_call():
    env = make("Parity")
    for seed in range(30):
        seen = np.array(play(env, lambda seen: 0, seed)[0])
        assert set(seen.ravel()) <= {0.0, 1.0} and (seen.sum(1) == 1).all()
        # A call at the end only, and no other sign after the answer.
        assert not seen[:-2, 2].any() and seen[-2:, 2].all()
    # Nobody can do it without the last bit.
    assert success_rate(env, lambda seen: parity_of(seen[:-2])) == pytest.approx(0.5, abs=0.1)
    assert success_rate(env, lambda seen: env.action_space.sample()) == pytest.approx(0.5, abs=0.1)


def test_parity_lengths_and_bits():
    env = make("Parity", length=5)
    env.reset(seed=0)
    episodes = [play(env, parity_of)[0][:-2] for _ in range(1000)]
    counts = Counter(len(seen) for seen in episodes)
    assert sorted(counts) == [1, 2, 3, 4, 5] and all(150 < count < 250 for count in counts.values())
    assert np.mean([obs[1] for seen in episodes for obs in seen]) == pytest.approx(0.5, abs=0.05)
    for count in (25, 50, 100):
        assert len(play(make("Parity", length=count, fixed=True), parity_of)[0]) == count + 2


# ------------------------------------------------------------------------------------------ recall xor parity


def cue(seen):
    return int(seen[0][0] > 0)


def flips(seen):
    return sum(obs[1] > 0 for obs in seen) % 2


def cue_xor_parity(seen):
    return int(cue(seen) ^ flips(seen))


@pytest.mark.parametrize("kwargs", [{}, {"length": 1, "bits": 0}, {"length": 30, "bits": 30, "fixed": True}])
def test_recall_xor_parity_best_policy(kwargs):
    env = make("RecallXorParity", **kwargs)
    for seed in range(30):
        seen, rewards, success = play(env, cue_xor_parity, seed)
        assert len(rewards) == kwargs.get("length", 20) + 2
        assert success and rewards == [0.0] * (len(rewards) - 1) + [1.0]
        assert play(env, lambda seen: 1 - cue_xor_parity(seen), seed)[1] == [0.0] * (len(rewards) - 1) + [-1.0]


def test_recall_xor_parity_needs_both_memories():
    fixed, varied = (make("RecallXorParity", length=6, bits=3, fixed=fixed) for fixed in (True, False))
    for policy in (cue, flips, lambda seen: fixed.action_space.sample()):
        assert success_rate(fixed, policy) == pytest.approx(0.5, abs=0.1)
    assert success_rate(varied, cue, 1000) == pytest.approx(0.5 + 0.5 / 4, abs=0.05)  # no bit in one of four episodes
    assert success_rate(varied, flips, 1000) == pytest.approx(0.5, abs=0.05)


def test_recall_xor_parity_shows_cue_bits_and_call():
    env = make("RecallXorParity", length=6, bits=3)
    env.reset(seed=0)
    episodes = np.array([play(env, cue_xor_parity)[0] for _ in range(1000)])
    assert set(episodes[:, 0, 0]) == {-1, 1} and episodes[:, 0, 0].mean() == pytest.approx(0, abs=0.1)
    assert not episodes[:, 1:, 0].any()
    bits = episodes[:, :, 1]
    assert not bits[:, 0].any() and not bits[:, -2:].any() and set(bits.ravel()) == {-1, 0, 1}
    counts = Counter(np.abs(bits).sum(1))
    assert sorted(counts) == [0, 1, 2, 3] and all(200 < count < 300 for count in counts.values())
    assert np.abs(bits[:, 1:-2]).mean(0) == pytest.approx(np.full(6, 1.5 / 6), abs=0.06)  # anywhere on the way
    assert bits.sum() / np.abs(bits).sum() == pytest.approx(0, abs=0.1)
    assert not episodes[:, :-2, 2].any() and (episodes[:, -2:, 2] == 1).all()


# --------------------------------------------------------------------------------------- repeat and parity


def repeat_and_parity(seen, delay=32):
    """Both answers, from all observations up to now."""
    cards = [int(obs[0] > 0) for obs in seen]
    return np.array([cards[-1 - delay] if len(cards) > delay else 0, flips(seen)])


def test_repeat_and_parity_best_policy():
    for kwargs in ({}, {"delay": 3, "length": 7, "flips": 0.5}, {"delay": 1, "length": 2, "flips": 1}):
        env, length = make("RepeatAndParity", **kwargs), kwargs.get("length", 96)
        best = functools.partial(repeat_and_parity, delay=kwargs.get("delay", 32))
        for seed in range(10):
            seen, rewards, _ = play(env, best, seed, tells=False)
            assert rewards == pytest.approx([1 / length] * length) and len(seen) == length + 1
            _, rewards, _ = play(env, lambda seen, best=best: 1 - best(seen), seed, tells=False)
            assert rewards == pytest.approx([-1 / length] * length)


def test_repeat_and_parity_needs_both_memories():
    """Either answer alone is half of the reward; what an agent sees of the last 40 steps is not enough for parity."""
    env = make("RepeatAndParity")
    returns = {}
    for name, policy in (
        ("parity", lambda seen: np.array([env.action_space.sample()[0], flips(seen)])),
        ("repeat", lambda seen: np.array([repeat_and_parity(seen)[0], env.action_space.sample()[1]])),
        ("last 40", lambda seen: repeat_and_parity(seen[-40:])),
        ("chance", lambda seen: env.action_space.sample()),
    ):
        returns[name] = np.mean([sum(play(env, policy, seed, tells=False)[1]) for seed in range(200)])
    assert returns["parity"] == pytest.approx(0.5, abs=0.03) and returns["repeat"] == pytest.approx(0.5, abs=0.03)
    assert 0.6 < returns["last 40"] < 0.8
    assert returns["chance"] == pytest.approx(0, abs=0.03)


def test_repeat_and_parity_flips_as_often_as_it_is_told():
    for share in (0, 0.1, 0.5, 1):
        env = make("RepeatAndParity", flips=share)
        episodes = np.array([play(env, repeat_and_parity, seed, tells=False)[0][:-1] for seed in range(100)])
        assert set(episodes[..., 0].ravel()) == {-1, 1} and episodes[..., 0].mean() == pytest.approx(0, abs=0.05)
        assert (episodes[..., 1] > 0).mean() == pytest.approx(share, abs=0.02)


# ------------------------------------------------------------------------------------------ masked control


@pytest.mark.parametrize(
    ("name", "original", "seen", "limit"),
    [("CartPoleNoVelocity", "CartPole-v1", [0, 2], 500), ("PendulumNoVelocity", "Pendulum-v1", [0, 1], 200)],
)
def test_velocities_are_hidden_and_all_else_is_the_original(name, original, seen, limit):
    env, full = make(name), gymnasium.make(original)
    assert env.observation_space == spaces.Box(full.observation_space.low[seen], full.observation_space.high[seen])
    assert env.action_space == full.action_space and env.spec.max_episode_steps == limit
    env.action_space.seed(0)
    obs, info = env.reset(seed=0)
    assert np.array_equal(obs, full.reset(seed=0)[0][seen]) and "is_success" not in info
    over, steps = False, 0
    while not over:
        action = env.action_space.sample()
        (obs, *rest), (expected, *expected_rest) = env.step(action), full.step(action)
        assert np.array_equal(obs, expected[seen]) and rest == expected_rest and "is_success" not in rest[-1]
        over, steps = rest[1] or rest[2], steps + 1
    assert steps == limit or name == "CartPoleNoVelocity"


# ------------------------------------------------------------------------------------------ noisy MiniGrid


class OnePicture(gymnasium.Env):
    """The same picture for ever: half of it grey, a quarter black, a quarter white."""

    observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = spaces.Discrete(2)
    picture = np.full((8, 8, 3), 100, np.uint8)
    picture[:2], picture[2:4] = 0, 255

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.picture, {}

    def step(self, action):
        return self.picture, 0.0, False, False, {}


def test_noise_is_uniform_clipped_and_new_in_every_picture():
    env = noisy_minigrid.NoisyPicture(OnePicture(), noise=30)
    pictures = [env.reset(seed=0)[0]] + [env.step(0)[0] for _ in range(999)]
    assert all(picture.dtype == np.uint8 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 1000
    noise = np.array(pictures).astype(int) - OnePicture.picture
    grey, black, white = noise[:, 4:], noise[:, :2], noise[:, 2:4]
    assert set(grey.ravel()) == set(range(-30, 31))
    assert np.abs(grey.mean(0)).max() < 3  # five standard errors: each of its numbers is around the clean one
    assert np.bincount(grey.ravel() + 30) == pytest.approx(grey.size / 61, rel=0.1)
    colours = np.corrcoef(grey[..., 0].ravel(), grey[..., 1].ravel())
    assert abs(colours[0, 1]) < 0.05
    assert black.min() == 0 and black.max() == 30 and white.min() == -30 and white.max() == 0


def test_noise_of_a_seed_is_that_of_no_other():
    env = noisy_minigrid.NoisyPicture(OnePicture())
    first, again, other = (np.array([env.reset(seed=seed)[0], env.step(0)[0]]) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and (first != other)[:, 4:].mean() > 0.9
    unseeded = env.reset()[0]  # draws on
    assert (unseeded != first[0]).any() and (unseeded != other[0]).any()


@pytest.mark.parametrize("name", NOISY)
def test_noisy_maze_is_the_clean_one_with_noise(name):
    env, clean = make(name), gymnasium.make(f"MiniGrid-{name.removeprefix('Noisy')}-v0", agent_view_size=3)
    clean = ImgObsWrapper(RGBImgPartialObsWrapper(clean, tile_size=28))
    assert env.observation_space == clean.observation_space and env.observation_space.shape == (84, 84, 3)
    assert env.spec.max_episode_steps == 96
    env.action_space.seed(0)
    pairs = [(env.reset(seed=0)[0], clean.reset(seed=0)[0])]
    for step in range(1, 31):
        action = 0 if step < 25 else env.action_space.sample()
        (obs, *rest), (expected, *expected_rest) = env.step(action), clean.step(action)
        pairs.append((obs, expected))
        assert rest[:3] == expected_rest[:3]
        if rest[1]:
            break
    noise = np.array([obs.astype(int) - expected for obs, expected in pairs])
    assert np.abs(noise).max() == 30 and np.abs(noise).mean() > 5
    expected = np.array([expected for _, expected in pairs])
    assert np.abs(noise[(expected >= 30) & (expected <= 225)].mean()) < 0.5


def test_noisy_maze_of_other_arguments():
    env = make("NoisyMemoryS17Random", size=21, random_length=False, noise=0, agent_view_size=7)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (84, 84, 3) and env.unwrapped.width == 21 and not env.unwrapped.random_length
    turns = [env.step(0)[0] for _ in range(4)]
    assert (
        np.array_equal(turns[3], obs) and (turns[0] != obs).any()
    )  # without noise, a full turn shows the same again


@pytest.mark.parametrize("right", [True, False])
def test_success_in_a_noisy_maze_is_the_right_way(right):
    env = make("NoisyMemoryS11")
    for seed in range(4):
        _, info = env.reset(seed=seed)
        assert info == {"is_success": False}
        maze = env.unwrapped
        column, row = maze.success_pos if right else maze.failure_pos
        turn = 0 if row < maze.height // 2 else 1  # MiniGrid: 0 turns left, 1 right, 2 goes forward
        for action in [2] * (column - maze.agent_pos[0]) + [turn, 2]:
            _, reward, terminated, truncated, info = env.step(action)
            assert info["is_success"] is (terminated and right)
        assert terminated and not truncated and (reward > 0) is right


def test_noisy_maze_ends_after_96_steps_without_success():
    env = make("NoisyMemoryS11")
    env.reset(seed=0)
    ends = [env.step(0)[1:] for _ in range(96)]
    assert [end[2] for end in ends] == [False] * 95 + [True] and ends[-1] == (0, False, True, {"is_success": False})
