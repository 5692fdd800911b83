"""PALMER: Parallel Attentive LSTM-Transformer, a policy with two memories and a learned gate between them.

    x_t      = Encoder(o_t)                         CNN for images, small CNN for symbolic grids, MLP for vectors
    h^L_t    = LayerNorm(LSTM(x_t, h_{t-1}, c_{t-1}))            short-term memory
    h^T_t    = LayerNorm(Transformer(x_{t-M+1..t}))              long-term memory, within the episode
    g_t      = sigmoid(W_g [h^T_t ; h^L_t] + b_g)                in (0,1)^D: 1 = Transformer, 0 = LSTM
    z_t      = g_t * h^T_t + (1 - g_t) * h^L_t                   element by element
    pi(a|z_t), V(z_t)                                            heads on a shared hidden layer of products

Modules hold parameters only. What an agent remembers is a `MemoryState`, an argument and a return value, so that
one and the same `forward` serves a single step of a rollout (T = 1) and a whole training segment (T > 1), with
episode starts anywhere inside, and gives the same numbers both ways.

Shapes everywhere: T steps, B sequences, L layers, H heads, D width, M memory length, C cached steps (C < M),
K distinct observations, A action logits.
"""

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import gymnasium as gym
import torch
import torch.nn as nn
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.flags import Range
from harness.input_error import InputError
from harness.processes import gather
from tasks.observations import BUCKETS, GRID_VALUES, Frames, is_grid, picture_scale

# Queries that attend at once: bounds the (queries x keys) attention matrix when segments are long.
QUERY_BLOCK = 128
PICTURES_AT_ONCE = 128  # that a CPU encodes

# What the settings of an agent may be stands beside them here too, so that a file's can be checked where there is no
# training script; a test compares.
Width, Layers = Annotated[int, Range(1, 8192)], Annotated[int, Range(1, 64)]
Heads, FFMult, MemoryLength = (Annotated[int, Range(1, most)] for most in (512, 64, 65_536))


class KeyValueCache:
    """Keys and values of the last C steps of one layer, (B, H, C, 2 D/H): a window on a buffer with room to grow.

        buffer    . . k k k k - - -        start = 2, end = 6, filled = 6
        window        ^-----^

    Appending writes the cells after `end` and gives a new window that holds them; copying all C steps at every step
    would take most of a rollout's time. A cell is written once, so that no window ever changes. Whoever appends
    to a window that has been appended to before finds its next cell filled, and gets a copy.
    """

    def __init__(self, keys_values: Tensor):
        """A cache that holds the steps in keys_values (B, H, C, 2 D/H)."""
        self._buffer, self._start, self._end = keys_values, 0, keys_values.shape[2]
        self._filled = [self._end]  # shared by all windows on the buffer

    @property
    def window(self) -> Tensor:
        return self._buffer[:, :, self._start : self._end]

    def __len__(self) -> int:
        return self._end - self._start

    def append(self, keys_values: Tensor) -> "KeyValueCache":
        """The cache after the steps in keys_values (B, H, T, 2 D/H), which must not need a gradient."""
        T, C = keys_values.shape[2], len(self)
        if self._filled[0] == self._end and self._end + T <= self._buffer.shape[2]:
            longer = self._part(self._start, self._end + T)
        else:
            B, H, _, width = keys_values.shape
            longer = KeyValueCache(keys_values.new_empty(B, H, 2 * (C + T) + 16, width))
            longer._end = C + T
            longer._buffer[:, :, :C] = self.window
        longer._buffer[:, :, longer._end - T : longer._end] = keys_values
        longer._filled[0] = longer._end
        return longer

    def last(self, steps: int) -> "KeyValueCache":
        """The cache of the last `steps` steps only."""
        return self._part(self._end - steps, self._end)

    def select(self, index: Tensor) -> "KeyValueCache":
        """The caches of the sequences in `index`."""
        return KeyValueCache(self.window[index])

    def _part(self, start: int, end: int) -> "KeyValueCache":
        part = copy.copy(self)
        part._start, part._end = start, end
        return part


class MemoryState(NamedTuple):
    """What an agent remembers between two calls, for B sequences. A memory that an agent lacks has zero layers.

    Never changed in place: a state may be kept, used twice, or carried on along two branches.
    """

    h: Tensor  # (L, B, D) LSTM hidden state
    c: Tensor  # (L, B, D) LSTM cell state
    cache: tuple[KeyValueCache, ...]  # one per layer, (B, H, C, 2 D/H): keys and values of the last C steps
    clock: Tensor  # (B,) int64, steps of the running episode so far

    def select(self, index: Tensor) -> "MemoryState":
        """The states of the sequences in `index` (int64 or bool mask)."""
        return MemoryState(
            self.h[:, index], self.c[:, index], tuple(kv.select(index) for kv in self.cache), self.clock[index]
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Copies of all that the state holds, for a checkpoint: h, c, clock, and the cache of every layer."""
        return tuple(part.clone() for part in (self.h, self.c, self.clock, *(kv.window for kv in self.cache)))

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor], device: torch.device | str = "cpu") -> "MemoryState":
        """The state that `tensors` described, on `device`."""
        h, c, clock, *cache = (part.to(device) for part in tensors)
        return cls(h, c, tuple(KeyValueCache(keys_values) for keys_values in cache), clock)


class PolicyOutput(NamedTuple):
    logits: Tensor  # (T, B, A), the components of a MultiDiscrete action side by side
    value: Tensor  # (T, B)
    memory: Tensor  # (T, B, D), z
    gate: Tensor | None  # (T, B, D) in (0, 1), 1 = Transformer; None where the agent has no gate


def layer_init(layer: nn.Linear | nn.Conv2d, gain: float = math.sqrt(2)) -> nn.Module:
    """Orthogonal weights and zero bias (Saxe et al. 2014), the usual start for PPO."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


# ---------------------------------------------------------------------------------------------------- encoder


class RunningNorm(nn.Module):
    """Normalises the elements of a vector, or of a picture whose bounds tell of no scale, by the mean and variance of
    all that was seen in training.

    The statistics are no state of an episode: like parameters they change between rollouts (`learn`), never within a
    rollout and its update, and are frozen in evaluation. norm_obs: None for the elements that are not bounded within
    [-10, 10], True for all, False for none.
    """

    def __init__(self, space: spaces.Box, norm_obs: bool | None):
        super().__init__()
        bounded = torch.from_numpy((space.low >= -10) & (space.high <= 10))
        chosen = ~bounded if norm_obs is None else torch.full_like(bounded, norm_obs)
        self.register_buffer("chosen", chosen)
        self.register_buffer("mean", torch.zeros(space.shape))
        self.register_buffer("var", torch.ones(space.shape))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(K, *space.shape) -> as many, what is normalised within [-10, 10]."""
        normalised = ((x - self.mean) * (self.var + 1e-8).rsqrt()).clamp(-10, 10)
        return torch.where(self.chosen, normalised, x)

    @torch.no_grad()
    def learn(self, x: Tensor) -> None:
        """Count x (B, *space.shape) in, of all processes (Chan et al. 1983)."""
        if not self.chosen.any():
            return
        x = x.double()
        sums = gather((len(x), x.sum(0).cpu(), ((x - x.mean(0)) ** 2).sum(0).cpu()))
        for n, total, squares in sums:
            delta = total.to(self.mean) / n - self.mean
            together = self.count + n
            spread = self.var * self.count + squares.to(self.mean) + delta**2 * self.count * n / together
            self.var.copy_(spread / together)
            self.mean += delta * n / together
            self.count.copy_(together)


class PartEncoder(nn.Module):
    """One part of an observation to a vector: (K, *space.shape) -> (K, D).

    - pictures (height, width, channels) of at least 36x36 pixels, with one of two CNNs: "patch" cuts the picture into
      patches of 7x7 pixels and these into blocks of 4x4, each seen once, which for 84x84 pixels of a 3x3 view makes a
      block a cell; "nature" is that of Mnih et al. 2015, some sixteen times the arithmetic; smaller pictures with
      two layers of 3x3;
    - symbolic MiniGrid views (k, k, 3): each cell one-hot, then a small CNN;
    - float vectors (n,): an MLP;
    - words (W,): embeddings of word and place, summed.
    """

    def __init__(self, space: spaces.Space, width: int, cnn: str, norm_obs: bool | None):
        super().__init__()
        self.norm = None  # only of numbers whose unit nothing else tells
        if isinstance(space, spaces.MultiDiscrete):
            self.kind = "words"
            self.net = nn.Embedding(BUCKETS, width, padding_idx=0)
            self.place = nn.Parameter(torch.randn(space.shape[0], width))
        elif len(space.shape) == 1:
            self.kind = "vector"
            self.norm = RunningNorm(space, norm_obs)
            self.net = nn.Sequential(
                layer_init(nn.Linear(space.shape[0], width)),
                nn.Tanh(),
                layer_init(nn.Linear(width, width)),
                nn.Tanh(),
            )
        elif is_grid(space):
            self.kind = "grid"
            self.net = nn.Sequential(
                layer_init(nn.Conv2d(sum(GRID_VALUES), 32, 3, padding=1)),
                nn.ReLU(),
                nn.Flatten(),
                layer_init(nn.Linear(32 * space.shape[0] * space.shape[1], width)),
                nn.ReLU(),
            )
        else:
            self.kind = "picture"
            height, width_in_pixels, maps = space.shape
            # feature maps, kernel, stride
            if min(height, width_in_pixels) < 36:
                sizes = [(16, 3, 1), (32, 3, 2)]
            elif cnn == "patch":
                sizes = [(16, 7, 7), (32, 4, 4)]
            else:
                sizes = [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
            layers = []
            for out, kernel, stride in sizes:
                layers += [layer_init(nn.Conv2d(maps, out, kernel, stride)), nn.ReLU()]
                maps = out
            convolutions = nn.Sequential(*layers, nn.Flatten())
            flat = convolutions(torch.zeros(1, space.shape[2], height, width_in_pixels)).shape[1]
            self.net = nn.Sequential(convolutions, layer_init(nn.Linear(flat, width)), nn.ReLU())
            self.scale = picture_scale(space)
            if self.scale is None:
                self.norm = RunningNorm(space, norm_obs)

    def forward(self, part: Tensor) -> Tensor:
        dtype = next(self.net.parameters()).dtype
        if self.kind == "words":
            known = (part > 0)[..., None].to(dtype)
            summed = ((self.net(part) + self.place) * known).sum(-2)
            return (summed / known.sum(-2).clamp_min(1).sqrt()).tanh()
        if self.kind == "picture":
            # A part at a time: buffers of more than 32 MB are given back to the system and cost more than the
            # arithmetic. A copy in any case: a float picture would be the table's own.
            at_once = len(part) if part.is_cuda else PICTURES_AT_ONCE
            if self.norm:
                normalised = (self.norm(some) for some in part.to(dtype).split(at_once))
                return torch.cat([self.net(some.permute(0, 3, 1, 2)) for some in normalised])
            pictures = part.permute(0, 3, 1, 2).split(at_once)
            return torch.cat([self.net(some.to(dtype, copy=True).mul_(self.scale)) for some in pictures])
        if self.kind == "grid":
            planes = [F.one_hot(part[..., i].long(), n) for i, n in enumerate(GRID_VALUES)]
            part = torch.cat(planes, -1).permute(0, 3, 1, 2).to(dtype)
        else:
            part = self.norm(part.to(dtype))
        return self.net(part)


class ObservationEncoder(nn.Module):
    """Frames to vectors: K frames of any parts (see tasks/observations.py) -> (K, D)."""

    def __init__(self, space: spaces.Tuple, width: int, cnn: str, norm_obs: bool | None):
        super().__init__()
        self.parts = nn.ModuleList(PartEncoder(part, width, cnn, norm_obs) for part in space)
        several = len(space) > 1
        self.join = nn.Sequential(layer_init(nn.Linear(len(space) * width, width)), nn.Tanh()) if several else None

    def forward(self, frames: Frames) -> Tensor:
        encoded = [encoder(part) for encoder, part in zip(self.parts, frames, strict=True)]
        return self.join(torch.cat(encoded, -1)) if self.join else encoded[0]

    def learn_statistics(self, frames: Frames, obs: Tensor) -> None:
        """After an update: count in what a rollout has shown, obs (T, N) among `frames`."""
        for encoder, part in zip(self.parts, frames, strict=True):
            if encoder.norm:
                encoder.norm.learn(part[obs.flatten()])


# ---------------------------------------------------------------------------------------- short-term memory


class LSTMScan(torch.autograd.Function):
    """The recurrent half of one LSTM layer over a segment, with resets inside.

        h, c    <- keep_t * h_{t-1}, keep_t * c_{t-1}            keep_t = 0 where an episode starts, else 1
        i,f,o,n  = sigma, sigma, sigma, tanh of (gates_x_t + W_hh h)
        c_t      = f * c + i * n
        h_t      = o * tanh(c_t)

    torch.nn.LSTM knows no resets inside a sequence. A loop recorded by autograd would do, but would
    multiply small matrices for W_hh's gradient at every step; written out, the backward pass needs one
    product a step, and a single large one for W_hh at the end.

    forward: gates_x (T, B, 4D) = W_ih x + b, weight W_hh (4D, D), h and c (B, D), keep (T, B, 1)
             -> h of every step (T, B, D), last h (B, D), last c (B, D)
    """

    @staticmethod
    def forward(ctx, gates_x, weight, h, c, keep):
        T, B, D = gates_x.shape[0], gates_x.shape[1], weight.shape[1]
        gates = torch.empty_like(gates_x)
        hs, tanh_cs, kept_hs, kept_cs = (gates_x.new_empty(T, B, D) for _ in range(4))
        weight_t = weight.t()
        # Views of every step, made before the loop: with matrices this small, Python's indexing would cost as
        # much as the arithmetic.
        sigmoids, tanhs = gates[..., : 3 * D].unbind(), gates[..., 3 * D :].unbind()
        ifon = (gate.unbind() for gate in gates.view(T, B, 4, D).unbind(2))
        steps = (gates_x, gates, hs, tanh_cs, kept_hs, kept_cs, keep)
        steps = (tensor.unbind() for tensor in steps)
        for gate_x, gate, h_t, tanh_c, kept_h, kept_c, keep_t, sigmoid, tanh, i, f, o, n in zip(
            *steps, sigmoids, tanhs, *ifon, strict=True
        ):
            torch.mul(h, keep_t, out=kept_h)
            torch.mul(c, keep_t, out=kept_c)
            torch.addmm(gate_x, kept_h, weight_t, out=gate)
            sigmoid.sigmoid_()
            tanh.tanh_()
            c = torch.mul(f, kept_c).addcmul_(i, n)
            h = torch.mul(o, torch.tanh(c, out=tanh_c), out=h_t)
        ctx.save_for_backward(gates, weight, kept_hs, kept_cs, tanh_cs, keep)
        return hs, h.clone(), c

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_hs, grad_h, grad_c):
        gates, weight, kept_hs, kept_cs, tanh_cs, keep = ctx.saved_tensors
        T, B, D = kept_hs.shape
        i, f, o, n = gates.view(T, B, 4, D).unbind(2)
        # How far each pre-activation moves c_t (i, f, n) or h_t (o): everything that needs no gradient yet, so
        # that the loop below is left with the least per step. Turned into the gradient in place, step by step.
        grad_gates = torch.empty_like(gates)
        slope = grad_gates.view(T, B, 4, D)
        sigmoid = gates[..., : 3 * D]
        sigmoid_slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1).view(T, B, 3, D)
        torch.mul(sigmoid_slope[:, :, 0], n, out=slope[:, :, 0])
        torch.mul(sigmoid_slope[:, :, 1], kept_cs, out=slope[:, :, 1])
        torch.mul(sigmoid_slope[:, :, 2], tanh_cs, out=slope[:, :, 2])
        torch.addcmul(i, i, n * n, value=-1, out=slope[:, :, 3])
        c_to_h = torch.addcmul(o, o, tanh_cs * tanh_cs, value=-1)
        steps = (grad_hs, c_to_h, f * keep, keep, grad_gates, slope, slope[:, :, 2])
        for grad_h_t, c_to_h_t, c_to_c, keep_t, grad_gate, slope_t, slope_o in zip(
            *(reversed(tensor.unbind()) for tensor in steps), strict=True
        ):
            grad_h = grad_h_t + grad_h
            grad_c = torch.addcmul(grad_c, grad_h, c_to_h_t)
            grad_o = slope_o * grad_h
            slope_t.mul_(grad_c[:, None])
            slope_o.copy_(grad_o)
            grad_h = torch.mm(grad_gate, weight).mul_(keep_t)
            grad_c = grad_c * c_to_c
        grad_weight = grad_gates.view(T * B, 4 * D).t() @ kept_hs.view(T * B, D)
        return grad_gates, grad_weight, grad_h, grad_c, None


class LSTMMemory(nn.Module):
    """A stack of L LSTM layers of width D (Hochreiter & Schmidhuber 1997) that forget at every episode start."""

    cut = False  # forget before every step instead, to see what the LSTM is worth

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.width = width
        self.input = nn.ModuleList(layer_init(nn.Linear(width, 4 * width), 1.0) for _ in range(layers))
        self.weight_hh = nn.ParameterList(nn.init.orthogonal_(torch.empty(4 * width, width)) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (T, B, D), h and c (L, B, D), episode_start (T, B) bool -> h^L (T, B, D), new h, new c."""
        keep = (~episode_start).to(x.dtype)[..., None]
        if self.cut:
            keep = torch.zeros_like(keep)
        last_h, last_c = [], []
        for layer, (linear, weight_hh) in enumerate(zip(self.input, self.weight_hh, strict=True)):
            x, h_l, c_l = LSTMScan.apply(linear(x), weight_hh, h[layer], c[layer], keep)
            last_h.append(h_l)
            last_c.append(c_l)
        return self.norm(x), torch.stack(last_h), torch.stack(last_c)


# ----------------------------------------------------------------------------------------- long-term memory


def episode_clock(clock: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor]:
    """Number every step within its episode.

    clock (B,) steps before the segment, episode_start (T, B) bool -> position (T, B) and first (T, B), both
    int64. `first` is the segment index of the episode's first step, negative if it lies before the segment:

        clock = 2,  start  0 0 1 0 0 1     position  2  3  0  1  2  0     first  -2 -2  2  2  2  5
    """
    t = torch.arange(episode_start.shape[0], device=clock.device)[:, None]
    first = torch.where(episode_start, t, -clock)
    if len(t) > 1:  # a single step needs none, and ONNX has no such operation
        first = first.cummax(0).values
    return t - first, first


class AttentionWeights(torch.autograd.Function):
    """The weights of softmax attention, w = softmax(q k^T / sqrt(D/H)) (Vaswani et al. 2017), of float64 logits.

    A sharp head's logits are sums of 80 and more, which float32 adds up otherwise for one query than for many, 1e-5
    away. Where a few hundred steps are attended to that was enough for the policy that is updated to be another, by
    1e-4, than the one that acted. PyTorch's fused kernel takes twice as long in float64 as this, which leaves
    everything but the logits, and so the backward pass, in float32.

    forward: q (B, H, T, D/H), k (B, H, C + T, D/H), hidden (B, 1, T, C + T) bool: what a query does not see
             -> weights (B, H, T, C + T), 0 where hidden; the rows sum to 1
    """

    @staticmethod
    def forward(ctx, q, k, hidden):
        logits = (q.double() @ k.double().transpose(-1, -2)).mul_(1 / math.sqrt(q.shape[-1]))  # ONNX has no mT
        logits = logits.masked_fill_(hidden, -math.inf)
        logits -= logits.amax(-1, keepdim=True)  # float32 has digits enough for how far each is below the largest
        weights = logits.to(q.dtype).softmax(-1)
        ctx.save_for_backward(q, k, weights)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, weights = ctx.saved_tensors
        grad = grad * weights
        grad = (grad - weights * grad.sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
        return grad @ k, grad.mT @ q, None


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and feed-forward (Vaswani et al. 2017; Parisotto et al. 2019 on the norm's place)."""

    fixed_shapes = False  # see MemoryPolicy.fix_shapes

    def __init__(self, width: int, heads: int, ff_width: int):
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = layer_init(nn.Linear(width, 3 * width), 1.0)
        self.project = layer_init(nn.Linear(width, width), 1.0)
        self.norm_ff = nn.LayerNorm(width)
        self.ff = nn.Sequential(
            layer_init(nn.Linear(width, ff_width)), nn.ReLU(), layer_init(nn.Linear(ff_width, width), 1.0)
        )

    def forward(
        self, x: Tensor, cache: KeyValueCache, blocks: list[tuple[slice, slice, Tensor]]
    ) -> tuple[Tensor, KeyValueCache]:
        """x (T, B, D), cache of C steps -> output (T, B, D), cache of C + T steps."""
        T, B, D = x.shape
        q, keys_values = self.project_in(x)
        if keys_values.requires_grad or self.fixed_shapes:
            keys_values = torch.cat((cache.window, keys_values), 2)
            cache = KeyValueCache(keys_values.detach())
        else:
            cache = cache.append(keys_values)
            keys_values = cache.window
        k, v = keys_values.chunk(2, -1)
        attended = [
            AttentionWeights.apply(q[:, :, queries], k[:, :, keys], hidden) @ v[:, :, keys]
            for queries, keys, hidden in blocks
        ]
        attended = attended[0] if len(attended) == 1 else torch.cat(attended, 2)
        x = x + self.project(attended.permute(2, 0, 1, 3).reshape(T, B, D))
        return x + self.ff(self.norm_ff(x)), cache

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (T, B, D) -> queries (B, H, T, D/H), keys and values (B, H, T, 2 D/H)."""
        T, B, _ = x.shape
        q, k, v = self.query_key_value(self.norm_attention(x)).view(T, B, 3, self.heads, -1).unbind(2)
        return q.permute(1, 2, 0, 3), torch.cat((k, v), -1).permute(1, 2, 0, 3)

    def attention(self, x: Tensor, cache: KeyValueCache, blocks: list[tuple[slice, slice, Tensor]]) -> Tensor:
        """Arguments as for `forward` -> weights (B, H, T, C + T), 0 on what a step does not see."""
        q, keys_values = self.project_in(x)
        k, _ = torch.cat((cache.window, keys_values), 2).chunk(2, -1)
        weights = q.new_zeros(*q.shape[:3], k.shape[2])
        for queries, keys, hidden in blocks:
            weights[:, :, queries, keys] = AttentionWeights.apply(q[:, :, queries], k[:, :, keys], hidden)
        return weights


class TransformerMemory(nn.Module):
    """A causal Transformer over the last M steps of the running episode, with cached keys and values.

    As in Transformer-XL (Dai et al. 2019) the cache from before a segment is a constant: gradients reach
    back to the segment's first step, the forward pass reaches M steps back through every layer.

    Its input is told the step within the episode, by sinusoids (Vaswani et al. 2017), so that a head can ask for a
    step by its distance, by its number, or counted from the other end.
    """

    fixed_shapes = False  # see MemoryPolicy.fix_shapes
    cut = False  # see no earlier step, nor which one this is, to see what the Transformer is worth

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        memory_length: int,
        ff_width: int,
    ):
        super().__init__()
        if width % heads or width % 2:
            raise InputError(f"--trxl-heads {heads}: must divide --width {width}, which must be even.")
        self.width, self.heads, self.memory_length = width, heads, memory_length
        self.layers = nn.ModuleList(TransformerLayer(width, heads, ff_width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        frequency = 10000 ** -(torch.arange(0, width, 2) / width)
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(
        self, x: Tensor, cache: tuple[KeyValueCache, ...], clock: Tensor, episode_start: Tensor
    ) -> tuple[Tensor, tuple[KeyValueCache, ...], Tensor]:
        """x (T, B, D), cache of each layer, clock (B,), episode_start (T, B) bool -> h^T (T, B, D), and the new
        cache and clock.
        """
        T, C = x.shape[0], len(cache[0])
        x, blocks, clock = self.place(x, C, clock, episode_start)
        # Steps that no query can reach any more leave the cache, and so do those before the oldest running episode:
        # a memory longer than any episode is then free.
        kept = min(C + T, self.memory_length - 1)
        if not self.fixed_shapes:
            kept = min(kept, int(clock.max()))
        new_cache = []
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x, layer_cache = layer(x, layer_cache, blocks)
            new_cache.append(layer_cache.last(kept))
        return self.norm(x), tuple(new_cache), clock

    def attention(self, x: Tensor, cache: tuple[KeyValueCache, ...], clock: Tensor, episode_start: Tensor) -> Tensor:
        """Where each step looks: arguments as for `forward` -> weights (L, B, H, T, C + T), whose rows sum to 1.

        For looking at an agent; `forward` itself never has these weights in hand.
        """
        x, blocks, _ = self.place(x, len(cache[0]), clock, episode_start)
        weights = []
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            weights.append(layer.attention(x, layer_cache, blocks))
            x, _ = layer(x, layer_cache, blocks)
        return torch.stack(weights)

    def place(
        self, x: Tensor, C: int, clock: Tensor, episode_start: Tensor
    ) -> tuple[Tensor, list[tuple[slice, slice, Tensor]], Tensor]:
        """x (T, B, D) told its positions, what each step sees beside C cached ones, and the new clock."""
        if self.cut:
            episode_start = torch.ones_like(episode_start)
        position, first = episode_clock(clock, episode_start)
        angle = position[..., None] * self.frequency
        x = x + torch.cat((angle.sin(), angle.cos()), -1)
        return x, self.attention_blocks(first, C), position[-1] + 1

    def attention_blocks(self, first: Tensor, C: int) -> list[tuple[slice, slice, Tensor]]:
        """Which keys each query sees: causal, at most M steps, within the episode.

        Keys are numbered along cache and segment, query t stands at C + t. It sees lowest..C+t, where lowest is
        its episode's first step or C + t - M + 1, whichever is later. With C = 2, T = 4, M = 3, the
        cached steps of this episode and a new episode starting at t = 2 (x = seen):

                    cache   segment
            key     0 1     2 3 4 5
            t = 0   x x     x . . .
            t = 1   . x     x x . .
            t = 2   . .     . . x .      <- episode start
            t = 3   . .     . . x x

        Returns (queries, keys, hidden) for blocks of queries: two slices, and (B, 1, queries, keys) bool.
        Every row has a key: a query always sees its own step.
        """
        T, device = first.shape[0], first.device
        position = C + torch.arange(T, device=device)
        lowest = torch.maximum(C + first, (position - self.memory_length + 1)[:, None])
        blocks = []
        for start in range(0, T, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, T)
            oldest = max(0, C + start - self.memory_length + 1)
            if not self.fixed_shapes:
                oldest = max(oldest, int(lowest[start:end].min()))
            key = torch.arange(oldest, C + end, device=device)
            rows = lowest[start:end].t()[:, None, :, None]  # (B, 1, queries, 1)
            hidden = (key < rows) | (key > position[start:end, None])
            blocks.append((slice(start, end), slice(oldest, C + end), hidden))
        return blocks


# ------------------------------------------------------------------------------------------------- the policy


class AdaptiveGate(nn.Module):
    """Blends two memories element by element:

        g = sigmoid(W_g [h^T ; h^L] + b_g)
        z = g * h^T + (1 - g) * h^L

    `fixed` holds the gate at that value instead of learning it.
    """

    def __init__(self, width: int, fixed: float | None = None):
        super().__init__()
        self.fixed = fixed
        self.linear = layer_init(nn.Linear(2 * width, width), 0.1) if fixed is None else None

    def forward(self, h_transformer: Tensor, h_lstm: Tensor) -> tuple[Tensor, Tensor]:
        """Two memories (T, B, D) -> z (T, B, D), gate (T, B, D)."""
        if self.fixed is not None:
            gate = torch.full_like(h_transformer, self.fixed)
        else:
            gate = torch.sigmoid(self.linear(torch.cat((h_transformer, h_lstm), -1)))
        return torch.lerp(h_lstm, h_transformer, gate), gate


def gate_metrics(gate: Tensor | None) -> dict[str, float]:
    """Statistics of the gate's values; none where there is no gate."""
    if gate is None:
        return {}
    values = torch.stack((gate.mean(), gate.min(), gate.max(), gate.std()))
    names = ("agf_value", "min_gate_value", "max_gate_value", "std_gate_value")
    return {f"gates/{name}": value for name, value in zip(names, values.tolist(), strict=True)}


class Categoricals:
    """Independent categorical distributions, one for each component of a (Multi)Discrete action.

    logits (..., A) with the components side by side; actions (...) for Discrete, (..., components) otherwise.
    """

    def __init__(self, logits: Tensor, action_space: spaces.Discrete | spaces.MultiDiscrete):
        self.discrete = isinstance(action_space, spaces.Discrete)
        sizes = [int(action_space.n)] if self.discrete else action_space.nvec.tolist()
        self.log_probs = [part.log_softmax(-1) for part in logits.split(sizes, -1)]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """argmax of log p + Gumbel noise: a sample without building cumulative sums, on any device."""
        noisy = [p - torch.empty_like(p).exponential_(generator=generator).log_() for p in self.log_probs]
        return self._join([p.argmax(-1) for p in noisy])

    def mode(self) -> Tensor:
        return self._join([p.argmax(-1) for p in self.log_probs])

    def log_prob(self, action: Tensor) -> Tensor:
        parts = [action] if self.discrete else action.unbind(-1)
        chosen = [p.gather(-1, a[..., None]).squeeze(-1) for p, a in zip(self.log_probs, parts, strict=True)]
        return sum(chosen)

    def entropy(self) -> Tensor:
        return sum(-(p.exp() * p).sum(-1) for p in self.log_probs)

    def _join(self, parts: list[Tensor]) -> Tensor:
        return parts[0] if self.discrete else torch.stack(parts, -1)


class Gaussians:
    """Independent normal distributions, one for each component of a Box action: mean (..., A), log_std (A,).

    The environment clips an action to its bounds; the probability is that of the action before.
    """

    def __init__(self, mean: Tensor, log_std: Tensor):
        self.mean, self.log_std = mean, log_std.expand_as(mean)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.mean + self.log_std.exp() * torch.empty_like(self.mean).normal_(generator=generator)

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        z = (action - self.mean) * (-self.log_std).exp()
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def action_size(action_space: gym.Space) -> int:
    """A: logits of a Discrete or MultiDiscrete action, means of a Box action."""
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n)
    return int(action_space.nvec.sum()) if isinstance(action_space, spaces.MultiDiscrete) else action_space.shape[0]


class GatedLinear(nn.Module):
    """A hidden layer of products, silu(W_1 z + b_1) * (W_2 z + b_2) (Shazeer 2020, https://arxiv.org/abs/2002.05202).

    What is remembered often has to be chosen by what is seen, as the count of the card that is asked for, or the side
    of a fork; a product of two linear functions does so, where a sum of ReLUs has to find each case by itself.
    """

    def __init__(self, width: int):
        super().__init__()
        self.linear = layer_init(nn.Linear(width, 2 * width))

    def forward(self, z: Tensor) -> Tensor:
        a, b = self.linear(z).chunk(2, -1)
        return F.silu(a) * b


class MemoryPolicy(nn.Module):
    """What every agent shares: encoder, a memory that the subclass gives (`remember`), heads.

    forget: empty the memory before every step, so that only the present observation counts.
    """

    fixed_shapes = False  # see fix_shapes

    def __init__(
        self,
        observation_space: spaces.Tuple,
        action_space: gym.Space,
        *,
        width: Width,
        cnn: Literal["patch", "nature"],
        norm_obs: bool | None,
        forget: bool,
    ):
        super().__init__()
        self.forget = forget
        self.observation_space = observation_space
        self.action_space = action_space
        self.encoder = ObservationEncoder(observation_space, width, cnn, norm_obs)
        self.hidden = GatedLinear(width)
        self.actor = layer_init(nn.Linear(width, action_size(action_space)), 0.01)
        self.critic = layer_init(nn.Linear(width, 1), 1.0)
        # Of Box actions, the same in all states; about 0.6, where bounds are at -1 and 1.
        box = isinstance(action_space, spaces.Box)
        self.log_std = nn.Parameter(torch.full(action_space.shape, -0.5)) if box else None

    def fix_shapes(self, fixed: bool = True) -> None:
        """Let no shape depend on what tensors hold: for GPUs, which would have to wait whenever that is looked at.

        The numbers stay the same. Costs arithmetic on cached steps that the mask hides.
        """
        for module in self.modules():
            module.fixed_shapes = fixed

    def initial_state(self, batch: int) -> MemoryState:
        """The empty memory of `batch` sequences."""
        raise NotImplementedError

    def remember(
        self, x: Tensor, state: MemoryState, episode_start: Tensor
    ) -> tuple[Tensor, Tensor | None, MemoryState]:
        """x (T, B, D) -> memory z (T, B, D), gate (T, B, D) or None, new state."""
        raise NotImplementedError

    def forward(self, frames: Frames, state: MemoryState, episode_start: Tensor) -> tuple[PolicyOutput, MemoryState]:
        """One step (T = 1) or a segment: frames, every part (T, B, *shape), episode_start (T, B) bool.

        episode_start: the step is the first of its episode; the memory is emptied before it.
        """
        return self.act(self.encode(frames), state, episode_start)

    def encode(self, frames: Frames) -> Tensor:
        """Frames, every part (T, B, *shape), -> x (T, B, D)."""
        return self.encoder(tuple(part.flatten(0, 1) for part in frames)).unflatten(0, frames[0].shape[:2])

    def act(self, x: Tensor, state: MemoryState, episode_start: Tensor) -> tuple[PolicyOutput, MemoryState]:
        """As `forward`, from observations that are encoded already: x (T, B, D)."""
        if self.forget:
            episode_start = torch.ones_like(episode_start)
        z, gate, state = self.remember(x, state, episode_start)
        hidden = self.hidden(z)
        return PolicyOutput(self.actor(hidden), self.critic(hidden).squeeze(-1), z, gate), state

    @torch.no_grad()
    def attention(self, frames: Frames, state: MemoryState, episode_start: Tensor) -> Tensor | None:
        """Where the Transformer of each step looks, arguments as for `forward`; None for an agent without one.

        Weights (L, B, H, T, C + T) on the cached steps and those of the segment; what a step does not see has 0, the
        rest sums to 1.
        """
        if not hasattr(self, "transformer"):
            return None
        if self.forget:
            episode_start = torch.ones_like(episode_start)
        return self.transformer.attention(self.encode(frames), state.cache, state.clock, episode_start)

    def distribution(self, logits: Tensor) -> Categoricals | Gaussians:
        if self.log_std is not None:
            return Gaussians(logits, self.log_std)
        return Categoricals(logits, self.action_space)


def empty_state(
    policy: nn.Module,
    batch: int,
    lstm: LSTMMemory | None = None,
    transformer: TransformerMemory | None = None,
) -> MemoryState:
    """An empty `MemoryState` for the memories that an agent has, on the device of its parameters."""
    weight = next(policy.parameters())
    layers = (len(lstm.input), batch, lstm.width) if lstm else (0, batch, 0)
    cache = ()
    if transformer:
        head = transformer.width // transformer.heads
        C = transformer.memory_length - 1 if transformer.fixed_shapes else 0  # never seen: the clock is at 0
        no_steps = weight.new_zeros(batch, transformer.heads, C, 2 * head)
        cache = tuple(KeyValueCache(no_steps) for _ in transformer.layers)
    clock = torch.zeros(batch, dtype=torch.int64, device=weight.device)
    return MemoryState(weight.new_zeros(layers), weight.new_zeros(layers), cache, clock)


class PalmerPolicy(MemoryPolicy):
    """LSTM and Transformer side by side, blended by the adaptive gate."""

    def __init__(
        self,
        observation_space: spaces.Tuple,
        action_space: gym.Space,
        *,
        lstm_layers: Layers,
        trxl_layers: Layers,
        trxl_heads: Heads,
        trxl_ff_mult: FFMult,
        memory_length: MemoryLength,
        fixed_gate: Annotated[float | None, Range(0, 1)],
        width: Width,
        **shared: Any,
    ):
        super().__init__(observation_space, action_space, width=width, **shared)
        self.lstm = LSTMMemory(width, lstm_layers)
        self.transformer = TransformerMemory(width, trxl_layers, trxl_heads, memory_length, trxl_ff_mult * width)
        self.gate = AdaptiveGate(width, fixed_gate)

    def initial_state(self, batch: int) -> MemoryState:
        return empty_state(self, batch, self.lstm, self.transformer)

    def remember(self, x: Tensor, state: MemoryState, episode_start: Tensor) -> tuple[Tensor, Tensor, MemoryState]:
        h_lstm, h, c = self.lstm(x, state.h, state.c, episode_start)
        h_transformer, cache, clock = self.transformer(x, state.cache, state.clock, episode_start)
        z, gate = self.gate(h_transformer, h_lstm)
        return z, gate, MemoryState(h, c, cache, clock)


class LSTMPolicy(MemoryPolicy):
    """PALMER without its Transformer and gate: z_t = h^L_t = LayerNorm(LSTM(x_t, h_{t-1}, c_{t-1}))."""

    def __init__(
        self,
        observation_space: spaces.Tuple,
        action_space: gym.Space,
        *,
        lstm_layers: Layers,
        width: Width,
        **shared: Any,
    ):
        super().__init__(observation_space, action_space, width=width, **shared)
        self.lstm = LSTMMemory(width, lstm_layers)

    def initial_state(self, batch: int) -> MemoryState:
        return empty_state(self, batch, lstm=self.lstm)

    def remember(self, x: Tensor, state: MemoryState, episode_start: Tensor) -> tuple[Tensor, None, MemoryState]:
        z, h, c = self.lstm(x, state.h, state.c, episode_start)
        clock = episode_clock(state.clock, episode_start)[0][-1] + 1
        return z, None, state._replace(h=h, c=c, clock=clock)


class TrXLPolicy(MemoryPolicy):
    """PALMER without its LSTM and gate: z_t = h^T_t = LayerNorm(Transformer(x_{t-M+1..t}))."""

    def __init__(
        self,
        observation_space: spaces.Tuple,
        action_space: gym.Space,
        *,
        trxl_layers: Layers,
        trxl_heads: Heads,
        trxl_ff_mult: FFMult,
        memory_length: MemoryLength,
        width: Width,
        **shared: Any,
    ):
        super().__init__(observation_space, action_space, width=width, **shared)
        self.transformer = TransformerMemory(width, trxl_layers, trxl_heads, memory_length, trxl_ff_mult * width)

    def initial_state(self, batch: int) -> MemoryState:
        return empty_state(self, batch, transformer=self.transformer)

    def remember(self, x: Tensor, state: MemoryState, episode_start: Tensor) -> tuple[Tensor, None, MemoryState]:
        z, cache, clock = self.transformer(x, state.cache, state.clock, episode_start)
        return z, None, state._replace(cache=cache, clock=clock)


POLICIES = {"palmer": PalmerPolicy, "lstm": LSTMPolicy, "trxl": TrXLPolicy}


def make_policy(
    algo: str,
    settings: Mapping[str, Any],
    observation_space: spaces.Tuple,
    action_space: gym.Space,
) -> MemoryPolicy:
    """The agent `algo` with those of `settings`, a training script's flags, that its constructor names.

    Raises InputError for settings that cannot be, KeyError where one is missing.
    """
    chosen = {name: settings[name] for name in setting_hints(algo)}
    return POLICIES[algo](observation_space, action_space, **chosen)


def setting_hints(algo: str) -> dict[str, Any]:
    """The settings of the agent `algo` -> what each may be, as beside a training script's flag."""
    hints = {}
    for constructor in (MemoryPolicy.__init__, POLICIES[algo].__init__):
        of = get_type_hints(constructor, include_extras=True)
        named = inspect.signature(constructor).parameters.values()
        hints |= {p.name: of[p.name] for p in named if p.kind is p.KEYWORD_ONLY}
    return hints
