"""What the tools' command lines share: how they end, and what they take."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from edgefer.errors import EdgeferError, InputError, UsageError
from edgefer.vision.model import find_model


class Parser(argparse.ArgumentParser):
    """A parser that tells a module's docstring, and raises UsageError."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """UsageError, exit code 64."""
        raise UsageError(f"{message} (--help shows an example)")


def run(command: Callable[[], int | None]) -> int:
    """The exit code of a tool's command; what is wrong with its input is told in one line."""
    try:
        return command() or 0
    except EdgeferError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{Path(sys.argv[0]).stem}: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return InputError.exit_code


def count(text: str, least: int = 1) -> int:
    """A whole number from `least` on."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from {least} is wanted")
    return int(text)


def pack_path(text: str) -> Path:
    """Where a pack is to be written."""
    if Path(text).suffix != ".npz":
        raise argparse.ArgumentTypeError(f"{text}: a name that ends in .npz is wanted")
    return Path(text)


def card_path(text: str) -> Path:
    """Where a model's card is, from its own path, its .tflite's, or the name of a model that ships."""
    path = Path(text)
    return find_model(str(path.with_suffix(".tflite")) if path.suffix else text).with_suffix(".json")
