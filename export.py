"""A trained agent as an ONNX file: one step, with its memory as inputs and outputs, to be run without PyTorch.

    python export.py --checkpoint runs/RUN/checkpoint.pt --onnx palmer.onnx
    python export.py --checkpoint runs/RUN/checkpoint.pt --onnx palmer.onnx --memory-length 32

    inputs   picture, grid, vector, words     the parts of an observation, see tasks/observations.py, all (B, *shape)
             last_step                        (B, n), where the agent is given its last action or reward
             episode_start                    (B,) bool, the step is an episode's first: memory is emptied before
             h, c                             (L, B, D), of the LSTM
             keys_values, clock               (L, B, H, M - 1, 2 D/H) and (B,) int64, of the Transformer
    outputs  logits, value, gate              (B, A), (B,) and, of PALMER, (B, D)
             new_h, new_c, ...                the memory after the step, the next one's input

Whatever the memory holds at an episode's start is of no account, so zeros will do. The file's metadata say what an
action is made of logits, and what the agent was trained on. Before it is written, its outputs are compared with
PyTorch's over 500 steps.

Shape letters: B environments, L layers, H heads, D width, M memory length, A logits of an action.
"""

import harness.starting  # noqa: F401  # isort: skip  # first: Ctrl-C may come while the others are imported
import copy
import io
import json
import os
import warnings
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn as nn
import tyro
from gymnasium import spaces
from torch import Tensor

from evaluate import SEED_BLOCK, load_policy, play, set_memory_length, task_to_play
from harness.checkpoint import finite_or_none
from harness.flags import Range, check_args, run_script
from harness.input_error import InputError, RunError
from palmer_policy import KeyValueCache, LSTMMemory, MemoryPolicy, MemoryState, PartEncoder, PolicyOutput
from tasks import TaskArgs, make_real_env
from tasks.real import make_native_env

TOLERANCE = 1e-5  # of all outputs; of those beyond 1 relative, as float32 has no more digits
CHECKED_STEPS, CHECKED_ROWS = 500, 2  # each of so many episodes at once
# Bytes. The first is ONNX's own limit; the second keeps a small file from filling the memory.
LARGEST_MODEL, LARGEST_STATE = 2**31 - 2**20, 2**28
OPSET = 17
LSTM_STATE, TRANSFORMER_STATE = ("h", "c"), ("keys_values", "clock")


@dataclass
class Args:
    checkpoint: str = tyro.MISSING
    """a run's checkpoint.pt"""
    onnx: str = tyro.MISSING
    """file to write, .onnx"""
    env_id: str | None = None
    """environment to compare in; not given: the one that the agent was trained on"""
    env_kwargs: str | None = None
    """arguments of its constructor, as JSON; not given: as in training"""
    memory_length: Annotated[int | None, Range(1, 65_536)] = None
    """steps that the Transformer sees, for which the file's memory has room; not given: as in training"""


# ------------------------------------------------------------------------------------------------- the model


class OneStepLSTM(nn.Module):
    """`LSTMMemory` of a single step, as `LSTMScan` writes it out, of operations that ONNX has."""

    def __init__(self, lstm: LSTMMemory):
        super().__init__()
        self.input, self.weight_hh, self.norm, self.width = lstm.input, lstm.weight_hh, lstm.norm, lstm.width

    def forward(self, x: Tensor, h: Tensor, c: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (1, B, D), h and c (L, B, D), episode_start (1, B) bool -> h^L (1, B, D), new h, new c."""
        keep = (~episode_start[0]).to(x.dtype)[:, None]
        x, hs, cs = x[0], [], []
        for layer, (linear, weight_hh) in enumerate(zip(self.input, self.weight_hh, strict=True)):
            i, f, o, n = (linear(x) + (keep * h[layer]) @ weight_hh.t()).chunk(4, -1)
            cs.append(f.sigmoid() * (keep * c[layer]) + i.sigmoid() * n.tanh())
            x = o.sigmoid() * cs[-1].tanh()
            hs.append(x)
        return self.norm(x)[None], torch.stack(hs), torch.stack(cs)


class WholePictures(nn.Module):
    """`PartEncoder` of pictures, all at once: into how many parts they are cut must not depend on B."""

    def __init__(self, encoder: PartEncoder):
        super().__init__()
        self.net, self.scale = encoder.net, encoder.scale

    def forward(self, part: Tensor) -> Tensor:
        return self.net(part.permute(0, 3, 1, 2).to(torch.float32) * self.scale)


class InDouble(nn.Module):
    """A module in float64, whatever it is given. result: type of what it gives."""

    def __init__(self, module: nn.Module, result: torch.dtype = torch.float64):
        super().__init__()
        self.module, self.result = module.double(), result

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.double()).to(self.result)


def put_in_double(policy: MemoryPolicy) -> None:
    """What follows the memories, and the Transformer but for attention's weights and values, in float64.

    Logits of 15 are sums of larger numbers: in float32 two libraries agree within 1.2e-5 on them, and no better.
    """
    if hasattr(policy, "transformer"):
        for layer in policy.transformer.layers:
            for name in ("norm_attention", "project", "norm_ff", "ff"):
                setattr(layer, name, InDouble(getattr(layer, name)))
            layer.query_key_value = InDouble(layer.query_key_value, torch.float32)  # keys and values are state
        policy.transformer.norm = InDouble(policy.transformer.norm)
    if hasattr(policy, "lstm"):
        policy.lstm.norm = InDouble(policy.lstm.norm)
    if hasattr(policy, "gate") and policy.gate.linear is not None:
        policy.gate.linear = InDouble(policy.gate.linear)
    policy.hidden = InDouble(policy.hidden)
    policy.actor, policy.critic = (InDouble(head, torch.float32) for head in (policy.actor, policy.critic))


class OneStep(nn.Module):
    """A step of an agent as a function of tensors alone, see the head of this file.

    frames, state: names of the inputs before and after `episode_start`. outputs: those of the outputs.
    """

    def __init__(self, policy: MemoryPolicy, task: TaskArgs):
        super().__init__()
        self.frames = part_names(policy, task)
        self.state = (LSTM_STATE if hasattr(policy, "lstm") else ()) + (
            TRANSFORMER_STATE if hasattr(policy, "transformer") else ()
        )
        self.inputs = (*self.frames, "episode_start", *self.state)
        gate = ("gate",) if hasattr(policy, "gate") else ()
        self.outputs = ("logits", "value", *gate, *(f"new_{name}" for name in self.state))
        policy = copy.deepcopy(policy)
        policy.fix_shapes()
        if hasattr(policy, "lstm"):
            policy.lstm = OneStepLSTM(policy.lstm)
        for i, encoder in enumerate(policy.encoder.parts):
            if encoder.kind == "picture":
                policy.encoder.parts[i] = WholePictures(encoder)
        put_in_double(policy)
        self.policy = policy.requires_grad_(False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.inputs, inputs, strict=True))
        start = given["episode_start"][None]
        nothing = torch.zeros(0, 1, 0)  # of an agent that lacks this memory
        caches = tuple(KeyValueCache(layer) for layer in given["keys_values"]) if "keys_values" in given else ()
        clock = given.get("clock", start[0].long())
        state = MemoryState(given.get("h", nothing), given.get("c", nothing), caches, clock)
        encoded = self.policy.encoder(tuple(given[name] for name in self.frames))
        output, state = self.policy.act(encoded[None], state, start)
        by_name = outputs_by_name(output, state)
        return tuple(by_name[name] for name in self.outputs)


def state_tensors(state: MemoryState) -> dict[str, Tensor]:
    """The memory by the names of the head of this file, those included that an agent lacks."""
    keys_values = torch.stack([kv.window for kv in state.cache]) if state.cache else torch.zeros(0)
    return {"h": state.h, "c": state.c, "keys_values": keys_values, "clock": state.clock}


def outputs_by_name(output: PolicyOutput, state: MemoryState) -> dict[str, Tensor]:
    """What one step of the policy gives, (1, B, ...), by the names of the model's outputs."""
    heads = {"logits": output.logits[0], "value": output.value[0]}
    if output.gate is not None:
        heads["gate"] = output.gate[0].float()
    return heads | {f"new_{name}": tensor for name, tensor in state_tensors(state).items()}


def part_names(policy: MemoryPolicy, task: TaskArgs) -> tuple[str, ...]:
    """A name for each part of an observation: what it is, numbered where there are several of a kind."""
    kinds = [encoder.kind for encoder in policy.encoder.parts]
    if task.last_action or task.last_reward:
        kinds[-1] = "last_step"
    before = [kinds[:i].count(kind) for i, kind in enumerate(kinds)]
    return tuple(f"{kind}_{n + 1}" if n else kind for kind, n in zip(kinds, before, strict=True))


def batch_axis(name: str) -> int:
    return 1 if name.removeprefix("new_") in ("h", "c", "keys_values") else 0


def some_frames(policy: MemoryPolicy, rows: int) -> tuple[Tensor, ...]:
    """Frames as the observation space draws them: every part (rows, *shape)."""
    drawn = [policy.observation_space.sample() for _ in range(rows)]
    return tuple(torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))


def to_onnx(policy: MemoryPolicy, task: TaskArgs, metadata: dict[str, str]) -> bytes:
    """The model, for any number of environments."""
    import onnx  # here, as nobody else needs it

    step = OneStep(policy, task).eval()
    empty = state_tensors(step.policy.initial_state(2))
    start = torch.ones(2, dtype=torch.bool)
    inputs = (*some_frames(policy, 2), start, *(empty[name] for name in step.state))
    written = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # That T = 1 and M are constants of the graph is meant; and of the two exporters of PyTorch the older one is
        # used, which takes a second where the newer takes half a minute and needs a package more.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            step,
            inputs,
            written,
            dynamo=False,
            opset_version=OPSET,
            input_names=step.inputs,
            output_names=step.outputs,
            dynamic_axes={name: {batch_axis(name): "batch"} for name in (*step.inputs, *step.outputs)},
        )
    model = onnx.load_model_from_string(written.getvalue())
    shapes = {value.name: value.type for value in model.graph.input}
    for value in model.graph.output:  # the exporter loses sight of some sizes on the way
        if value.name.removeprefix("new_") in step.state:
            value.type.CopyFrom(shapes[value.name.removeprefix("new_")])
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def describe(policy: MemoryPolicy, task: TaskArgs, algo: str, steps_trained: int) -> dict[str, str]:
    """The file's metadata, of an agent that was trained on `task`."""
    described = {
        "algo": algo,
        "steps_trained": str(steps_trained),
        **{name: str(getattr(task, name)) for name in ("env_id", "env_kwargs", "obs_mode", "agent_view_size")},
        **{name: str(getattr(task, name)) for name in ("last_action", "last_reward")},
    }
    if hasattr(policy, "transformer"):
        described["memory_length"] = str(policy.transformer.memory_length)
    env = make_native_env(task)
    env.close()
    sentence, space = about_actions(env.action_space)
    if policy.log_std is not None:
        space["log_std"] = policy.log_std.tolist()
    return described | {"action": sentence, "action_space": json.dumps(finite_or_none(space))}


def about_actions(space: spaces.Space) -> tuple[str, dict[str, Any]]:
    """What an action is made of logits, and the numbers that this takes; of numbers there are none, null."""
    if isinstance(space, spaces.Discrete):
        sentence = "start + the index of a logit: the largest, or drawn with the probabilities softmax(logits)"
        return sentence, {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.Box):
        sentence = (
            "logits are means; a = logits, or drawn from normal distributions about them with deviations "
            "exp(log_std); the action is (low + high) / 2 + (high - low) / 2 * a where both bounds are numbers, else "
            "a; clipped to the bounds, of the given shape"
        )
        bounds = {"low": space.low.flatten().tolist(), "high": space.high.flatten().tolist()}
        return sentence, {"type": "Box", "shape": list(space.shape), **bounds}
    sizes = space.nvec if isinstance(space, spaces.MultiDiscrete) else np.full(space.shape, 2)
    start = space.start if isinstance(space, spaces.MultiDiscrete) else np.zeros_like(sizes)
    sentence = (
        "logits are cut into parts of the given sizes; of each part as for one number: its start + the index of a "
        "logit, the largest, or drawn with the probabilities softmax(part); of the given shape"
    )
    numbers = {"sizes": sizes.flatten().tolist(), "start": start.flatten().tolist()}
    return sentence, {"type": type(space).__name__, "shape": list(space.shape), **numbers}


# ------------------------------------------------------------------------------------------------- is it the same?


def differences(policy: MemoryPolicy, task: TaskArgs, model: bytes) -> tuple[float, float]:
    """Between PyTorch and onnxruntime, of logits, value, gate and memory -> the largest, and the largest that is left
    where those of numbers beyond 1 are divided by these.

    Over `CHECKED_STEPS` of several episodes at once, which PyTorch's agent plays as evaluate.py plays them.
    """
    import onnxruntime  # here, as nobody else needs it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # networks this small gain nothing from more
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    step, rows = OneStep(policy, task), CHECKED_ROWS
    empty = state_tensors(step.policy.initial_state(rows))
    memory = {name: empty[name].numpy() for name in step.state}
    moments = play(policy, [make_real_env(task) for _ in range(rows)], SEED_BLOCK, seed=1)
    acting = (moment for moment in moments if not moment.end)
    largest = largest_relative = 0.0
    for _ in range(CHECKED_STEPS):
        now = list(islice(acting, rows))
        parts = zip(*(moment.obs for moment in now), strict=True)
        given = {name: np.stack(part) for name, part in zip(step.frames, parts, strict=True)}
        given["episode_start"] = np.array([moment.step == 0 for moment in now])
        found = dict(zip(step.outputs, session.run(step.outputs, given | memory), strict=True))
        memory = {name: found[f"new_{name}"] for name in step.state}
        expected = outputs_by_name(now[0].outputs, now[0].states)
        for name in step.outputs:
            here, there = expected[name].numpy(), found[name]
            if name == "new_keys_values":  # PyTorch drops what no running episode can reach
                there = there[..., there.shape[-2] - here.shape[-2] :, :]
            differing = np.abs(there - here)
            largest = max(largest, float(differing.max(initial=0)))
            relative = differing / np.maximum(1, np.abs(here))
            largest_relative = max(largest_relative, float(relative.max(initial=0)))
    return largest, largest_relative


# ------------------------------------------------------------------------------------------------- the program


def main(args: Args) -> None:
    """Export, compare, write. Raises InputError on wrong input, RunError where the two differ."""
    check_args(args)
    file = Path(args.onnx)
    check_file(file)
    check_packages()
    policy, trained_on, checkpoint = load_policy(args.checkpoint, args.env_id, args.env_kwargs)
    task = task_to_play(policy, trained_on, env_id=args.env_id, env_kwargs=args.env_kwargs)
    if args.memory_length is not None:
        set_memory_length(policy, checkpoint["algo"], args.memory_length)
    check_sizes(policy, args.checkpoint)
    model = to_onnx(policy, task, describe(policy, trained_on, checkpoint["algo"], checkpoint["step"]))
    difference, relative = differences(policy, task, model)
    if not relative <= TOLERANCE:  # nor is a NaN to be trusted
        raise RunError(
            f"--checkpoint {args.checkpoint}: onnxruntime's outputs differ from PyTorch's by {difference:.1e}; "
            "nothing was written."
        )
    write(file, model)
    print(
        f"{file}: the {checkpoint['algo']} agent of {trained_on.env_id}, {len(model) / 1e6:.1f} MB; over "
        f"{CHECKED_STEPS} steps its outputs and memory are PyTorch's within {difference:.1e}"
    )


def check_file(file: Path) -> None:
    """Raises InputError where it cannot be written; see also `write`."""
    if file.suffix != ".onnx" or file.is_dir():
        raise InputError(f"--onnx {file}: must be a file whose name ends in .onnx.")
    if not os.access(file.parent, os.W_OK | os.X_OK) or not file.parent.is_dir():
        raise InputError(f"--onnx {file}: must be in a folder that exists and can be written.")


def check_packages() -> None:
    """Raises InputError where a package is missing that only this program needs."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--onnx: needs the package {error.name}, which is not installed: pip install -r requirements-export.txt."
        ) from error


def check_sizes(policy: MemoryPolicy, checkpoint: str) -> None:
    """Raises InputError where the model is too large for the format, or its memory for this machine."""
    parameters = sum(tensor.nbytes for tensor in policy.state_dict().values())
    if parameters > LARGEST_MODEL:
        raise InputError(
            f"--checkpoint {checkpoint}: has {parameters:,} bytes of parameters; must have at most "
            f"{LARGEST_MODEL:,}, as much as fits in an ONNX file."
        )
    if hasattr(policy, "transformer"):
        M, D, layers = policy.transformer.memory_length, policy.transformer.width, len(policy.transformer.layers)
        state = 4 * layers * M * 2 * D
        if state > LARGEST_STATE:
            raise InputError(
                f"--memory-length {M}: takes {state:,} bytes of memory for each environment; must take at most "
                f"{LARGEST_STATE:,}."
            )


def write(file: Path, model: bytes) -> None:
    """The whole file or none: whatever interrupts this, `file` is as before or complete. Raises InputError."""
    temporary = file.with_name(file.name + ".tmp")
    try:
        with open(temporary, "wb") as opened:
            opened.write(model)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise InputError(f"--onnx {file}: cannot be written ({error.strerror}).") from error
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    run_script(main, Args, {}, __doc__)
