"""The film of an evaluation: complete or absent, and showing what was played."""

import os
import subprocess
import sys
import types
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image

import replay.film as film
from harness.input_error import InputError, RunError
from replay.film import (
    DRAFTS,
    FRAMES_PER_SECOND,
    HEADER,
    HOLD_FRAMES,
    LSTM_COLOUR,
    MARGIN,
    MAZE,
    TRANSFORMER_COLOUR,
    Film,
    draw_frame,
    draw_view,
)
from tasks import TaskArgs, make_real_env

MAGENTA, CYAN = (255, 0, 255), (0, 255, 255)


def plain(colour: tuple[int, int, int], side: int = 84) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


def step_arguments(**changes) -> dict:
    arguments = {
        "maze": plain(MAGENTA),
        "view": plain(CYAN),
        "gate": np.full(16, 0.5),
        "value": 0.5,
        "action": "left",
        "episode": 1,
        "step": 0,
    }
    return arguments | changes


def add(video: Film, **changes) -> None:
    arguments = step_arguments(**changes)
    video.add_step(arguments.pop("maze"), arguments.pop("view"), **arguments)


def drawn(mean_gates: tuple[float, ...] = (0.5,), **changes) -> np.ndarray:
    arguments = step_arguments(**changes)
    frame = draw_frame(arguments.pop("maze"), arguments.pop("view"), mean_gates=list(mean_gates), **arguments)
    return np.asarray(frame)


def pixels_of(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int = 0) -> int:
    return int((np.abs(picture.astype(int) - colour).max(-1) <= tolerance).sum())


def frames_of(file) -> list[np.ndarray]:
    with imageio.get_reader(file) as reader:
        return list(reader.iter_data())


def gif_seconds(file) -> float:
    picture, milliseconds = Image.open(file), 0
    for i in range(picture.n_frames):
        picture.seek(i)
        milliseconds += picture.info["duration"]
    return milliseconds / 1000


# ------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("name", ["film.avi", "film", "film.mp4.txt"])
def test_other_suffixes_are_refused_at_once(tmp_path, name):
    with pytest.raises(InputError, match=r"--video .*film.*\.mp4 or \.gif"):
        Film(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_are_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    for place in (tmp_path / "missing" / "film.mp4", tmp_path / "file" / "film.gif", tmp_path / "folder.mp4"):
        with pytest.raises(InputError, match="--video .*folder"):
            Film(place)


def test_mp4_has_every_step_and_a_second_at_the_end_of_each_episode(tmp_path):
    video = Film(tmp_path / "film.mp4")
    for episode, steps in ((1, 3), (2, 4)):
        for step in range(steps):
            add(video, episode=episode, step=step)
        video.end_episode(True)
    video.close()
    frames = frames_of(tmp_path / "film.mp4")
    assert len(frames) == 3 + 4 + 2 * HOLD_FRAMES
    assert {frame.shape for frame in frames} == {drawn().shape}
    assert 0.5 <= HOLD_FRAMES / FRAMES_PER_SECOND <= 1.5
    assert pixels_of(frames[0], MAGENTA, 30) > 0.9 * MAZE**2


def test_gif_plays_as_long_as_the_mp4(tmp_path):
    video = Film(tmp_path / "film.gif")
    for step in range(4):
        add(video, step=step)
    video.end_episode(False)
    video.close()
    assert gif_seconds(tmp_path / "film.gif") == pytest.approx((4 + HOLD_FRAMES) / FRAMES_PER_SECOND)
    assert pixels_of(np.asarray(Image.open(tmp_path / "film.gif").convert("RGB")), MAGENTA, 8) > 0.9 * MAZE**2


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_nothing_but_a_complete_film_ever_takes_the_files_place(tmp_path, suffix):
    file = tmp_path / f"film.{suffix}"
    file.write_text("an older film")
    video = Film(file)
    add(video)
    assert file.read_text() == "an older film"
    del video  # as when an exception ends the evaluation
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_text() == "an older film"

    video = Film(file)
    add(video)
    video.close()
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert len(frames_of(file)) == 1


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_a_film_left_by_an_exception_is_discarded_and_one_left_in_order_is_complete(tmp_path, suffix):
    file = tmp_path / f"film.{suffix}"
    with pytest.raises(ZeroDivisionError), Film(file) as video:
        add(video)
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with Film(file) as video:
        add(video)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_writer_has_ended_before_its_folder_is_removed(tmp_path, monkeypatch, fails):
    """Else ffmpeg writes on into what is being removed; and a writer that fails does not keep the folder."""
    events = []
    remove = film.shutil.rmtree
    monkeypatch.setattr(film.shutil, "rmtree", lambda *a, **k: events.append("remove") or remove(*a, **k))
    video = Film(tmp_path / "film.mp4")
    add(video)
    writer = video._mp4
    close = writer.close

    def end():
        close()
        events.append("end")
        if fails:
            raise OSError("disk full")

    monkeypatch.setattr(writer, "close", end)
    del video
    assert events == ["end", "remove"] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_a_film_that_cannot_be_completed_leaves_nothing(tmp_path, monkeypatch, suffix):
    def fail(*_):
        raise OSError("disk full")

    video = Film(tmp_path / f"film.{suffix}")
    add(video)
    monkeypatch.setattr(film.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        video.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", [b"", b"\0" * 48, None])
def test_a_film_that_lacks_frames_does_not_take_the_files_place(tmp_path, monkeypatch, left):
    """A killed ffmpeg leaves a file without frames, or with the first ones alone, and its writer says nothing."""
    file = tmp_path / "film.mp4"
    file.write_text("an older film")
    video = Film(file)
    add(video)
    close = video._mp4.close

    def end():
        close()
        if left is not None:
            video._draft.write_bytes(left)

    monkeypatch.setattr(video._mp4, "close", end)
    if left is None:
        video._frames += 1  # one that never arrived
    with pytest.raises(RunError, match=r"--video .*film\.mp4: [01] of [12] frames"):
        video.close()
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
    assert file.read_text() == "an older film"


def test_a_film_whose_writer_does_not_start_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no ffmpeg")

    monkeypatch.setattr(film.imageio, "get_writer", fail)
    with pytest.raises(RuntimeError, match="no ffmpeg"):
        Film(tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())


def test_pythons_exit_ends_a_film_that_is_still_open(tmp_path):
    add_a_step = (
        "video.add_step(None, np.zeros((8, 8, 3), np.uint8), gate=None, value=0, action='', episode=1, step=0)"
    )
    code = f"import sys, numpy as np; from replay.film import Film; video = Film(sys.argv[1]); {add_a_step}"
    root = Path(film.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "film.mp4")], cwd=root)
    assert done.returncode == 0 and not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid in (ended.pid, os.getpid()):
        (tmp_path / f"{DRAFTS}{pid}-x").mkdir()
        (tmp_path / f"{DRAFTS}{pid}-x" / "draft.mp4").touch()
    others = [f".video-{ended.pid}-x", f".video-elsewhere-{ended.pid}-x", f"{DRAFTS}mine", f"{DRAFTS}{10**30}-x"]
    for name in others:
        (tmp_path / name).mkdir()
    Film(tmp_path / "film.gif").close()
    assert {path.name for path in tmp_path.iterdir()} == {f"{DRAFTS}{os.getpid()}-x", *others}


@pytest.mark.parametrize(
    ("names", "action", "shown"),
    [
        (("left", "right", "up"), 1, "right"),
        (("left",), 2, "2"),
        (None, 3, "3"),
        (7, 3, "3"),
        ("abc", 1, "1"),
        ([40, 50], 1, "1"),
        (np.array([40, 50]), 1, "1"),
        (int, 1, "1"),
        (open, 1, "1"),
        (("left", "right"), np.array([0, 1]), "0 1"),
        (None, np.array([0.5, -0.25], np.float32), "0.50 -0.25"),
        (None, np.float32(0.123), "0.12"),
    ],
)
def test_actions_are_named_where_that_makes_sense(names, action, shown):
    env = types.SimpleNamespace(actions=names)
    env.unwrapped = env
    assert film.action_name(env, action) == shown


def test_an_environment_whose_actions_fail_has_numbers():
    class Env:
        unwrapped = property(lambda self: self)

        @property
        def actions(self):
            raise RuntimeError

    assert film.action_name(Env(), 1) == "1"


def test_minigrid_names_its_actions():
    env = make_real_env(TaskArgs("MiniGrid-MemoryS7-v0"))
    assert [film.action_name(env, np.int64(action)) for action in (0, 2)] == ["left", "forward"]


def test_without_a_step_there_is_no_file(tmp_path):
    Film(tmp_path / "film.mp4").close()
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- a frame


def test_a_frame_shows_maze_and_view():
    frame = drawn()
    assert pixels_of(frame[HEADER : HEADER + MAZE, MARGIN : MARGIN + MAZE], MAGENTA) == MAZE**2
    assert pixels_of(frame, CYAN) == 168**2  # 84 pixels, each twice as wide
    assert frame.shape[0] % 16 == frame.shape[1] % 16 == 0


def test_without_a_maze_frames_are_narrower():
    frame = drawn(maze=None)
    assert frame.shape[1] < drawn().shape[1] - MAZE
    assert frame.shape[1] % 16 == 0
    assert pixels_of(frame, CYAN) == 168**2


@pytest.mark.parametrize(
    "change", [{"episode": 2}, {"step": 1}, {"action": "right"}, {"value": 0.6}], ids=lambda change: str(change)
)
def test_the_text_follows_what_happens(change):
    assert (drawn() != drawn(**change)).any()


def test_long_actions_stay_in_the_frame():
    frame = drawn(action="[0, 3, 2, 1, 4, 0, 1, 5, 2]")
    assert (frame[:, -MARGIN:] == drawn()[:, -MARGIN:]).all()


def test_gate_colours_tell_the_memories_apart():
    lstm, transformer = (drawn(gate=np.full(16, g), mean_gates=(g,)) for g in (0.0, 1.0))
    strip = 384 * 28
    assert pixels_of(lstm, LSTM_COLOUR) > strip > pixels_of(lstm, TRANSFORMER_COLOUR)
    assert pixels_of(transformer, TRANSFORMER_COLOUR) > strip > pixels_of(transformer, LSTM_COLOUR)
    half = drawn(gate=np.repeat([0.0, 1.0], 8))
    assert pixels_of(half, LSTM_COLOUR) > strip / 2 < pixels_of(half, TRANSFORMER_COLOUR)


def test_the_mean_gate_is_drawn_for_every_step_of_the_episode_alone(tmp_path):
    assert (drawn(mean_gates=(0.5,)) != drawn(mean_gates=(0.9, 0.5))).any()
    video = Film(tmp_path / "film.gif")
    for episode in (1, 2):
        for step, gate in enumerate((0.9, 0.2)):
            add(video, episode=episode, step=step, gate=np.full(16, gate))
        video.end_episode(None)
    video.close()
    film = Image.open(tmp_path / "film.gif")
    charts = []
    for last_step in (1, 4):  # in between: the end of episode 1, the first step of episode 2
        film.seek(last_step)
        charts.append(np.asarray(film.convert("RGB")).astype(int)[-104:-43])
    assert np.abs(charts[0] - charts[1]).max() < 16
    assert pixels_of(charts[0], TRANSFORMER_COLOUR, 16) > 50 < pixels_of(charts[0], LSTM_COLOUR, 16)


def test_episodes_of_any_length_and_gates_of_any_width_fit():
    for width in (1, 100, 384, 1000):
        assert drawn(tuple(np.linspace(0, 1, 2000)), gate=np.linspace(0, 1, width)).shape == drawn().shape


def test_an_agent_without_a_gate_has_a_larger_view_and_no_memory_colours():
    frame = drawn(gate=None)
    assert frame.shape == drawn().shape
    assert pixels_of(frame, CYAN) > 168**2
    assert pixels_of(frame, LSTM_COLOUR) == pixels_of(frame, TRANSFORMER_COLOUR) == 0


@pytest.mark.parametrize(("success", "strongest"), [(True, 1), (False, 0), (None, None)])
def test_the_last_frame_tells_how_the_episode_ended(tmp_path, success, strongest):
    video = Film(tmp_path / "film.mp4")
    add(video)
    video.end_episode(success)
    video.close()
    first, *_, last = frames_of(tmp_path / "film.mp4")
    assert first[2:6, 2:6].min() > 245
    border = last[2:6, 2:6].reshape(-1, 3).mean(0)
    if strongest is None:
        assert np.ptp(border) < 30 and border.mean() < 180
    else:
        assert border.argmax() == strongest and np.ptp(border) > 80


# --------------------------------------------------------------------------------------------------- views


def test_symbolic_views_are_drawn_upright():
    view = np.zeros((3, 3, 3), np.uint8)
    view[..., 0] = 1
    view[0, 1] = (6, 2, 0)  # a blue ball, left of the cell ahead of the agent
    picture = np.asarray(draw_view(view, 90, grid=True)).astype(int)
    blue = (picture[..., 2] > 200) & (picture[..., 0] < 100)
    rows, columns = np.nonzero(blue)
    assert blue.sum() > 200
    assert rows.min() >= 30 and rows.max() < 60 and columns.max() < 30


def test_symbolic_and_rgb_views_show_the_same_cells():
    pictures = []
    for mode in ("symbolic", "rgb"):
        env = make_real_env(TaskArgs("MiniGrid-MemoryS13-v0", obs_mode=mode))
        env.reset(seed=3)
        for action in (0, 0, 2):  # turn to the cue
            view = env.step(action)[0][0]
        pictures.append(np.asarray(draw_view(view, 168, grid=mode == "symbolic")).astype(int))
    symbolic, rgb = (picture.reshape(3, 56, 3, 56, 3).mean((1, 3, 4)) for picture in pictures)
    assert np.corrcoef(symbolic.ravel(), rgb.ravel())[0, 1] > 0.9


def test_every_object_of_a_symbolic_view_looks_different():
    pictures = set()
    for kind in range(10):
        view = np.zeros((1, 1, 3), np.uint8)
        view[0, 0] = (kind, 1, 0)
        pictures.add(draw_view(view, 48, grid=True).tobytes())
    assert len(pictures) == 10


def test_vectors_are_bars_whatever_their_size():
    up, down = (np.asarray(draw_view(np.float32([number, 0]), 100)).mean(-1) for number in (5e6, -5e6))
    assert up[:45].mean() < down[:45].mean() and up[55:].mean() > down[55:].mean()


def test_pictures_of_any_channels_and_size_fit():
    for shape in ((210, 160, 3), (84, 84, 1), (84, 84, 4), (600, 400, 3)):
        picture = draw_view(np.full(shape, 77, np.uint8), 168)
        assert picture.mode == "RGB" and max(picture.size) <= 168
        assert set(np.unique(picture)) == {77}


# ---------------------------------------------------------------------------------------- real environments


@pytest.mark.parametrize(
    ("env_id", "obs_mode", "gate"),
    [
        ("MiniGrid-MemoryS13-v0", "rgb", True),
        ("MiniGrid-MemoryS17Random-v0", "symbolic", True),
        ("CartPole-v1", "rgb", False),
    ],
)
def test_real_episodes_become_a_small_film(tmp_path, env_id, obs_mode, gate):
    env = make_real_env(TaskArgs(env_id, obs_mode=obs_mode), "rgb_array")
    video = Film(tmp_path / "film.mp4")
    rng = np.random.default_rng(0)
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    steps, ended = 0, False
    while steps < 20 and not ended:
        action = int(env.action_space.sample())
        video.add_step(
            env.render(),
            obs[0],
            grid=obs_mode == "symbolic" and gate,
            gate=rng.uniform(size=128) if gate else None,
            value=0.5,
            action=str(action),
            episode=1,
            step=steps,
        )
        obs, _, terminated, truncated, _ = env.step(action)
        steps, ended = steps + 1, terminated or truncated
    video.end_episode(None)
    video.close()
    assert len(frames_of(tmp_path / "film.mp4")) == steps + HOLD_FRAMES
    assert (tmp_path / "film.mp4").stat().st_size < 150_000
