r"""Train the emotion model on FER2013: 48x48 gray in, seven probabilities out.

    python tools/train_emotion.py --out runs/emotion --epochs 40
    python tools/train_emotion.py --out runs/emotion --resume
    python tools/quantize.py runs/emotion/model.keras --card runs/emotion/card.json \
        --calibrate runs/emotion/calibrate.npy -o models/emotion-48.tflite
    python tools/fit_confidence.py models/emotion-48.json
    python tools/fit_crop.py models/emotion-48.json --detector far
    python tools/evaluate.py emotion models/emotion-48.json

Runs on any Keras backend (KERAS_BACKEND=torch is the fastest on a CPU, torch or jax on a GPU). PublicTest validates
while it runs; PrivateTest is never looked at here.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import backend  # noqa: F401  # before Keras
import cv2
import keras
import numpy as np
from data import DATA, Fer2013, load_fer2013
from keras import layers
from numpy.typing import NDArray

from edgefer.messages import Image
from edgefer.vision.card import Crop, ModelCard, ModelInput
from edgefer.vision.preprocess import normalise

SIZE = 48
INPUT = ModelInput(width=SIZE, height=SIZE, colour="gray", range=(0.0, 1.0))
WIDTHS = (24, 64, 128, 160)
"""Channels at 24x24, 12x12, 6x6 and 3x3: 26 million multiply-adds and 0.73 million parameters."""
VOTE_COLUMNS = (4, 5, 6, 1, 3, 2, 0)
"""Where FER+ (neutral, happiness, surprise, sadness, anger, disgust, fear, ...) has FER2013's seven labels."""
NOT_A_FACE = 9
LABEL_VOTES = 10.0
"""How many of FER+'s ten votes the original label is worth: what is reported is agreement with the original labels."""
CALIBRATION_IMAGES = 288

Floats = NDArray[np.float32]


def main() -> None:
    """Train, then leave in the run's folder what quantize.py needs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the research data (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/emotion"), help="the run's folder (%(default)s)")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.1, help="the highest learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the random start (default: the clock)")
    parser.add_argument("--limit", type=int, help="train and validate on this many images only: to try the script")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the run's folder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.resume:
        parser.set_defaults(**json.loads((arguments.out / "settings.json").read_text())["arguments"])
        arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)

    fer = load_fer2013(Path(arguments.data) / "fer2013")
    rows = training_rows(fer)[: arguments.limit]
    held = np.flatnonzero(fer.usage == 1)[: arguments.limit]
    batches = Batches(fer.images[rows], soft_targets(fer)[rows], arguments.batch, arguments.seed)
    validation = as_input(fer.images[held]), np.eye(len(fer.LABELS), dtype=np.float32)[fer.labels[held]]

    checkpoint, history = arguments.out / "checkpoint.keras", arguments.out / "history.json"
    if arguments.resume:
        model = keras.models.load_model(checkpoint)
        done = json.loads(history.read_text())
        # With another --epochs, the rest of the way down is steeper or flatter.
        model.optimizer.learning_rate = schedule(arguments.rate, len(batches) * arguments.epochs)
    else:
        model = build(len(fer.LABELS))
        compile_for(model, schedule(arguments.rate, len(batches) * arguments.epochs))
        done = []
    save_settings(arguments, model, len(rows), len(held))
    batches.epoch = len(done)
    model.fit(
        batches,
        validation_data=validation,
        validation_batch_size=256,
        initial_epoch=len(done),
        epochs=arguments.epochs,
        verbose=1 if sys.stdout.isatty() else 0,
        # Validation sees the averaged weights; training goes on from its own.
        callbacks=[keras.callbacks.SwapEMAWeights(), Keep(checkpoint, history, done, arguments.epochs)],
    )
    # fit() leaves the averaged weights in the model. The last epoch ships: the best of many on PublicTest flatters.
    settle(model, fer.images[rows])
    answer_as_labelled(model, fer.labels[rows], batches.targets)
    model.save(arguments.out / "model.keras")
    (arguments.out / "card.json").write_text(card(arguments, fer, len(rows)).to_json())
    chosen = np.random.default_rng(arguments.seed).choice(rows, min(CALIBRATION_IMAGES, len(rows)), replace=False)
    np.save(arguments.out / "calibrate.npy", fer.images[chosen][..., None])
    accuracy = model.evaluate(*validation, batch_size=256, verbose=0, return_dict=True)["accuracy"]
    print(f"{arguments.out / 'model.keras'}: PublicTest accuracy {accuracy:.4f} in float")


# The data


def training_rows(fer: Fer2013) -> NDArray[np.intp]:
    """The images to train on, in random but fixed order: those that are neither in a test split nor plainly no face."""
    tested = np.isin(fer.dup_group, fer.dup_group[fer.usage > 0])
    no_face = fer.votes_match & (fer.votes[:, NOT_A_FACE] > 5)
    return np.random.default_rng(0).permutation(np.flatnonzero((fer.usage == 0) & ~tested & ~no_face))


def soft_targets(fer: Fer2013) -> Floats:
    """What to learn, n x 7 that sum to 1: FER+'s votes and the original label, counted as LABEL_VOTES of them.

    Votes for contempt, "unknown" and "not a face" fall out, so that the label weighs more the less people knew; where
    the votes aren't the image's, the label stands alone.
    """
    votes = fer.votes[:, VOTE_COLUMNS] * fer.votes_match[:, None]
    shares: Floats = (votes + LABEL_VOTES * np.eye(len(fer.LABELS))[fer.labels]).astype(np.float32)
    shares /= shares.sum(1, keepdims=True)
    return shares


def as_input(images: Image) -> Floats:
    """Pixels, n x 48 x 48, as the model takes them: n x 48 x 48 x 1, in its range."""
    return normalise(images[..., None], INPUT)


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras has no types
    """Shuffled batches of augmented images and their targets, different every epoch."""

    def __init__(self, images: Image, targets: Floats, batch: int, seed: int) -> None:
        super().__init__(workers=1)
        self.images, self.targets = images, targets
        self.batch, self.seed, self.epoch = batch, seed, 0

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch)

    def __getitem__(self, index: int) -> tuple[Floats, Floats]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.images))
        rows = order[index * self.batch : (index + 1) * self.batch]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        return as_input(np.stack([augment(self.images[row], rng) for row in rows])), self.targets[rows]

    def on_epoch_end(self) -> None:
        """Shuffle and augment anew."""
        self.epoch += 1


def augment(image: Image, rng: np.random.Generator) -> Image:
    """Another picture of the same face: mirrored, turned, moved, scaled, lit otherwise, partly hidden.

    Mild, because 48x48 faces hold little to spare; moving and scaling reach what the crop around a detector's box is
    off by (5 % in position, 10 % in size).
    """
    turn, scale = rng.uniform(-12, 12), rng.uniform(0.88, 1.14)
    matrix = cv2.getRotationMatrix2D((SIZE / 2 - 0.5, SIZE / 2 - 0.5), turn, scale)
    matrix = matrix + np.array([[0, 0, rng.uniform(-3, 3)], [0, 0, rng.uniform(-3, 3)]])
    if rng.random() < 0.5:
        matrix = matrix @ np.array([[-1, 0, SIZE - 1], [0, 1, 0], [0, 0, 1]])
    moved = cv2.warpAffine(image, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    mean = moved.mean()
    lit = (moved - mean) * rng.uniform(0.7, 1.3) + mean + rng.uniform(-30, 30)
    if rng.random() < 0.25:
        width, height = rng.integers(6, 17, 2)
        x, y = rng.integers(0, SIZE - width), rng.integers(0, SIZE - height)
        lit[y : y + height, x : x + width] = rng.uniform(0, 255)
    return np.asarray(np.clip(lit, 0, 255), np.uint8)


# The model


def build(classes: int) -> keras.Model:
    """A small residual network of plain 3x3 convolutions and ReLU, which XNNPACK runs fast at int8."""
    image = keras.Input((SIZE, SIZE, 1), name="image")
    # 5x5 by steps of 2: half of what training would cost is in the layers at full size, for little gain.
    x = convolve(image, WIDTHS[0], kernel=5, stride=2)
    for stage, width in enumerate(WIDTHS):
        x = residual_block(x, width, stride=2 if stage else 1)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(image, layers.Dense(classes, activation="softmax", name="emotion")(x), name="emotion")


def residual_block(x: keras.KerasTensor, width: int, stride: int) -> keras.KerasTensor:
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""
    short = x if stride == 1 and x.shape[-1] == width else convolve(x, width, kernel=1, stride=stride, relu=False)
    x = convolve(x, width, stride=stride)
    x = convolve(x, width, relu=False)
    return layers.ReLU()(layers.Add()([short, x]))


def convolve(
    x: keras.KerasTensor, width: int, kernel: int = 3, stride: int = 1, relu: bool = True
) -> keras.KerasTensor:
    """A convolution with batch normalisation, and ReLU where asked for."""
    x = layers.Conv2D(width, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization(momentum=0.98)(x)
    return layers.ReLU()(x) if relu else x


def schedule(rate: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """A short warm-up, then a cosine down to zero."""
    warm_up = min(500, steps // 10)
    return keras.optimizers.schedules.CosineDecay(0.0, steps - warm_up, warmup_target=rate, warmup_steps=warm_up)


def compile_for(model: keras.Model, rates: keras.optimizers.schedules.LearningRateSchedule) -> None:
    """SGD with Nesterov's momentum, weight decay, and an average of the weights."""
    # Keras takes the decay beside the gradient, not through the momentum: 5e-3 is what others write as 5e-4.
    optimizer = keras.optimizers.SGD(rates, 0.9, nesterov=True, weight_decay=5e-3, use_ema=True, ema_momentum=0.998)
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"], jit_compile=False)


def settle(model: keras.Model, images: Image) -> None:
    """Take the means and variances of batch normalisation anew.

    Those of training belong to the weights before they were averaged, and to augmented images.
    """
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.97
    for start in range(0, min(len(images), 100 * 128), 128):
        model(as_input(images[start : start + 128]), training=True)


def answer_as_labelled(model: keras.Model, labels: NDArray[np.uint8], targets: Floats) -> None:
    """Shift the answers from how often the targets name each emotion to how often the original labels do.

    FER+'s voters said "neutral" far more often, and "fear" and "angry" less (Bayes' rule; 1.6 points on PublicTest).
    """
    named = np.bincount(labels, minlength=targets.shape[1]) / len(labels)
    last = model.get_layer("emotion")
    kernel, bias = last.get_weights()
    last.set_weights([kernel, bias + np.log(np.maximum(named, 1e-4) / np.maximum(targets.mean(0), 1e-4))])


# What is kept


class Keep(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """After every epoch: one line with the time left, the checkpoint, the history."""

    def __init__(self, checkpoint: Path, history: Path, done: list[dict[str, float]], epochs: int) -> None:
        super().__init__()
        self._checkpoint, self._history, self._done, self._epochs = checkpoint, history, done, epochs
        self._started = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Take the time."""
        self._started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write and tell."""
        seconds = time.monotonic() - self._started
        figures = {name: float(value) for name, value in (logs or {}).items()}
        self._done.append({**figures, "seconds": seconds})
        # Written aside first: a run that is stopped here still resumes.
        aside = self._checkpoint.with_name("writing.keras")
        self.model.save(aside)
        aside.replace(self._checkpoint)
        self._history.write_text(json.dumps(self._done, indent=1) + "\n")
        text = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        left = seconds * (self._epochs - epoch - 1) / 60
        print(f"epoch {epoch + 1}/{self._epochs}  {text}  {seconds:.0f} s, {left:.0f} min left", flush=True)


def save_settings(arguments: argparse.Namespace, model: keras.Model, trained_on: int, validated_on: int) -> None:
    """Keep and print what this run is."""
    settings = {
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items() if k != "resume"},
        "backend": keras.backend.backend(),
        "parameters": int(model.count_params()),
        "multiply_adds": multiply_adds(model),
        "trained_on": trained_on,
        "validated_on": validated_on,
        "commit": commit(),
    }
    (arguments.out / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")
    print(json.dumps(settings), flush=True)


def multiply_adds(model: keras.Model) -> int:
    """The multiply-adds of one image, in convolutions and dense layers."""
    weighted = [layer for layer in model.layers if isinstance(layer, layers.Conv2D | layers.Dense)]
    return sum(int(np.prod(layer.output.shape[1:-1])) * int(np.prod(layer.kernel.shape)) for layer in weighted)


def commit() -> str:
    """The commit that the script was run from."""
    result = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607  # git, from the path
    return result.stdout.strip()


def card(arguments: argparse.Namespace, fer: Fer2013, trained_on: int) -> ModelCard:
    """The model's card, before the quantiser and the evaluator add to it."""
    return ModelCard(
        schema="edgefer.model/1",
        name="emotion-48",
        version="2026.11",
        task="emotion",
        decoder="softmax",
        input=INPUT,
        crop=Crop("box"),
        labels=fer.LABELS,
        training={
            "command": f"KERAS_BACKEND={keras.backend.backend()} python tools/train_emotion.py "
            f"--epochs {arguments.epochs} --batch {arguments.batch} --rate {arguments.rate} --seed {arguments.seed}",
            "data": f"FER2013: {trained_on} training images (those byte-identical to a test image left out), "
            "their labels mixed half and half with FER+ votes",
            "seed": arguments.seed,
            "commit": commit(),
        },
        licence="LicenseRef-edgefer-models-research-only",
        intended_use="Telling the seven expressions of FER2013 on upright faces of about 48 pixels and more, as a "
        "signal to be smoothed over several frames. Not for judging a person, nor for decisions about people.",
        limits="An expression is not a feeling: people themselves agree with FER2013's labels about 65 % of the time. "
        "Fear, sadness and anger are often taken for each other; profiles, masks and strong shadows are read badly. "
        "Under min_confidence, chosen on PublicTest, an answer is more likely wrong than right: it counts as "
        "uncertain.",
    )


if __name__ == "__main__":
    main()
