"""Episodes as one HTML file that a person opens and plays: what an agent saw, did, and had in its memories.

    moments of evaluate.play  ->  Track, one an agent: its episodes as numbers  ->  Page: page.html with all data

The file needs no server and asks for no address. It holds each different picture once, as a PNG of few colours, and
what there is of many values (gate, attention, movement, beliefs) as one byte each; page.html tells what it draws.

Shape letters: T steps of an episode, L layers, H heads, D width, M memory length, K different observations of an
episode, C codes, A ages.
"""

import base64
import hashlib
import io
import json
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from PIL import Image
from torch import Tensor

from harness.checkpoint import finite_or_none
from harness.input_error import InputError
from palmer_policy import Gaussians
from replay.answers import packed, recall, recall_by_age, rounded
from replay.film import action_name, draw_view
from tasks.observations import is_grid, keys, kind_of, leaves
from tasks.real import LastStep

PAGED_EPISODES = 10  # the first ones; what is played after them is counted and not shown
PAGED_STEPS = 1000  # of an episode that are shown
SCENE, VIEW, CELLS = 384, 168, 96  # pixels of the longer side at most: environment, picture seen, grid of cells
HEAVY, LIGHT_SCENE = 2_500_000, 192  # bytes of pictures after which further scenes are this small
ACTIONS = 12  # of a component that are shown, the likeliest
TEMPLATE = Path(__file__).with_name("page.html")
DATA = "/*data*/"  # where they stand in the template


class Page:
    """Writes one .html file, which appears, complete, at the end of a `with` block; none after an exception."""

    def __init__(self, file: str | Path):
        """Raises InputError if `file` has another suffix or cannot be written where it is."""
        self._file = Path(file)
        if self._file.suffix.lower() != ".html":
            raise InputError(f"--page {file}: the file must end in .html.")
        if self._file.is_dir():
            raise InputError(f"--page {file}: is a folder; must be a file in a folder that can be written.")
        try:
            tempfile.TemporaryFile(dir=self._file.parent).close()  # tried, as permissions do not tell everything
        except OSError as error:
            raise InputError(
                f"--page {file}: must be in a folder that exists and can be written ({error.strerror})."
            ) from error
        self.gallery = Gallery()
        self._tracks: list[Track] = []

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is None:
            self.close()

    def track(self, policy: Any, aids: Any, **about: Any) -> "Track":
        """What the moments of one agent are to be given to; of two, the second stands beside the first.

        aids: its MemoryAids, or None where its file holds none. about: what is told of it, as JSON can hold it.
        """
        self._tracks.append(Track(self.gallery, policy, aids, about))
        return self._tracks[-1]

    def close(self) -> None:
        """Writes the file, in the place of an older one."""
        data = {"agents": [track.data() for track in self._tracks], **self.gallery.data()}
        before, after = TEMPLATE.read_text(encoding="utf-8").split(DATA)
        # Of what an environment or a file calls itself nothing may end the script that holds it.
        text = json.dumps(finite_or_none(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        handle, draft = tempfile.mkstemp(dir=self._file.parent, prefix=".page-", suffix=".html")
        try:
            with open(handle, "w", encoding="utf-8") as opened:
                opened.write(before + text + after)
            os.chmod(draft, 0o644)  # a temporary file is for its owner alone
            os.replace(draft, self._file)
        finally:
            Path(draft).unlink(missing_ok=True)


class Step(NamedTuple):
    """What is kept of a moment in which the agent acted."""

    obs: tuple[np.ndarray, ...]
    action: str
    chances: list[Any]
    value: float
    gate: np.ndarray | None  # (D,)
    memory: Tensor  # (D,), z
    h: Tensor  # (L, D), of the LSTM after this observation


class Track:
    """One agent's episodes as they pass: `add` every moment, then ask for `data`."""

    def __init__(self, gallery: "Gallery", policy: Any, aids: Any, about: dict[str, Any]):
        self._gallery, self._policy, self._aids, self._about = gallery, policy, aids, about
        self._running: dict[int, tuple[list[Step], dict[str, list]]] = {}
        self._episodes: dict[int, dict[str, Any]] = {}
        self._env: Any = None  # that was played last

    def add(self, moment: Any) -> None:
        """One moment of `evaluate.play`."""
        if moment.episode >= PAGED_EPISODES:
            return
        steps, shown = self._running.setdefault(
            moment.episode, ([], {"obs": [], "scene": [], "reward": [], "total": []})
        )
        if len(shown["obs"]) < PAGED_STEPS:
            drawn = moment.env.render() if moment.env.render_mode == "rgb_array" else None
            shown["scene"].append(None if drawn is None else self._gallery.scene(drawn))
            shown["obs"].append(self._gallery.look(moment.obs, moment.env))
            self._env = moment.env
            shown["reward"].append(rounded(moment.reward))
            shown["total"].append(rounded(moment.total_reward))
            if not moment.end:
                steps.append(self._step(moment))
        if moment.end:
            del self._running[moment.episode]
            self._episodes[moment.episode] = {
                "number": moment.episode,
                "steps": moment.step,
                "end": moment.end,
                "success": moment.success,
                "return": rounded(moment.total_reward),
                **shown,
                **self._inside(steps, shown["obs"]),
            }

    def data(self) -> dict[str, Any]:
        """About the agent, and its episodes."""
        policy, heads = self._policy, self._aids.heads if self._aids else {}
        transformer = getattr(policy, "transformer", None)
        return {
            **self._about,
            "lstm": hasattr(policy, "lstm"),
            "gate": hasattr(policy, "gate"),
            "layers": len(transformer.layers) if transformer else 0,
            "heads": transformer.heads if transformer else 0,
            "memory_length": transformer.memory_length if transformer else None,
            "aids": self._aids is not None,
            "recall": "seen" in heads,
            "ages": "age" in heads,
            "episodes": [self._episodes[number] for number in sorted(self._episodes)],
        }

    def _step(self, moment: Any) -> Step:
        logits = moment.outputs.logits[0, moment.row]
        return Step(
            moment.obs,
            action_name(moment.env, moment.action),
            chances(self._policy.distribution(logits), moment),
            moment.value,
            moment.gate,
            moment.outputs.memory[0, moment.row].clone(),
            moment.states.h[:, moment.row].clone(),
        )

    @torch.no_grad()
    def _inside(self, steps: list[Step], looks: list[int]) -> dict[str, Any]:
        """What there is to show of an episode beside what was seen of it; looks: numbers of its observations."""
        policy = self._policy
        frames = tuple(
            torch.from_numpy(np.stack(part))[:, None] for part in zip(*(s.obs for s in steps), strict=True)
        )
        start = torch.arange(len(steps))[:, None] == 0
        memory, gate = torch.stack([step.memory for step in steps]), None
        shown = {
            "action": [step.action for step in steps],
            "chances": [step.chances for step in steps],
            "value": [rounded(step.value) for step in steps],
        }
        if steps[0].gate is not None:
            gate = np.stack([step.gate for step in steps])
            shown |= {"gate": packed(gate), "gate_mean": rounded(gate.mean(1)), "width": gate.shape[1]}
        if hasattr(policy, "lstm"):
            h = torch.stack([step.h for step in steps])  # (T, L, D)
            shown |= movement(h)
            if gate is not None:
                gate = torch.from_numpy(gate)
                from_lstm = (1 - gate) * policy.lstm.norm(h[:, -1])
                parts = torch.stack((memory - from_lstm, from_lstm))  # what each memory adds to z
        attention = policy.attention(frames, policy.initial_state(1), start)
        if attention is not None:
            shown["attention"] = attended(attention[:, 0], policy.transformer.memory_length)
        if self._aids is None:
            return shown
        flat = tuple(part[:, 0] for part in frames)
        if "seen" in self._aids.heads and self._aids.codes.count:
            shown["recall"] = recall(self._aids, memory, flat, looks, None if gate is None else parts)
            for i, code in enumerate(shown["recall"].pop("chosen")):
                if shown["recall"]["look"][i] is None and self._aids.codes.exact:  # never shown here, but known
                    frame = tuple(part[code].numpy() for part in self._aids.table.frames)
                    shown["recall"]["look"][i] = self._gallery.look(frame, self._env)
        if "age" in self._aids.heads:
            shown["age"] = recall_by_age(policy, self._aids, memory, flat, looks)
        return shown


# ---------------------------------------------------------------------------------------- what is in the memories


def chances(distribution: Any, moment: Any) -> list[Any]:
    """Of each component of an action, [number, name, probability] of the likeliest; or of a Box action its [mean,
    standard deviation, what was drawn].
    """
    if isinstance(distribution, Gaussians):
        parts = distribution.mean, distribution.log_std.exp(), torch.from_numpy(moment.action)
        return [rounded(list(part)) for part in zip(*(part.tolist() for part in parts), strict=True)]
    components = []
    for log_probs, chosen in zip(distribution.log_probs, np.atleast_1d(moment.action).tolist(), strict=True):
        probs = log_probs.exp().tolist()
        likeliest = sorted(range(len(probs)), key=lambda a: (a != chosen, -probs[a]))[:ACTIONS]
        names = {a: action_name(moment.env, np.int64(a)) if distribution.discrete else str(a) for a in likeliest}
        components.append([[a, names[a], rounded(probs[a]), a == chosen] for a in sorted(likeliest)])
    return components


def movement(h: Tensor) -> dict[str, Any]:
    """How far each unit of the LSTM moved at each step, h (T, L, D), from the empty state on: over all its layers."""
    before = torch.cat((torch.zeros_like(h[:1]), h[:-1]))
    moved = (h - before).square().mean(1).sqrt()  # (T, D)
    most = moved.max().clamp_min(1e-12)
    return {
        "moved": packed((moved / most).numpy()),
        "moved_most": rounded(most.item()),
        "moved_mean": rounded(moved.square().mean(1).sqrt().numpy()),
        "units": moved.shape[1],
    }


def attended(weights: Tensor, memory_length: int) -> dict[str, Any]:
    """Weights (L, H, T, T) as bytes: of each step, layer and head a row for the steps it could see, oldest first.

    A row is in parts of its largest weight, so that what is spread over many steps is not lost.
    """
    weights = weights.permute(2, 0, 1, 3).flatten(1, 2)  # (T, L H, T)
    most = weights.amax(2, keepdim=True)
    rows = (weights / most).numpy()
    seen = [rows[t, :, max(0, t + 1 - memory_length) : t + 1].ravel() for t in range(len(rows))]
    return {"weights": packed(np.concatenate(seen)), "most": rounded(most.flatten().numpy(), 5)}


# --------------------------------------------------------------------------------------- what is seen, in few bytes


class Gallery:
    """All pictures and observations of a page, each held once and known by its number."""

    def __init__(self):
        self._pictures: dict[bytes, tuple[int, str]] = {}
        self._looks: dict[bytes, tuple[int, list[dict[str, Any]]]] = {}
        self._bytes = 0

    def scene(self, picture: np.ndarray) -> int:
        """What the environment draws, (height, width, 3) uint8."""
        return self._number(picture, lambda: Image.fromarray(picture), SCENE if self._bytes < HEAVY else LIGHT_SCENE)

    def look(self, obs: tuple[np.ndarray, ...], env: Any) -> int:
        """An observation: its parts as picture, symbols, numbers or words, and what the agent did and earned last."""
        (key,) = keys(tuple(part[None] for part in obs))
        if key not in self._looks:
            parts = [self._part(*pair, env) for pair in zip(obs, env.observation_space, strict=True)]
            if isinstance(env, LastStep):
                parts[-1] = {"last": rounded(obs[-1])}
            self._looks[key] = len(self._looks), parts
        return self._looks[key][0]

    def data(self) -> dict[str, Any]:
        return {
            "pictures": [text for _, text in self._pictures.values()],
            "looks": [parts for _, parts in self._looks.values()],
        }

    def _part(self, part: np.ndarray, space: spaces.Space, env: Any) -> dict[str, Any]:
        if isinstance(space, spaces.MultiDiscrete):
            return {"words": str(getattr(env.unwrapped, "mission", "a text"))}
        if part.ndim == 3:
            grid = is_grid(space)
            side = CELLS if grid else min(max(part.shape[:2]), VIEW)
            return {"picture": self._number(part, lambda: draw_view(part, side, grid), side)}
        symbols = discrete_parts(env, len(part))
        if symbols is None:
            return {"numbers": rounded(part)}
        ends = np.cumsum(symbols)[:-1]
        return {"symbols": [[int(one.argmax()), len(one)] for one in np.split(part, ends)]}

    def _number(self, picture: np.ndarray, draw: Any, side: int) -> int:
        key = hashlib.blake2b(picture.tobytes() + str((picture.shape, picture.dtype)).encode()).digest()
        if key not in self._pictures:
            drawn = draw()
            drawn.thumbnail((side, side), Image.Resampling.LANCZOS)
            encoded = io.BytesIO()
            drawn.quantize(64, dither=Image.Dither.NONE).save(encoded, "PNG", optimize=True)
            self._bytes += encoded.tell()
            text = base64.b64encode(encoded.getvalue()).decode()
            self._pictures[key] = len(self._pictures), f"data:image/png;base64,{text}"
        return self._pictures[key][0]


def discrete_parts(env: Any, length: int) -> list[int] | None:
    """Sizes of the one-hot parts of which a vector of that length is made; None where it is not of such alone."""
    try:
        own = [leaf for leaf in leaves(env.unwrapped.observation_space) if kind_of(leaf) == "vector"]
    except ValueError:  # a wrapper has made something else of it
        return None
    sizes = []
    for leaf in own:
        if isinstance(leaf, spaces.Discrete):
            sizes.append(int(leaf.n))
        elif isinstance(leaf, spaces.MultiDiscrete):
            sizes += leaf.nvec.ravel().tolist()
    return sizes if sum(sizes) == length == sum(spaces.flatdim(leaf) for leaf in own) else None
