"""How fast the agents train, how much of the machine's arithmetic they use, and how much memory they take.

    python -m study.benchmark_speed              all agents and presets, the environments alone: speed.json, .png
    python -m study.benchmark_speed --growth     PALMER at growing sizes: growth.json, growth_*.png
    python -m study.benchmark_speed --tasks      tasks beside the mazes, and sb3-contrib's RecurrentPPO: tasks.json
    OMP_NUM_THREADS=1 python -m study.benchmark_speed     with one thread; the default is PyTorch's own choice

Needs `pip install -e ".[plots]"`, with --tasks `pip install -e ".[compare]"`. Every configuration trains in a process
of its own, by its script's own `rollout` and `update` and with the memory aids between them, on MiniGrid-MemoryS13-v0
from RGB where no other task is named:

1. rollouts until the agent's memory is full, so that none is cheap because it is empty, and until observations that
   do not repeat have been found not to;
2. a warm-up iteration (a rollout and one epoch), in which floating-point operations are counted: matrix products,
   and convolutions, those of attention with the masked keys. Element by element operations do not count;
3. iterations until --seconds are over, one at least. The one with the median duration is reported. Phases are
   timed by wrapping the functions while they run; on a GPU that waits for it before and after each. The phase of
   the memory aids is what they make of a rollout; their losses are part of the update;
4. on a CPU, one more minibatch under PyTorch's profiler: where its time goes, by kind of operation;
5. fp32 products of 2048 x 2048 matrices, once more before the first configuration. The utilisation is the share
   that the training reaches of their median rate, from just before and after it.

The policy is untrained and plays at random, so episodes are long: most run into their limit. A trained agent's
episodes are shorter and its memory is emptier. Peak memory is that of the whole process, with Python and all
packages; `memory_before_mb` is what that was before the first rollout.
"""

import dataclasses
import gc
import importlib
import importlib.util
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.checkpoint import write_json
from harness.flags import Range, check_args, run_script
from harness.folder import describe_session
from harness.input_error import InputError
from harness.randomness import seed_everything
from harness.return_scale import ReturnScale
from memory_aids import MemoryAids
from palmer_policy import make_policy
from study.files import whole
from tasks import TaskArgs, make_envs

# matplotlib is imported where it draws: it would count as memory of the agents, and no agent needs it.

ENV_ID = "MiniGrid-MemoryS13-v0"
LONG_ENV_ID = "MiniGrid-MemoryS25-v0"  # its own limit is 3,125 steps
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MATRIX_SIZE = 2048
NAMES = {"palmer": "PALMER", "lstm": "PPO-LSTM", "trxl": "PPO-TrXL"}
# Operations that do the arithmetic, by the ends of their names; all others move, combine or reduce elements.
KINDS = {
    "matrix products": ("::mm", "::addmm"),
    "convolutions": ("::mkldnn_convolution", "::convolution_backward", "::_slow_conv2d_forward"),
    "attention": ("::bmm", "::_softmax"),  # nothing else has products of many small matrices, or a softmax
}
PHASES = ("environment", "policy in the rollout", "rest of the rollout", "memory aids", "advantages", "update")


@dataclass
class Options:
    out: Path = Path("results/speed")
    """folder for the figures and tables"""
    growth: bool = False
    """measure PALMER at growing memory lengths, numbers of environments and widths instead"""
    tasks: bool = False
    """measure PALMER and PPO-LSTM on tasks whose observations do not repeat, or not as a table's, and sb3-contrib's
    RecurrentPPO beside them instead"""
    seconds: Annotated[float, Range(0, 3600)] = 5.0
    """time for the timed iterations of each configuration; one iteration is made in any case"""


class Configuration(NamedTuple):
    """What is trained: a script, one of its presets, and flags that differ from it."""

    algo: str  # palmer, lstm or trxl
    preset: str
    flags: dict[str, Any]


# The original code has one LSTM layer where its publication says three: the last three flags are for that.
CONFIGURATIONS = [
    Configuration("palmer", "default", {}),
    Configuration("lstm", "default", {}),
    Configuration("trxl", "default", {}),
    Configuration("palmer", "report", {}),
    Configuration("palmer", "report", {"lstm_layers": 1}),
    Configuration("lstm", "report", {}),
    Configuration("lstm", "report", {"lstm_layers": 1}),
    Configuration("trxl", "report", {}),
]
ENVIRONMENTS = [("table", 64), ("table", 1024), ("table", 16384), ("gymnasium", 16)]
# The last one is the twin of the one before, from a table.
TASKS = {
    "CartPole without velocities": {"env_id": "palmer/CartPoleNoVelocity-v0"},
    "RepeatPreviousMedium": {"env_id": "popgym:popgym-RepeatPreviousMedium-v0"},
    "noisy S17Random": {"env_id": "palmer/NoisyMemoryS17Random-v0"},
    "S17Random": {"env_id": "MiniGrid-MemoryS17Random-v0"},
}


def growth_configurations() -> dict[str, list[Configuration]]:
    """The flag that grows -> PALMER with its values, everything else as by default where it is not given."""

    def palmer(**flags: Any) -> Configuration:
        return Configuration("palmer", "default", flags)

    lengths = [32, 128, 512, 2048]
    short = {"num_envs": 16, "num_steps": 512}
    long = {**short, "env_id": LONG_ENV_ID, "max_episode_steps": 0}
    return {
        "memory_length": [palmer(memory_length=m, **flags) for flags in (short, long) for m in lengths],
        "num_envs": [
            palmer(num_envs=n, num_steps=max(8, 8192 // n), num_minibatches=min(4, n)) for n in (1, 8, 64, 512, 4096)
        ],
        "width": [palmer(width=d) for d in (64, 128, 256, 384, 768)],
    }


# ------------------------------------------------------------------------------------------- one agent


class Agent(NamedTuple):
    """What a training script's `main` makes before its first rollout, and what it then does in every iteration."""

    script: ModuleType
    args: Any
    envs: Any
    policy: torch.nn.Module
    aids: MemoryAids
    scale: ReturnScale
    optimizer: torch.optim.Optimizer

    def play(self, carry: Any) -> tuple[Any, Any]:
        """What `main` does before an update, at its start -> the rollout, the next carry."""
        batch, carry = self.script.rollout(self.args, self.policy, self.envs, carry)
        batch = batch._replace(reward=batch.reward / self.scale.learn(batch.episode[..., 3]))
        return self.aids.first_visits(batch, carry, fading=1.0)

    def learn(self, batch: Any) -> None:
        """The update, and what `main` does after it."""
        table = self.envs.observations
        batch, spread = self.script.with_advantages(self.args, batch)
        ent_coef = self.script.entropy_coefficient(self.args, 0.0, 0.0, spread)
        self.script.update(self.args, self.policy, self.optimizer, self.aids, table, batch, ent_coef)
        self.policy.encoder.learn_statistics(table.frames, batch.obs)

    def with_flags(self, **flags: Any) -> "Agent":
        return self._replace(args=dataclasses.replace(self.args, **flags))


def make_agent(configuration: Configuration) -> Agent:
    algo, preset, flags = configuration
    script = importlib.import_module(f"ppo_{algo}")
    flags = {"env_id": ENV_ID, "obs_mode": "rgb", **script.PRESETS[preset], **flags}
    args = script.Args(preset=preset, **flags)
    seed_everything(args.seed)
    envs = make_envs(args, args.num_envs, seed=args.seed, device=DEVICE)
    policy = make_policy(algo, vars(args), envs.observations.space, envs.action_space).to(DEVICE)
    policy.fix_shapes(DEVICE.type == "cuda")
    aids = MemoryAids(args, envs, args.width, DEVICE)
    learned = [*policy.parameters(), *aids.heads.parameters()]
    optimizer = torch.optim.Adam(learned, lr=args.learning_rate, eps=1e-5, fused=True)
    return Agent(script, args, envs, policy, aids, ReturnScale(DEVICE), optimizer)


def measure_agent(
    configuration: Configuration, seconds: float, rates_before: list[float]
) -> tuple[dict[str, Any], list[float]]:
    """Train for about `seconds`, in a process of its own -> the row of the results, matrix rates just after.

    rates_before: matrix rates from just before, of another process: here the matrices would count as the agent's
    memory.
    """
    agent = make_agent(configuration)
    args = agent.args
    memory_before = peak_memory()

    carry = fill_memory(agent)
    flops, carry = count_flops(agent, carry)
    iterations, finished = [], []
    began = time.perf_counter()
    while not iterations or time.perf_counter() - began < seconds:
        phases, batch, carry = timed_iteration(agent, carry)
        iterations.append(phases)
        finished.append(batch.episode[batch.done])
    peak = peak_memory()
    gpu_peak = torch.cuda.max_memory_allocated() / 1e6 if DEVICE.type == "cuda" else None
    by_kind = None if DEVICE.type == "cuda" else profile_minibatch(agent, batch)

    rates_after = matrix_flops_per_second()
    matrix_rate = statistics.median(rates_before + rates_after)
    lengths = torch.cat(finished)[:, 1]
    speed = speed_of(iterations, args)
    row = {
        **configuration._asdict(),
        "num_envs": args.num_envs,
        "num_steps": args.num_steps,
        "parameters": sum(p.numel() for p in agent.optimizer.param_groups[0]["params"]),
        "iterations": len(iterations),
        **speed,
        "flops_per_step": flops,
        "minibatch_ms_by_kind": by_kind,
        "matrix_flops_per_second": matrix_rate,
        "utilisation": sum(flops.values()) * speed["steps_per_second"] / matrix_rate,
        "peak_memory_mb": peak / 1e6,
        "memory_before_mb": memory_before / 1e6,
        "gpu_memory_mb": gpu_peak,
        "episode_limit": agent.envs.max_episode_steps,
        "mean_episode_length": lengths.mean().item() if len(lengths) else None,
        "cached_steps": len(carry.state.cache[0]) if carry.state.cache else 0,
    }
    return row, rates_after


def speed_of(iterations: list[dict[str, float]], args: Any) -> dict[str, Any]:
    """Of the iteration with the median duration."""
    iterations = sorted(iterations, key=lambda phases: sum(phases.values()))
    median = iterations[(len(iterations) - 1) // 2]
    steps = args.num_envs * args.num_steps
    learner = sum(median.values()) - median["environment"]
    return {
        "steps_per_second": steps / sum(median.values()),
        "learner_steps_per_second": steps / learner,
        "microseconds_per_step": {phase: 1e6 * time / steps for phase, time in median.items()},
    }


def measure_recurrent_ppo(flags: dict[str, Any], shared_lstm: bool, seconds: float) -> dict[str, Any]:
    """sb3-contrib's agent with PPO-LSTM's default flags and `flags` -> the row of the results."""
    from study.recurrent_ppo import timed_iterations

    args = importlib.import_module("ppo_lstm").Args(**flags)
    iterations = timed_iterations(args, shared_lstm, seconds)
    algo = "RecurrentPPO, one LSTM" if shared_lstm else "RecurrentPPO"
    return {"algo": algo, "flags": flags, "iterations": len(iterations), **speed_of(iterations, args)}


def fill_memory(agent: Agent) -> Any:
    """Play until the memory is as full as it gets -> what the next rollout starts from."""
    carry = agent.script.first_carry(agent.policy, agent.envs, agent.aids)
    fill = min(getattr(agent.args, "memory_length", 1), agent.envs.max_episode_steps or math.inf)
    # Longer rollouts than the measured ones could take more memory than those.
    steps = min(fill, agent.args.num_steps)
    for _ in range(0, fill, steps):
        _, carry = agent.with_flags(num_steps=steps).play(carry)
    table, played = agent.envs.observations, 0
    while not table.complete and table.distinct and played <= 2 * table.capacity:
        _, carry = agent.play(carry)
        played += agent.args.num_envs * agent.args.num_steps
    return carry


def count_flops(agent: Agent, carry: Any) -> tuple[dict[str, float], Any]:
    """One iteration -> floating-point operations per environment step in rollout and update, and the next carry.

    Those of the rollout are with what the memory aids make of it. One epoch is run and stands for all of them, as
    each sees the same steps.
    """
    steps = agent.args.num_envs * agent.args.num_steps
    with FlopCounterMode(display=False) as in_rollout:
        batch, carry = agent.play(carry)
    with FlopCounterMode(display=False) as in_epoch:
        agent.with_flags(update_epochs=1).learn(batch)
    flops = {
        "rollout": in_rollout.get_total_flops() / steps,
        "update": agent.args.update_epochs * in_epoch.get_total_flops() / steps,
    }
    return flops, carry


def profile_minibatch(agent: Agent, batch: Any) -> dict[str, float]:
    """Milliseconds of the first minibatch by kind of operation.

    "between operations" is the time in which none ran: Python, autograd's bookkeeping and the profiler itself, which
    makes it somewhat longer than it is without.
    """
    minibatch_step = agent.script.minibatch_step
    total: Counter[str] = Counter()

    def step(*inputs: Any) -> Any:
        if total:
            return minibatch_step(*inputs)
        gc.collect()  # so that Python does not tidy up just then
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
            began = time.perf_counter()
            losses = minibatch_step(*inputs)
            milliseconds = 1e3 * (time.perf_counter() - began)
        for event in profile.key_averages():
            kinds = [kind for kind, ends in KINDS.items() if event.key.endswith(ends)]
            kind = kinds[0] if kinds else "element by element" if event.key.startswith("aten::") else None
            if kind:
                total[kind] += event.self_cpu_time_total / 1e3
        total["between operations"] = milliseconds - sum(total.values())
        return losses

    with patch.object(agent.script, "minibatch_step", step):
        agent.with_flags(update_epochs=1).learn(batch)
    return {kind: total[kind] for kind in (*KINDS, "element by element", "between operations")}


def timed_iteration(agent: Agent, carry: Any) -> tuple[dict[str, float], Any, Any]:
    """One rollout and one update -> seconds of each of PHASES, the rollout, the next carry."""
    seconds: Counter[str] = Counter()

    def timed(owner: Any, function: str, phase: str) -> Any:
        return patch.object(owner, function, clock(seconds, phase)(getattr(owner, function)))

    with (
        clock(seconds, "whole rollout"),
        timed(agent.envs, "step", "environment"),
        timed(agent.policy, "act", "policy"),
        timed(agent.policy.encoder, "forward", "policy"),
        timed(agent.aids, "first_visits", "memory aids"),
    ):
        batch, carry = agent.play(carry)
    with clock(seconds, "whole update"), timed(agent.script, "advantages", "advantages"):
        agent.learn(batch)

    parts = seconds["environment"] + seconds["policy"] + seconds["memory aids"]
    phases = {
        "environment": seconds["environment"],
        "policy in the rollout": seconds["policy"],
        "rest of the rollout": seconds["whole rollout"] - parts,
        "memory aids": seconds["memory aids"],
        "advantages": seconds["advantages"],
        "update": seconds["whole update"] - seconds["advantages"],
    }
    return phases, batch, carry


@contextmanager
def clock(seconds: Counter[str], phase: str) -> Iterator[None]:
    """Adds the seconds that the block, or a function decorated with it, takes to `seconds[phase]`."""
    synchronize()
    began = time.perf_counter()
    yield
    synchronize()
    seconds[phase] += time.perf_counter() - began


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


# ------------------------------------------------------------------------------------------ the machine


def matrix_flops_per_second(repeats: int = 3) -> list[float]:
    """Floating-point operations per second of each of some large fp32 matrix products."""
    a, b, product = torch.rand(3, MATRIX_SIZE, MATRIX_SIZE, device=DEVICE)
    torch.mm(a, b, out=product)
    rates = []
    for _ in range(repeats):
        seconds: Counter[str] = Counter()
        with clock(seconds, "product"):
            torch.mm(a, b, out=product)
        rates.append(2 * MATRIX_SIZE**3 / seconds["product"])
    return rates


def peak_memory() -> int:
    """Most bytes of main memory that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, where getrusage would count what the process that started this one held
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe_machine() -> dict[str, Any]:
    models = [platform.processor()]
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")] or models
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": models[0],
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if DEVICE.type == "cuda" else None,
        **describe_session(),
    }


def machine_in_words(machine: dict[str, Any]) -> str:
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return f"{machine['gpu'] or machine['cpu']}, {threads}, PyTorch {machine['versions']['torch']}"


def measure_environments(backend: str, num_envs: int, seconds: float) -> dict[str, Any]:
    """Random actions in environments without an agent -> the row of the results."""
    envs = make_envs(TaskArgs(ENV_ID, env_backend=backend), num_envs, device=DEVICE)
    actions = torch.randint(int(envs.action_space.n), (64, num_envs), device=DEVICE)
    envs.reset()
    durations: list[float] = []
    began = time.perf_counter()
    while len(durations) < 2 or time.perf_counter() - began < seconds:
        block: Counter[str] = Counter()
        with clock(block, "steps"):
            for action in actions:
                envs.step(action)
        durations.append(block["steps"])
    envs.close()
    median = statistics.median(durations[1:])  # the first block warms up
    return {"backend": backend, "num_envs": num_envs, "steps_per_second": actions.numel() / median}


def in_fresh_process(function: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# ------------------------------------------------------------------------------------- tables and figures


def label(row: dict[str, Any]) -> str:
    layers = row["flags"].get("lstm_layers")
    return NAMES[row["algo"]] + (f", {layers} LSTM layer" if layers else "")


def print_table(header: list[str], rows: list[list[str]]) -> None:
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))
    print()


def print_agents(rows: list[dict[str, Any]], names: list[str]) -> None:
    header = ["", "steps/s", "us/step", *PHASES, "MFLOP/step", "utilisation", "peak MB"]
    lines = []
    for name, row in zip(names, rows, strict=True):
        times = row["microseconds_per_step"]
        lines.append(
            [
                name,
                f"{row['steps_per_second']:,.0f}",
                f"{sum(times.values()):,.0f}",
                *(f"{times[phase]:,.1f}" for phase in PHASES),
                f"{sum(row['flops_per_step'].values()) / 1e6:,.1f}",
                f"{row['utilisation']:.1%}",
                f"{row['peak_memory_mb']:,.0f}",
            ]
        )
    print_table(header, lines)


def print_tasks(rows: list[dict[str, Any]]) -> None:
    header = ["", "steps/s", "learner alone", "us/step", *PHASES]
    body = [
        [
            f"{row['task']}: {NAMES.get(row['algo'], row['algo'])}",
            f"{row['steps_per_second']:,.0f}",
            f"{row['learner_steps_per_second']:,.0f}",
            f"{sum(row['microseconds_per_step'].values()):,.0f}",
            *(f"{row['microseconds_per_step'][phase]:,.1f}" for phase in PHASES),
        ]
        for row in rows
    ]
    print_table(header, body)


def print_kinds(rows: list[dict[str, Any]], names: list[str]) -> None:
    """Where the time of a minibatch goes, in ms; nothing on a GPU."""
    if rows[0]["minibatch_ms_by_kind"] is None:
        return
    kinds = list(rows[0]["minibatch_ms_by_kind"])
    body = [
        [name, *(f"{row['minibatch_ms_by_kind'][kind]:.1f}" for kind in kinds)]
        for name, row in zip(names, rows, strict=True)
    ]
    print_table(["ms of a minibatch (profiled)", *kinds], body)


def plot_speed(rows: list[dict[str, Any]], machine: dict[str, Any], file: Path) -> None:
    """Time per environment step by phase, and utilisation; a row of panels for each preset."""
    import matplotlib.pyplot as plt

    presets = list(dict.fromkeys(row["preset"] for row in rows))
    groups = [[row for row in rows if row["preset"] == preset][::-1] for preset in presets]
    figure, axes = plt.subplots(
        len(groups),
        2,
        figsize=(10, 1.6 + 0.5 * len(rows)),
        width_ratios=(3, 1),
        height_ratios=[len(group) + 1 for group in groups],
        squeeze=False,
        layout="constrained",
    )
    colours = dict(zip(PHASES, ("#009e73", "#0072b2", "#8ec5e8", "#cc79a7", "#d55e00", "#e6a700"), strict=True))
    for preset, group, (left, right) in zip(presets, groups, axes, strict=True):
        names = [label(row) for row in group]
        start = [0.0] * len(group)
        for phase in PHASES:
            times = [row["microseconds_per_step"][phase] for row in group]
            left.barh(names, times, left=start, height=0.65, color=colours[phase], label=phase)
            start = [a + b for a, b in zip(start, times, strict=True)]
        speeds = [f"{row['steps_per_second']:,.0f} steps/s" for row in group]
        left.bar_label(left.containers[-1], speeds, padding=4)
        left.set_xlim(0, 1.2 * max(start))
        left.xaxis.set_major_formatter("{x:,.0f}")
        left.set_title(f"preset {preset}", loc="left", fontweight="bold")
        bars = right.barh(names, [100 * row["utilisation"] for row in group], height=0.65, color="#777777")
        right.bar_label(bars, fmt="%.0f%%", padding=4)
        right.set_xlim(0, 100)
        right.set_yticks([])
    axes[-1][0].set_xlabel("microseconds per environment step")
    axes[-1][1].set_xlabel("utilisation, in %")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(PHASES), frameon=False)
    finish(figure, axes.flat, machine, file)


def plot_growth(flag: str, rows: list[dict[str, Any]], machine: dict[str, Any], file: Path) -> None:
    """Steps per second and peak memory against one flag; a curve for each episode limit."""
    import matplotlib.pyplot as plt

    title = {
        "memory_length": "memory length M, in steps",
        "num_envs": "environments N",
        "width": "width D",
    }[flag]
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    values = sorted({row["flags"][flag] for row in rows})
    for limit in dict.fromkeys(row["episode_limit"] for row in rows):
        curve = [row for row in rows if row["episode_limit"] == limit]
        x = [row["flags"][flag] for row in curve]
        name = f"episodes of up to {limit:,} steps"
        speed.plot(x, [row["steps_per_second"] for row in curve], "o-", label=name)
        memory.plot(x, [row["peak_memory_mb"] for row in curve], "o-", label=name)
    memory.axhline(
        min(row["memory_before_mb"] for row in rows), color="#777777", linestyle="--", label="before training"
    )
    for axis, quantity in ((speed, "environment steps per second"), (memory, "peak memory, in MB")):
        axis.set_xscale("log", base=2)
        axis.set_xticks(values, [f"{value:,}" for value in values])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_xlabel(title)
        axis.set_title(quantity, loc="left")
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.grid(axis="y", color="#e5e5e5")
        axis.legend(frameon=False)
    finish(figure, (speed, memory), machine, file)


def finish(figure: Any, axes: Any, machine: dict[str, Any], file: Path) -> None:
    import matplotlib.pyplot as plt

    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
    figure.supxlabel(machine_in_words(machine), fontsize=8, color="#777777", x=0.99, ha="right")
    with whole(file) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


# -------------------------------------------------------------------------------------------------- main


def measure_all(configurations: list[Configuration], seconds: float) -> list[dict[str, Any]]:
    rows = []
    rates = in_fresh_process(matrix_flops_per_second)
    for algo, preset, flags in configurations:
        print("measuring", algo, preset, *(f"{name}={value}" for name, value in flags.items()), flush=True)
        row, rates = in_fresh_process(measure_agent, Configuration(algo, preset, flags), seconds, rates)
        rows.append(row)
    print()
    return rows


def measure_tasks(seconds: float) -> list[dict[str, Any]]:
    missing = [package for package in ("sb3_contrib", "popgym") if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f"--tasks: needs the package {missing[0]}, which pip install -e '.[compare]' brings.")
    rows = []
    for task, flags in TASKS.items():
        agents = measure_all([Configuration(algo, "default", flags) for algo in ("palmer", "lstm")], seconds)
        for shared_lstm in () if task == "S17Random" else (False, True):  # theirs cannot use a table
            print("measuring RecurrentPPO", *flags.values(), flush=True)
            agents.append(in_fresh_process(measure_recurrent_ppo, flags, shared_lstm, seconds))
        rows += [{"task": task, **row} for row in agents]
    return rows


def main(options: Options) -> None:
    """Measure, print tables and, at the end, write files into `options.out`. Raises InputError if it cannot be."""
    check_args(options)
    if options.growth and options.tasks:
        raise InputError("--growth: must not be given with --tasks; measure one after the other.")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {options.out}: must be a folder that can be written ({error.strerror}).") from error
    machine = describe_machine()
    print(machine_in_words(machine))
    if options.tasks:
        rows = measure_tasks(options.seconds)
        print_tasks(rows)
        write_json(options.out / "tasks.json", {"machine": machine, "agents": rows})
        return
    if options.growth:
        series = {}
        for flag, configurations in growth_configurations().items():
            series[flag] = measure_all(configurations, options.seconds)
            names = [f"{flag} {row['flags'][flag]}, limit {row['episode_limit']}" for row in series[flag]]
            print_agents(series[flag], names)
        write_json(options.out / "growth.json", {"machine": machine, **series})
        for flag, rows in series.items():
            plot_growth(flag, rows, machine, options.out / f"growth_{flag}.png")
        return
    agents = measure_all(CONFIGURATIONS, options.seconds)
    environments = [in_fresh_process(measure_environments, *which, 1.0) for which in ENVIRONMENTS]
    names = [f"{row['preset']}: {label(row)}" for row in agents]
    print_agents(agents, names)
    print_kinds(agents, names)
    print_table(
        ["environments alone", "N", "steps/s"],
        [[row["backend"], f"{row['num_envs']:,}", f"{row['steps_per_second']:,.0f}"] for row in environments],
    )
    write_json(options.out / "speed.json", {"machine": machine, "agents": agents, "environments": environments})
    plot_speed(agents, machine, options.out / "speed.png")


if __name__ == "__main__":
    run_script(main, Options, {}, __doc__)
