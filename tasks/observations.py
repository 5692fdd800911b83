"""Observations: any Gymnasium space as a few parts that an encoder can take, and a number for each frame.

    Box(0, 255, (84, 84))                      -> picture (84, 84, 1)
    Dict(image=Box(0, 255, (3, 96, 96)), ...)  -> picture (96, 96, 3), vector (n,) of all the rest, words (W,)

A frame, one observation, is a tuple of such parts. `ObservationTable` hands out numbers for frames, so a rollout
stores 8 bytes a step and an encoder looks only once at each distinct frame.

Shape letters: N environments, B frames of a batch, K frames of a table, D width.
"""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

Frames = tuple[Tensor, ...]  # B frames: for each part a tensor (B, *shape)

CAPACITY = 4096  # distinct frames that are told apart
SMALLEST_PICTURE = 7  # pixels; what is smaller is a vector of numbers
GRID_VALUES = (11, 6, 4)  # MiniGrid encodes a cell as (object, colour, state), each below these
WORDS, BUCKETS = 32, 1024  # of a text: so many words count, each by one of so many numbers, 0 for none


# ---------------------------------------------------------------------------------- parts


def plain_space(space: Space) -> spaces.Tuple:
    """The parts of an observation space: pictures, then one vector of all numbers, then texts.

    - picture: Box (height, width, channels), uint8 or float32, at least 7x7. In the environment its channels may
      come first or be missing, and pictures may be stacked;
    - vector: Box (n,) float32, with numbers as they are and everything discrete one-hot;
    - words: MultiDiscrete (32,), each word of a text by a hash.

    Raises ValueError for a space that has no fixed size.
    """
    pictures, texts, vectors = [], [], []
    for leaf in leaves(space):
        kind = kind_of(leaf)
        if kind == "picture":
            pictures.append(picture_space(leaf))
        elif kind == "words":
            texts.append(spaces.MultiDiscrete([BUCKETS] * WORDS))
        else:
            vectors.append(spaces.flatten_space(leaf))
    if not pictures and not texts and not sum(vector.shape[0] for vector in vectors):
        raise ValueError("there is nothing to see")
    if vectors:
        with np.errstate(over="ignore"):  # a float64 bound beyond float32 becomes infinite, as it means to
            low, high = (
                np.concatenate([getattr(v, end) for v in vectors]).astype(np.float32) for end in ("low", "high")
            )
        vectors = [spaces.Box(low, high)]
    return spaces.Tuple((*pictures, *vectors, *texts))


def plain_observation(space: Space) -> Callable[[Any], tuple[np.ndarray, ...]]:
    """What makes an observation its parts, in the order of `plain_space`; copies, as buffers are used again."""
    # Decided once, not at every step.
    kinds, parts = [kind_of(leaf) for leaf in leaves(space)], leaves(space)
    dtypes = [
        picture_dtype(leaf) if kind == "picture" else np.float32 for leaf, kind in zip(parts, kinds, strict=True)
    ]
    if kinds == ["vector"] and isinstance(space, spaces.Box):
        return lambda obs: (np.array(obs, dtype=np.float32).reshape(-1),)

    def plain(obs: Any) -> tuple[np.ndarray, ...]:
        pictures, texts, vectors = [], [], []
        for leaf, kind, dtype, value in zip(parts, kinds, dtypes, leaves(space, obs), strict=True):
            if kind == "picture":
                pictures.append(channels_last(np.array(value, dtype=dtype)))
            elif kind == "words":
                texts.append(words(value))
            else:
                vectors.append(np.asarray(spaces.flatten(leaf, value), dtype=dtype))
        return (*pictures, *([np.concatenate(vectors)] if vectors else []), *texts)

    return plain


def leaves(space: Space, *obs: Any) -> list:
    """The spaces of which nested Dicts and Tuples are made or, with `obs`, the values in their place."""
    if isinstance(space, spaces.Dict):
        return [leaf for key, part in space.items() for leaf in leaves(part, *(value[key] for value in obs))]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, part in enumerate(space) for leaf in leaves(part, *(value[i] for value in obs))]
    return [obs[0] if obs else space]


def check_observation(space: Space, obs: Any) -> None:
    """Raises ValueError unless `plain_observation` can make parts of `obs` and lose nothing."""
    try:
        values = leaves(space, obs)
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError(f"is {type(obs).__name__} where its parts must be found ({error!r})") from error
    for leaf, value in zip(leaves(space), values, strict=True):
        if kind_of(leaf) == "words":
            if not isinstance(value, str):
                raise ValueError(f"has {type(value).__name__} where it must be a text")
        elif isinstance(leaf, spaces.Box):
            check_numbers(leaf, value)
        elif not leaf.contains(value):
            raise ValueError(f"has {value!r} where it must be of {leaf}")


def check_numbers(leaf: spaces.Box, value: Any) -> None:
    """Raises ValueError unless `value` is an array of the shape of `leaf`, with numbers that are like its own."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise ValueError("is no array") from error
    if array.shape != leaf.shape or array.dtype.kind not in "biuf":
        raise ValueError(f"has {array.dtype} {array.shape} where it must be {leaf.dtype} {leaf.shape}")
    if not np.isfinite(array).all():
        raise ValueError("is not finite")
    if kind_of(leaf) == "picture" and picture_dtype(leaf) is np.uint8:
        if array.dtype.kind == "f":
            raise ValueError(f"has {array.dtype} where a picture must be {leaf.dtype}")
        if (array < leaf.low).any() or (array > leaf.high).any():
            raise ValueError("has values beyond the bounds of a picture")


def batch_rows(space: Space, batch: Any, n: int) -> list:
    """The N observations of a batch: a list of them or, as of Gymnasium's vector environments, N rows in each part.

    Raises ValueError where there are not as many.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple) and not isinstance(batch, list):
        keys_of = list(space.spaces) if isinstance(space, spaces.Dict) else range(len(space))
        try:
            parts = {key: batch_rows(space[key], batch[key], n) for key in keys_of}
        except (TypeError, KeyError, IndexError) as error:
            raise ValueError(f"is {type(batch).__name__} where its parts must be found ({error!r})") from error
        rows = [{key: parts[key][i] for key in keys_of} for i in range(n)]
        return rows if isinstance(space, spaces.Dict) else [tuple(row.values()) for row in rows]
    if not hasattr(batch, "__len__") or len(batch) != n:
        raise ValueError(f"has no {n} rows, one for each environment")
    return list(batch)


def kind_of(leaf: Space) -> str:
    if isinstance(leaf, spaces.Text) or type(leaf).__name__ == "MissionSpace":  # MiniGrid's own kind of text
        return "words"
    if not leaf.is_np_flattenable:
        raise ValueError(f"{leaf} has no fixed size")
    if isinstance(leaf, spaces.Box) and 2 <= len(leaf.shape) <= 4:
        height, width, _ = channels_last(np.empty(leaf.shape, np.uint8)).shape
        if min(height, width) >= SMALLEST_PICTURE or is_grid(leaf):
            return "picture"
    return "vector"


def is_grid(space: Space) -> bool:
    """A MiniGrid view as codes of cells (k, k, 3), by its bounds: a picture of that size would reach to 255."""
    shape = getattr(space, "shape", None) or ()
    return len(shape) == 3 and shape[2] == 3 and bool((space.high + 1 == GRID_VALUES).all())


def grid_space(side: int) -> spaces.Box:
    high = np.broadcast_to(np.array(GRID_VALUES, np.uint8) - 1, (side, side, 3))
    return spaces.Box(np.zeros_like(high), high, dtype=np.uint8)


def channels_last(picture: np.ndarray) -> np.ndarray:
    """(h, w), (h, w, c), (c, h, w), or stacked (s, h, w), (s, h, w, c), (s, c, h, w) -> (h, w, channels).

    Where two neighbouring axes are as long, they are the picture's; else the axis of channels, and that of a stack,
    is the shorter of the first and the last.
    """
    if picture.ndim == 4:
        stacked = [channels_last(one) for one in picture]
        return np.concatenate(stacked, -1)
    if picture.ndim == 2:
        return picture[..., None]
    first, middle, last = picture.shape
    square = (first == middle) != (middle == last)  # small ones, as of a grid, may have more channels than pixels
    channels_first = middle == last if square else first < last
    return picture.transpose(1, 2, 0) if channels_first else picture


def picture_dtype(space: spaces.Box) -> type:
    """uint8 for what fits into it, else float32."""
    whole = np.issubdtype(space.dtype, np.integer) and space.low.min() >= 0 and space.high.max() <= 255
    return np.uint8 if whole else np.float32


def picture_space(space: spaces.Box) -> spaces.Box:
    with np.errstate(over="ignore"):
        low, high = (channels_last(bound.astype(picture_dtype(space))) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=picture_dtype(space))


def picture_scale(space: spaces.Box) -> float | None:
    """What a picture's values are multiplied by: to 1 at most. None where its bounds tell of no scale, as of a window
    of prices or of a depth in millimetres: that is measured by its spread, like a vector."""
    least, most = float(space.low.min()), float(space.high.max())
    if not -1e3 < least <= most < 1e3:
        return None
    return 1 / most if most > 1 else 1.0


def words(text: str) -> np.ndarray:
    """Each word by a number that is the same in every process: (32,) int64, 0 where there is none."""
    numbers = [1 + zlib.crc32(word.encode()) % (BUCKETS - 1) for word in str(text).lower().split()[:WORDS]]
    return np.array(numbers + [0] * (WORDS - len(numbers)))


# ---------------------------------------------------------------------------------- numbers


class ObservationTable:
    """Gives every distinct frame a number and keeps it.

    space: `plain_space` of one observation. capacity: largest number of distinct frames that are told apart.
    count: frames held now. distinct: whether a number stands for one distinct frame. It turns False for good once
    more than `capacity` were met; from then on every frame gets a new number without a look-up, and numbers live
    until the next `keep`.
    """

    def __init__(
        self,
        space: spaces.Tuple,
        capacity: int = CAPACITY,
        *,
        frames: Frames | None = None,
        device: torch.device | str = "cpu",
    ):
        """Starts with `frames`, K all different ones, as numbers 0..K-1, or empty. complete: started with all."""
        self.space = space
        self.capacity = capacity
        self.complete = frames is not None
        if frames is None:
            dtypes = [torch.from_numpy(np.empty(0, part.dtype)).dtype for part in space]
            frames = tuple(
                torch.empty((0, *part.shape), dtype=dtype, device=device)
                for part, dtype in zip(space, dtypes, strict=True)
            )
        self._storage, self.count, self.distinct = frames, len(frames[0]), True
        arrays = tuple(part.cpu().numpy() for part in frames)
        self._number_of = {key: number for number, key in enumerate(keys(arrays))}

    @property
    def frames(self) -> Frames:
        """The K frames by number: views, valid until the next `number` or `keep`."""
        return tuple(part[: self.count] for part in self._storage)

    def number(self, batch: tuple[np.ndarray, ...]) -> Tensor:
        """Numbers (B,) int64 of B frames, for each part an array (B, *shape); frames not met before are added."""
        batch = tuple(np.ascontiguousarray(part, dtype=s.dtype) for part, s in zip(batch, self.space, strict=True))
        if not self.distinct:
            return self._append(batch)
        numbers, new = [], []
        for b, key in enumerate(keys(batch)):
            if key not in self._number_of:
                self._number_of[key] = self.count + len(new)
                new.append(b)
            numbers.append(self._number_of[key])
        if self.count + len(new) > self.capacity:
            self.distinct = False
            self._number_of = {}
            return self._append(batch)
        if new:
            self._append(tuple(part[new] for part in batch))
        return torch.tensor(numbers, device=self._storage[0].device)

    def keep(self, current: Tensor) -> Tensor:
        """Call at the start of a rollout with the numbers in use, of any shape; returns the numbers to use instead.

        While observations are distinct nothing changes. Afterwards all other frames are dropped and these become
        0, 1, 2, ..., so that the table holds one rollout, what is remembered of the one before, and no more.
        """
        if self.distinct:
            return current
        kept = [part.index_select(0, current.flatten()) for part in self._storage]
        self.count = current.numel()
        if self.count > len(self._storage[0]):  # a frame may be in use more than once
            self._storage = tuple(kept)
        for part, rows in zip(self._storage, kept, strict=True):
            part[: self.count] = rows
        return torch.arange(self.count, device=current.device).view_as(current)

    def distinct_frames(self, obs: Tensor, fixed_shapes: bool) -> tuple[Frames, Tensor]:
        """The frames that a minibatch needs, each once: obs (any shape) -> K frames, index among them (as obs).

        With fixed shapes all that the table holds: counting would make a GPU wait.
        """
        numbers, index = self.distinct_numbers(obs, fixed_shapes)
        # Not part[numbers], which copies a frame byte by byte.
        return tuple(part.index_select(0, numbers) for part in self.frames), index

    def distinct_numbers(self, obs: Tensor, fixed_shapes: bool) -> tuple[Tensor, Tensor]:
        """As `distinct_frames`, numbers (K,) instead of frames."""
        if fixed_shapes and self.count <= obs.numel():
            return torch.arange(self.count, device=obs.device), obs
        return obs.unique(return_inverse=True)

    def _append(self, batch: tuple[np.ndarray, ...]) -> Tensor:
        first, self.count = self.count, self.count + len(batch[0])
        if self.count > len(self._storage[0]):
            rows = max(self.count, 2 * len(self._storage[0]))
            larger = tuple(part.new_empty((rows, *part.shape[1:])) for part in self._storage)
            for part, old in zip(larger, self._storage, strict=True):
                part[:first] = old[:first]
            self._storage = larger
        for part, new in zip(self._storage, batch, strict=True):
            part[first : self.count] = torch.from_numpy(new)
        return torch.arange(first, self.count, device=self._storage[0].device)


def keys(batch: tuple[np.ndarray, ...]) -> list[bytes]:
    """What tells B frames apart."""
    return [b"".join(part[b].tobytes() for part in batch) for b in range(len(batch[0]))]


class Encodings:
    """Encodings (K, D) of a table's frames while the encoder's parameters stand still: each frame is encoded once."""

    def __init__(self, encoder: Any, table: ObservationTable):
        self._encoder, self._table = encoder, table
        self._count = table.count
        self._storage = encoder(table.frames)

    def __getitem__(self, obs: Tensor) -> Tensor:
        """Numbers (B,) -> (B, D)."""
        known, count = self._count, self._table.count
        if count > known:
            new = self._encoder(tuple(part[known:] for part in self._table.frames))
            if count > len(self._storage):  # twice as large, so that a long rollout is not copied at every step
                larger = self._storage.new_empty(2 * count, self._storage.shape[1])
                larger[:known] = self._storage[:known]
                self._storage = larger
            self._storage[known:count] = new
            self._count = count
        return self._storage[obs]
