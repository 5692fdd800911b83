"""sb3-contrib's RecurrentPPO with the settings of PPO-LSTM, timed in the phases of benchmark_speed.

The same environments, steps, epochs, minibatches and widths; what sb3-contrib makes of them is its own: the CNN of
Mnih et al. 2015 for pictures, nothing before the LSTM for numbers, a hidden layer each for policy and value, and one
LSTM each unless they share it. https://sb3-contrib.readthedocs.io/en/master/modules/ppo_recurrent.html
"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import gymnasium
from gymnasium.wrappers import TransformObservation
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import DummyVecEnv

from tasks.real import make_real_env


def make_recurrent_ppo(args: Any, shared_lstm: bool) -> RecurrentPPO:
    """args: PPO-LSTM's flags, of a task whose observations are one picture or one vector."""

    def make_env() -> gymnasium.Env:
        env = make_real_env(args)
        (part,) = env.observation_space
        return TransformObservation(env, lambda obs: obs[0], part)

    envs = DummyVecEnv([make_env] * args.num_envs)
    pictures = len(envs.observation_space.shape) == 3
    policy = dict(
        net_arch=[args.width],
        lstm_hidden_size=args.width,
        n_lstm_layers=args.lstm_layers,
        shared_lstm=shared_lstm,
        enable_critic_lstm=not shared_lstm,
    )
    if pictures:
        policy["features_extractor_kwargs"] = {"features_dim": args.width}
    return RecurrentPPO(
        "CnnLstmPolicy" if pictures else "MlpLstmPolicy",
        envs,
        n_steps=args.num_steps,
        batch_size=args.num_envs * args.num_steps // args.num_minibatches,
        n_epochs=args.update_epochs,
        learning_rate=args.learning_rate,
        gamma=args.gamma,
        gae_lambda=args.gae_lambda,
        max_grad_norm=args.max_grad_norm,
        policy_kwargs=policy,
        device="cpu",
        seed=args.seed,
    )


def timed_iterations(args: Any, shared_lstm: bool, seconds: float) -> list[dict[str, float]]:
    """Train for about `seconds`, after an iteration that warms up -> seconds of each phase, for each iteration."""
    model = make_recurrent_ppo(args, shared_lstm)
    iterations: list[dict[str, float]] = []
    began = time.perf_counter()
    while len(iterations) < 2 or time.perf_counter() - began < seconds:
        spent: Counter[str] = Counter()
        places = [
            (model, "collect_rollouts"),
            (model, "train"),
            (model.env, "step"),
            (model.policy, "forward"),
            (model.rollout_buffer, "compute_returns_and_advantage"),
        ]
        with ExitStack() as stack:
            for owner, function in places:
                call = getattr(owner, function)
                stack.enter_context(patch.object(owner, function, clocked(call, spent, function)))
            model.learn(args.num_envs * args.num_steps, reset_num_timesteps=False)
        advantages = spent["compute_returns_and_advantage"]
        iterations.append(
            {
                "environment": spent["step"],
                "policy in the rollout": spent["forward"],
                "rest of the rollout": spent["collect_rollouts"] - spent["step"] - spent["forward"] - advantages,
                "memory aids": 0.0,
                "advantages": advantages,
                "update": spent["train"],
            }
        )
    model.env.close()
    return iterations[1:]


def clocked(call: Callable[..., Any], spent: Counter[str], phase: str) -> Callable[..., Any]:
    """`call`, which adds the seconds that it takes to spent[phase]."""

    def clocked_call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            spent[phase] += time.perf_counter() - start

    return clocked_call
