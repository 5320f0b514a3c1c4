"""Train the embedding: an aligned 112x112 face in, 128 values out whose direction says who it is.

    python tools/train_embedding.py -o runs/embedding --more runs/embedding/utk_more.npz
    python tools/train_embedding.py -o runs/embedding --resume
    python tools/quantize.py runs/embedding/model.keras --card runs/embedding/card.json \
        --calibrate runs/embedding/calibrate.npy -o models/identity-112.tflite
    python tools/fit_threshold.py models/identity-112.json
    python tools/evaluate.py embedding models/identity-112.json

The network starts at random and learns what another one (the teacher: a public MobileFaceNet) answers for each face;
the teacher's outputs are all that is taken from it. By a margin, each face also learns to be nearer to its own
person's answers, where there are ids, than to other people's. The last CelebA ids are held out to validate and to set
the threshold; LFW is never looked at here.
"""

from __future__ import annotations

import json
import secrets
import shlex
import sys
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import backend  # before Keras
import cv2
import keras
import numpy as np
from batches import WORKERS, Batch, Batches, Make
from command_line import Parser, count, run
from data import DATA, Pack, held_out, open_pack
from embedding_network import EMBEDDING, network
from former_network import go_on_from
from keras import ops
from mixing import mixed
from model_file import write_card
from muon import Muon
from numpy.typing import NDArray
from peers import TEACHER, MobileFaceNet
from tqdm import tqdm
from training import (
    BFLOAT16,
    START,
    begin,
    beginning,
    check_mean,
    check_new,
    checkpoint,
    commit,
    fit,
    kept_settings,
    rebuilt,
    resume,
    started_from,
    warm_cosine,
)

from edgefer.errors import InputError
from edgefer.messages import Image
from edgefer.vision.card import Crop, ModelCard, ModelInput
from edgefer.vision.embedder import units
from edgefer.vision.preprocess import TEMPLATE_SIZE as SIZE
from edgefer.vision.preprocess import normalise

INPUT = ModelInput(width=SIZE, height=SIZE, colour="bgr", range=(-1.0, 1.0))
SAME_PERSON = 0.45
"""A face whose cosine to one that is held out is over this, by the teacher, is taken for the same person's."""
SCALE, MARGIN, WEIGHT = 32.0, 0.2, 0.05
"""Of the loss with a margin (CosFace, Wang et al. 2018), and what it weighs beside one minus the cosine."""
NOBODY = -1
"""Whose faces aren't kept apart from others: whom we validate on, made faces, and those below."""
SURELY = 0.35
"""A face whose answer is less like the middle of its id's is somebody else's, or hardly seen: 4 % of CelebA's."""
TURNED, RESIZED, MOVED = 3.5, 0.055, 2.0
"""Degrees, a share, and pixels of 112 (standard deviations): how far off faces are aligned to learn from. About as far
as by `near`'s landmarks, by its card."""
STRETCH = 2.0
"""Pixels, of 112, by which a made face's features are moved (a standard deviation), each of a 4x4 grid by itself."""
CALIBRATION_FACES = 224

Floats = NDArray[np.float32]


def main() -> None:
    """Train, then leave in the run's folder what quantize.py needs."""
    parser = Parser(__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/embedding"), help="the run's folder (%(default)s)")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the research data (%(default)s)")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="packs of aligned faces (align_faces.py)")
    parser.add_argument(
        "--mixed",
        type=partial(count, least=0),
        default=0,
        help="faces made of two others each, to learn the teacher's answers on (%(default)s)",
    )
    parser.add_argument(
        "--epochs", type=partial(count, least=0), default=40, help="%(default)s; 0: the mean of --start"
    )
    parser.add_argument("--batch", type=count, default=128, help="faces a step (%(default)s)")
    parser.add_argument("--rate", type=float, default=0.012, help="the highest learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="a random one unless given")
    parser.add_argument("--workers", type=count, default=WORKERS, help="processes that make batches (%(default)s)")
    parser.add_argument("--limit", type=count, help="faces of each pack, to try the script")
    parser.add_argument("--start", type=Path, nargs="*", default=[], help=START)
    parser.add_argument("--bfloat16", action="store_true", help=BFLOAT16)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the run's folder")
    arguments = parser.parse_args()
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.resume:
        kept = {"commit": commit()} | kept_settings(folder, "out")
        kept["start"] = started_from(kept)
        kept["command"] += f", resumed by {shlex.join(['python', *sys.argv])}"
        parser.set_defaults(**kept)
        arguments = parser.parse_args()
    else:
        check_new(checkpoint(folder))
        kept = {name: value for name, value in vars(arguments).items() if name != "resume"}
        kept |= {name: [str(path) for path in kept[name]] for name in ("more", "start")}
        kept |= {"command": shlex.join(["python", *sys.argv]), "commit": commit()}
    check_mean(arguments.epochs, arguments.start, resume=arguments.resume)
    begin(arguments.seed)

    faces, held, data = Faces(), Faces(), Path(arguments.data)
    packs = [data / "celeba_wild_id_112.npz"]
    packs += [Path(more) for more in arguments.more] or [data / "utk_112.npz"]
    for path in packs:
        pack = open_pack(path)
        taught = teach(pack, folder / "teacher", data, arguments.limit)
        apart = held_out(pack)[: len(taught)] if path == packs[0] else np.zeros(len(taught), bool)
        held.add(pack, np.flatnonzero(apart), taught)
        # Pictures of a person who is held out may stand in another pack too.
        new = (taught @ np.stack(held.taught).T).max(1) < SAME_PERSON if held.taught else ~apart
        faces.add(pack, np.flatnonzero(~apart & new), taught)
    if not len(held):
        raise InputError(f"--limit {arguments.limit}: {packs[0]} holds nobody to validate on among so few; take more")
    if arguments.mixed:
        made = pairs_mixed(faces, arguments.mixed, arguments.seed)
        faces.add(made, np.arange(len(made)), teach(made, folder / "teacher", data))
    batches = Batches(maker(faces), len(faces), arguments.batch, arguments.seed, arguments.workers)
    pictures = np.stack([normalise(held.picture(i), INPUT) for i in range(len(held))])
    validation = pictures, targets(held.taught, [NOBODY] * len(held))

    def cosine() -> float:
        return float(ops.mean(alike(validation[1], model.predict(validation[0], verbose=0))))

    rates = warm_cosine(arguments.rate, max(1, len(batches) * arguments.epochs), warm_up=300, first=1e-5)
    model, done = network(), []
    goes_on = arguments.resume and checkpoint(folder).is_file()
    if arguments.start and not goes_on:
        go_on_from([Path(start) for start in arguments.start], model, validation[0])
    model = rebuilt(model, network, bfloat16=arguments.bfloat16)
    compile_for(model, faces.middles(), rates)  # with another --epochs, the rest of the way down is steeper or flatter
    if goes_on:
        done = resume(model, folder)
    else:
        (folder / "settings.json").write_text(json.dumps(kept, indent=2, default=str) + "\n")
        print(
            f"seed {arguments.seed}, {model.count_params() / 1e3:.0f} k parameters, {len(faces)} faces to learn, ",
            end="",
        )
        print(f"{len(held)} held out; before the first step the cosine to the teacher is {cosine():.4f}", flush=True)
    if arguments.epochs:
        # Validation sees the averaged weights; training goes on from its own.
        fit(model, batches, validation, folder, done, arguments.epochs, [keras.callbacks.SwapEMAWeights()])
    model = rebuilt(model, network, bfloat16=False)
    model.save(folder / "model.keras")
    write_card(folder / "card.json", card(kept, len(faces), [path.stem for path in packs]))
    chosen = np.random.default_rng(arguments.seed).choice(len(faces), min(CALIBRATION_FACES, len(faces)), replace=False)
    np.save(folder / "calibrate.npy", np.stack([faces.picture(int(i)) for i in chosen]))
    print(f"{folder / 'model.keras'}: cosine to the teacher {cosine():.4f} on held-out people")


# The data


def teach(pack: Pack, folder: Path, data: Path, limit: int | None = None) -> Floats:
    """The teacher's unit vectors for the faces of a pack, n x 128; computed once and kept in `folder`.

    Each is the mean of the face's and its mirror image's: steadier, and learnt from both.
    """
    # Another pack of the same name is known by its pictures' sizes.
    digest = zlib.crc32(pack.fields["off"].tobytes())
    name = Path(pack.name).stem
    kept = folder / f"{TEACHER.name}-{name}-{digest:08x}{'' if limit is None else f'-{limit}'}.npy"
    if kept.is_file():
        vectors: Floats = np.load(kept)
        return vectors
    answer, answers = MobileFaceNet(data / TEACHER), []
    for i in tqdm(range(len(pack))[:limit], desc=f"teacher on {name}", unit="face", mininterval=10):
        face = pack.picture(i)
        answers.append(units(np.stack([answer(face), answer(face[:, ::-1])])).sum(0))
    vectors = units(np.stack(answers))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(kept, vectors)
    return vectors


class Faces:
    """Faces of several packs, JPEGs in memory, what the teacher answers for each, and whose they are."""

    def __init__(self) -> None:
        self.jpegs: list[NDArray[np.uint8]] = []
        self.taught: list[Floats] = []
        self.people: list[int] = []

    def add(self, pack: Pack, rows: NDArray[np.intp], taught: Floats) -> None:
        """Take faces of a pack in."""
        rows = rows[rows < len(taught)]
        self.jpegs += [pack.jpeg(int(i)) for i in rows]
        self.taught += list(taught[rows])
        ids = pack.fields["ids"][rows] if "ids" in pack.fields else np.arange(len(rows))
        numbers = max(self.people, default=NOBODY) + 1 + np.unique(ids, return_inverse=True)[1]
        for number in np.unique(numbers):
            own = np.flatnonzero(numbers == number)
            middle = units(taught[rows[own]].sum(0, keepdims=True))[0]
            numbers[own[(ids[own] == NOBODY) | (taught[rows[own]] @ middle < SURELY)]] = NOBODY
        self.people += numbers.tolist()

    def __len__(self) -> int:
        return len(self.jpegs)

    def picture(self, i: int) -> Image:
        """Face i, BGR."""
        return np.asarray(cv2.imdecode(self.jpegs[i], cv2.IMREAD_COLOR))

    def middles(self) -> Floats:
        """The middle of what the teacher answers for each person's faces, people x 128, of length 1."""
        people = np.array(self.people)
        sums = np.zeros((people.max() + 1, EMBEDDING), np.float32)
        np.add.at(sums, people[people != NOBODY], np.stack(self.taught)[people != NOBODY])
        return units(sums)


def pairs_mixed(faces: Faces, number: int, seed: int) -> Pack:
    """Faces made of two each, of other proportions: people whom no picture shows, and the teacher tells apart too."""
    rng = np.random.default_rng(seed)
    jpegs = []
    for _ in range(number):
        one, other = (faces.picture(int(i)) for i in rng.integers(len(faces), size=2))
        jpegs.append(cv2.imencode(".jpg", stretched(mixed(one, other, rng), rng))[1].ravel())
    off = np.cumsum([0, *map(len, jpegs)])
    return Pack("mixed", {"blob": np.concatenate(jpegs), "off": off, "ids": np.full(number, NOBODY)})


def stretched(face: Image, rng: np.random.Generator) -> Image:
    """The face with its features a little elsewhere, as another's are."""
    right, down = (
        cv2.resize(grid, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        for grid in rng.normal(0, STRETCH, (2, 4, 4)).astype(np.float32)
    )
    x, y = np.meshgrid(np.arange(SIZE, dtype=np.float32), np.arange(SIZE, dtype=np.float32))
    return np.asarray(cv2.remap(face, x + right, y + down, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))


def maker(faces: Faces) -> Make:
    """What makes a batch of augmented faces and what to learn for each."""

    def make(rows: NDArray[np.intp], rng: np.random.Generator) -> Batch:
        x = np.stack([normalise(augment(faces.picture(int(i)), rng), INPUT) for i in rows])
        return x, targets([faces.taught[int(i)] for i in rows], [faces.people[int(i)] for i in rows])

    return make


def targets(taught: Sequence[Floats], people: Sequence[int]) -> Floats:
    """What to learn for faces, n x 129: the teacher's answers, and whose they are (or NOBODY)."""
    return np.concatenate([np.stack(taught), np.array(people, np.float32)[:, None]], 1)


def augment(face: Image, rng: np.random.Generator) -> Image:
    """Another picture of the same person: mirrored, aligned a little otherwise, lit otherwise, blurred or coarse.

    Mild: the teacher answered for the face as it was, and a face that it would answer otherwise for teaches nonsense.
    """
    turn, scale = rng.normal(0, TURNED), 1 + rng.normal(0, RESIZED)
    matrix = cv2.getRotationMatrix2D((SIZE / 2 - 0.5, SIZE / 2 - 0.5), turn, scale)
    matrix += np.array([[0, 0, rng.normal(0, MOVED)], [0, 0, rng.normal(0, MOVED)]])
    if rng.random() < 0.5:
        matrix = matrix @ np.array([[-1, 0, SIZE - 1], [0, 1, 0], [0, 0, 1]])
    cubic = cv2.INTER_CUBIC  # bilinear sampling would blur every face
    face = np.asarray(cv2.warpAffine(face, matrix, (SIZE, SIZE), flags=cubic, borderMode=cv2.BORDER_REPLICATE))
    if rng.random() < 0.1:
        face = cv2.GaussianBlur(face, (0, 0), rng.uniform(0.5, 2.0))
    if rng.random() < 0.2:
        side = int(rng.integers(32, 90))
        face = cv2.resize(cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA), (SIZE, SIZE))
    if rng.random() < 0.1:
        face = cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    gain, lift, gamma = rng.uniform(0.7, 1.3), rng.uniform(-20, 20), np.exp(rng.uniform(-0.25, 0.25))
    levels = (np.arange(256) / 255) ** gamma * 255 * gain + lift
    return np.asarray(cv2.LUT(face, np.clip(levels, 0, 255).astype(np.uint8)))


# What is learnt


def alike(wanted: Any, given: Any) -> Any:
    """The cosine between the teacher's unit vector and the network's answer, for each face."""
    return ops.sum(ops.convert_to_tensor(wanted)[:, :EMBEDDING] * ops.normalize(given, axis=-1), -1)


def loss_beside(middles: Floats) -> Any:
    """What is learnt: the angle to the teacher's answer closes, and other people's middles (n x 128) are kept away.

    The second is CosFace's loss (Wang et al. 2018) with fixed middles, but for those that the teacher takes for the
    same person's.
    """
    everybody = ops.convert_to_tensor(middles)

    def loss(wanted: Any, given: Any) -> Any:
        people = ops.cast(ops.convert_to_tensor(wanted)[:, EMBEDDING], "int32")
        known = ops.cast(people >= 0, "float32")
        own, answers = ops.take(everybody, ops.maximum(people, 0), 0), ops.normalize(given, axis=-1)
        right = SCALE * (ops.sum(own * answers, -1) - MARGIN)
        stranger = own @ ops.transpose(everybody) < SAME_PERSON
        wrong = ops.logsumexp(SCALE * ops.where(stranger, answers @ ops.transpose(everybody), -1.0), -1)
        return 1.0 - alike(wanted, given) + WEIGHT * known * ops.softplus(wrong - right)

    return loss


def compile_for(model: keras.Model, middles: Floats, rates: Any) -> None:
    """Muon, and an average of the weights."""
    optimizer = Muon(
        rates, weight_decay=0.02, adam_weight_decay=0.02, adam_lr_ratio=0.5, use_ema=True, ema_momentum=0.998
    )
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    model.compile(optimizer, loss_beside(middles), metrics=[alike], jit_compile=backend.COMPILE)


def card(settings: dict[str, Any], learnt: int, packs: list[str]) -> ModelCard:
    """The model's card, before its threshold is fitted and its figures are measured."""
    made = f"; {settings['mixed']} of them made of two others each" if settings.get("mixed") else ""
    return ModelCard(
        schema="edgefer.model/1",
        name="identity-112",
        version="2026.11",
        task="embedding",
        decoder="unit-vector",
        input=INPUT,
        crop=Crop("points"),
        thresholds={"match": 0.5, "margin": 0.05},
        training={
            "command": settings["command"],
            "data": f"{learnt} aligned faces ({', '.join(packs)}{made}), to the answers of a public MobileFaceNet "
            f"(LFW 99.4 %); {beginning(settings['start'])}; the last 25 CelebA people held out",
            "seed": settings["seed"],
            "commit": settings["commit"],
        },
        licence="LicenseRef-edgefer-models-research-only",
        intended_use="Telling a few people who agreed to it apart from each other and from strangers, on faces of "
        "48 px and more, over several frames. Not for access control, nor for looking for people.",
        limits="A small model: relatives, children and heavily turned, masked or dark faces are confused more often, "
        "and so are groups that are rare in CelebA and UTKFace.",
    )


if __name__ == "__main__":
    sys.exit(run(main))
