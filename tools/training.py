"""The epochs of a training: a bar with the time left, a line for each, and a checkpoint to resume from."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import backend  # noqa: F401  # before Keras
import keras
import numpy as np
from batches import Batch, Batches
from fast_norm import use_fast_norm
from tqdm import tqdm

from edgefer.errors import InputError
from edgefer.files import write_private

Figures = dict[str, float]

BFLOAT16 = "multiply in bfloat16: faster on a processor (avx512_bf16) or GPU that can, and as good"
START = "a model of an earlier run, or several, to go on from (their mean)"
"""What the options of these names do, which all trainers have."""


def warm_cosine(rate: float, steps: int, warm_up: int = 500, first: float = 0.0) -> Any:
    """A learning rate that climbs from `first` for a tenth of the steps, `warm_up` at most, then a cosine to zero."""
    warm_up = min(warm_up, steps // 10)
    return keras.optimizers.schedules.CosineDecay(first, steps - warm_up, warmup_target=rate, warmup_steps=warm_up)


def begin(seed: int) -> None:
    """What every trainer does first."""
    keras.utils.set_random_seed(seed)
    use_fast_norm()


def rebuilt(model: keras.Model, build: Callable[[], keras.Model], *, bfloat16: bool) -> keras.Model:
    """What `build` builds, with a model's weights: these are float32 always, and multiplied in bfloat16 or float32."""
    keras.config.set_dtype_policy("mixed_bfloat16" if bfloat16 else "float32")
    try:
        copy = build()
    finally:
        keras.config.set_dtype_policy("float32")
    copy.set_weights(model.get_weights())
    return copy


def kept_settings(folder: Path, own: str) -> dict[str, Any]:
    """The settings of a run that is to be resumed; InputError where there are none that can be read.

    `own` is what the settings of this trainer hold, and those of the others don't.
    """
    path = folder / "settings.json"
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"nothing to resume: {path} isn't there") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: it can't be read: {error}; begin the run anew, without --resume") from error
    if not isinstance(kept, dict) or own not in kept:
        raise InputError(f"{path}: another trainer's; resume the run with that, or begin one in another folder")
    return kept


def started_from(kept: dict[str, Any]) -> list[str]:
    """The models that a run began with, by its kept settings, where one or none stood for itself once."""
    start = kept.get("start")
    return start if isinstance(start, list) else [start] if start else []


def beginning(starts: Sequence[Path | str]) -> str:
    """What a card tells of where a run began."""
    models = len(set(map(str, starts)))
    if models > 1:
        return f"from the mean of {models} models of earlier runs" + ", some counted twice" * (models < len(starts))
    return f"from {Path(starts[0]).name} of an earlier run" if starts else "random start"


def check_mean(epochs: int, starts: Sequence[Path | str], *, resume: bool) -> None:
    """InputError where no epoch is to be trained, and there is no mean of --start to write."""
    if not epochs and (resume or not starts):
        raise InputError("--epochs 0 writes the mean of other runs' models: name them with --start, without --resume")


def checkpoint(folder: Path) -> Path:
    """Where a run keeps its model, with the optimiser's state, after every epoch."""
    return folder / "checkpoint.keras"


def best(folder: Path) -> Path:
    """Where a run that stops early keeps its best model."""
    return folder / "best.keras"


def check_new(kept: Path) -> None:
    """InputError where there is what a run in this folder keeps: hours of work, which a new one would replace."""
    if kept.is_file():
        raise InputError(f"{kept.parent} holds a run: go on with it (--resume), or name another folder for a new one")


def resume(model: keras.Model, folder: Path) -> list[Figures]:
    """Give a compiled model the checkpoint of a run, with the optimiser's state; the figures of the epochs done.

    InputError where the checkpoint is of another network.
    """
    load_checkpoint(model, checkpoint(folder))
    return history(folder)


def load_checkpoint(model: keras.Model, path: Path) -> None:
    """Give a compiled model what a checkpoint keeps, its optimiser's state too; InputError where it is of another."""
    model.optimizer.build(model.trainable_variables)
    try:
        model.load_weights(path)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: of another network than the one to train, or damaged; begin the run anew, without --resume"
        ) from error


def history(folder: Path) -> list[Figures]:
    """The figures of each epoch that a run has done; InputError where they can't be read."""
    kept = folder / "history.json"
    try:
        done: list[Figures] = json.loads(kept.read_text()) if kept.is_file() else []
    except (OSError, ValueError) as error:
        raise InputError(f"{kept}: it can't be read: {error}; begin the run anew, without --resume") from error
    return done


def is_over(done: list[Figures], patience: int | None) -> bool:
    """Whether the validation loss hasn't fallen for so many epochs; never without patience."""
    losses = [figures["val_loss"] for figures in done]
    return patience is not None and bool(losses) and len(losses) - 1 - int(np.argmin(losses)) >= patience


def fit(
    model: keras.Model,
    batches: Batches,
    validation: Batch,
    folder: Path,
    done: list[Figures],
    epochs: int,
    callbacks: list[keras.callbacks.Callback],
    patience: int | None = None,
) -> None:
    """Train up to a number of epochs, of which some are done; `done` gets the figures of the others.

    With `patience`, until the validation loss hasn't fallen for so many epochs; the best model is kept too.
    """
    if is_over(done, patience):
        epochs = len(done)
    with closing(batches):
        model.fit(
            batches.epochs(len(done)),  # Keras asks for one even where no epoch is left
            steps_per_epoch=len(batches),
            shuffle=False,
            validation_data=validation,
            validation_batch_size=256,
            initial_epoch=len(done),
            epochs=epochs,
            verbose=0,
            callbacks=[*callbacks, Keep(folder, done, epochs, len(batches), patience)],
        )


class Keep(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """A bar with the time left; after every epoch a line, the checkpoint and the history."""

    def __init__(self, folder: Path, done: list[Figures], epochs: int, steps: int, patience: int | None) -> None:
        super().__init__()
        self._folder, self._done, self._epochs, self._patience = folder, done, epochs, patience
        self._started_s = time.monotonic()
        # None: no bar where nobody sees it.
        self._bar = tqdm(total=epochs * steps, initial=len(done) * steps, unit="batch", disable=None)

    def on_epoch_begin(self, epoch: int, logs: Figures | None = None) -> None:
        """Take the time."""
        self._started_s = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Figures | None = None) -> None:
        """Move the bar."""
        self._bar.update()

    def on_epoch_end(self, epoch: int, logs: Figures | None = None) -> None:
        """Write and tell."""
        seconds = time.monotonic() - self._started_s
        figures = {name: float(value) for name, value in (logs or {}).items()}
        self._done.append({**figures, "seconds": seconds})
        # Written aside first: a run that is stopped here still resumes.
        aside = self._folder / "writing.keras"
        if self._patience is not None and figures["val_loss"] <= min(each["val_loss"] for each in self._done):
            self.model.save(aside)
            aside.replace(best(self._folder))
        self.model.save(aside)
        aside.replace(checkpoint(self._folder))
        write_private(self._folder / "history.json", json.dumps(self._done, indent=1) + "\n")
        self.model.stop_training = is_over(self._done, self._patience)
        text = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        left = seconds * (self._epochs - epoch - 1) / 60
        tqdm.write(f"epoch {epoch + 1}/{self._epochs}  {text}  {seconds:.0f} s, {left:.0f} min left")
        sys.stdout.flush()

    def on_train_end(self, logs: Figures | None = None) -> None:
        """Leave the bar where it ended."""
        self._bar.close()


def commit() -> str:
    """The commit that the script was run from, "-dirty" where it wasn't that alone; "" where git can't tell."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # all of it is ours
    except FileNotFoundError:
        return ""
    return result.stdout.strip()
