"""Train the face detector, and leave its two sizes, `far` and `near`, ready for tools/quantize.py.

    KERAS_BACKEND=torch python tools/train_detector.py -o runs/detector
    cd runs/detector
    python ../../tools/quantize.py far.keras --card far.json --calibrate far.npy -o ../../models/far.tflite

and the same for near; then tools/evaluate_detector.py chooses the thresholds, and tools/evaluate.py measures.

Weights start at random. The network is fully convolutional: trained once, it is written at both input sizes. What ships
as `near` is a mean with a run that went on for its sizes alone, whose `far` is of no use:

    python tools/train_detector.py -o runs/close --near --start runs/detector/far.keras --epochs 7 --rate 3e-3
    python tools/train_detector.py -o runs/near --epochs 0 --start runs/detector/near.keras{,} runs/close/near.keras
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shlex
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import backend  # before Keras
import keras
import numpy as np
from batches import WORKERS, Batch, Batches, Make
from command_line import Parser, count, run
from data import DATA
from detector_scenes import ALL_SIZES, NEAR_SIZES, Scenes, augmented, targets
from evaluate_detector import AT_MIN_SCORE, average_precision, figures, find, held_out_people, validation_photos
from former_network import ADDED, PICTURES, go_on_from, size_taken
from keras import layers, ops
from model_file import write_card
from muon import Muon
from numpy.typing import NDArray
from training import (
    BFLOAT16,
    START,
    begin,
    beginning,
    check_mean,
    check_new,
    commit,
    kept_settings,
    load_checkpoint,
    rebuilt,
    started_from,
)

from edgefer.errors import InputError
from edgefer.messages import Image
from edgefer.vision.card import ModelCard, ModelInput
from edgefer.vision.decoders import grid_cells
from edgefer.vision.model import Model, Outputs
from edgefer.vision.preprocess import letterbox, normalise

INPUTS = {"far": ModelInput(416, 320, "bgr", (-1.0, 1.0)), "near": ModelInput(288, 224, "bgr", (-1.0, 1.0))}
"""Sides are multiples of 32, in the shape of cameras' pictures. From -1 to 1 the zeros that pad a convolution are gray,
as the letterbox is."""
CANVAS = (256, 256)
"""Width and height in training. Smaller than `far`, for more steps an hour: the network hardly sees further."""
CALIBRATION_PICTURES = 384
BOX_WEIGHT = 2.0
"""What the loss of the box weighs beside the score's."""
INTENDED_USE = {
    "far": "Faces from 16 px (of a picture 400 px wide) in photos and rooms; the default of analyze.",
    "near": "Faces from 32 px (of a picture 400 px wide), as before a screen or at a door; the default of run.",
}
LIMITS = (
    "Trained on public photos, mostly with the labels of other detectors: weak on faces under 12 px of its input, on "
    "those on the side or upside down, and on those behind profile. It finds faces on posters and screens too."
)


def main() -> None:
    """Train, validating on the odd half of faceboxes_dev; write the models, their cards and calibration pictures."""
    parser = Parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/detector"), help="folder to write")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the research data (%(default)s)")
    parser.add_argument(
        "--epochs", type=partial(count, least=0), default=60, help="%(default)s; 0: the mean of --start"
    )
    parser.add_argument("--batch", type=count, default=16, help="pictures a step (%(default)s)")
    parser.add_argument("--rate", type=float, default=8e-3, help="the highest learning rate (%(default)s)")
    parser.add_argument("--people-repeats", type=count, default=4, help="times an epoch shows faceboxes_dev")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="packs of large faces (label_faces.py)")
    parser.add_argument(
        "--near", action="store_true", help="learn the sizes of faces that `near` is for, and those alone"
    )
    parser.add_argument("--start", type=Path, nargs="*", default=[], help=START)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="a random one unless given")
    parser.add_argument("--workers", type=count, default=WORKERS, help="processes that make batches (%(default)s)")
    parser.add_argument("--limit", type=count, help="pictures an epoch, and to validate on")
    parser.add_argument("--validate-every", type=count, default=2, help="epochs between validations (%(default)s)")
    parser.add_argument("--bfloat16", action="store_true", help=BFLOAT16)
    parser.add_argument(
        "--resume", action="store_true", help="go on in the output folder, with the settings kept there"
    )
    arguments = parser.parse_args()
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    run_of = {"command": shlex.join(["python", *sys.argv]), "commit": commit()}
    if arguments.resume:
        if not progress(folder).is_file():
            raise InputError(f"nothing to resume: {folder} holds no epoch of a run")
        kept = kept_settings(folder, "output")
        run_of = {name: kept.pop(name, run_of[name]) for name in run_of}
        run_of["command"] += f", resumed by {shlex.join(['python', *sys.argv])}"
        parser.set_defaults(**kept | {"start": started_from(kept)})
        arguments = parser.parse_args()
    else:
        check_new(progress(folder))
    settings = vars(arguments) | run_of
    check_mean(settings["epochs"], settings["start"], resume=arguments.resume)
    settings |= {name: [str(path) for path in settings[name]] for name in ("more", "start")}
    train(folder, settings, resume=arguments.resume)


def progress(folder: Path) -> Path:
    """Where a run keeps how many of its epochs are done."""
    return folder / "progress.json"


def train(folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
    """One run, from random weights or from a checkpoint to the written models."""
    checkpoint = folder / "checkpoint.weights.h5"
    seed, limit, epochs, batch = (settings[key] for key in ("seed", "limit", "epochs", "batch"))
    begin(seed)
    data = Path(settings["data"])
    sizes = NEAR_SIZES if settings.get("near") else ALL_SIZES
    scenes = Scenes(data, settings["people_repeats"], [Path(path) for path in settings["more"]], sizes)
    people, photos = held_out_people(data)[:limit], validation_photos(data)[:limit]
    shown = min(len(scenes), limit or len(scenes))
    batches = Batches(maker(scenes), len(scenes), batch, seed, settings["workers"], shown)
    steps = len(batches)
    starts = [Path(start) for start in settings["start"]]
    # A .tflite is told by what its layers write, at the size that it takes.
    named: dict[Any, str] = {(asked.height, asked.width): name for name, asked in INPUTS.items()}
    name = named.get(size_taken(starts[0]), "far") if starts else "far"
    former = network(INPUTS[name].height, INPUTS[name].width)
    if starts and not resume:
        go_on_from(starts, former, normalise(fitted(scenes, name, PICTURES, seed), INPUTS[name]))
    model = rebuilt(former, network, bfloat16=settings["bfloat16"])
    (folder / "settings.json").write_text(json.dumps(settings, indent=2, default=str) + "\n")
    trained = keras.Model(model.input, layers.Concatenate(-1, dtype="float32")(model.outputs))
    warmup = min(400, epochs * steps // 4)
    rate = keras.optimizers.schedules.CosineDecay(
        1e-5, max(1, epochs * steps - warmup), alpha=0.01, warmup_target=settings["rate"], warmup_steps=warmup
    )
    # The average of the weights over the last five hundred steps or so is what is validated and written.
    optimizer = Muon(
        rate,
        weight_decay=0.02,
        adam_weight_decay=0.02,
        adam_lr_ratio=0.25,
        global_clipnorm=10.0,
        use_ema=True,
        ema_momentum=0.998,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    trained.compile(optimizer, partial(loss, landmarks_weight=sizes.landmarks), jit_compile=backend.COMPILE)
    first = 0
    if resume:
        load_checkpoint(trained, checkpoint)
        first = json.loads(progress(folder).read_text())["epochs_done"]
    print(
        f"seed {seed}, {model.count_params() / 1e3:.0f} k parameters, "
        f"{multiplications(*CANVAS[::-1]) / 1e6:.0f} MMAC a canvas, {multiplications(320, 416) / 1e6:.0f} at far; "
        f"{shown} pictures an epoch from {len(scenes)}",
        flush=True,
    )

    started = time.monotonic()
    with closing(batches):
        for epoch in range(first, epochs):
            losses = []
            for x, y in batches.epochs(epoch, epoch + 1):
                losses.append(float(trained.train_on_batch(x, y)))
                if len(losses) % 100 == 0:
                    print(f"  step {len(losses)} of {steps}, loss {np.mean(losses[-100:]):.3f}", flush=True)
            # Written aside first: a run that is stopped here still resumes.
            aside = folder / "writing.weights.h5"
            trained.save_weights(aside)
            aside.replace(checkpoint)
            progress(folder).write_text(json.dumps({"epochs_done": epoch + 1}))
            line = f"epoch {epoch + 1} of {epochs}, loss {np.mean(losses):.4f}"
            if (epoch + 1) % settings["validate_every"] == 0:
                average = averaged(trained, optimizer, model)
                found = find(float_model("far", average, settings), people)
                line += f", AP50 of faces >= 16 px {average_precision(found, people, 16):.4f}"
                write(average, scenes, settings, folder)
            each = (time.monotonic() - started) / (epoch + 1 - first)
            print(f"{line}, {each:.0f} s an epoch, {each * (epochs - epoch - 1) / 60:.0f} min left", flush=True)

    average = averaged(trained, optimizer, model) if epochs else rebuilt(former, network, bfloat16=False)
    write(average, scenes, settings, folder)
    for name in INPUTS:
        measured = figures(float_model(name, average, settings), people, photos, "float32")
        print("\n".join(f"{name}, float32: {metric.metric} {metric.value}" for metric in measured))
        # What depends on the threshold, which is yet to be chosen, doesn't stay.
        kept = tuple(metric for metric in measured if metric.metric not in AT_MIN_SCORE)
        write_card(folder / f"{name}.json", dataclasses.replace(card(name, settings), metrics=kept))


# The network: plain 3x3 convolutions with ReLU6, which cost little and lose little at int8.


def network(height: int = CANVAS[1], width: int = CANVAS[0]) -> keras.Model:
    """BGR pictures to logits (n x 1), sides (n x 4) and landmarks (n x 10); see `decode_centre` for what they mean."""
    picture = keras.Input((height, width, 3), name="picture")
    # Four places of 8 channels at once, from eight pixels and the next eight (which have to divide the width): of a
    # kernel that sees three channels and writes 8, processors make little.
    places = convolution(layers.Reshape((height, width // 8, 24))(picture), 32, (3, 2), (2, 1))
    x = layers.Reshape((height // 2, width // 2, 8))(places)
    x = convolution(x, 24, 3, 2)
    # Where a face is, to less than a pixel, is told by the finest of what is seen.
    with keras.name_scope(ADDED):
        x = residual(x, begin=0)
    eighth = residual(convolution(x, 40, 3, 2))
    sixteenth = residual(convolution(eighth, 64, 3, 2))
    thirtysecond = residual(residual(convolution(sixteenth, 80, 3, 2)))
    # What the coarse grids understand helps the fine ones to tell a small face from a pattern.
    sixteenth = residual(sixteenth + layers.UpSampling2D()(convolution(thirtysecond, 64, 1)))
    eighth = residual(eighth + layers.UpSampling2D()(convolution(sixteenth, 40, 1)))
    heads = [head(grid) for grid in (eighth, sixteenth, thirtysecond)]
    grids = zip(OUTPUTS, *heads, strict=True)
    outputs = [layers.Concatenate(1, name=name, dtype="float32")(parts) for name, *parts in grids]
    return keras.Model(picture, outputs)


OUTPUTS = {"logits": 1, "sides": 4, "landmarks": 10}


Sizes2D = int | tuple[int, int]


def convolution(
    x: Any, filters: int, size: Sizes2D, stride: Sizes2D = 1, *, activate: bool = True, scale: float = 1
) -> Any:
    """A convolution with batch normalisation, which begins at a scale, and ReLU6 unless told otherwise."""
    x = layers.Conv2D(filters, size, stride, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization(momentum=0.97, gamma_initializer=keras.initializers.Constant(scale))(x)
    return layers.ReLU(6.0)(x) if activate else x


def residual(x: Any, begin: float = 1) -> Any:
    """A 3x3 convolution that adds to what it sees: nothing at first where it begins with 0."""
    return layers.ReLU(6.0)(x + convolution(x, x.shape[-1], 3, activate=False, scale=begin))


def head(grid: Any) -> list[Any]:
    """One grid's logits, sides and landmarks, a row a cell."""
    # Where the sides and landmarks are takes a look at the neighbours; whether there is a face was seen before.
    scored, placed = convolution(grid, 32, 1), convolution(grid, 40, 3)
    # At the start hardly any cell holds a face (sigmoid(-4) is 2 %), and a face reaches a stride around its cell.
    # Answers are float32, whatever the network multiplies in: bfloat16 places a landmark to a 64th of a stride.
    logits = layers.Conv2D(1, 1, bias_initializer=keras.initializers.Constant(-4.0), dtype="float32")(scored)
    sides = layers.Conv2D(4, 1, bias_initializer="ones", dtype="float32")(placed)
    landmarks = layers.Conv2D(10, 1, dtype="float32")(placed)
    answers = zip(OUTPUTS.values(), (logits, sides, landmarks), strict=True)
    return [layers.Reshape((-1, n), dtype="float32")(x) for n, x in answers]


def multiplications(height: int, width: int) -> int:
    """The multiplications of one picture's convolutions."""
    convolutions = (layer for layer in network(height, width).layers if isinstance(layer, layers.Conv2D))
    return sum(int(np.prod(layer.output.shape[1:3]) * np.prod(layer.kernel.shape)) for layer in convolutions)


# The loss.


def loss(wanted: Any, given: Any, landmarks_weight: float = ALL_SIZES.landmarks) -> Any:
    """Quality focal loss for the score, DIoU for the box, smooth L1 for the landmarks, a cell that answers for a face.

    `wanted` is batch x n x TARGETS (see detector_scenes), `given` batch x n x 15. The score learns the overlap that the
    box reaches (Li et al. 2020, "Generalized Focal Loss", beta 2), so that of two boxes of a face the better one stays.
    """
    state, logits = wanted[..., 0], given[..., 0]
    faces = ops.cast(state > 0, "float32")
    count = ops.maximum(ops.sum(faces), 1.0)
    overlap, apart = overlaps(wanted[..., 1:5], given[..., 1:5])
    quality = faces * ops.stop_gradient(overlap)
    entropy = ops.maximum(logits, 0.0) - logits * quality + ops.log1p(ops.exp(-ops.abs(logits)))
    focus = ops.square(ops.stop_gradient(ops.sigmoid(logits)) - quality)
    score = ops.sum(ops.cast(state >= 0, "float32") * focus * entropy)
    box = ops.sum(faces * (1.0 - overlap + apart))
    error = ops.abs(wanted[..., 5:15] - given[..., 5:15]) * wanted[..., 15:16]
    small = 0.03  # of the face's size: under it the error counts by its square
    smooth = ops.where(error < small, 0.5 * ops.square(error) / small, error - 0.5 * small)
    landmarks = ops.sum(ops.mean(smooth, -1))
    return (score + BOX_WEIGHT * box + landmarks_weight * landmarks) / count


def overlaps(wanted: Any, given: Any) -> tuple[Any, Any]:
    """IoU of boxes around the same cells, and the distance of their middles as DIoU punishes it (Zheng et al. 2020)."""
    shared = ops.minimum(wanted, given)
    width, height = ops.relu(shared[..., 0] + shared[..., 2]), ops.relu(shared[..., 1] + shared[..., 3])
    both = width * height
    areas = sum(ops.relu(s[..., 0] + s[..., 2]) * ops.relu(s[..., 1] + s[..., 3]) for s in (wanted, given))
    around = ops.maximum(wanted, given)
    diagonal = ops.square(around[..., 0] + around[..., 2]) + ops.square(around[..., 1] + around[..., 3])
    off = (wanted[..., 2:] - wanted[..., :2] - given[..., 2:] + given[..., :2]) / 2
    return both / ops.maximum(areas - both, 1e-6), ops.sum(ops.square(off), -1) / ops.maximum(diagonal, 1e-6)


# What goes in, and what comes out.


def maker(scenes: Scenes) -> Make:
    """What makes a batch of canvases and what their cells should say."""
    width, height = CANVAS
    cells = grid_cells(width, height)

    def make(rows: NDArray[np.intp], rng: np.random.Generator) -> Batch:
        made = [augmented(scenes, int(row), width, height, rng) for row in rows]
        x = np.stack([normalise(scene.image, INPUTS["far"]) for scene in made])
        return x, np.stack([targets(scene, cells) for scene in made])

    return make


def averaged(trained: keras.Model, optimizer: Any, model: keras.Model) -> keras.Model:
    """A copy of the network that holds the averaged weights; the training goes on from its own."""
    own = trained.get_weights()
    optimizer.finalize_variable_values(trained.trainable_variables)
    copy = rebuilt(model, network, bfloat16=False)
    trained.set_weights(own)
    return copy


def write(average: keras.Model, scenes: Scenes, settings: dict[str, Any], folder: Path) -> None:
    """The network at both sizes, each with its card and with pictures to calibrate it."""
    for name in INPUTS:
        at_size(name, average).save(folder / f"{name}.keras")
        np.save(folder / f"{name}.npy", fitted(scenes, name, CALIBRATION_PICTURES, settings["seed"]))
        write_card(folder / f"{name}.json", card(name, settings))


def at_size(name: str, average: keras.Model) -> keras.Model:
    """The network at one of its sizes."""
    return rebuilt(average, partial(network, INPUTS[name].height, INPUTS[name].width), bfloat16=False)


def fitted(scenes: Scenes, name: str, number: int, seed: int) -> Image:
    """Some of the pictures as one of the sizes sees them, n x height x width x 3."""
    width, height = INPUTS[name].width, INPUTS[name].height
    chosen = np.random.default_rng(seed).choice(len(scenes), min(number, len(scenes)), replace=False)
    return np.stack([letterbox(scenes[int(i)].image, width, height)[0] for i in chosen])


def float_model(name: str, average: keras.Model, settings: dict[str, Any]) -> Model:
    """The network as `Detector` takes it, at one of its sizes."""
    return cast("Model", FloatModel(at_size(name, average), card(name, settings)))


class FloatModel:
    """What `Detector` needs of a model: a picture of the card's size in, outputs without the batch axis out."""

    def __init__(self, network: keras.Model, card: ModelCard) -> None:
        self.network, self.card, self.path = network, card, Path(card.name)
        cells = len(grid_cells(card.input.width, card.input.height))
        self.output_shapes = [(cells, last) for last in OUTPUTS.values()]

    def __call__(self, picture: Image) -> Outputs:
        """The outputs for one picture (BGR)."""
        outputs = self.network(normalise(picture, self.card.input)[None], training=False)
        return tuple(ops.convert_to_numpy(output)[0] for output in outputs)


def card(name: str, settings: dict[str, Any]) -> ModelCard:
    """The card of one size, before its threshold is chosen and its figures are measured."""
    return ModelCard(
        schema="edgefer.model/1",
        name=name,
        task="detector",
        decoder="edgefer-centre",
        input=INPUTS[name],
        version="2026.11",
        thresholds={"min_score": 0.5},
        training={
            "command": settings["command"],
            "data": "det_train and the even half of faceboxes_dev"
            + (f"; large faces ({', '.join(Path(pack).stem for pack in settings['more'])}), labelled by SCRFD-2.5g")
            * bool(settings["more"])
            + f"; {beginning(settings['start'])}",
            "seed": settings["seed"],
            "commit": settings["commit"],
        },
        licence="LicenseRef-edgefer-models-research-only",
        intended_use=INTENDED_USE[name],
        limits=LIMITS,
    )


if __name__ == "__main__":
    sys.exit(run(main))
