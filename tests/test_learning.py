"""A short real run: PALMER learns to remember, and what it learns is memory."""

import ppo_palmer

ARGS = {"env_id": "MiniGrid-MemoryS5-v0", "total_timesteps": 250_000, "cuda": False, "eval_every": 0}


def held_out_success(tmp_path, **flags) -> float:
    args = ppo_palmer.Args(**ARGS, run_dir=str(tmp_path / "run"), final_eval_episodes=300, **flags)
    return ppo_palmer.main(args)["evaluation"]["success_rate"]


def test_palmer_learns_to_remember(tmp_path):
    assert held_out_success(tmp_path) > 0.9


def test_without_memory_it_can_only_guess(tmp_path):
    assert held_out_success(tmp_path, forget=True) < 0.7
