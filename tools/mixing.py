"""Faces made of two: nobody's, and like no picture that a network or its teacher has seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgefer.messages import Image


def mixed(one: Image, other: Image, rng: np.random.Generator) -> Image:
    """A face of two of one size (n x n, gray or colour), under the light of the first.

    In half of the cases the two are blended, else the eyes are of one and the mouth is of the other.
    """
    first, second = one.astype(np.float32), other.astype(np.float32)
    if rng.random() < 0.5:
        second = second[:, ::-1]
    across = (0, 1)
    second = (second - second.mean(across)) * (first.std(across) / np.maximum(second.std(across), 1.0))
    second += first.mean(across)
    side = len(first)
    share: float | NDArray[np.float64] = rng.uniform(0.35, 0.65)
    if rng.random() < 0.5:
        seam = (np.arange(side) / side - rng.uniform(0.42, 0.67)) * 24
        share = (1 / (1 + np.exp(-seam))).reshape(side, *[1] * (first.ndim - 1))
    return np.asarray(np.clip(first + (second - first) * share, 0, 255), np.uint8)
