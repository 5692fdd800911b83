"""A short real run: PALMER learns to remember, and what it learns is memory."""

import pytest

import ppo_palmer

pytestmark = pytest.mark.usefixtures("one_thread")


def held_out_success(tmp_path, **flags) -> float:
    """On the maze of size 9, where nothing in view at the fork tells the way, of 300 held-out episodes."""
    flags |= {"env_id": "MiniGrid-MemoryS9-v0", "cuda": False, "eval_every": 0, "final_eval_episodes": 300}
    return ppo_palmer.main(ppo_palmer.Args(**flags, run_dir=str(tmp_path / "run")))["evaluation"]["success_rate"]


def test_palmer_learns_to_remember(tmp_path):
    assert held_out_success(tmp_path, total_timesteps=600_000, stop_at_success=0.96) > 0.9


def test_without_memory_the_same_agent_can_only_guess(tmp_path):
    """That training works is what the test above shows: the same seed, maze and settings."""
    assert held_out_success(tmp_path, total_timesteps=60_000, forget=True) < 0.65
