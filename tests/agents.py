"""Agents that were never trained, saved like trained ones, one for each kind of observation and action."""

import dataclasses

import torch
from toys import SCRIPTS

from harness.checkpoint import save_checkpoint
from palmer_policy import make_policy
from tasks import make_real_env

SMALL = {"width": 16, "lstm_layers": 2, "trxl_layers": 2, "trxl_heads": 2, "memory_length": 6}
BY_ALGO = {script.ALGO: script for script in SCRIPTS}

# What a file may not name by itself is given again when it is read.
TASKS = {
    "pixels": {"env_id": "MiniGrid-MemoryS7-v0", "max_episode_steps": 20},
    "cells": {"env_id": "MiniGrid-MemoryS7-v0", "obs_mode": "symbolic", "max_episode_steps": 20},
    "missions": {"env_id": "MiniGrid-GoToObject-6x6-N2-v0", "obs_mode": "symbolic", "max_episode_steps": 15},
    "popgym": {"env_id": "popgym:popgym-RepeatPreviousEasy-v0"},
    "continuous": {"env_id": "palmer/PendulumNoVelocity-v0", "norm_obs": True},
    "last step": {"env_id": "palmer/TMazePassive-v0", "env_kwargs": '{"length": 9}', "last_action": True}
    | {"last_reward": True, "norm_obs": True},
}


def save_agent(file, algo, **flags):
    """An agent whose actions depend on what it remembers, and whose norms have seen something -> its flags."""
    script = BY_ALGO[algo]
    names = {field.name for field in dataclasses.fields(script.Args)}
    args = script.Args(**{name: value for name, value in (SMALL | flags).items() if name in names})
    env = make_real_env(args)
    env.close()
    torch.manual_seed(0)
    policy = make_policy(algo, vars(args), env.observation_space, env.action_space)
    torch.nn.init.normal_(policy.actor.weight, std=0.5)
    for encoder in policy.encoder.parts:
        if encoder.kind == "vector":
            encoder.norm.mean.uniform_(-0.5, 0.5)
            encoder.norm.var.uniform_(0.5, 2)
    payload = {"algo": algo, "args": dataclasses.asdict(args), "policy": policy.state_dict(), "step": 64}
    save_checkpoint(file, payload)
    return args


def repeated(flags):
    """What has to be said again of a file's task."""
    given = {"env_id": flags["env_id"] if ":" in flags["env_id"] else None, "env_kwargs": flags.get("env_kwargs")}
    return {name: value for name, value in given.items() if value}
