"""Set the thresholds and the margin in an embedding model's card, on CelebA people whom it never learned from.

The card says which rate of strangers each stands for, as a metric.

    python tools/fit_threshold.py models/identity-112.json

Where 50 people are enrolled by three pictures each, 1 in 2,000 strangers is given a name by a picture alone, at
`match`, and 1 in 4,000 by a track that looks five times, at `track`: tracks tell people apart so much better that
little is lost by it, and a daemon sees the same strangers again and again. Half of the people whom train_embedding.py
holds out are enrolled, other ones each time. The strangers are the other half, who were photographed alike, and in
pictures as many grown-up faces of UTKFace. Children look so much alike to a small model that a threshold for them would
find hardly anybody.

So few people have no more than one or two strangers whom one in thousands of looks is like: who comes nearest says
little. How the nearest hundredth falls off says more, and is carried on to the rate that is wanted.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from itertools import accumulate
from pathlib import Path

import numpy as np
from command_line import Parser, card_path, run
from data import DATA, held_out, open_pack
from evaluate_embedding import Floats, embed_all, threshold_at
from evaluate_gallery import gallery_of
from measured import precision_of
from model_file import write_card

from edgefer.errors import InputError
from edgefer.gallery import Match
from edgefer.identify import MEMORY, MIN_READINGS
from edgefer.vision.card import Metric, read_card
from edgefer.vision.embedder import Embedder, units
from edgefer.vision.model import Model

STRANGERS_NAMED = {"match": 5e-4, "track": 2.5e-4}
"""What share of them each threshold may let pass."""
PEOPLE, SHOTS, LOOKS = 50, 3, 5
FEWEST = 4
"""People held out, of whom half are enrolled: with one alone, nobody has a margin."""
DATASET = "CelebA and UTKFace"
AIMS = {name: f"aim of {name}: strangers named, {PEOPLE} people by {SHOTS} pictures" for name in STRANGERS_NAMED}
TAIL = 0.01
"""The share of strangers, those who come nearest, whose similarities are taken to fall off exponentially."""
DRAWS = 600
"""Of 100, the tracks' threshold moved by 0.02 (a standard deviation) with the seed."""
GROWN_UP = 16
"""Years."""
MARGIN = 0.05
"""The second person must be this much further: a stranger's similarities to two seldom differ less by chance alone."""


def main() -> None:
    """Measure, print, and write the card."""
    parser = Parser(__doc__)
    parser.add_argument("card", type=card_path, help="the model's card, its .tflite, or the name of one that ships")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the research data (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="leave the card as it is")
    arguments = parser.parse_args()
    card = read_card(arguments.card)
    precision = precision_of(card)
    embedder = Embedder(Model(arguments.card.with_suffix(".tflite"), "embedding"))
    celeba = open_pack(arguments.data / "celeba_wild_id_112.npz", "ids")
    apart = np.flatnonzero(held_out(celeba))
    faces, templates = (embed_all(embed, celeba, apart) for embed in (embedder, embedder.template))
    utk = open_pack(arguments.data / "utk_112.npz", "age")
    grown_up = embed_all(embedder, utk, np.flatnonzero(utk.fields["age"] >= GROWN_UP))
    ids = celeba.fields["ids"][apart]
    people = {str(one): np.flatnonzero(ids == one) for one in np.unique(ids)}
    most = max(map(len, people.values()))
    if len(people) < FEWEST or not len(grown_up) or most < LOOKS:
        raise InputError(
            f"{celeba.name}: {len(people)} people are held out, with {most} faces at most, and {utk.name} has "
            f"{len(grown_up)} grown-ups: {FEWEST} people, {LOOKS} faces and some grown-ups are wanted"
        )
    rng = np.random.default_rng(1)
    nearest, tracked, own = [], [], []
    for _ in range(DRAWS):
        half = rng.permutation(list(people))[: len(people) // 2].tolist()
        orders = {name: rng.permutation(people[name]) for name in half}
        others = [faces[rng.permutation(rows)] for name, rows in people.items() if name not in half]
        alike = np.concatenate(others)
        strangers = [*alike, *rng.choice(grown_up, len(alike))]
        with gallery_of({name: templates[rows[:SHOTS]] for name, rows in orders.items()}) as gallery:
            nearest += [similarity(gallery.match(face)) for face in strangers]
            for of in others:
                for start in range(0, len(of) - LOOKS + 1, LOOKS):
                    means = decided_on(of[start : start + LOOKS])
                    tracked.append(max(similarity(gallery.match(mean)) for mean in means))
            own += [similarity(gallery.match(faces[row]), name) for name, of in orders.items() for row in of[SHOTS:]]
    # With fewer people enrolled, fewer strangers may be named.
    fewer = len(people) // 2 / PEOPLE
    seen = {"match": np.array(nearest), "track": np.array(tracked)}
    if any(threshold_at(similarities, TAIL) <= -1 for similarities in seen.values()):
        raise InputError(
            f"{arguments.card}: nearly all strangers are as near to two people: it tells no faces apart; is its card's "
            "input.range right?"
        )
    thresholds = {name: round(beyond(seen[name], rate * fewer), 3) for name, rate in STRANGERS_NAMED.items()}
    print(f"{len(people) // 2} people enrolled, {len(nearest)} pictures of strangers, {len(tracked)} tracks of theirs:")
    for name, threshold in thresholds.items():
        print(f"{name} {threshold}, where 1 stranger in {1 / STRANGERS_NAMED[name]:,.0f} is named")
    print(f"{np.mean(np.array(own) > thresholds['match']):.1%} of the people's other pictures are found")
    if arguments.dry_run:
        return
    stated = [Metric(DATASET, "held out", AIMS[name], rate, precision) for name, rate in STRANGERS_NAMED.items()]
    kept = [metric for metric in card.metrics if metric.dataset != DATASET]
    card = dataclasses.replace(card, thresholds=thresholds | {"margin": MARGIN}, metrics=(*kept, *stated))
    write_card(arguments.card, card)


def decided_on(looks: Floats) -> list[Floats]:
    """What a track is decided on, first and after each further look: the mean of its looks, as edgefer weighs them.

    They are one person's, and each is like the others enough not to be taken for somebody else.
    """
    decay = np.float32(MEMORY)
    sums = list(accumulate(looks, lambda kept, look: kept * decay + look))
    return [units(of) for of in sums[MIN_READINGS - 1 :]]


def beyond(strangers: Floats, rate: float) -> float:
    """The similarity that this share of strangers would exceed, if those in the tail fall off exponentially."""
    start = threshold_at(strangers, TAIL)
    return start + float((strangers[strangers > start] - start).mean()) * math.log(TAIL / rate)


def similarity(match: Match | None, name: str | None = None) -> float:
    """How near somebody came (to one person); -1 where the second one is too near, or it is another."""
    assert match is not None  # somebody is enrolled
    clear = (match.margin or 0) >= MARGIN and name in (None, match.name)
    return match.similarity if clear else -1.0


if __name__ == "__main__":
    sys.exit(run(main))
