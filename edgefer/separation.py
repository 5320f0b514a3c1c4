"""How well a gallery's people are told apart, from each other and from the strangers that were seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgefer.gallery import BINS, Gallery, costs
from edgefer.vision.embedder import units

_ROWS = 256
"""Templates that are compared with all others at once: 50 MB where there are 50,000."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two people, and how near a face of one comes to the other (a similarity, as Gallery.match has it)."""

    first: str
    second: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A person, one of whose faces comes only this near to the others of theirs (a similarity, the same)."""

    name: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Separation:
    """What `edgefer people check` tells; None where there is nothing to compare."""

    people: int
    faces: int
    threshold: float
    closest: Pair | None
    widest: Spread | None
    strangers: int
    nearest_stranger: float | None
    """They came no nearer: it is known to a hundredth."""

    @property
    def others(self) -> float | None:
        """How near anybody came to somebody else."""
        found = [self.closest.similarity if self.closest else None, self.nearest_stranger]
        return max((value for value in found if value is not None), default=None)

    @property
    def separating(self) -> float | None:
        """A threshold over every other person and stranger and under every face of the same person, if there is one."""
        if self.others is None or self.widest is None or self.others >= self.widest.similarity:
            return None
        return (self.others + self.widest.similarity) / 2


def separation(gallery: Gallery, threshold: float) -> Separation:
    """Compare everybody's faces with everybody, as Gallery.match does: a minute for ten thousand people."""
    embeddings = gallery.embeddings()
    strangers = gallery.strangers()
    nearest = max(strangers, default=None)
    if nearest is not None and nearest - 1 / BINS < threshold:
        nearest = min(nearest, threshold)  # what is counted as a stranger stayed under it
    closest, widest = _compare(list(embeddings), list(embeddings.values()))
    return Separation(
        people=len(embeddings),
        faces=sum(map(len, embeddings.values())),
        threshold=threshold,
        closest=closest,
        widest=widest,
        strangers=sum(strangers.values()),
        nearest_stranger=nearest,
    )


def _compare(names: list[str], faces: list[NDArray[np.float32]]) -> tuple[Pair | None, Spread | None]:
    closest: Pair | None = None
    widest: Spread | None = None
    if not names:
        return None, None
    counts = np.array([len(group) for group in faces])
    templates, owners = np.concatenate(faces), np.repeat(np.arange(len(names)), counts)
    starts = np.cumsum([0, *counts])[:-1]
    sums = np.add.reduceat(templates, starts)
    means, taken_off = units(sums), costs(sums, counts, len(names))
    for first in range(0, len(templates), _ROWS):
        owner = owners[first : first + _ROWS]
        rows = np.arange(len(owner))
        block = templates[first : first + _ROWS]
        cosines = block @ templates.T
        cosines[rows, first + rows] = -np.inf  # itself, which its own person's mean is to be without too
        best = np.maximum.reduceat(cosines, starts, axis=1)
        rest = sums[owner] - block
        own = np.maximum(best[rows, owner], (block * units(rest)).sum(1))
        own -= costs(rest, np.maximum(counts[owner] - 1, 1), len(names))
        own[best[rows, owner] == -np.inf] = np.inf  # the only face of a person
        best = np.maximum(best, block @ means.T) - taken_off
        best[rows, owner] = -np.inf
        row = int(own.argmin())
        if np.isfinite(own[row]) and (widest is None or own[row] < widest.similarity):
            widest = Spread(names[owner[row]], float(own[row]))
        row, other = divmod(int(best.argmax()), len(names))
        if np.isfinite(best[row, other]) and (closest is None or best[row, other] > closest.similarity):
            one, two = sorted((names[owner[row]], names[other]))
            closest = Pair(one, two, float(best[row, other]))
    return closest, widest
