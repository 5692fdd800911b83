"""Numbered observations: equal frames share a number, and a table that overflows still returns every frame."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from memory_envs import ObservationTable

IMAGE = spaces.Box(0, 255, (4, 5, 3), np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (6,), np.float32)


def different_frames(space: spaces.Box, count: int) -> np.ndarray:
    frames = np.zeros((count, *space.shape), space.dtype)
    frames.reshape(count, -1)[:, 0] = np.arange(count)
    return frames


@pytest.mark.parametrize("space", [IMAGE, VECTOR])
def test_equal_frames_have_equal_numbers_and_numbers_lead_back_to_frames(space):
    table = ObservationTable(space, capacity=50)
    frames = different_frames(space, 20)
    order = np.random.default_rng(0).integers(0, 20, size=(30, 8))
    number_of = {}
    for picks in order:
        numbers = table.number(frames[picks])
        assert numbers.dtype == torch.int64
        for pick, number in zip(picks, numbers.tolist(), strict=True):
            assert number_of.setdefault(pick, number) == number
        np.testing.assert_array_equal(table.frames[numbers].numpy(), frames[picks])
    assert sorted(number_of.values()) == list(range(20))
    assert table.count == len(table.frames) == 20
    assert table.frames.numpy().dtype == space.dtype


def test_frames_are_a_copy_of_what_was_numbered():
    table = ObservationTable(IMAGE, capacity=10)
    batch = different_frames(IMAGE, 3)
    expected = batch.copy()
    numbers = table.number(batch)
    batch[:] = 255
    np.testing.assert_array_equal(table.frames[numbers].numpy(), expected)


def test_table_stays_distinct_up_to_its_capacity_and_no_further():
    table = ObservationTable(IMAGE, capacity=16)
    frames = different_frames(IMAGE, 17)
    before = table.number(frames[:16])
    assert table.distinct
    after = table.number(frames)
    assert not table.distinct
    assert not table._number_of  # the copies of all frames that served look-ups are released
    np.testing.assert_array_equal(table.frames[before].numpy(), frames[:16])
    np.testing.assert_array_equal(table.frames[after].numpy(), frames)
    again = table.number(frames[:1])
    np.testing.assert_array_equal(table.frames[again].numpy(), frames[:1])


def test_keep_changes_nothing_while_observations_are_distinct():
    table = ObservationTable(IMAGE, capacity=16)
    numbers = table.number(different_frames(IMAGE, 10))
    assert torch.equal(table.keep(numbers[4:7]), numbers[4:7])
    assert table.count == 10


def test_keep_drops_all_but_the_current_frames_after_an_overflow():
    table = ObservationTable(VECTOR, capacity=4)
    frames = different_frames(VECTOR, 9)
    numbers = table.number(frames)
    current = numbers[torch.tensor([7, 2, 2])]
    kept = table.keep(current)
    assert kept.tolist() == [0, 1, 2]
    assert table.count == 3
    np.testing.assert_array_equal(table.frames.numpy(), frames[[7, 2, 2]])
    assert not table.distinct


def test_storage_of_an_overflowed_table_stays_at_one_rollout():
    table = ObservationTable(VECTOR, capacity=4)
    current = table.number(different_frames(VECTOR, 8))
    sizes = []
    for _ in range(10):
        current = table.keep(current)
        for _ in range(16):
            current = table.number(different_frames(VECTOR, 8))
        sizes.append(table.frames.untyped_storage().nbytes())
        assert table.count == 8 + 16 * 8
    assert len(set(sizes)) == 1


def test_a_loaded_table_goes_on_as_the_saved_one():
    table = ObservationTable(VECTOR, capacity=4)
    frames = different_frames(VECTOR, 4)
    numbers = table.number(frames)
    restored = ObservationTable(VECTOR, capacity=4)
    restored.load_state_dict(table.state_dict())
    assert torch.equal(restored.number(frames[::-1].copy()), numbers.flip(0))
    assert restored.count == 4

    table.number(different_frames(VECTOR, 6))
    restored.load_state_dict(table.state_dict())
    assert not restored.distinct
    numbers = restored.number(frames)
    np.testing.assert_array_equal(restored.frames[numbers].numpy(), frames)


def test_prefilled_table_knows_its_frames():
    frames = torch.from_numpy(different_frames(IMAGE, 5))
    table = ObservationTable(IMAGE, capacity=5, frames=frames)
    assert table.number(frames.numpy()[[3, 1]]).tolist() == [3, 1]
    table.number(np.full((1, *IMAGE.shape), 9, np.uint8))
    assert not table.distinct
    assert torch.equal(frames, torch.from_numpy(different_frames(IMAGE, 5)))
