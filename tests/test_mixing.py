"""Faces made of two, which the trainers show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def mixed(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from mixing import mixed

    return mixed


def striped(along: int, shape: tuple[int, ...], middle: float, height: float) -> np.ndarray:
    """Stripes of one pixel, level or upright, around a middle."""
    signs = np.where(np.indices(shape[:2])[along] % 2, 1, -1)
    return (middle + height * signs.reshape(*shape[:2], *[1] * (len(shape) - 2)) * np.ones(shape)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(48, 48), (112, 112, 3)])
def test_a_face_is_made_of_two_under_the_light_of_the_first(mixed, shape):
    """The first has upright stripes, the second level ones, and is darker: how much of each is where is read off."""
    first, second = striped(1, shape, 150, 40), striped(0, shape, 60, 20)
    upright, level = (striped(along, shape, 100, 1).astype(int) - 100 for along in (1, 0))
    blended = split = 0
    rng = np.random.default_rng(0)
    for _ in range(40):
        made = mixed(first, second, rng).astype(float) - 150
        assert abs(made.mean()) < 1.5, "the first's light"
        rows = tuple(range(1, made.ndim))
        of_first = (made * upright).mean(rows) / 40
        of_second = (made * level).mean() / 40
        assert of_first.mean() + abs(of_second) == pytest.approx(1, abs=0.05)
        eyes, mouth = of_first[: shape[0] // 5].mean(), of_first[-shape[0] // 5 :].mean()
        if abs(eyes - mouth) < 0.05:
            blended += 1
            assert 0.3 < eyes < 0.7
        else:
            split += 1
            assert eyes > 0.95
            assert mouth < 0.05
    assert min(blended, split) > 10


def test_half_of_the_others_are_mirrored(mixed):
    stripes, bright_left = striped(0, (48, 48), 100, 40), np.full((48, 48), 50, np.uint8)
    bright_left[:, :24] = 150
    rng = np.random.default_rng(1)
    lower = [mixed(stripes, bright_left, rng)[24:].astype(int) for _ in range(40)]
    lefts = sum(made[:, :24].sum() > made[:, 24:].sum() for made in lower)
    assert 10 < lefts < 30
