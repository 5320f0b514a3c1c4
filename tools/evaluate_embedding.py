"""How well the embedding tells whether two faces are one person's: LFW's 6,000 pairs, and what alignment costs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from data import Pack, open_pack
from fit_crop import SIZES, best, place
from measured import precision_of
from numpy.typing import NDArray

from edgefer.messages import Box, Detection, Image, Landmarks
from edgefer.vision.card import Metric
from edgefer.vision.detector import Detector
from edgefer.vision.embedder import Embedder, Embedding
from edgefer.vision.model import Model, find_model
from edgefer.vision.preprocess import TEMPLATE, TEMPLATE_SIZE, align

FALSE_ACCEPT_RATE = 1e-3
STEADIER_RATES = (3e-3, 1e-2)
"""Three of LFW's 3,000 pairs of strangers decide at 1 in 1,000, and so does chance between two alignments of a face."""

Floats = NDArray[np.float32]


def evaluate_embedding(model: Model, data: Path) -> list[Metric]:
    """Accuracy over LFW's ten folds, and the share of true pairs accepted where 1 in 1,000 false ones is.

    One pass a face, nothing averaged.
    """
    pack = open_pack(data / "lfw_pairs_112.npz", "pairs", "same", "fold")
    precision = precision_of(model.card)
    figures = pair_figures(embed_all(Embedder(model), pack), pack)
    return [
        Metric("LFW", f"{len(pack.fields['pairs']):,} pairs", name, round(value, 4), precision)
        for name, value in figures.items()
    ]


def pair_figures(vectors: Floats, pack: Pack, rates: Sequence[float] = (FALSE_ACCEPT_RATE,)) -> dict[str, float]:
    """LFW's figures, from an embedding an image; pairs with one that isn't known (NaN) are left out."""
    first, second = pack.fields["pairs"].T
    cosines = (vectors[first] * vectors[second]).sum(1)
    known = ~np.isnan(cosines)
    cosines, same, folds = cosines[known], pack.fields["same"][known].astype(bool), pack.fields["fold"][known]
    return {
        "accuracy": fold_accuracy(cosines, same, folds),
        **{
            f"TAR at FAR {rate:g}": float((cosines[same] > threshold_at(cosines[~same], rate)).mean()) for rate in rates
        },
    }


def evaluate_alignment(model: Model, data: Path, name: str) -> str:
    """What a detector's landmarks cost on LFW beside the alignment that its images came with; how far off they are.

    Each image is set in a larger picture, as fit_crop.py does, and goes through the daemon's own crop by both. Pairs
    with a face that isn't found are left out of both.
    """
    pack = open_pack(data / "lfw_pairs_112.npz", "pairs", "same", "fold")
    embedder, detector = Embedder(model), Detector(Model(find_model(name), "detector"))
    given, own = np.full((2, len(pack), embedder.size), np.nan, np.float32)
    off = []
    for i in range(len(pack)):
        picture, frame = place(pack.picture(i), SIZES[i % len(SIZES)])
        found = best(detector(picture), frame)
        if found and found.landmarks:
            true = replace(found, box=frame, landmarks=template_in(frame))
            given[i], own[i] = embedder(picture, true), embedder(picture, found)
            off.append(misalignment(template_in(frame), found.landmarks))
    found_both = ~np.isnan(own[pack.fields["pairs"], 0]).any(1)
    same, folds = pack.fields["same"].astype(bool), pack.fields["fold"]
    if any(len(np.unique(folds[found_both & kind])) < 2 for kind in (same, ~same)):
        return f"LFW: {name} finds {len(off)} of {len(pack)} faces: too few of their pairs to measure on"
    rates = (FALSE_ACCEPT_RATE, *STEADIER_RATES)
    columns = {"as given": pair_figures(given, pack, rates), f"by {name}": pair_figures(own, pack, rates)}
    lines = [f"LFW: {name} finds {len(off)} of {len(pack)} faces"]
    lines += [
        f"{figure}: " + ", ".join(f"{f[figure]:.4f} {c}" for c, f in columns.items()) for figure in columns["as given"]
    ]
    lines += ["its alignment is off, in the 112x112 template, by mean and standard deviation:"]
    units = ("turn, degrees", "scale", "right, px", "down, px")
    lines += [
        f"  {unit:14} {mean:7.3f} {sd:7.3f}"
        for unit, mean, sd in zip(units, np.mean(off, 0), np.std(off, 0), strict=True)
    ]
    return "\n".join(lines)


def template_in(frame: Box) -> Landmarks:
    """Where the landmarks of an aligned face stand in a picture that holds it enlarged."""
    scale = frame.width / TEMPLATE_SIZE
    points = TEMPLATE * scale + (frame.x, frame.y)
    return cast("Landmarks", tuple(map(tuple, points.tolist())))


def misalignment(true: Landmarks, found: Landmarks) -> tuple[float, float, float, float]:
    """How a face lies in its aligned crop beside how it should: turned (degrees), scaled, moved right and down (px)."""
    wanted, given = align(true), align(found)
    change = given[:, :2] @ np.linalg.inv(wanted[:, :2])
    middle = np.full(2, TEMPLATE_SIZE / 2)
    moved = change @ (middle - wanted[:, 2]) + given[:, 2] - middle
    turn = math.degrees(math.atan2(change[1, 0], change[0, 0]))
    return turn, math.hypot(change[0, 0], change[1, 0]), float(moved[0]), float(moved[1])


def embed_all(
    embed: Callable[[Image, Detection], Embedding], pack: Pack, rows: Sequence[int] | NDArray[np.intp] | None = None
) -> Floats:
    """The embeddings of a pack's aligned faces, all of them or some, n x size; through the crop of the model's card."""
    whole = Box(0, 0, TEMPLATE_SIZE, TEMPLATE_SIZE)
    face = Detection(whole, 1.0, template_in(whole))
    return np.stack([embed(pack.picture(int(i)), face) for i in (range(len(pack)) if rows is None else rows)])


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
