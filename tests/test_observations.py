"""Observations: what becomes of every space, by hand; numbers for frames; each frame encoded once a rollout."""

import functools
import zlib

import numpy as np
import pytest
import torch
from gymnasium import spaces
from minigrid.core.mission import MissionSpace

from tasks.observations import (
    BUCKETS,
    WORDS,
    Encodings,
    ObservationTable,
    grid_space,
    is_grid,
    plain_observation,
    plain_space,
)

IMAGE = spaces.Tuple((spaces.Box(0, 255, (4, 5, 3), np.uint8),))
VECTOR = spaces.Tuple((spaces.Box(-np.inf, np.inf, (6,), np.float32),))
BOTH = spaces.Tuple((*IMAGE, *VECTOR))


# ---------------------------------------------------------------------------------- every space as parts


def numbered(*shape, dtype=np.uint8):
    """An array in which every number is another, as far as the type reaches."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def pixels(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


def hashes(*words):
    numbers = [1 + zlib.crc32(word.encode()) % (BUCKETS - 1) for word in words]
    return np.array(numbers + [0] * (WORDS - len(numbers)))


STACK = numbered(4, 9, 8)  # four pictures of 9x8
COLOUR_STACK = numbered(2, 9, 8, 3)
PICTURES = {  # space, observation, picture (height, width, channels)
    "grey with a channel": (pixels(9, 8, 1), numbered(9, 8, 1), numbered(9, 8)[:, :, None]),
    "grey without one": (pixels(9, 8), numbered(9, 8), numbered(9, 8)[:, :, None]),
    "colours": (pixels(9, 8, 3), numbered(9, 8, 3), numbered(9, 8, 3)),
    "square": (pixels(8, 8, 3), numbered(8, 8, 3), numbered(8, 8, 3)),
    "channels first": (
        pixels(3, 9, 8),
        numbered(3, 9, 8),
        np.stack((numbered(3, 9, 8)[0], numbered(3, 9, 8)[1], numbered(3, 9, 8)[2]), -1),
    ),
    "one channel first": (pixels(1, 9, 8), numbered(1, 9, 8), numbered(9, 8)[:, :, None]),
    "grey, stacked": (pixels(4, 9, 8), STACK, np.stack((STACK[0], STACK[1], STACK[2], STACK[3]), -1)),
    "colours, stacked": (
        pixels(2, 9, 8, 3),
        COLOUR_STACK,
        np.concatenate((COLOUR_STACK[0], COLOUR_STACK[1]), -1),  # red, green, blue of the first, then of the second
    ),
    "channels first, stacked": (
        pixels(2, 3, 9, 8),
        COLOUR_STACK.transpose(0, 3, 1, 2),
        np.concatenate((COLOUR_STACK[0], COLOUR_STACK[1]), -1),
    ),
    "grey with a channel, stacked": (
        pixels(4, 9, 8, 1),
        STACK[..., None],
        np.stack((STACK[0], STACK[1], STACK[2], STACK[3]), -1),
    ),
    "many maps": (pixels(9, 9, 12), numbered(9, 9, 12), numbered(9, 9, 12)),
    "many maps in a small square": (pixels(7, 7, 20), numbered(7, 7, 20), numbered(7, 7, 20)),
    "many maps first": (pixels(20, 7, 7), numbered(20, 7, 7), np.stack(list(numbered(20, 7, 7)), -1)),
    "the smallest": (pixels(7, 7), numbered(7, 7), numbered(7, 7)[:, :, None]),
    "MiniGrid's cells": (grid_space(3), np.full((3, 3, 3), (10, 5, 3)), np.full((3, 3, 3), (10, 5, 3))),
    "int64 in the range of a byte": (
        spaces.Box(0, 255, (9, 8, 3), np.int64),
        numbered(9, 8, 3, dtype=np.int64),
        numbered(9, 8, 3),
    ),
}
FLOAT_PICTURES = {
    "float32": (spaces.Box(0, 1, (9, 8, 3)), numbered(9, 8, 3) / 255),
    "float64": (spaces.Box(-1, 1, (9, 8, 3), np.float64), numbered(9, 8, 3) / 1e3 - 0.1),
    "without bounds": (spaces.Box(-np.inf, np.inf, (9, 8, 3)), numbered(9, 8, 3) / 7 - 3),
    "beyond a byte": (spaces.Box(0, 999, (9, 8, 3), np.int64), numbered(9, 8, 3) * 3),
    "below 0": (spaces.Box(-5, 250, (9, 8, 3), np.int16), numbered(9, 8, 3) * 1.0 - 5),
    "float64 beyond float32": (spaces.Box(-1e300, 1e300, (9, 8, 3), np.float64), numbered(9, 8, 3) / 7),
}
FLOAT_PICTURES = {
    kind: (space, value.astype(space.dtype), value.astype(np.float32))
    for kind, (space, value) in FLOAT_PICTURES.items()
}
NUMBERS = {  # space, observation, vector
    "a number": (spaces.Box(-2, 2, ()), np.float32(1.5), [1.5]),
    "numbers": (spaces.Box(-2, 2, (3,)), np.array([-1, 0, 1.5], np.float32), [-1, 0, 1.5]),
    "whole numbers": (spaces.Box(-9, 999, (3,), np.int64), np.array([-9, 0, 999]), [-9, 0, 999]),
    "bytes": (spaces.Box(0, 255, (3,), np.uint8), np.array([0, 7, 255], np.uint8), [0, 7, 255]),
    "big float64 bounds": (spaces.Box(-1e300, 1e300, (2,), np.float64), np.array([0.1, -7.5]), [0.1, -7.5]),
    "a matrix": (spaces.Box(-9, 9, (2, 3)), numbered(2, 3, dtype=np.float32), [0, 1, 2, 3, 4, 5]),
    "less than a picture": (pixels(6, 6, 3), numbered(6, 6, 3), np.arange(108)),
    "five axes": (spaces.Box(0, 99, (1, 2, 1, 2, 1)), numbered(1, 2, 1, 2, 1), [0, 1, 2, 3]),
    "Discrete": (spaces.Discrete(4), 2, [0, 0, 1, 0]),
    "Discrete with a start": (spaces.Discrete(4, start=-1), -1, [1, 0, 0, 0]),
    "MultiDiscrete": (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
    "MultiDiscrete with a start": (spaces.MultiDiscrete([2, 3], start=[5, -1]), np.array([6, -1]), [0, 1, 1, 0, 0]),
    "MultiBinary": (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
    "MultiBinary in rows": (spaces.MultiBinary([2, 2]), np.array([[1, 0], [0, 1]], np.int8), [1, 0, 0, 1]),
}
TEXTS = {
    "text": (spaces.Text(40), "Open the red door", hashes("open", "the", "red", "door")),
    "no text": (spaces.Text(40), "", hashes()),
    "long text": (spaces.Text(999), "step " * 40, hashes(*["step"] * WORDS)),
    "a mission": (MissionSpace(lambda: "go to it"), "go to it", hashes("go", "to", "it")),
}
ALL = {**PICTURES, **FLOAT_PICTURES, **NUMBERS, **TEXTS}


@pytest.mark.parametrize("kind", ALL)
def test_a_space_becomes_one_part_by_hand(kind):
    space, value, expected = ALL[kind]
    (part,) = plain_observation(space)(value)
    dtype = np.int64 if kind in TEXTS else np.uint8 if kind in PICTURES else np.float32
    assert part.dtype == dtype
    np.testing.assert_array_equal(part, np.asarray(expected).astype(dtype))
    (plain,) = plain_space(space)
    assert plain.shape == part.shape and plain.dtype == part.dtype and plain.contains(np.ascontiguousarray(part))
    assert is_grid(plain) == (kind == "MiniGrid's cells")


def test_bounds_go_with_what_they_bound():
    (picture,) = plain_space(spaces.Box(0, np.broadcast_to(np.array([[[1]], [[2]], [[3]]]), (3, 9, 8)), (3, 9, 8)))
    assert picture.high[4, 5].tolist() == [1, 2, 3] and picture.low.max() == 0
    (vector,) = plain_space(spaces.Tuple((spaces.Discrete(2), spaces.Box(-3, 4, (1,)))))
    assert vector.low.tolist() == [0, 0, -3] and vector.high.tolist() == [1, 1, 4]
    (vector,) = plain_space(spaces.Box(-1e300, 5, (1,), np.float64))
    assert (vector.low[0], vector.high[0]) == (-np.inf, 5)


DICT = spaces.Dict(
    {
        "say": spaces.Text(40),
        "count": spaces.Discrete(3),
        "eyes": spaces.Tuple((pixels(3, 9, 8), spaces.Box(0, 1, (9, 8)))),
        "body": spaces.Dict({"speed": spaces.Box(-9, 9, (2,), np.float64), "on": spaces.MultiBinary(1)}),
    }
)
SEEN = {
    "say": "left or right",
    "count": 1,
    "eyes": (numbered(3, 9, 8), np.full((9, 8), 0.5, np.float32)),
    "body": {"speed": np.array([1.5, -2]), "on": np.array([1], np.int8)},
}


def test_dicts_and_tuples_become_pictures_one_vector_and_texts():
    """In the order of the space, in which a Dict's keys are sorted: body (on, speed), count, eyes, say."""
    parts = plain_observation(DICT)(SEEN)
    first = np.stack(list(numbered(3, 9, 8)), -1)
    expected = [first, np.full((9, 8, 1), 0.5, np.float32), np.array([1, 1.5, -2, 0, 1, 0], np.float32)]
    expected.append(hashes("left", "or", "right"))
    space = plain_space(DICT)
    assert len(parts) == len(expected) == len(space)
    for part, own, one in zip(parts, expected, space, strict=True):
        np.testing.assert_array_equal(part, own)
        assert part.dtype == own.dtype and one.contains(np.ascontiguousarray(part))


def test_what_a_dict_holds_has_its_place_by_its_name():
    shuffled = {key: SEEN[key] for key in reversed(SEEN)}
    for part, same in zip(plain_observation(DICT)(shuffled), plain_observation(DICT)(SEEN), strict=True):
        np.testing.assert_array_equal(part, same)


def test_one_word_is_one_number_in_every_process_and_order_counts():
    (one,), (two,) = (plain_observation(spaces.Text(40))(text) for text in ("red door", "DOOR  red"))
    assert one[:2].tolist() == two[1::-1].tolist()
    assert one[0] == 1 + 0xFA615F8F % 1023  # CRC-32 of "red", where Python's own hash is another in every process


@pytest.mark.parametrize("kind", [kind for kind in ALL if isinstance(ALL[kind][1], np.ndarray)])
def test_a_buffer_that_is_used_again_is_copied(kind):
    space, value, _ = ALL[kind]
    buffer = value.copy()
    (part,) = plain_observation(space)(buffer)
    before = part.copy()
    buffer[...] = buffer.flat[-1] if buffer.flat[-1] != buffer.flat[0] else 0
    np.testing.assert_array_equal(part, before)


@pytest.mark.parametrize("space", [spaces.Sequence(spaces.Discrete(2)), spaces.Graph(spaces.Discrete(2), None)])
def test_what_has_no_fixed_size_is_refused(space):
    for nested in (space, spaces.Dict(a=spaces.Discrete(2), b=space), spaces.Tuple((space,))):
        with pytest.raises(ValueError, match="no fixed size"):
            plain_space(nested)


# ---------------------------------------------------------------------------------- numbers for frames


def different_frames(space: spaces.Tuple, count: int) -> tuple[np.ndarray, ...]:
    """They differ in their last part alone."""
    parts = tuple(np.zeros((count, *part.shape), part.dtype) for part in space)
    parts[-1].reshape(count, -1)[:, 0] = np.arange(count)
    return parts


def picked(parts, index):
    return tuple(part[index] for part in parts)


def assert_frames(table, numbers, expected):
    for part, own in zip(table.frames, expected, strict=True):
        np.testing.assert_array_equal(part[numbers].numpy(), own)


@pytest.mark.parametrize("space", [IMAGE, VECTOR, BOTH])
def test_equal_frames_have_equal_numbers_and_numbers_lead_back_to_frames(space):
    table = ObservationTable(space, capacity=50)
    frames = different_frames(space, 20)
    order = np.random.default_rng(0).integers(0, 20, size=(30, 8))
    number_of = {}
    for picks in order:
        numbers = table.number(picked(frames, picks))
        assert numbers.dtype == torch.int64
        for pick, number in zip(picks, numbers.tolist(), strict=True):
            assert number_of.setdefault(pick, number) == number
        assert_frames(table, numbers, picked(frames, picks))
    assert sorted(number_of.values()) == list(range(20))
    assert table.count == 20
    for part, one in zip(table.frames, space, strict=True):
        assert len(part) == 20 and part.numpy().dtype == one.dtype


def test_frames_that_differ_in_any_part_are_different():
    table = ObservationTable(BOTH, capacity=50)
    picture, vector = different_frames(BOTH, 3)
    numbers = table.number((picture, vector))
    other = picture.copy()
    other[1, 2, 3, 1] = 1
    assert table.number((other, vector)).tolist() == [numbers[0], 3, numbers[2]]


def test_frames_are_a_copy_of_what_was_numbered():
    table = ObservationTable(IMAGE, capacity=10)
    (batch,) = different_frames(IMAGE, 3)
    expected = batch.copy()
    numbers = table.number((batch,))
    batch[:] = 255
    assert_frames(table, numbers, (expected,))


def test_table_stays_distinct_up_to_its_capacity_and_no_further():
    table = ObservationTable(IMAGE, capacity=16)
    frames = different_frames(IMAGE, 17)
    before = table.number(picked(frames, slice(16)))
    assert table.distinct
    after = table.number(frames)
    assert not table.distinct
    assert not table._number_of  # the copies of all frames that served look-ups are released
    assert_frames(table, before, picked(frames, slice(16)))
    assert_frames(table, after, frames)
    again = table.number(picked(frames, slice(1)))
    assert_frames(table, again, picked(frames, slice(1)))


def test_keep_changes_nothing_while_observations_are_distinct():
    table = ObservationTable(IMAGE, capacity=16)
    numbers = table.number(different_frames(IMAGE, 10))
    assert torch.equal(table.keep(numbers[4:7]), numbers[4:7])
    assert table.count == 10


@pytest.mark.parametrize("space", [VECTOR, BOTH])
def test_keep_drops_all_but_the_current_frames_after_an_overflow(space):
    table = ObservationTable(space, capacity=4)
    frames = different_frames(space, 9)
    numbers = table.number(frames)
    current = numbers[torch.tensor([7, 2, 2])]
    kept = table.keep(current)
    assert kept.tolist() == [0, 1, 2]
    assert table.count == 3
    assert_frames(table, slice(None), picked(frames, [7, 2, 2]))
    assert not table.distinct


def test_keep_takes_numbers_of_any_shape():
    table = ObservationTable(VECTOR, capacity=4)
    frames = different_frames(VECTOR, 9)
    numbers = table.number(frames)
    kept = table.keep(numbers[torch.tensor([[8, 1], [0, 8]])])
    assert kept.tolist() == [[0, 1], [2, 3]]
    assert_frames(table, kept.flatten(), picked(frames, [8, 1, 0, 8]))


def test_keep_has_room_for_frames_that_are_in_use_more_than_once():
    table = ObservationTable(BOTH, capacity=4)
    frames = different_frames(BOTH, 5)
    numbers = table.number(frames)
    kept = table.keep(numbers[torch.tensor([[3, 1]]).expand(40, 2)])
    assert kept.flatten().tolist() == list(range(80)) and table.count == 80
    assert_frames(table, kept[7], picked(frames, [3, 1]))
    new = table.number(picked(frames, [0, 4]))
    assert_frames(table, new, picked(frames, [0, 4]))
    assert_frames(table, kept[39], picked(frames, [3, 1]))


def test_storage_of_an_overflowed_table_stays_at_one_rollout():
    table = ObservationTable(VECTOR, capacity=4)
    current = table.number(different_frames(VECTOR, 8))
    sizes = []
    for _ in range(10):
        current = table.keep(current)
        for _ in range(16):
            current = table.number(different_frames(VECTOR, 8))
        sizes.append(table.frames[0].untyped_storage().nbytes())
        assert table.count == 8 + 16 * 8
    assert len(set(sizes)) == 1


def test_prefilled_table_knows_its_frames():
    frames = tuple(torch.from_numpy(part) for part in different_frames(IMAGE, 5))
    table = ObservationTable(IMAGE, capacity=5, frames=frames)
    assert table.number((frames[0].numpy()[[3, 1]],)).tolist() == [3, 1]
    table.number((np.full((1, *IMAGE[0].shape), 9, np.uint8),))
    assert not table.distinct
    assert torch.equal(frames[0], torch.from_numpy(different_frames(IMAGE, 5)[0]))


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_distinct_frames_are_those_that_are_needed(fixed_shapes):
    table = ObservationTable(BOTH, capacity=50)
    frames = different_frames(BOTH, 20)
    numbers = table.number(frames)
    for obs in (numbers[torch.tensor([[5, 9, 5], [2, 2, 9]])], numbers.expand(3, 20)):
        parts, index = table.distinct_frames(obs, fixed_shapes)
        assert index.shape == obs.shape
        for part, own in zip(parts, frames, strict=True):
            np.testing.assert_array_equal(part[index].numpy(), own[obs.numpy()])
        # Fixed shapes take the whole table, where a minibatch is as large, as counting would wait for a GPU.
        assert len(parts[0]) == len(obs.unique())


# ---------------------------------------------------------------------------------- encodings


class CountingEncoder:
    """Six numbers to three, with a note of every row that it was asked for."""

    def __init__(self):
        self.rows = []
        self.weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))

    def __call__(self, frames):
        self.rows += frames[0][:, 0].tolist()
        return frames[0] @ self.weight


def play_new_frames(T, N=8):
    """A rollout of T steps in which no observation repeats -> the frames encoded, and bytes copied on growing."""
    table = ObservationTable(VECTOR, capacity=4)
    table.number(different_frames(VECTOR, 9))  # it overflows
    current = table.keep(torch.arange(N))
    encoder, copied, frames = CountingEncoder(), 0, []
    new = functools.partial(np.random.default_rng(0).standard_normal, (N, 6), np.float32)
    encodings = Encodings(encoder, table)
    storages = [encodings._storage, *table._storage]
    for _ in range(T):
        torch.testing.assert_close(encodings[current], table.frames[0][current] @ encoder.weight)
        frames.append(table.frames[0][current].clone())
        current = table.number((new(),))
        for i, storage in enumerate((encodings._storage, *table._storage)):
            if storage.data_ptr() != storages[i].data_ptr():  # a larger one, into which the old one was copied
                copied += storages[i].nbytes
                storages[i] = storage
    everything = torch.arange(table.count)
    torch.testing.assert_close(encodings[everything], table.frames[0] @ encoder.weight, msg="of old frames and new")
    return encoder.rows, copied, torch.cat(frames)


def test_each_frame_is_encoded_once_where_observations_never_repeat():
    rows, _, frames = play_new_frames(50)
    assert sorted(rows[: len(frames)]) == sorted(frames[:, 0].tolist())
    assert len(rows) == len(frames) + 8, "the last step's frames are encoded too"


def test_what_is_encoded_and_copied_grows_with_the_length_of_a_rollout_and_no_faster():
    (short, copied, _), (long, copied_long, _) = play_new_frames(100), play_new_frames(800)
    assert len(short) == 808 and len(long) == 6408
    assert copied > 0 and copied_long < 10 * copied


def test_encodings_of_a_table_that_repeats_are_made_once():
    table = ObservationTable(VECTOR, capacity=50)
    frames = different_frames(VECTOR, 20)
    current = table.number(picked(frames, slice(3)))
    encoder = CountingEncoder()
    encodings = Encodings(encoder, table)
    for step in np.random.default_rng(0).integers(0, 20, size=(40, 3)):
        expected = torch.from_numpy(frames[0])[table.frames[0][current, 0].long()] @ encoder.weight
        torch.testing.assert_close(encodings[current], expected)
        current = table.number(picked(frames, step))
    encodings[current]
    assert sorted(encoder.rows) == list(range(20))
