"""How well the embedding tells whether two faces are one person's: LFW's 6,000 pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data import Pack, open_pack
from numpy.typing import NDArray

from edgefer.vision.card import Metric
from edgefer.vision.embedder import Embedder
from edgefer.vision.model import Model

FALSE_ACCEPT_RATE = 1e-3

Floats = NDArray[np.float32]


def evaluate_embedding(model: Model, data: Path) -> list[Metric]:
    """Accuracy over LFW's ten folds, and the share of true pairs accepted where 1 in 1,000 false ones is.

    One pass a face, nothing averaged.
    """
    pack = open_pack(data / "lfw_pairs_112.npz")
    vectors = embed_all(Embedder(model), pack)
    first, second = pack.fields["pairs"].T
    cosines, same = (vectors[first] * vectors[second]).sum(1), pack.fields["same"]
    figures = {
        "accuracy": fold_accuracy(cosines, same, pack.fields["fold"]),
        f"TAR at FAR {FALSE_ACCEPT_RATE:g}": float((cosines[same] > threshold_at(cosines[~same])).mean()),
    }
    precision = model.card.training.get("precision", "int8")
    return [Metric("LFW", "6,000 pairs", name, round(value, 4), precision) for name, value in figures.items()]


def embed_all(embedder: Embedder, pack: Pack, rows: Sequence[int] | NDArray[np.intp] | None = None) -> Floats:
    """The embeddings of a pack's aligned faces, all of them or some, n x size."""
    return np.stack([embedder.embed(pack.picture(int(i))) for i in (range(len(pack)) if rows is None else rows)])


def fold_accuracy(cosines: Floats, same: NDArray[np.bool_], folds: NDArray[Any]) -> float:
    """LFW's accuracy: each fold is judged with the threshold that is best on the other nine."""
    right = [
        ((cosines > best_threshold(cosines[folds != fold], same[folds != fold])) == same)[folds == fold].mean()
        for fold in np.unique(folds)
    ]
    return float(np.mean(right))


def best_threshold(cosines: Floats, same: NDArray[np.bool_]) -> float:
    """The cosine over which most pairs are judged rightly."""
    order = np.argsort(cosines)
    # Cut after each pair in turn: the false pairs below and the true ones above are right.
    right = np.cumsum(~same[order]) + same.sum() - np.cumsum(same[order])
    best = int(right.argmax())
    following = order[min(best + 1, len(order) - 1)]
    return float((cosines[order[best]] + cosines[following]) / 2)


def threshold_at(strangers: Floats, rate: float = FALSE_ACCEPT_RATE) -> float:
    """The cosine that only this share of pairs of strangers exceeds."""
    return float(np.quantile(strangers, 1 - rate))
