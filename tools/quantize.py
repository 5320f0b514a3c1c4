r"""Turn a Keras model, whoever's and however old, into an int8 TFLite file with its card, and check it.

    python tools/quantize.py emotions.hdf5 -o mine.tflite --calibrate faces/ --range -1 1 \
        --labels angry,disgust,fear,happy,sad,surprise,neutral
    EDGEFER_EMOTION__MODEL=$PWD/mine.tflite edgefer run

faces/ holds crops of faces: a folder of pictures, a tree with a folder a class (train/happy/1.jpg), a fer2013.csv, or
an .npz or .npy of uint8 pictures. Some calibrate the int8 file; others, held out, compare it with the original. Where
they are labelled, accuracy is told too.

Exit codes: 0 written; 1 converted, but it agrees too little, so nothing was written; 64 usage; 65 the model can't be
converted; 66 a file is missing or isn't what it should be; 69 TensorFlow isn't installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import sys
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import get_args

import numpy as np
from agreement import Comparison, accuracy, compare, run_original, run_tflite, signal_to_noise_db
from calibration_pictures import Labels, Pictures, check_there, read_pictures
from command_line import Parser, count, run
from emotion_faces import label_name
from keras_models import ConversionError, Floats, KerasModel, quiet, read_model, weights_beside
from model_file import loaded, write_model

from edgefer.errors import UsageError
from edgefer.messages import Image
from edgefer.vision.card import (
    DECODERS,
    Colour,
    Crop,
    Decoder,
    ModelCard,
    ModelInput,
    Precision,
    Task,
    check_card,
    read_card,
)
from edgefer.vision.detector import Detector
from edgefer.vision.embedder import Embedder
from edgefer.vision.emotion import EmotionReader
from edgefer.vision.model import find_card
from edgefer.vision.preprocess import to_floats

with quiet():
    from float_rewrites import equalised, normalised_at_once, without_tiles
    from input_range import FEWEST, Trial, better_range, is_strange, try_ranges
    from precisions import (
        LIGHT,
        PASSING,
        Int8,
        Io,
        Layer,
        dynamic,
        float16,
        layers_of,
        loops,
    )
    from tflite_graph import run as run_floats

SEVEN = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""FER2013's labels in its order: what a model of seven outputs gives, unless told otherwise."""
DECIDED = {"min_confidence": 0.4}
"""Until fit_confidence.py has looked."""
PIXELS = (0.0, 255.0)
"""The range of pixels as they are."""
LAYERS_SHOWN = 5
MOST_LETTERS = 64
"""Of a label, as in a card."""
MOST_ORDERED = 8
"""Classes whose every order is tried: 40,320 of them."""
_KIND = "Pictures of the kind that the model was trained on calibrate better"
WAY_OUT: dict[Precision, str] = {
    "int8": "--float-layers {more} leaves the layers that lose most in float, --precision float16 all of them. "
    + _KIND,
    "dynamic": "--precision float16 keeps more",
    "float16": "--precision float32 keeps all",
    "float32": "TensorFlow Lite computes another thing than Keras: a layer isn't what it was",
}
LAYER_PICTURES = 32


def main(arguments: list[str] | None = None) -> int:
    """Convert one model and say how well it agrees with its original; gives the exit code."""
    return run(lambda: convert(_parser().parse_args(arguments)))


def convert(options: argparse.Namespace) -> int:
    """Read, convert, compare, and write what agrees."""
    check(options)
    model = read_model(options.model, options.weights)
    card = describe(options, model)
    channels = 1 if card.input.colour == "gray" else 3
    model.check_takes(card.input.height, card.input.width, channels)
    calibration, held_out = read_pictures(options.calibrate, card)
    originals = run_original(model, held_out.images, card.input)
    if not all(np.isfinite(output).all() for output in originals):
        raise ConversionError(
            f"{options.model}: its answers are no numbers: its training diverged, or a weight is lost"
        )
    if card.task == "emotion":
        model, originals = as_probabilities(model, originals, card, held_out.images)
        named = bool(options.labels or card.labels)
        card = with_labels(card, options.labels, originals[0].shape[1], held_out.names)
    elif card.task == "embedding" and [output.ndim for output in originals] != [2]:
        raise ConversionError(
            f"{options.model}: a model for embedding gives one vector, and this one gives {_shapes(originals)}"
        )
    check_card(card, options.output.with_suffix(".json"))
    labels = own_labels(held_out, card.labels) if card.task == "emotion" else None
    ordered = labels
    if labels is not None:
        names, ordered = in_order(card, originals[0], labels)
        if names != card.labels and not named:
            card, labels = dataclasses.replace(card, labels=names), ordered
            print(f"labels: {','.join(names)} after all: that order fits the labelled pictures")
    tell_range(card, try_ranges(model, card.input, held_out.images, ordered))

    floats = without_tiles(model.to_tflite(card.input.height, card.input.width, channels))
    if card.task == "detector":
        check_in_use(floats, card)
    content = floats
    if options.precision == "int8":
        content = to_int8(
            normalised_at_once(floats), card, calibration.images, held_out.images, options.io, options.float_layers
        )
    elif options.precision != "float32":
        content = {"float16": float16, "dynamic": dynamic}[options.precision](floats)
    check_in_use(content, card)

    converted = run_tflite(content, card, held_out.images, originals)
    result = compare(card.task, originals, converted)
    tell(card.task, result, len(held_out.images))
    if labels is not None:
        before, after = (accuracy(scores[0], labels) for scores in (originals, converted))
        print(f"accuracy on the {(labels >= 0).sum()} that are labelled: {before:.2%} before, {after:.2%} after")
    if not result.agreement >= options.min_agreement:  # nor where it is no number
        print(
            f"quantize: {result.agreement:.2%} agree, and --min-agreement is {options.min_agreement:.4g}: "
            f"{options.output} isn't written. {WAY_OUT[options.precision].format(more=options.float_layers + 3)}",
            file=sys.stderr,
        )
        return 1
    write_model(options.output, content, card)
    print(f"{options.output}: {len(content) / 1024:.0f} KiB, signal to noise {result.noise_db:.1f} dB")
    return 0


# The card


def check(options: argparse.Namespace) -> None:
    """UsageError or InputError for what can be told before the model is read, which takes its time."""
    if options.output.suffix != ".tflite":
        raise UsageError(f"-o {options.output}: edgefer finds a model's card by its name: it has to end in .tflite")
    folder = next(parent for parent in options.output.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"-o {options.output}: {folder} is no folder that can be written to")
    check_there(options.calibrate)
    if options.labels and not all(0 < len(label.strip()) <= MOST_LETTERS for label in options.labels.split(",")):
        raise UsageError(
            f"--labels {options.labels}: each has 1 to {MOST_LETTERS} characters, with a comma between two"
        )
    if options.range and not (np.isfinite(options.range).all() and options.range[0] != options.range[1]):
        raise UsageError(f"--range {options.range[0]:g} {options.range[1]:g}: what pixels 0 and 255 become: two values")
    if not 0 <= options.min_agreement <= 2:  # over 1: never written
        raise UsageError(f"--min-agreement {options.min_agreement:g}: a share is wanted, 0.97 for 97 %")
    card = options.output.with_suffix(".json")
    if card.is_file() and not _is_card(card):
        raise UsageError(f"-o {options.output}: {card}, where the card goes, is no model's card: take another name")
    if options.precision != "int8" and (options.float_layers or options.io == "uint8"):
        raise UsageError("--float-layers and --io uint8 are for --precision int8: the others take and give floats")


def _is_card(path: Path) -> bool:
    try:
        return b"edgefer.model/" in path.read_bytes()
    except OSError:
        return False


def describe(options: argparse.Namespace, model: KerasModel) -> ModelCard:
    """The card: --card's or one that suits the model, changed by the other options; an emotion's labels come later."""
    if options.card:
        card = read_card(options.card)
    else:
        height, width, channels = model.size
        width, height = options.size or (width, height)
        if width is None or height is None:
            raise UsageError(f"{options.model}: takes pictures of any size: say which it is to get, as --size 48 48")
        task: Task = options.task or "emotion"
        own_range = PIXELS if model.takes_integers else (0.0, 1.0)
        card = ModelCard(
            schema="edgefer.model/1",
            name="",
            task=task,
            decoder=DECODERS[task][0],
            input=ModelInput(width, height, "gray" if channels == 1 else "rgb", own_range),
            training={"source": source(options.model, options.weights)},
            # Most models learned from FER2013's crops: where those lie around our detector's box is in our own card.
            crop={"emotion": find_card("emotion-48").crop, "embedding": Crop("points"), "detector": None}[task],
        )
    if options.labels and card.task != "emotion":
        raise UsageError(f"--labels: a model for {card.task} has none")
    if options.task and options.task != card.task:
        raise UsageError(f"--task {options.task}: {options.card} is the card of a model for {card.task}")
    if options.decoder and options.decoder not in DECODERS[card.task]:
        known = " or ".join(DECODERS[card.task])
        raise UsageError(f"--decoder {options.decoder}: a model for {card.task} has {known}; --task names another")
    width, height = options.size or (card.input.width, card.input.height)
    asked = dataclasses.replace(
        card.input,
        width=width,
        height=height,
        colour=options.colour or card.input.colour,
        range=card.input.range if options.range is None else tuple(options.range),
    )
    if model.takes_integers and asked.range != PIXELS:
        raise UsageError(
            f"{options.model}: it takes whole numbers, so pixels as they are: --range 0 255, not {asked.range[0]:g} "
            f"{asked.range[1]:g}"
        )
    return dataclasses.replace(
        card,
        name=options.output.stem[:64],
        input=asked,
        decoder=options.decoder or card.decoder,
        training=card.training | {"precision": options.precision},
        # What was measured of another precision isn't this one's; what a trainer measured in float is the original's.
        # train_emotion.py measures nothing for the card: what stands in an emotion's is another model's.
        metrics=tuple(m for m in card.metrics if m.precision == "float32" and card.task != "emotion"),
        thresholds=dict(DECIDED) if card.task == "emotion" else card.thresholds,
        temperature=1.0,
    )


def source(path: Path, weights: Path | None) -> str:
    """What a model was read from, by name and digest: a file, all of a folder, or an architecture and its weights."""
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    if weights or path.suffix == ".json":
        files.append(weights or weights_beside(path))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return f"{path.resolve().name}, sha256 {digest.hexdigest()[:12]}"


def with_labels(card: ModelCard, asked: str | None, classes: int, folders: tuple[str, ...]) -> ModelCard:
    """The card with its labels: --labels, the card's, FER2013's seven, or the calibration tree's folders by name."""
    labels = tuple(map(str.strip, asked.split(","))) if asked else card.labels
    if not labels and classes == len(folders) and set(folders) != set(SEVEN):
        labels = folders
        print(f"labels: {','.join(labels)}, the folders of --calibrate by name, as Keras counts them")
    elif not labels and classes == len(SEVEN):
        labels = SEVEN
        print(f"labels: {','.join(labels)}, as FER2013 counts them")
    if len(labels) != classes or len(set(labels)) != classes:
        raise UsageError(
            f"the model gives {classes} scores, and {len(set(labels)) or 'no'} labels are named"
            f"{': ' + ','.join(labels) if labels else ''}; name each of them in the model's order: "
            "--labels angry,happy,..."
            + f" (the folders of --calibrate, empty ones too, are {', '.join(folders)})"
            * bool(folders)
        )
    return dataclasses.replace(card, labels=labels)


def own_labels(pictures: Pictures, labels: tuple[str, ...]) -> Labels | None:
    """The pictures' labels as indices of the model's, -1 where it has no such label; None where none fits."""
    if pictures.labels is None:
        return None
    if not pictures.names:
        if not 0 <= pictures.labels.min() <= pictures.labels.max() < len(labels):
            print(
                f"labels: the pictures' are {pictures.labels.min()} to {pictures.labels.max()}, and the model's "
                f"{len(labels)} are counted from 0: no accuracy is told"
            )
            return None
        return pictures.labels
    known = [label_name(label) for label in labels]
    numbers = [known.index(name) if name in known else -1 for name in pictures.names]
    own = np.array(numbers)[pictures.labels]
    if 0 < (strange := int((own < 0).sum())) < len(own):
        print(f"labels: {strange} of {len(own)} held-out pictures have one that the model lacks; they are left out")
    if own.max() < 0:
        print(f"labels: the pictures' folders ({', '.join(pictures.names)}) are none of the model's labels")
        return None
    return own


# The conversion


def as_probabilities(
    model: KerasModel, originals: list[Floats], card: ModelCard, images: list[Image]
) -> tuple[KerasModel, list[Floats]]:
    """The model and its outputs, with a softmax where it ends in logits; ConversionError where it gives no scores."""
    if len(originals) != 1 or originals[0].ndim != 2 or originals[0].shape[1] < 2:
        raise ConversionError(
            f"{model.path}: a model for emotion gives one score a label, and this one gives {_shapes(originals)}; "
            "--task embedding and --task detector are for others"
        )
    if originals[0].min() >= -1e-3 and originals[0].max() <= 1 + 1e-3:
        return model, originals
    print("it ends in logits: a softmax is added")
    model = model.with_softmax()
    return model, run_original(model, images, card.input)


def _shapes(outputs: list[Floats]) -> str:
    return ", ".join(str(output.shape[1:]) for output in outputs)


def to_int8(
    floats: bytes, card: ModelCard, calibration: list[Image], held_out: list[Image], io: Io, float_layers: int
) -> bytes:
    """The int8 .tflite, with a table of the layers that lose most; the worst ones stay in float where that is asked."""
    if found := loops(floats):
        raise ConversionError(
            f"no int8 for {', '.join(found)}, as a recurrent layer (LSTM, GRU) makes: --precision float16 and dynamic "
            "do without"
        )
    layers = layers_of(floats)
    without = [layer for layer in layers if not layer.has_int8]
    stuck = [layer for layer in without if layer.operator not in LIGHT]
    if len(stuck) > float_layers:
        names = ", ".join(f"{layer.operator} ({layer.name})" for layer in stuck[:3])
        raise ConversionError(
            f"no int8 for {names}{' and others' if len(stuck) > 3 else ''}: --float-layers {len(stuck)} leaves them "
            "in float; --precision float16 and dynamic do without int8"
        )
    if light := sorted({layer.operator for layer in without} & LIGHT):
        print(f"no int8 for {', '.join(light)}: computed in float, between int8 layers")
    samples = [to_floats(image, card.input) for image in calibration]
    expected = run_floats(floats, samples)
    ways = (Int8(model, samples, card.input.range, expected) for model in (floats, equalised(floats, samples)))
    int8 = min(ways, key=lambda way: way.noise)
    losses = layer_losses(int8, floats, layers, [to_floats(image, card.input) for image in held_out[:LAYER_PICTURES]])
    floating = [layer for layer, _ in losses[: float_layers - len(stuck)]]
    print(f"{'the layers that lose most, alone in int8':56} signal to noise")
    for layer, noise_db in losses[: max(LAYERS_SHOWN, len(floating))]:
        print(
            f"  {layer.operator:18} {layer.name[-36:]:36} {noise_db:8.1f} dB{'  left in float' * (layer in floating)}"
        )
    return int8.write(io, tuple(floating))


def layer_losses(int8: Int8, floats: bytes, layers: list[Layer], samples: list[Floats]) -> list[tuple[Layer, float]]:
    """Each layer that could stay in float and the model's signal to noise with it alone in int8, worst first."""
    like = run_floats(floats, samples)
    losses = []
    for layer in layers:
        if layer.has_int8 and layer.operator not in PASSING:
            alone = run_floats(int8.write_alone(layer), samples)
            losses.append((layer, min(signal_to_noise_db(a, b) for a, b in zip(like, alone, strict=True))))
    return sorted(losses, key=lambda loss: loss[1])


def check_in_use(content: bytes, card: ModelCard) -> None:
    """ModelError where the daemon would refuse the model."""
    with loaded(content, card) as model:
        {"emotion": EmotionReader, "embedding": Embedder, "detector": Detector}[card.task](model)


# What is told


def tell_range(card: ModelCard, trials: list[Trial]) -> None:
    """What the usual ranges give, and whether another one than the card's is clearly better."""
    columns = [name for name in ("accuracy", "strangeness") if getattr(trials[0], name) is not None]
    if not columns:
        low, high = card.input.range
        print(
            f"range: pixels 0 and 255 become {low:g} and {high:g}; neither labels nor a batch normalisation tell "
            "whether that is as in training"
        )
        return
    print("".join(f"{name:>13}" for name in ("range", *columns)))
    for trial in trials:
        values = "".join(f"{getattr(trial, name):13.3f}" for name in columns)
        print(f"{f'{trial.range[0]:g} {trial.range[1]:g}':>13}{values}{'  (in use)' * (trial is trials[0])}")
    if other := better_range(trials):
        print(
            f"warning: --range {other[0]:g} {other[1]:g} fits clearly better than {card.input.range[0]:g} "
            f"{card.input.range[1]:g}: is it what the model was trained on?"
        )
    elif is_strange(trials):
        print(
            "warning: none of these ranges is like what the model was trained on: other pictures, or its training took "
            "a mean off them or scaled each by its own spread, which edgefer doesn't"
        )


def in_order(card: ModelCard, scores: Floats, labels: Labels) -> tuple[tuple[str, ...], Labels]:
    """The names and labels as the answers count them: in another order than the card's, told, if that clearly fits."""
    known = labels >= 0
    count = len(card.labels)
    if count > MOST_ORDERED or known.sum() < FEWEST:
        return card.labels, labels
    said = np.zeros((count, count))  # answer, label
    np.add.at(said, (scores[known].argmax(1), labels[known]), 1 / known.sum())
    orders = np.array(list(permutations(range(count))))  # what the answers 0, 1, ... may be called
    right = said[np.arange(count), orders].sum(1)
    used, best = float(np.trace(said)), int(right.argmax())
    # A model that answers one thing, as in a wrong range, is right by chance in one order or another.
    if right[best] < max(used + 0.1, said.sum(0).max() + 0.1, 0.4):
        return card.labels, labels
    names = tuple(card.labels[number] for number in orders[best])
    print(f"warning: --labels {','.join(names)} would be right {right[best]:.0%} of the time, and not {used:.0%}")
    if (right > right[best] - 1e-9).sum() > 1:
        print("warning: another order would be as right: name the labels in the model's order, with --labels")
        return card.labels, labels
    return names, np.where(known, orders[best].argsort()[labels], -1)


def tell(task: Task, result: Comparison, count: int) -> None:
    """How well the two agree."""
    what = {"emotion": "top class", "embedding": "mean cosine", "detector": "least cosine of an output"}[task]
    print(
        f"agreement on {count} held-out pictures: {what} {result.agreement:.2%}, largest difference of a "
        f"{'score' if task == 'emotion' else 'value'} {result.largest:.3f}"
    )


# The command line


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("model", type=Path, help=".keras, .h5, .hdf5, a SavedModel folder, or an architecture.json")
    parser.add_argument("--weights", type=Path, help="the .h5 that belongs to an architecture.json (the one beside it)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .tflite; its card goes beside it")
    parser.add_argument("--calibrate", type=Path, required=True, metavar="PATH", help="pictures, as told above")
    parser.add_argument("--task", choices=get_args(Task), help="what it is for (default: emotion)")
    parser.add_argument(
        "--range", type=float, nargs=2, metavar=("LO", "HI"), help="what pixels 0 and 255 become (default: 0 1)"
    )
    parser.add_argument(
        "--labels", metavar="a,b,...", help="the emotions in the model's order (default: FER2013's, or the folders)"
    )
    parser.add_argument(
        "--size", type=count, nargs=2, metavar=("W", "H"), help="of its pictures, where the model takes any"
    )
    parser.add_argument("--colour", choices=get_args(Colour), help="default: gray, or rgb for three channels")
    parser.add_argument("--decoder", choices=get_args(Decoder), metavar="NAME", help="default: the task's own")
    parser.add_argument("--card", type=Path, help="a card to start from; the options above change it")
    parser.add_argument("--precision", choices=get_args(Precision), default="int8", help="%(default)s")
    parser.add_argument(
        "--io", choices=get_args(Io), default="int8", help="what an int8 model takes and gives (%(default)s)"
    )
    parser.add_argument(
        "--float-layers",
        type=partial(count, least=0),
        default=0,
        metavar="N",
        help="leave the N layers that lose most in float",
    )
    parser.add_argument(
        "--min-agreement", type=float, default=0.97, metavar="SHARE", help="write nothing under it (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
