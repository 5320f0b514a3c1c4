"""A .tflite and its card, loaded once and run on one picture at a time. The only importer of the runtime."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.resources
import os
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgefer.errors import ModelError
from edgefer.files import expand_home, isolated_python, read_bounded
from edgefer.messages import Image
from edgefer.vision.card import ModelCard, Task, read_card
from edgefer.vision.preprocess import quantised_values, to_colour, to_floats

try:
    from ai_edge_litert.interpreter import Interpreter

    RUNTIME = f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}"
except ImportError:
    try:
        from tflite_runtime.interpreter import Interpreter

        RUNTIME = f"tflite-runtime {importlib.metadata.version('tflite-runtime')}"
    except (ImportError, AttributeError):  # with numpy 2, tflite-runtime fails as it loads
        RUNTIME = ""

MAX_MODEL_BYTES = 256 * 2**20
"""Of a .tflite: more than a small computer could run. Ours have 0.4 to 2.6 MB."""
TRIAL_S = 30.0
"""How long a model whose card carries no digest may take for its trial."""
TRIAL_BYTES = 4 * 2**30
"""Address space of that trial: a damaged model may ask for any amount of memory."""

LEAST_FILLED = 0.6
"""A model is calibrated with pixels from 0 to 255: a card whose range fills less of its input is of another one, most
often 0..1 where the model learned from -1..1."""

Outputs = tuple[NDArray[np.float32], ...]


class Model:
    """A model that takes a picture of its card's size and gives its outputs as floats, without the batch axis.

    Reads `path` (a .tflite) and the card beside it (.json); ModelError says what is missing or doesn't match.
    """

    def __init__(self, path: Path, task: Task, threads: int = 1) -> None:
        if not RUNTIME:
            raise ModelError(
                "no TFLite runtime is installed: pip install ai-edge-litert (or tflite-runtime with numpy<2)"
            )
        self.path = path
        self.card = read_card(path.with_suffix(".json"))
        content = _read(path)
        _check_card(path, self.card, task, content)
        if not self.card.sha256:
            _try_out(path)
            self.card = _with_digest(self.card, content)
        self._interpreter = _interpreter(path, content, threads)
        try:
            (self._input, *others) = self._interpreter.get_input_details()
            self._outputs = self._interpreter.get_output_details()
        except UnicodeDecodeError as error:
            raise ModelError(f"{path}: a name in the model isn't text: the file is damaged; copy it again") from error
        if others:
            raise ModelError(f"{path}: the model has {1 + len(others)} inputs; edgefer gives it one picture")
        _check_input(path, self.card, self._input)
        for output in self._outputs:
            _check_output(path, output)
        self._table = _lookup_table(path, self.card, self._input)
        self.invoke: Callable[[], None] = self._interpreter.invoke
        """The network alone; `edgefer bench` puts a stopwatch around it."""

    @property
    def output_shapes(self) -> list[tuple[int, ...]]:
        """The outputs' shapes without the batch axis, in the file's order."""
        return [tuple(int(n) for n in output["shape"][1:]) for output in self._outputs]

    def __call__(self, image: Image) -> Outputs:
        """The outputs for one picture (BGR or gray, of the card's size)."""
        asked, table = self.card.input, self._table
        tensor = to_floats(image, asked) if table is None else _look_up(to_colour(image, asked.colour), table)
        self._interpreter.set_tensor(self._input["index"], tensor[None])
        self.invoke()
        return tuple(_dequantise(self._interpreter.get_tensor(output["index"])[0], output) for output in self._outputs)


def find_model(name: str) -> Path:
    """The .tflite for a setting: a path, or the name of one that ships in models/."""
    path = expand_home(name)
    if path.suffix == ".tflite" or len(path.parts) > 1:
        return path
    shipped = models_folder()
    if not os.path.isfile(shipped / f"{name}.tflite"):  # noqa: PTH113  # pathlib's raises on a name that is too long
        known = ", ".join(sorted(p.stem for p in shipped.glob("*.tflite"))) or "none"
        raise ModelError(f"there is no model named {name!r} (shipped: {known}); a path to a .tflite works too")
    return shipped / f"{name}.tflite"


def find_card(name: str) -> ModelCard:
    """The card of the model that a setting names, with the file's digest where the card has none."""
    path = find_model(name)
    card = read_card(path.with_suffix(".json"))
    return card if card.sha256 else _with_digest(card, _read(path))


def models_folder() -> Path:
    """The folder of the shipped models: inside the package when it is installed, beside it in a checkout."""
    package = Path(str(importlib.resources.files("edgefer")))
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def _read(path: Path) -> bytes:
    try:
        content = read_bounded(path, MAX_MODEL_BYTES)
    except OSError as error:
        raise ModelError(f"{path}: can't read the model: {error.strerror}") from error
    # A FlatBuffer carries its identifier at offset 4.
    if content[4:8] != b"TFL3":
        raise ModelError(f"{path}: not a TFLite model ({len(content)} bytes); is it whole, and is it a .tflite?")
    return content


_TRIAL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1])
interpreter.allocate_tensors()
interpreter.invoke()
"""


def _try_out(path: Path) -> None:
    """Run a model that no digest vouches for in a process of its own: the runtime crashes on some damaged files."""
    command = isolated_python(_TRIAL, os.fspath(path.absolute()), str(TRIAL_BYTES))
    try:
        # What goes wrong without a crash is told when the model is loaded here.
        crashed = subprocess.run(command, capture_output=True, timeout=TRIAL_S, check=False).returncode < 0  # noqa: S603  # our own command
    except subprocess.TimeoutExpired:
        crashed = True
    if crashed:
        raise ModelError(
            f"{path}: {RUNTIME} crashes or hangs on the model: the file is damaged; copy or convert it again, and "
            "write its sha256 into its card"
        )


def _interpreter(path: Path, content: bytes, threads: int) -> Any:
    try:
        with warnings.catch_warnings(), _without_native_lines():
            # ai-edge-litert announces a newer interface at each construction; the Interpreter is the one both have.
            warnings.simplefilter("ignore")
            interpreter = Interpreter(model_content=content, num_threads=threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: {RUNTIME} can't load the model: {error}") from error
    return interpreter


@contextlib.contextmanager
def _without_native_lines() -> Iterator[None]:
    """The runtime announces its delegate on standard error, from C++, whatever the log level: keep that line away."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _with_digest(card: ModelCard, content: bytes) -> ModelCard:
    return replace(card, sha256=hashlib.sha256(content).hexdigest())


def _check_card(path: Path, card: ModelCard, task: Task, content: bytes) -> None:
    if card.task != task:
        raise ModelError(f"{path}: its card says it is for {card.task}, and here one for {task} is wanted")
    digest = hashlib.sha256(content).hexdigest()
    if card.sha256 and card.sha256 != digest:
        raise ModelError(
            f"{path}: the file isn't the one its card describes (sha256 {digest[:12]}…, card {card.sha256[:12]}…); "
            "it is damaged or was replaced: copy both files again"
        )


def _check_input(path: Path, card: ModelCard, details: dict[str, Any]) -> None:
    channels = 1 if card.input.colour == "gray" else 3
    wanted = (1, card.input.height, card.input.width, channels)
    shape = tuple(int(n) for n in details["shape"])
    if shape != wanted:
        raise ModelError(f"{path}: the model takes {shape}, its card says {wanted} (batch, height, width, channels)")


def _lookup_table(path: Path, card: ModelCard, details: dict[str, Any]) -> NDArray[np.generic] | None:
    dtype = np.dtype(details["dtype"])
    if dtype == np.float32:
        return None
    if dtype not in (np.int8, np.uint8):
        raise ModelError(f"{path}: the model's input is {dtype}; edgefer feeds int8, uint8 and float32")
    scale, zero = details["quantization"]
    if scale <= 0:
        raise ModelError(f"{path}: the model's {dtype} input carries no quantisation; convert it again")
    table = quantised_values(card.input, dtype, scale, zero)
    limits = np.iinfo(dtype)
    reach = (np.array([limits.min, limits.max]) - zero) * scale
    low, high = min(card.input.range), max(card.input.range)
    fits = low >= reach[0] - 2 * scale and high <= reach[1] + 2 * scale
    if not fits or high - low < LEAST_FILLED * (reach[1] - reach[0]):
        raise ModelError(
            f"{path}: the card's range {list(card.input.range)} doesn't fit the model's input, which can hold "
            f"{reach[0]:.3g} to {reach[1]:.3g}; one of the two is wrong"
        )
    return table


def _check_output(path: Path, details: dict[str, Any]) -> None:
    dtype = np.dtype(details["dtype"])
    if dtype not in (np.float32, np.int8, np.uint8):
        raise ModelError(f"{path}: an output of the model is {dtype}; edgefer reads int8, uint8 and float32")
    if dtype != np.float32 and details["quantization"][0] <= 0:
        raise ModelError(f"{path}: a {dtype} output of the model carries no quantisation; convert it again")


def _look_up(picture: Image, table: NDArray[np.generic]) -> NDArray[Any]:
    # OpenCV's LUT is some ten times as fast as numpy's indexing; it takes the bytes, whatever they stand for.
    looked_up = cv2.LUT(picture, table.view(np.uint8)).reshape(picture.shape)
    return looked_up.view(table.dtype)


def _dequantise(values: NDArray[Any], details: dict[str, Any]) -> NDArray[np.float32]:
    scale, zero = details["quantization"]
    if values.dtype == np.float32:
        return values
    return (values.astype(np.float32) - np.float32(zero)) * np.float32(scale)
