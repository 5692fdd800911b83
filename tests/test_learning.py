"""A short real run: PALMER learns to remember, and what it learns is memory."""

import ppo_palmer


def held_out_success(tmp_path, size: int, **flags) -> float:
    """After 250,000 steps on the maze of that size; in the smallest, where one stands can tell what was seen."""
    flags |= {"env_id": f"MiniGrid-MemoryS{size}-v0", "total_timesteps": 250_000, "cuda": False, "eval_every": 0}
    args = ppo_palmer.Args(**flags, run_dir=str(tmp_path / "run"), final_eval_episodes=300)
    return ppo_palmer.main(args)["evaluation"]["success_rate"]


def test_palmer_learns_to_remember(tmp_path):
    assert held_out_success(tmp_path, 5) > 0.9


def test_without_memory_it_can_only_guess(tmp_path):
    assert held_out_success(tmp_path, 9, forget=True) < 0.65
