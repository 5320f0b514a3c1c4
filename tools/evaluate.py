"""Measure a model on held-out data, as edgefer itself runs it, and write the figures into its card.

    python tools/evaluate.py detector models/far.json
    python tools/evaluate.py embedding models/identity-112.json
    python tools/evaluate.py embedding models/identity-112.json --detector far   # by its landmarks; not for the card
    python tools/evaluate.py gallery models/identity-112.json     # strangers given a name; a table, not for the card
    python tools/evaluate.py emotion models/emotion-48.json
    python tools/evaluate.py emotion mine.json --data faces/ --beside mine-float.json

A detector's figures come with a table by size of face; compare_detectors.py sets other people's detectors beside it.
An emotion model is measured on FER2013's PrivateTest, on the test/ of a folder tree, or on all of a tree without one.
--beside names a second card: its figures stand beside the first one's, and its card is left as it is. Those of a model
in float are kept in the first one's card too, as its original's.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from command_line import Parser, card_path, run
from compare_detectors import ours, table
from data import DATA
from evaluate_detector import evaluate_detector, held_out_people, validation_photos
from evaluate_embedding import evaluate_alignment, evaluate_embedding
from evaluate_emotion import evaluate_emotion
from evaluate_gallery import evaluate_gallery
from model_file import write_card

from edgefer.vision.card import Metric, ModelCard, read_card
from edgefer.vision.model import Model

EVALUATORS: dict[str, Callable[[Model, Path], list[Metric]]] = {
    "detector": evaluate_detector,
    "embedding": evaluate_embedding,
    "emotion": evaluate_emotion,
}


def main() -> None:
    """Print the figures of one model; keep them in its card unless asked not to."""
    parser = Parser(__doc__)
    parser.add_argument("task", choices=[*EVALUATORS, "gallery"])
    parser.add_argument("card", type=card_path, help="the model's card, its .tflite, or the name of one that ships")
    parser.add_argument("--data", type=Path, default=DATA, help="the research data, or faces (%(default)s)")
    parser.add_argument("--beside", type=card_path, metavar="CARD", help="a second model, measured on the same data")
    parser.add_argument("--detector", help="embedding: the detector (name or .tflite) whose landmarks are to align LFW")
    parser.add_argument("--dry-run", action="store_true", help="leave the card as it is")
    arguments = parser.parse_args()
    if arguments.beside and arguments.task == "gallery":
        parser.error("--beside is for figures; gallery prints a table of one model")
    if arguments.detector and (arguments.task != "embedding" or arguments.beside):
        parser.error("--detector goes with embedding alone, and one model")
    if arguments.task == "gallery":
        print(evaluate_gallery(Model(arguments.card.with_suffix(".tflite"), "embedding"), arguments.data))
        return
    if arguments.detector:
        model = Model(arguments.card.with_suffix(".tflite"), "embedding")
        print(evaluate_alignment(model, arguments.data, arguments.detector))
        return
    models = [Model(card.with_suffix(".tflite"), arguments.task) for card in (arguments.card, arguments.beside) if card]
    both = len(models) == 2 and is_float_of(models[1].card, models[0].card)
    if both:  # temperature and thresholds were fitted to the first
        first = models[0].card
        models[1].card = dataclasses.replace(models[1].card, temperature=first.temperature, thresholds=first.thresholds)
    measured = [EVALUATORS[arguments.task](model, arguments.data) for model in models]
    if arguments.task == "detector":
        cards = [card for card in (arguments.card, arguments.beside) if card]
        people, photos = held_out_people(arguments.data), validation_photos(arguments.data)
        print(table([ours(card) for card in cards], people, photos))
    figures: dict[tuple[str, str, str], list[str]] = {}
    for number, metrics in enumerate(measured):
        for metric in metrics:
            # A label that only one of them knows leaves the other's place empty.
            told = figures.setdefault((metric.dataset, metric.split, metric.metric), [" " * 17] * len(measured))
            told[number] = f"{metric.value:8.4f} {metric.precision:8}"
    for (dataset, split, name), told in figures.items():
        print(f"{dataset:14} {split:22} {name:28} {'  '.join(told)}".rstrip())
    if not arguments.dry_run:
        card = read_card(arguments.card)
        new = [*measured[0], *(measured[1] if both else ())]
        # Figures of other data, or of another precision, stay.
        anew = {(metric.dataset, metric.split, metric.precision) for metric in new}
        kept = [metric for metric in card.metrics if (metric.dataset, metric.split, metric.precision) not in anew]
        write_card(arguments.card, dataclasses.replace(card, metrics=(*new, *kept)))


def is_float_of(other: ModelCard, card: ModelCard) -> bool:
    """Whether a card is of the same model as another's, converted with `--precision float32`."""
    in_float = {**card.training, "precision": "float32"}
    alike = (other.input, other.labels, other.training) == (card.input, card.labels, in_float)
    return alike and card.training != in_float


if __name__ == "__main__":
    sys.exit(run(main))
