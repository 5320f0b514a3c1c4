"""What is wrong with a camera's pictures, and what only looks so."""

import numpy as np
import pytest

from edgefer.sight import NOTICE_S, Sight

RNG = np.random.default_rng(7)
ROOM = RNG.integers(30, 220, (48, 64, 3)).astype(np.uint8)
"""A lively picture."""


def noisy(picture: np.ndarray, strength: int = 2) -> np.ndarray:
    """The same scene, as a sensor sees it a moment later."""
    noise = RNG.integers(-strength, strength + 1, picture.shape)
    return np.clip(picture.astype(int) + noise, 0, 255).astype(np.uint8)


class Watcher:
    """Shows pictures to a Sight at a rate."""

    def __init__(self, fps: float = 30) -> None:
        self.sight = Sight(fps)
        self.now_s = 1000.0
        self.sight.opened(self.now_s)

    def show(self, make, seconds: float, fps: float = 30) -> list:
        """The codes of what was found, picture by picture."""
        found = []
        for _ in range(round(seconds * fps)):
            self.now_s += 1 / fps
            ailment = self.sight.look(make(), self.now_s)
            found.append(ailment and ailment.code)
        return found


@pytest.fixture
def watcher():
    return Watcher()


def test_a_still_room_is_well(watcher):
    assert set(watcher.show(lambda: noisy(ROOM), 10)) == {None}


def test_one_changed_pixel_is_enough_to_be_alive(watcher):
    def almost_still():
        picture = ROOM.copy()
        picture[RNG.integers(48), RNG.integers(64)] = RNG.integers(0, 256, 3)
        return picture

    assert set(watcher.show(almost_still, 10)) == {None}


def test_the_same_picture_again_and_again_is_frozen_within_three_seconds(watcher):
    found = watcher.show(ROOM.copy, 3)
    assert found[-1] == "frozen"
    assert found[: round(NOTICE_S * 30)] == [None] * round(NOTICE_S * 30)


def test_it_stays_frozen_over_a_reopening_until_another_picture_comes(watcher):
    watcher.show(ROOM.copy, 3)
    watcher.sight.opened(watcher.now_s)
    ailment = watcher.sight.look(ROOM.copy(), watcher.now_s)
    assert (ailment.code, ailment.reopen) == ("frozen", False)  # it has its time before it is opened again
    assert watcher.show(ROOM.copy, 3)[-1] == "frozen"
    assert watcher.sight.look(ROOM.copy(), watcher.now_s).reopen
    assert watcher.show(lambda: noisy(ROOM), 1) == [None] * 30


def test_at_a_frame_a_second_a_few_equal_pictures_are_no_freeze():
    slow = Watcher(fps=1)
    assert set(slow.show(ROOM.copy, 4, fps=1)) == {None}
    assert slow.show(ROOM.copy, 4, fps=1)[-1] == "frozen"


@pytest.mark.parametrize("noise", [0, 3])
def test_a_covered_lens_is_dark_and_never_frozen(watcher, noise):
    black = np.zeros_like(ROOM)
    found = watcher.show(lambda: noisy(black, noise), 10)
    assert set(found) == {None, "dark"}
    assert found.index("dark") <= 3 * 30
    assert watcher.show(lambda: noisy(ROOM), 1) == [None] * 30  # well by itself


@pytest.mark.parametrize("level", [25, 255])
def test_a_dim_room_and_a_bright_one_are_not_dark(watcher, level):
    assert "dark" not in watcher.show(lambda: noisy(np.full_like(ROOM, level), 6), 10)


def test_a_lamp_in_the_night_is_something_to_see(watcher):
    night = np.zeros_like(ROOM)
    night[8:16, 8:24] = 250
    assert set(watcher.show(lambda: noisy(night), 10)) == {None}


def test_low_light_that_halves_the_rate_twice_is_not_slow(watcher):
    for fps in (30, 15, 7.5):
        assert set(watcher.show(lambda: noisy(ROOM), 6, fps)) == {None}


def test_a_few_frames_a_second_are_slow_within_three_seconds_and_well_again_with_more(watcher):
    watcher.show(lambda: noisy(ROOM), 5)
    found = watcher.show(lambda: noisy(ROOM), 3, fps=2)
    assert found[-1] == "slow"
    assert watcher.show(lambda: noisy(ROOM), 5, fps=5)[-1] == "slow"  # not at the bound itself
    assert watcher.show(lambda: noisy(ROOM), 5, fps=15)[-1] is None


def test_who_asks_for_few_frames_gets_no_complaint():
    assert set(Watcher(fps=2).show(lambda: noisy(ROOM), 20, fps=2)) == {None}
