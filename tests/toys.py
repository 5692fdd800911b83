"""A small agent of each script, and environments that play what is written down, for the tests of the loop."""

import torch
from gymnasium import spaces

import ppo_lstm
import ppo_palmer
import ppo_trxl
from memory_aids import MemoryAids
from tasks import Step
from tasks.observations import ObservationTable

SCRIPTS = [ppo_palmer, ppo_lstm, ppo_trxl]


def small_args(script, **flags):
    args = script.Args(width=16, num_envs=6, num_steps=20, num_minibatches=2, visit_bonus=0.5)
    flags = {"memory_length": 5, "trxl_heads": 2, "trxl_layers": 2, "lstm_layers": 2} | flags
    for name, value in flags.items():
        if hasattr(args, name):
            setattr(args, name, value)
    return args


def make_policy(script, args, envs):
    torch.manual_seed(0)
    policy = script.make_policy(script.ALGO, vars(args), envs.observations.space, envs.action_space)
    torch.nn.init.normal_(policy.actor.weight, std=0.3)  # so that memory moves the probabilities
    return policy


def make_agent(script, args, envs, learning_rate=1e-3):
    """Policy, memory aids, and what learns them both."""
    policy = make_policy(script, args, envs)
    aids = MemoryAids(args, envs, args.width, torch.device("cpu"))
    learned = [*policy.parameters(), *aids.heads.parameters()]
    return policy, aids, torch.optim.Adam(learned, lr=learning_rate)


def play(script, args, policy, envs, aids, carry, fading=1.0):
    """A rollout, with bonus and advantages."""
    batch, carry = aids.first_visits(*script.rollout(args, policy, envs, carry), fading)
    return script.with_advantages(args, batch)[0], carry


class ScriptedEnvs:
    """Environments that play given observation numbers, whatever the agent does.

    script: for each environment, its first observation and then for each step a dict with the number of the
    observation that it leads to, and optionally reward, how its episode ends, and the next one's first observation.
    """

    def __init__(self, first: list[int], steps: list[list[dict]], num_observations: int = 6):
        self.num_envs, self.first, self.script, self.t = len(first), first, steps, 0
        frames = torch.randn(num_observations, 4, generator=torch.Generator().manual_seed(0))
        space = spaces.Tuple((spaces.Box(-9, 9, (4,)),))
        self.observations = ObservationTable(space, num_observations, frames=(frames,))
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
    """Arguments, policy, memory aids, a rollout with the bonus, and what is carried on."""
    args = small_args(script, num_envs=2, num_steps=5, visit_bonus=visit_bonus)
    policy, aids, _ = make_agent(script, args, TOY)
    return args, policy, aids, *play(script, args, policy, TOY, aids, script.first_carry(policy, TOY, aids))
