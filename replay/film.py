"""Episodes as a film, .mp4 or .gif: the maze, what the agent sees of it, and which of its memories it relies on.

    +---------------------------------------------+
    | Episode 1, step 17                          |
    | +-----------+   +--------+  action  left    |
    | |           |   |  view  |  value   0.87    |
    | |   maze    |   +--------+                  |
    | |           |   gate: mean, all D values,   |
    | +-----------+         mean at every step    |
    +---------------------------------------------+

Blue is the Transformer (gate 1) and orange the LSTM (gate 0), as in docs/palmer.svg. A frame without the maze is
narrower, one without a gate has a larger view instead.
"""

import os
import platform
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from harness.input_error import InputError, RunError
from tasks.observations import is_grid

FRAMES_PER_SECOND = 5
HOLD_FRAMES = 5  # extra frames at the end of an episode
# Unfinished films' folders, then the process's number, which means nothing on another machine that has the same disk.
DRAFTS = f".video-{platform.node()}-"

# Pixels. The sides of a frame are multiples of 16, which every video codec takes without rescaling; the panel's
# width is a multiple of the usual gate widths, so that each value is as wide as the next.
MARGIN, HEADER, MAZE, PANEL = 16, 48, 416, 384
VIEW_BESIDE_GATE = 168
STEP_WIDTH = 4  # of a column in the chart of the mean gate: the last 96 steps are in sight
CELL = 96  # of a symbolic view, before it is scaled to its place

PAPER, CARD, INK, MUTED = (255, 255, 255), (237, 240, 243), (31, 35, 40), (101, 109, 118)
LSTM_COLOUR, EVEN_COLOUR, TRANSFORMER_COLOUR = (226, 104, 12), (238, 238, 238), (28, 100, 216)
RESULTS = {True: ("success", (35, 154, 70)), False: ("failure", (210, 40, 50)), None: ("end", (130, 138, 146))}

# MiniGrid's codes of a symbolic view's cells: the object in channel 0, its colour in channel 1.
UNSEEN, EMPTY, WALL, FLOOR, DOOR, KEY, BALL, BOX, GOAL, LAVA = range(10)
GRID_COLOURS = [(235, 50, 50), (60, 200, 80), (60, 110, 245), (150, 60, 205), (245, 215, 45), (130, 130, 130)]


class Film:
    """Writes episodes to one .mp4 or .gif file, which appears, complete, at the end of a `with` block or by `close`.

    A film that is left by an exception, or forgotten, leaves nothing behind and the file as it was.
    """

    def __init__(self, file: str | Path):
        """Raises InputError if `file` has another suffix or cannot be written where it is.

        A .gif is held in memory until `close`, at 0.4 MB a step; an .mp4 is not.
        """
        self._file = Path(file)
        suffix = self._file.suffix.lower()
        if suffix not in (".mp4", ".gif"):
            raise InputError(f"--video {file}: the file must end in .mp4 or .gif.")
        if self._file.is_dir():
            raise InputError(f"--video {file}: is a folder; must be a file in a folder that can be written.")
        try:
            remove_leftovers(self._file.parent)
            folder = tempfile.mkdtemp(dir=self._file.parent, prefix=f"{DRAFTS}{os.getpid()}-")
        except OSError as error:
            raise InputError(
                f"--video {file}: must be in a folder that exists and can be written ({error.strerror})."
            ) from error
        self._draft = Path(folder, f"draft{suffix}")
        # However the film ends, at Python's exit at the latest: first the writer, as ffmpeg would go on writing into
        # a folder that is being removed, then the folder, even if the writer fails.
        leaving = ExitStack()
        self._clean_up = weakref.finalize(self, leaving.close)
        leaving.callback(shutil.rmtree, folder, ignore_errors=True)
        self._mp4 = None
        if suffix == ".mp4":
            self._mp4 = leaving.enter_context(
                closing(imageio.get_writer(self._draft, fps=FRAMES_PER_SECOND, quality=7))
            )
        self._gif: list[Image.Image] = []
        self._frames = 0  # appended so far
        self._mean_gates: list[float] = []  # of the running episode
        self._frame: Image.Image | None = None  # the last one

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._clean_up()

    def add(self, moment: Any, episode: int) -> None:
        """One moment of `evaluate.play`, before its action."""
        pictures = [(part, space) for part, space in zip(moment.obs, moment.env.observation_space, strict=True)]
        view, space = max(pictures, key=lambda pair: pair[0].ndim)  # a picture, if there is one
        self.add_step(
            moment.env.render(),
            view,
            grid=is_grid(space),
            gate=moment.gate,
            value=moment.value,
            action=action_name(moment.env, moment.action),
            episode=episode,
            step=moment.step,
        )

    def add_step(
        self,
        maze: np.ndarray | None,
        view: np.ndarray,
        *,
        grid: bool = False,
        gate: np.ndarray | None,
        value: float,
        action: str,
        episode: int,
        step: int,
    ) -> None:
        """One step, as it is when the agent has chosen its action.

        maze: picture (height, width, 3) uint8, or None in every step if the environment cannot draw itself.
        view: a part of the observation; grid: it shows MiniGrid's codes of cells. gate: (D,) in 0..1,
        1 = Transformer, None for an agent without a gate.
        """
        if gate is not None:
            self._mean_gates.append(float(gate.mean()))
        self._frame = draw_frame(
            maze,
            view,
            grid=grid,
            gate=gate,
            mean_gates=self._mean_gates,
            value=value,
            action=action,
            episode=episode,
            step=step,
        )
        self._append(self._frame)

    def end_episode(self, success: bool | None) -> None:
        """Holds the last frame for a second; success None where the environment does not tell."""
        draw_result(self._frame, success)
        for _ in range(HOLD_FRAMES):
            self._append(self._frame)
        self._mean_gates = []

    def close(self) -> None:
        """Writes the file, in the place of an older one; without a single frame it writes nothing.

        Raises RunError, and leaves an older one, where not all frames arrived: ffmpeg, when killed, does not tell.
        """
        try:
            if self._mp4:
                self._mp4.close()
                self._check_frames()
            elif self._gif:
                duration = 1000 // FRAMES_PER_SECOND
                self._gif[0].save(self._draft, save_all=True, append_images=self._gif[1:], duration=duration, loop=0)
            if self._frame:
                os.replace(self._draft, self._file)
        finally:
            self._clean_up()

    def _check_frames(self) -> None:
        arrived = frames_in(self._draft) if self._frames else 0
        if arrived != self._frames:
            raise RunError(
                f"--video {self._file}: {arrived} of {self._frames} frames were written, as ffmpeg ended too early."
            )

    def _append(self, frame: Image.Image) -> None:
        self._frames += 1
        if self._mp4:
            self._mp4.append_data(np.asarray(frame))
        else:
            self._gif.append(frame.quantize(128, dither=Image.Dither.NONE))


def frames_in(mp4: Path) -> int:
    """Frames of a film, 0 where it cannot be read."""
    try:
        return imageio_ffmpeg.count_frames_and_secs(str(mp4))[0]
    except RuntimeError:
        return 0


def remove_leftovers(folder: Path) -> None:
    """Removes drafts of this machine's processes that were killed; whose process still runs stays."""
    for leftover in [path for path in folder.iterdir() if path.name.startswith(DRAFTS)]:
        try:
            os.kill(int(leftover.name.removeprefix(DRAFTS).split("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(leftover, ignore_errors=True)
        except (OSError, ValueError, OverflowError):  # someone else's process, or not one of these folders
            continue


def action_name(env: Any, action: Any) -> str:
    """MiniGrid and others name their actions; elsewhere the numbers have to do."""
    if np.ndim(action) == 0 and np.issubdtype(np.asarray(action).dtype, np.integer):
        number = int(action)
        try:
            names = env.unwrapped.actions
            if isinstance(names, type):
                return str(names(number).name)
            if isinstance(names, Sequence) and not isinstance(names, str) and isinstance(names[number], str):
                return names[number]
        except Exception:  # an attribute that only happens to be called so can do anything; a caption stops no film
            pass
        return str(number)
    return " ".join(
        f"{number:.2f}" if isinstance(number, float) else str(number) for number in np.ravel(action).tolist()
    )


# ------------------------------------------------------------------------------------------------------ frame


def draw_frame(
    maze: np.ndarray | None,
    view: np.ndarray,
    *,
    grid: bool = False,
    gate: np.ndarray | None,
    mean_gates: list[float],
    value: float,
    action: str,
    episode: int,
    step: int,
) -> Image.Image:
    """Arguments as for `Film.add_step`; mean_gates: the gate's mean at every step of the episode so far."""
    left = MARGIN if maze is None else 2 * MARGIN + MAZE
    frame = Image.new("RGB", (left + PANEL + MARGIN, HEADER + MAZE + MARGIN), PAPER)
    draw = ImageDraw.Draw(frame)
    draw.text((MARGIN, HEADER / 2), f"Episode {episode}, step {step}", INK, font(20), anchor="lm")
    if maze is not None:
        paste_centred(frame, scaled_to_fit(Image.fromarray(maze), MAZE), (MARGIN, HEADER), MAZE)

    side = PANEL - 128 if gate is None else VIEW_BESIDE_GATE
    draw.rectangle((left, HEADER, left + side - 1, HEADER + side - 1), CARD)
    paste_centred(frame, draw_view(view, side, grid), (left, HEADER), side)
    caption(draw, (left, HEADER + side + 14), "agent's view")
    beside = left + side + MARGIN
    labelled(draw, (beside, HEADER), "action", action, left + PANEL - beside)
    labelled(draw, (beside, HEADER + 72), "value", f"{value:.2f}", left + PANEL - beside)
    if gate is not None:
        draw_gate(frame, (left, HEADER + side + 44), gate, mean_gates)
    return frame


def draw_result(frame: Image.Image, success: bool | None) -> None:
    """How the episode ended, in a word and the colour of a border, onto its last frame."""
    word, colour = RESULTS[success]
    draw = ImageDraw.Draw(frame)
    draw.rectangle((0, 0, frame.width - 1, frame.height - 1), outline=colour, width=MARGIN // 2)
    draw.text((frame.width - MARGIN, HEADER / 2), word, colour, font(20), anchor="rm")


def draw_gate(frame: Image.Image, corner: tuple[int, int], gate: np.ndarray, mean_gates: list[float]) -> None:
    """Three bars of PANEL pixels width: the gate's mean now, its D values now, its mean at every step so far."""
    draw = ImageDraw.Draw(frame)
    x, y = corner
    right = x + PANEL - 1
    draw.text((x, y + 8), "LSTM", LSTM_COLOUR, font(17), anchor="lm")
    draw.text((right, y + 8), "Transformer", TRANSFORMER_COLOUR, font(17), anchor="rm")
    draw.text((x + PANEL / 2, y + 8), f"gate {gate.mean():.2f}", INK, font(17), anchor="mm")

    scale = np.linspace(0, 1, PANEL)[None]
    frame.paste(Image.fromarray(gate_colours(scale)).resize((PANEL, 16)), (x, y + 24))
    needle = x + round(float(gate.mean()) * (PANEL - 1))
    draw.rectangle((needle - 3, y + 20, needle + 3, y + 43), INK, PAPER)

    strip = Image.fromarray(gate_colours(gate[None]))
    resample = Image.Resampling.NEAREST if strip.width <= PANEL else Image.Resampling.BOX
    frame.paste(strip.resize((PANEL, 28), resample), (x, y + 56))
    caption(draw, (x, y + 98), f"the gate's {strip.width} values")

    # Columns grow from the middle, where both memories have the same share.
    top, height = y + 116, 60
    middle = top + height // 2
    draw.rectangle((x, top, right, top + height), CARD)
    draw.line((x, middle, right, middle), (200, 206, 212))
    recent = np.array(mean_gates[-(PANEL // STEP_WIDTH) :])
    ends = top + np.round((1 - recent) * height).astype(int)
    for i, (end, colour) in enumerate(zip(ends.tolist(), gate_colours(recent.round()).tolist(), strict=True)):
        start = x + i * STEP_WIDTH
        draw.rectangle((start, min(end, middle), start + STEP_WIDTH - 2, max(end, middle)), tuple(colour))
    caption(draw, (x, top + height + 14), "mean gate, step by step")


def gate_colours(gate: np.ndarray) -> np.ndarray:
    """Values in 0..1 (...) -> colours (..., 3) uint8, from the LSTM's over grey to the Transformer's."""
    stops = np.array((LSTM_COLOUR, EVEN_COLOUR, TRANSFORMER_COLOUR))
    return np.stack([np.interp(gate, (0, 0.5, 1), stop) for stop in stops.T], -1).round().astype(np.uint8)


# ------------------------------------------------------------------------------------------------------- view


def draw_view(view: np.ndarray, side: int, grid: bool = False) -> Image.Image:
    """A part of an observation as a picture that fits into side x side pixels; grid: MiniGrid's codes of cells."""
    if view.ndim == 1:
        return draw_vector(view, side)
    if grid:
        return scaled_to_fit(draw_grid(view), side)
    if view.dtype != np.uint8:
        least, most = float(view.min()), float(view.max())
        view = ((view - least) / max(most - least, 1e-6) * 255).astype(np.uint8)
    # Of stacked pictures the last one is the newest.
    picture = Image.fromarray(view[..., -3:] if view.shape[2] % 3 == 0 else view[..., -1]).convert("RGB")
    whole_times = side // max(picture.size)
    if whole_times < 1:
        return scaled_to_fit(picture, side)
    return picture.resize((picture.width * whole_times, picture.height * whole_times), Image.Resampling.NEAREST)


def draw_grid(view: np.ndarray) -> Image.Image:
    """A symbolic MiniGrid view (k, k, 3), column by column, as coloured shapes; the agent looks up from below."""
    k = len(view)
    picture = Image.new("RGB", (k * CELL, k * CELL))
    draw = ImageDraw.Draw(picture)
    for column, row in np.ndindex(k, k):
        kind, colour = int(view[column, row, 0]), GRID_COLOURS[view[column, row, 1] % len(GRID_COLOURS)]
        draw_cell(draw, kind, colour, column * CELL, row * CELL)
    x, y = k // 2 * CELL, (k - 1) * CELL
    if view[k // 2, k - 1, 0] == EMPTY:
        triangle = [
            (x + 0.5 * CELL, y + 0.2 * CELL),
            (x + 0.8 * CELL, y + 0.8 * CELL),
            (x + 0.2 * CELL, y + 0.8 * CELL),
        ]
        draw.polygon(triangle, GRID_COLOURS[0])
    return picture


def draw_cell(draw: ImageDraw.ImageDraw, kind: int, colour: tuple[int, int, int], x: int, y: int) -> None:
    """One cell with its upper left corner at (x, y)."""

    def inside(margin: float) -> tuple[float, float, float, float]:
        return (x + margin * CELL, y + margin * CELL, x + (1 - margin) * CELL, y + (1 - margin) * CELL)

    backgrounds = {UNSEEN: (24, 26, 30), WALL: (146, 146, 146), GOAL: colour, LAVA: (255, 128, 0)}
    draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), backgrounds.get(kind, (76, 76, 76)), (100, 100, 100))
    if kind == FLOOR:
        draw.rectangle(inside(0.05), tuple(part // 2 for part in colour))
    elif kind == DOOR:
        draw.rectangle(inside(0.08), outline=colour, width=CELL // 10)
        draw.ellipse((x + 0.65 * CELL, y + 0.44 * CELL, x + 0.77 * CELL, y + 0.56 * CELL), colour)
    elif kind == KEY:
        draw.ellipse(
            (x + 0.36 * CELL, y + 0.14 * CELL, x + 0.64 * CELL, y + 0.42 * CELL), outline=colour, width=CELL // 12
        )
        draw.rectangle((x + 0.46 * CELL, y + 0.4 * CELL, x + 0.54 * CELL, y + 0.86 * CELL), colour)
        for tooth in (0.62, 0.76):
            draw.rectangle((x + 0.54 * CELL, y + tooth * CELL, x + 0.68 * CELL, y + (tooth + 0.08) * CELL), colour)
    elif kind == BALL:
        draw.ellipse(inside(0.18), colour)
    elif kind == BOX:
        draw.rectangle(inside(0.15), outline=colour, width=CELL // 10)
        draw.line((x + 0.15 * CELL, y + 0.5 * CELL, x + 0.85 * CELL, y + 0.5 * CELL), colour, CELL // 10)


def draw_vector(view: np.ndarray, side: int) -> Image.Image:
    """Numbers (n,) as bars up or down from a middle line, on a scale that bends so that any number fits."""
    picture = Image.new("RGB", (side, side), CARD)
    draw = ImageDraw.Draw(picture)
    middle = side / 2
    edges = np.linspace(8, side - 8, len(view) + 1)
    for left, right, number in zip(edges, edges[1:], np.tanh(view), strict=False):
        end = middle - float(number) * (middle - 8)
        draw.rectangle((left, min(end, middle), max(left, right - 3), max(end, middle)), MUTED)
    draw.line((8, middle, side - 8, middle), INK)
    return picture


# ------------------------------------------------------------------------------------------------------ parts


def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font: the same on every machine, letters and digits only."""
    return ImageFont.load_default(size)


def caption(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str) -> None:
    draw.text(place, text, MUTED, font(14), anchor="lm")


def labelled(draw: ImageDraw.ImageDraw, corner: tuple[int, int], label: str, text: str, width: int) -> None:
    """A small label with `text` below it, as large as `width` pixels allow."""
    x, y = corner
    caption(draw, (x, y + 8), label)
    size = next((s for s in range(28, 10, -1) if font(s).getlength(text) <= width), 10)
    draw.text((x, y + 36), text, INK, font(size), anchor="lm")


def scaled_to_fit(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side `side` pixels long, smoothly scaled."""
    scale = side / max(picture.size)
    size = [max(1, round(scale * length)) for length in picture.size]
    return picture.resize(size, Image.Resampling.LANCZOS)


def paste_centred(frame: Image.Image, picture: Image.Image, corner: tuple[int, int], side: int) -> None:
    x, y = corner
    frame.paste(picture, (x + (side - picture.width) // 2, y + (side - picture.height) // 2))
