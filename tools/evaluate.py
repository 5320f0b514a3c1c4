"""Measure a model on held-out data, as edgefer itself runs it, and write the figures into its card.

python tools/evaluate.py detector models/far.json
python tools/evaluate.py embedding models/identity-112.json
python tools/evaluate.py emotion models/emotion-48.json
python tools/evaluate.py gallery models/identity-112.json     # strangers given a name; a table, not for the card
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from data import DATA
from evaluate_detector import evaluate_detector
from evaluate_embedding import evaluate_embedding
from evaluate_emotion import evaluate_emotion
from evaluate_gallery import evaluate_gallery

from edgefer.vision.card import read_card
from edgefer.vision.model import Model

EVALUATORS = {"detector": evaluate_detector, "embedding": evaluate_embedding, "emotion": evaluate_emotion}


def main() -> None:
    """Print the figures of one model; keep them in its card unless asked not to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("task", choices=[*EVALUATORS, "gallery"])
    parser.add_argument("card", type=Path, help="the model's card; the .tflite lies beside it")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the research data (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="leave the card as it is")
    arguments = parser.parse_args()
    if arguments.task == "gallery":
        print(evaluate_gallery(Model(arguments.card.with_suffix(".tflite"), "embedding"), arguments.data))
        return
    model = Model(arguments.card.with_suffix(".tflite"), arguments.task)
    metrics = EVALUATORS[arguments.task](model, arguments.data)
    for metric in metrics:
        print(f"{metric.dataset:14} {metric.split:22} {metric.metric:28} {metric.value:8.4f}  {metric.precision}")
    if not arguments.dry_run:
        card = dataclasses.replace(read_card(arguments.card), metrics=tuple(metrics))
        arguments.card.write_text(card.to_json())


if __name__ == "__main__":
    main()
