"""One episode's memory as a picture, for logs: where the Transformer looks, and which memory the gate believes.

attention, mean over layers and heads        gate: the LSTM's colour or the Transformer's
first step  #                                first step  ##########
  ...       . #                                ...       ##########    one column for each of its D elements,
last step   #.. #                            last step   ##########    sorted by the last step
            oldest step looked at on the left
"""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from replay.film import INK, PAPER, caption, gate_colours

PANEL, MARGIN, HEADER = 320, 16, 28  # pixels
LONGEST = 256  # steps that are shown


class MemoryPicture:
    """The first episode that is played, as its moments pass; then `draw`."""

    def __init__(self, policy: Any):
        self._policy = policy
        self._obs: list[tuple[np.ndarray, ...]] = []
        self._gate: list[np.ndarray] = []

    def add(self, moment: Any) -> None:
        """One moment of `evaluate.play`."""
        if moment.episode == 0 and not moment.end and len(self._obs) < LONGEST:
            self._obs.append(moment.obs)
            if moment.gate is not None:
                self._gate.append(moment.gate)

    def draw(self) -> Image.Image | None:
        """None for an agent that has neither a Transformer nor a gate."""
        panels = []
        if (attention := self._attention()) is not None:
            # Parts of each row's largest weight: what is spread over many steps is not lost.
            shade = (attention / attention.max(1, keepdims=True))[..., None]
            colours = (np.array(PAPER) * (1 - shade) + np.array(INK) * shade).round().astype(np.uint8)
            panels.append(("attention, mean over layers and heads", colours))
        if self._gate:
            gate = np.stack(self._gate)  # (T, D)
            panels.append((f"gate, mean {gate.mean():.2f}", gate_colours(gate[:, gate[-1].argsort()])))
        if not panels:
            return None
        picture = Image.new("RGB", (len(panels) * (PANEL + MARGIN) + MARGIN, PANEL + HEADER + MARGIN), PAPER)
        pen = ImageDraw.Draw(picture)
        for number, (text, panel) in enumerate(panels):
            x = MARGIN + number * (PANEL + MARGIN)
            caption(pen, (x, HEADER // 2), text)
            picture.paste(Image.fromarray(panel).resize((PANEL, PANEL), Image.Resampling.NEAREST), (x, HEADER))
        return picture

    def _attention(self) -> np.ndarray | None:
        """(T, T), rows that sum to 1, mean over layers and heads; None where the agent has no Transformer."""
        device = next(self._policy.parameters()).device
        parts = zip(*self._obs, strict=True)
        frames = tuple(torch.from_numpy(np.stack(part))[:, None].to(device) for part in parts)
        start = torch.arange(len(self._obs), device=device)[:, None] == 0
        attention = self._policy.attention(frames, self._policy.initial_state(1), start)
        return None if attention is None else attention[:, 0].mean((0, 1))[:, -len(self._obs) :].cpu().numpy()
