"""Files from outside, read whole, but never more than they may sensibly hold; and programs, from where we are alone."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a file; OSError where it can't be read, is none, or holds more than `limit` bytes."""
    # A pipe that nobody writes to would hang us.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it holds more than {_readable(limit)}", os.fspath(path))
    return content


def write_private(path: Path, text: str) -> None:
    """Write a file for its owner only, whole or not at all: what was there before stays until then. OSError if not."""
    if path.exists() and not path.is_file():  # a terminal, a pipe
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()
    aside = path.with_name(f".{path.name}.writing")
    try:
        aside.unlink(missing_ok=True)
        with open(aside, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:  # Ctrl-C as well
        aside.unlink(missing_ok=True)
        raise


def expand_home(path: str | Path) -> Path:
    """The path with a `~` at its start made a home; as it is where that is nobody's."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # pathlib's raises on the ~ of an unknown user


def isolated_python(code: str, *arguments: str) -> list[str]:
    """A command that runs Python code, which finds the modules that we find.

    With `-c` and `-m` alone, what lies in the current folder would come first, whoever put it there.
    """
    folders = [str(Path(folder).absolute()) for folder in sys.path]
    return [sys.executable, "-I", "-c", f"import sys; sys.path[:] = {folders!r}\n{code}", *arguments]


def is_of_a_later_sqlite(path: Path) -> bool:
    """Whether the header of a database says that only a later SQLite may write it: of our own files, damage.

    SQLite itself calls such a file read-only. Bytes 18 and 19 are the versions to write and to read it with: 1, or 2
    for a write-ahead log (https://sqlite.org/fileformat2.html).
    """
    try:
        with path.open("rb") as file:
            return any(version > 2 for version in file.read(20)[18:])
    except OSError:
        return False


def _readable(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"
