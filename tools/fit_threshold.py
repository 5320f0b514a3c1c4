"""Set the threshold and the margin in an embedding model's card, on CelebA people whom it never learned from.

    python tools/fit_threshold.py models/identity-112.json

At the threshold, 1 in 1,000 strangers is given a name where 50 people are enrolled by three pictures each: a stranger
is compared with 150 templates, so only one in 150,000 pairs of strangers may exceed it. The pairs are the faces of the
held-out people against each other, and against the grown-up ones of UTKFace: children look so much alike to a small
model that a threshold for them would find hardly anybody.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from data import DATA, open_pack
from evaluate_embedding import embed_all, threshold_at
from train_embedding import held_out

from edgefer.vision.card import read_card
from edgefer.vision.embedder import Embedder
from edgefer.vision.model import Model

STRANGERS_NAMED, TEMPLATES = 1e-3, 150
GROWN_UP = 16
"""Years."""
MARGIN = 0.05
"""The second person must be this much further: strangers' cosines to two people seldom differ less by chance alone."""


def main() -> None:
    """Measure, print, and write the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("card", type=Path, help="the model's card; the .tflite lies beside it")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the research data (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="leave the card as it is")
    arguments = parser.parse_args()
    embedder = Embedder(Model(arguments.card.with_suffix(".tflite"), "embedding"))
    celeba = open_pack(arguments.data / "celeba_wild_id_112.npz")
    apart = held_out(celeba)
    people, ids = embed_all(embedder, celeba)[apart], celeba.fields["ids"][apart]
    utk = open_pack(arguments.data / "utk_112.npz")
    others = embed_all(embedder, utk)[utk.fields["age"] >= GROWN_UP]
    cosines = people @ people.T
    upper = np.triu(np.ones_like(cosines, bool), 1)
    same = ids[:, None] == ids[None]
    strangers = np.concatenate([cosines[upper & ~same], (people @ others.T).ravel()])
    threshold = round(threshold_at(strangers, STRANGERS_NAMED / TEMPLATES), 3)
    accepted = float((cosines[upper & same] > threshold).mean())
    print(f"{len(strangers)} pairs of strangers: one in {TEMPLATES / STRANGERS_NAMED:.0f} over {threshold}")
    print(f"{int((upper & same).sum())} pairs of one person: {accepted:.1%} of them over {threshold}")
    if arguments.dry_run:
        return
    card = read_card(arguments.card)
    card = dataclasses.replace(card, thresholds={"match": threshold, "margin": MARGIN})
    arguments.card.write_text(card.to_json())


if __name__ == "__main__":
    main()
