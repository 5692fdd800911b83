"""replay/memory_picture.py: the picture of gate and attention that training logs."""

import numpy as np
import pytest
from agents import BY_ALGO, TASKS, save_agent

import evaluate
from replay.film import PAPER, gate_colours
from replay.memory_picture import HEADER, LONGEST, MARGIN, PANEL, MemoryPicture
from tasks import make_real_env


def picture_of(tmp_path, algo, task="cells", **flags):
    """The picture of an agent's first held-out episode, as pixels, and the steps of that episode."""
    file = tmp_path / "agent.pt"
    save_agent(file, algo, **TASKS[task], **flags)
    policy, args, _ = evaluate.load_policy(file, TASKS[task].get("env_id"), TASKS[task].get("env_kwargs"))
    picture, steps = MemoryPicture(policy), 0
    for moment in evaluate.play(policy, [make_real_env(args) for _ in range(2)], 3, seed=1):
        picture.add(moment)
        steps += moment.episode == 0 and not moment.end
    assert len(picture._obs) == steps, "of the first episode, though three were played, two at a time"
    drawn = picture.draw()
    return None if drawn is None else np.array(drawn), steps


def panel(pixels, number):
    x = MARGIN + number * (PANEL + MARGIN)
    return pixels[HEADER : HEADER + PANEL, x : x + PANEL]


@pytest.mark.parametrize(("algo", "panels"), [("palmer", 2), ("trxl", 1), ("lstm", 0)])
def test_it_shows_what_the_agent_has(tmp_path, algo, panels):
    pixels, _ = picture_of(tmp_path, algo)
    assert (pixels is None) == (panels == 0)
    if panels:
        assert pixels.shape == (PANEL + HEADER + MARGIN, panels * (PANEL + MARGIN) + MARGIN, 3)
    assert set(BY_ALGO) == {"palmer", "trxl", "lstm"}


def test_a_step_looks_at_none_that_comes_after_it_nor_beyond_its_memory(tmp_path):
    pixels, T = picture_of(tmp_path, "trxl")
    centres = ((np.arange(T) + 0.5) * PANEL / T).astype(int)
    white = (panel(pixels, 0)[centres][:, centres] == PAPER).all(-1)  # (T, T)
    distance = np.arange(T)[:, None] - np.arange(T)
    assert white[distance < 0].all() and white[distance >= 6].all(), "SMALL has a memory of 6 steps"
    assert not white[0, 0] and (~white).sum(1).max() > 1


def test_the_gates_elements_have_its_colours(tmp_path):
    pixels, _ = picture_of(tmp_path, "palmer", fixed_gate=0.25)
    assert (panel(pixels, 1) == gate_colours(np.array([[0.25]]))[0, 0]).all()
    pixels, _ = picture_of(tmp_path, "palmer")
    assert len(np.unique(panel(pixels, 1).reshape(-1, 3), axis=0)) > 16, "a gate that is learned"


def test_what_is_looked_at_most_is_darkest(tmp_path):
    pixels, T = picture_of(tmp_path, "palmer")
    ink = 255 - panel(pixels, 0).astype(int).sum(-1)
    assert ink.max() == ink[5, 5], "the first step can look at nothing but itself"
    assert T == 20


def test_only_the_first_steps_of_a_long_episode_are_kept(tmp_path):
    save_agent(tmp_path / "agent.pt", "palmer", env_id="CartPole-v1")
    policy, args, _ = evaluate.load_policy(tmp_path / "agent.pt")
    picture = MemoryPicture(policy)
    moments = evaluate.play(policy, [make_real_env(args)], 1, seed=1)
    first = next(moments)
    for step in range(LONGEST + 50):
        picture.add(first._replace(step=step))
    assert len(picture._obs) == len(picture._gate) == LONGEST and picture.draw() is not None
