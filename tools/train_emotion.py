r"""Train an emotion model: 48x48 gray in, a probability for each class out.

    python tools/train_emotion.py --arch faces --start runs/embedding/model.keras --out runs/faces --epochs 40
    python tools/train_emotion.py --start runs/faces/model.keras --out runs/emotion --epochs 40
    python tools/train_emotion.py --data faces/ --classes angry,happy,neutral,sad,surprise --arch little-vgg
    python tools/train_emotion.py --out runs/emotion --resume
    python tools/quantize.py runs/emotion/model.keras --card runs/emotion/card.json \
        --calibrate runs/emotion/calibrate.npy -o models/emotion-48.tflite
    python tools/fit_confidence.py models/emotion-48.json
    python tools/fit_crop.py models/emotion-48.json --detector far
    python tools/evaluate.py emotion models/emotion-48.json

faces/ is a folder tree (faces/train/happy/*.jpg, faces/test/happy/*.jpg), or holds fer2013.csv (with FER+'s
fer2013new.csv beside it, if you have it). The validation split is PublicTest, val/, or else a tenth of train/; test
images are never looked at here, and training images that are byte-identical to one are left out.

Runs on any Keras backend (KERAS_BACKEND=torch is the fastest on a CPU, torch or jax on a GPU).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path

import backend  # before Keras
import cv2
import keras
import numpy as np
from batches import WORKERS, Batch, Batches, Make
from command_line import Parser, count, run
from data import DATA
from emotion_faces import GRAY_48, TRAIN, VALIDATION, VOTE_OF, Faces, find_faces
from emotion_networks import NETWORKS, SIZE, Network
from emotion_plots import plot_confusion, plot_curves
from emotion_teachers import Teachers, as_input, pairs_mixed, unlabelled
from evaluate_emotion import confusion_matrix
from former_network import go_on_from
from keras import layers
from model_file import write_card
from numpy.typing import NDArray
from training import (
    BFLOAT16,
    START,
    begin,
    beginning,
    best,
    check_new,
    checkpoint,
    commit,
    fit,
    kept_settings,
    rebuilt,
    resume,
)

from edgefer.errors import InputError
from edgefer.messages import Image
from edgefer.vision.card import ModelCard, read_card
from edgefer.vision.model import find_card

NOT_A_FACE = 9
LABEL_VOTES = 10.0
"""How many of FER+'s ten votes the original label is worth: what is reported is agreement with the original labels."""
LEAST_FOUND, MOST_LOST = 0.48, 0.005
"""What share of each emotion's validation images is to be found, and what accuracy that may cost."""
STEP, MOST_STEPS = 0.05, 200
"""How the answers are shifted towards it: nothing found after all of these is never found."""
DIVERGED = "the network's answers are no numbers: the training diverged; take a lower --rate and another --out"
CALIBRATION_IMAGES = 1024
"""A quarter calibrates, the others check."""

Floats = NDArray[np.float32]


def main() -> None:
    """Train, then leave in the run's folder what quantize.py needs."""
    parser = Parser(__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="the faces, as told above (%(default)s)")
    parser.add_argument("--classes", metavar="a,b,...", help="which labels, in this order (default: all)")
    parser.add_argument("--arch", choices=NETWORKS, default="edgefer", help="the network (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/emotion"), help="the run's folder (%(default)s)")
    parser.add_argument("--epochs", type=count, default=40, help="%(default)s at most")
    parser.add_argument("--batch", type=count, default=128, help="images a step (%(default)s)")
    parser.add_argument("--rate", type=float, help="the highest learning rate (default: the network's)")
    parser.add_argument(
        "--seed", type=partial(count, least=0), default=1, help="of the random start and all that chance has a part in"
    )
    parser.add_argument("--workers", type=count, default=WORKERS, help="processes that make batches (%(default)s)")
    parser.add_argument("--limit", type=count, help="train and validate on this many images only: to try the script")
    parser.add_argument("--start", type=Path, nargs="*", default=[], help=START)
    parser.add_argument(
        "--teacher",
        type=Path,
        nargs="*",
        default=[],
        help="models whose answers are half of what is learnt: each a .tflite with its card",
    )
    parser.add_argument(
        "--faces",
        type=Path,
        nargs="*",
        default=[],
        help="more faces without labels, packed by align_faces.py, to learn the teachers' answers on",
    )
    parser.add_argument(
        "--mixed",
        type=partial(count, least=0),
        default=0,
        help="faces made of two training images each, to learn the teachers' answers on (%(default)s)",
    )
    parser.add_argument("--bfloat16", action="store_true", help=BFLOAT16)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the run's folder")
    arguments = parser.parse_args()
    if arguments.resume:
        kept = kept_settings(arguments.out, "arguments")
        parser.set_defaults(**kept["arguments"])
        arguments = parser.parse_args()
    else:
        check_new(checkpoint(arguments.out))
    faces = find_faces(Path(arguments.data), arguments.classes.split(",") if arguments.classes else ())
    if arguments.resume and tuple(kept["classes"]) != faces.names:
        was, now = ", ".join(kept["classes"]), ", ".join(faces.names)
        raise InputError(
            f"--resume: {arguments.out} learns {was}, and now it would be {now}; begin anew in another --out"
        )
    train(arguments, faces)


def train(arguments: argparse.Namespace, faces: Faces) -> None:
    """Train one network, and write the model, its card, what calibrates it, and what it looks like."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    begin(arguments.seed)
    network = NETWORKS[arguments.arch]
    rows, held = split(faces)
    if unseen := [name for label, name in enumerate(faces.names) if not (faces.labels[rows] == label).any()]:
        raise InputError(
            f"{arguments.data}: no image of {', '.join(unseen)} to train on; leave that out with --classes "
            f"{','.join(name for name in faces.names if name not in unseen)}, or put some there"
        )
    rows, held = rows[: arguments.limit], held[: arguments.limit]
    if not len(rows) or not len(held):
        raise InputError(f"{arguments.data}: {len(rows)} images to train on and {len(held)} to validate on")
    targets = soft_targets(faces) if network.votes else np.eye(len(faces.names), dtype=np.float32)[faces.labels]
    images, targets = faces.images[rows], targets[rows]
    teachers = Teachers([Path(path) for path in arguments.teacher], faces.names) if arguments.teacher else None
    if arguments.faces or arguments.mixed:
        if not teachers:
            raise InputError("--faces and --mixed ones have no labels: name models that answer for them with --teacher")
        more = [pairs_mixed(faces.images[rows], faces.labels[rows], arguments.mixed, arguments.seed)]
        if arguments.faces:
            more.append(unlabelled([Path(path) for path in arguments.faces], teachers, arguments.out))
        images = np.concatenate([images, *more])
        targets = np.pad(targets, ((0, len(images) - len(targets)), (0, 0)))
    if teachers:
        targets = teachers.half_of(targets, images, arguments.out)
    batches = Batches(maker(images, targets), len(images), arguments.batch, arguments.seed, arguments.workers)
    validation = as_input(faces.images[held]), np.eye(len(faces.names), dtype=np.float32)[faces.labels[held]]

    rates = network.rates(arguments.rate or network.rate, len(batches) * arguments.epochs)

    def build() -> keras.Model:
        return network.build(len(faces.names))

    model, done = build(), []
    goes_on = arguments.resume and checkpoint(arguments.out).is_file()
    if arguments.start and not goes_on:
        starts = [Path(start) for start in arguments.start]
        check_labels(starts, faces.names)
        go_on_from(starts, model, validation[0])
    model = rebuilt(model, build, bfloat16=arguments.bfloat16)
    optimizer = network.optimizer(rates)  # with another --epochs, the rest of the way down is steeper or flatter
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"], jit_compile=backend.COMPILE)
    if goes_on:
        done = resume(model, arguments.out)
        optimizer.learning_rate = rates  # a checkpoint keeps a steady one
    save_settings(arguments, model, faces.names, len(rows), len(held))
    callbacks: list[keras.callbacks.Callback] = []
    if network.averages:
        # Validation sees the averaged weights; training goes on from its own.
        callbacks.append(keras.callbacks.SwapEMAWeights())
    fit(model, batches, validation, arguments.out, done, arguments.epochs, callbacks, network.patience)
    if network.patience is not None:
        if not best(arguments.out).is_file():
            raise InputError(DIVERGED)
        model = keras.models.load_model(best(arguments.out))
    model = rebuilt(model, build, bfloat16=False)
    # fit() leaves the averaged weights in the model. The last epoch ships: the best of many on PublicTest flatters.
    if network.averages:
        settle(model, faces.images[rows])
    if not np.isfinite(model.predict(validation[0], batch_size=256, verbose=0)).all():
        raise InputError(DIVERGED)
    if network.votes:
        shift(model, validation[0], faces.labels[held])
    model.save(arguments.out / "model.keras")
    write_card(arguments.out / "card.json", card(arguments, network, faces, len(rows)))
    chosen = np.random.default_rng(arguments.seed).choice(rows, min(CALIBRATION_IMAGES, len(rows)), replace=False)
    np.save(arguments.out / "calibrate.npy", faces.images[chosen][..., None])
    answers = model.predict(validation[0], batch_size=256, verbose=0).argmax(1)
    plot_confusion(
        confusion_matrix(faces.labels[held], answers, len(faces.names)), faces.names, arguments.out / "confusion.png"
    )
    plot_curves(done, arguments.out / "curves.png")
    accuracy = (answers == faces.labels[held]).mean()
    print(f"{arguments.out / 'model.keras'}: accuracy {accuracy:.4f} on the {len(held)} validation images, in float")


# The data


def split(faces: Faces) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The images to train on, in random but fixed order, and those to validate on.

    What is byte-identical to a validation or test image isn't trained on, nor what is plainly no face.
    """
    held = faces.rows(VALIDATION)
    kept_out = faces.usage != TRAIN
    kept_out[held] = True
    tested = np.isin(faces.dup_group, faces.dup_group[kept_out])
    no_face = faces.votes_match & (faces.votes[:, NOT_A_FACE] > 5)
    rows = np.flatnonzero((faces.usage == TRAIN) & ~tested & ~no_face)
    rng = np.random.default_rng(0)
    return rng.permutation(rows), rng.permutation(held)


def soft_targets(faces: Faces) -> Floats:
    """What to learn, n x classes that sum to 1: FER+'s votes and the original label, counted as LABEL_VOTES of them.

    Votes for other classes, "unknown" and "not a face" fall out, so that the label weighs more the less people knew;
    where the votes aren't the image's, the label stands alone.
    """
    votes = np.zeros((len(faces.labels), len(faces.names)))
    for number, name in enumerate(faces.names):
        if name in VOTE_OF:
            votes[:, number] = faces.votes[:, VOTE_OF[name]] * faces.votes_match
    shares: Floats = (votes + LABEL_VOTES * np.eye(len(faces.names))[faces.labels]).astype(np.float32)
    shares /= shares.sum(1, keepdims=True)
    return shares


def maker(images: Image, targets: Floats) -> Make:
    """What makes a batch of augmented images and their targets."""

    def make(rows: NDArray[np.intp], rng: np.random.Generator) -> Batch:
        return as_input(np.stack([augment(images[row], rng) for row in rows])), targets[rows]

    return make


def augment(image: Image, rng: np.random.Generator) -> Image:
    """Another picture of the same face: mirrored, turned, moved, scaled, lit otherwise, partly hidden.

    Mild, because 48x48 faces hold little to spare; moving and scaling reach what the crop around a detector's box is
    off by (5 % in position, 10 % in size).
    """
    turn, scale, (right, down) = rng.uniform(-12, 12), rng.uniform(0.88, 1.14), rng.uniform(-3, 3, 2)
    # Between pixels, sampling blurs: FER2013's own images are sharp, a camera's crops less so.
    sampling = cv2.INTER_LINEAR if rng.random() < 0.3 else cv2.INTER_LANCZOS4
    if rng.random() < 0.2:
        turn, scale, right, down = 0.0, 1.0, round(right), round(down)
    matrix = cv2.getRotationMatrix2D((SIZE / 2 - 0.5, SIZE / 2 - 0.5), turn, scale)
    matrix = matrix + np.array([[0, 0, right], [0, 0, down]])
    if rng.random() < 0.5:
        matrix = matrix @ np.array([[-1, 0, SIZE - 1], [0, 1, 0], [0, 0, 1]])
    moved = cv2.warpAffine(image, matrix, (SIZE, SIZE), flags=sampling, borderMode=cv2.BORDER_REPLICATE)
    mean = moved.mean()
    lit = (moved - mean) * rng.uniform(0.7, 1.3) + mean + rng.uniform(-30, 30)
    if rng.random() < 0.25:
        width, height = rng.integers(6, 17, 2)
        x, y = rng.integers(0, SIZE - width), rng.integers(0, SIZE - height)
        lit[y : y + height, x : x + width] = rng.uniform(0, 255)
    return np.asarray(np.clip(lit, 0, 255), np.uint8)


# The model


def check_labels(starts: Sequence[Path], names: tuple[str, ...]) -> None:
    """InputError where a former model tells other emotions than those to learn."""
    for path in starts:
        cards = (path.with_suffix(".json"), path.parent / "card.json")
        told = next((read_card(card).labels for card in cards if card.is_file()), ())
        if told and told != names:  # an embedding tells none
            raise InputError(f"--start: {path} tells {', '.join(told)}, and what is learnt is {', '.join(names)}")


def settle(model: keras.Model, images: Image) -> None:
    """Take the means and variances of batch normalisation anew.

    Those of training belong to the weights before they were averaged, and to augmented images.
    """
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    images = images[: 100 * 128]
    for start in range(0, len(images), 128):
        some = images[start : start + 128]
        for norm in norms:
            norm.momentum = start / (start + len(some))  # the plain mean over all images
        model(as_input(some), training=True)


def shift(model: keras.Model, images: Floats, labels: NDArray[np.intp]) -> None:
    """Shift the answers, by a bias for each class, so that rare and hard emotions aren't sacrificed.

    First each is answered as much as it is labelled, in all and by its probability, where an image counts by one over
    the root of how many there are of its class: FER+'s voters said "neutral" far more often than the labels do. Then
    the emotion that is found least is raised until LEAST_FOUND of its images are, or MOST_LOST is lost.
    """
    last = model.get_layer("emotion")
    scores = np.log(model.predict(images, batch_size=256, verbose=0) + 1e-9)
    each = np.bincount(labels, minlength=scores.shape[1])
    root = np.sqrt(np.maximum(each, 1))
    bias = np.zeros(len(each))
    for _ in range(100):
        answers = np.exp(scores + bias)
        bias += np.log(root / ((1 / root[labels]) @ (answers / answers.sum(1, keepdims=True))))
    right = (scores + bias).argmax(1) == labels
    enough = right.mean() - MOST_LOST
    for _ in range(MOST_STEPS):
        found = np.bincount(labels, right, len(each)) / np.maximum(each, 1)
        least = np.where(each, found, 1).argmin()
        raised = bias + STEP * (np.arange(len(each)) == least)
        right = (scores + raised).argmax(1) == labels
        if found[least] >= LEAST_FOUND or right.mean() < enough:
            break
        bias = raised
    kernel, own = last.get_weights()
    last.set_weights([kernel, own + bias - bias.mean()])


# What is kept


def save_settings(
    arguments: argparse.Namespace, model: keras.Model, names: tuple[str, ...], trained_on: int, validated_on: int
) -> None:
    """Keep and print what this run is."""
    settings = {
        "arguments": {k: v for k, v in vars(arguments).items() if k != "resume"},
        "classes": names,
        "backend": keras.backend.backend(),
        "parameters": int(model.count_params()),
        "multiply_adds": multiply_adds(model),
        "trained_on": trained_on,
        "validated_on": validated_on,
        "commit": commit(),
    }
    (arguments.out / "settings.json").write_text(json.dumps(settings, indent=1, default=str) + "\n")
    print(json.dumps(settings, default=str), flush=True)


def multiply_adds(model: keras.Model) -> int:
    """The multiply-adds of one image, in convolutions and dense layers."""
    weighted = [layer for layer in model.layers if isinstance(layer, layers.Conv2D | layers.Dense)]
    return sum(int(np.prod(layer.output.shape[1:-1])) * int(np.prod(layer.kernel.shape)) for layer in weighted)


def card(arguments: argparse.Namespace, network: Network, faces: Faces, trained_on: int) -> ModelCard:
    """The model's card, before the quantiser and the evaluator add to it."""
    asked = "".join(
        f" --{name} {value}"
        for name, value, default in (
            ("data", arguments.data, DATA),
            ("classes", arguments.classes, None),
            ("arch", arguments.arch, "edgefer"),
            ("start", " ".join(map(str, arguments.start)), ""),
            ("teacher", " ".join(map(str, arguments.teacher)), ""),
            ("faces", " ".join(map(str, arguments.faces)), ""),
            ("mixed", arguments.mixed, 0),
            ("limit", arguments.limit, None),
        )
        if str(value) != str(default)
    )
    asked += " --bfloat16" * arguments.bfloat16
    of_fer2013 = faces.is_fer2013
    return ModelCard(
        schema="edgefer.model/1",
        name=arguments.out.resolve().name,
        version=f"{date.today():%Y.%m}",  # whose month it is doesn't matter
        task="emotion",
        decoder="softmax",
        input=GRAY_48,
        crop=find_card("emotion-48").crop,
        labels=faces.names,
        training={
            "command": f"KERAS_BACKEND={keras.backend.backend()} python tools/train_emotion.py{asked} "
            f"--epochs {arguments.epochs} --batch {arguments.batch} --rate {arguments.rate or network.rate} "
            f"--seed {arguments.seed}",
            "data": learnt_from(arguments, network, faces, trained_on),
            "seed": arguments.seed,
            "commit": commit(),
        },
        # What is learnt from another model, or with it as a start, is no freer than that.
        licence="LicenseRef-edgefer-models-research-only" if of_fer2013 or arguments.start or arguments.teacher else "",
        intended_use=f"Telling {len(faces.names)} expressions on upright faces of about 48 pixels and more, as a "
        "signal to be smoothed over several frames. Not for judging a person, nor for decisions about people.",
        limits="An expression is not a feeling: people themselves agree with FER2013's labels about 65 % of the time. "
        "Fear, sadness and anger are often taken for each other; profiles, masks and strong shadows are read badly. "
        "Under min_confidence, chosen on PublicTest, an answer is more likely wrong than right: it counts as "
        "uncertain."
        if of_fer2013
        else "An expression is not a feeling. Profiles, masks and strong shadows are read badly.",
    )


def learnt_from(arguments: argparse.Namespace, network: Network, faces: Faces, trained_on: int) -> str:
    """What the card tells of the data."""
    source = "FER2013" if faces.is_fer2013 else Path(arguments.data).resolve().name
    parts = [f"{source}: {trained_on} training images (those byte-identical to a test image left out)"]
    if network.votes and faces.votes.any():
        parts.append("their labels mixed half and half with FER+ votes")
    if arguments.teacher:
        parts.append(f"and that with the answers of {', '.join(Path(path).stem for path in arguments.teacher)}")
    also = []
    if arguments.faces:
        also.append(f"faces without labels of {', '.join(Path(path).stem for path in arguments.faces)}")
    if arguments.mixed:
        also.append(f"{arguments.mixed} faces made of two training images each")
    if also:
        parts.append(f"which were also learnt for {' and for '.join(also)}")
    if arguments.start:
        parts.append(beginning(arguments.start))
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(run(main))
