"""The Unix socket of a running daemon: faces for `edgefer enroll --camera` from the camera that the daemon holds.

docs/control.md tells the protocol. The daemon only answers; it is the command that changes the gallery.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import logging
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from edgefer import __version__
from edgefer.errors import InputError
from edgefer.gallery import Template
from edgefer.looks import EVERY_S, Look, look
from edgefer.messages import Detection, Image
from edgefer.vision.embedder import Embedding

log = logging.getLogger(__name__)

NAME = "control.sock"
MAX_REQUEST = 4096
"""Bytes of a request's line."""
MAX_ANSWER = 1 << 20
"""Bytes of an answer's line: a picture is some 100 kB."""
REQUEST_S, ANSWER_S = 2.0, 5.0
"""How long a request may take to come, and an answer to be taken, or to come."""
MAX_CONNECTIONS = 8
SILENCE_S = 1.0
"""After so long without a frame the one who waits is told so."""

Detect = Callable[[Image], Sequence[Detection]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a command asks: who the daemon is, or looks at whoever is before its camera (with their pictures)."""

    schema: Literal["edgefer.control/1"] = "edgefer.control/1"
    ask: Literal["state", "looks"]
    seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    pictures: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The first line of every answer: which daemon this is, and why it doesn't do what was asked, if it doesn't."""

    schema: Literal["edgefer.control/1"] = "edgefer.control/1"
    edgefer: str
    state_dir: str
    model: str | None
    problem: str | None = None


NO_FRAME = "the daemon's camera gives no frame"
"""Why a look is of no use while the daemon has no camera."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookLine:
    """One look: why it is of no use, or the face; `done` in the last line."""

    source: str = ""
    refused: str | None = None
    embedding: tuple[float, ...] | None = None
    quality: float | None = None
    picture: str | None = None
    """A JPEG in base64."""
    done: bool = False


_request, _state, _look_line = TypeAdapter(Request), TypeAdapter(State), TypeAdapter(LookLine)


def socket_paths() -> list[Path]:
    """Where the socket can be: a daemon listens at the first of these, a command tries all of them.

    systemd names the service's folder in $RUNTIME_DIRECTORY, and /run/edgefer is that folder seen from a shell; a
    daemon that somebody runs by hand takes edgefer/ in $XDG_RUNTIME_DIR.
    """
    if folder := os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]:
        return [Path(folder) / NAME]
    own = os.environ.get("XDG_RUNTIME_DIR")
    return [*([Path(own) / "edgefer" / NAME] if own else []), Path("/run/edgefer") / NAME]


class Control:
    """Answers on the socket while the daemon runs; one person at a time is looked at.

    `state_dir` and `model` (None where identity is off) tell commands whether this is the daemon they mean. Where the
    socket can't be made, the daemon runs without.
    """

    def __init__(
        self, state_dir: Path, model: str | None, template: Callable[[Image, Detection], Embedding] | None
    ) -> None:
        self._state = State(edgefer=__version__, state_dir=str(state_dir.resolve()), model=model)
        self._template = template
        self._sitting: _Sitting | None = None
        self._sitting_for_one = threading.Lock()
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._stop = threading.Event()
        self._socket: socket.socket | None = None
        self._path = socket_paths()[0]
        try:
            self._socket = _listen(self._path)
        except OSError as error:
            why = "another edgefer listens there" if error.errno == errno.EADDRINUSE else error.strerror or error
            log.info("no control socket at %s: %s; `edgefer enroll --camera` can't ask this daemon", self._path, why)
            return
        threading.Thread(target=self._run, args=(self._socket,), name="control", daemon=True).start()

    def watched(self, detect: Detect) -> Detect:
        """The same detector, at whose frames and faces a request may look too: one thread runs the models."""

        def call(image: Image) -> Sequence[Detection]:
            faces = detect(image)
            sitting = self._sitting
            if sitting is not None and self._template is not None:
                sitting.show(image, faces, self._template)
            return faces

        return call

    def close(self) -> None:
        """Stop answering."""
        self._stop.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
            self._socket.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _run(self, listening: socket.socket) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = listening.accept()
            except OSError as error:
                if not self._stop.wait(0.1):  # a lack of descriptors may pass
                    log.debug("control: %s", error)
                continue
            if not self._room.acquire(blocking=False):
                connection.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(connection,), name="control request", daemon=True).start()
            except RuntimeError as error:  # short of memory or of threads, which passes
                log.debug("control: %s", error)
                connection.close()
                self._room.release()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._answer(connection)
        except OSError as error:
            log.debug("control: the other side is gone: %s", error)
        except Exception:  # a thread's edge: the daemon goes on
            log.exception("a request on the control socket failed; this is a defect, please report it with the log")
        finally:
            self._room.release()

    def _answer(self, connection: socket.socket) -> None:
        try:
            request = _request.validate_json(_read_line(connection, REQUEST_S, MAX_REQUEST))
        except (ValidationError, InputError) as error:
            told = str(error) if isinstance(error, InputError) else f"not a request of {self._state.schema}"
            self._refuse(connection, f"{told}; is this edgefer {__version__}?")
            return
        if not _may_ask(connection):
            self._refuse(connection, "only the service's user and group may ask")
        elif request.ask == "state":
            _send(connection, _state.dump_json(self._state))
        elif self._template is None:
            self._refuse(connection, "EDGEFER_IDENTITY__ENABLED is false for the daemon: nobody can be enrolled")
        elif self._sitting_for_one.acquire(blocking=False):
            try:
                _send(connection, _state.dump_json(self._state))
                self._send_looks(connection, request)
            finally:
                self._sitting = None
                self._sitting_for_one.release()
        else:
            self._refuse(connection, "somebody is being enrolled already; try again")

    def _send_looks(self, connection: socket.socket, request: Request) -> None:
        self._sitting = sitting = _Sitting(request.pictures)
        end_s = time.monotonic() + request.seconds
        while (left_s := end_s - time.monotonic()) > 0 and not self._stop.is_set():
            try:
                seen = sitting.looks.get(timeout=min(left_s, SILENCE_S))
            except queue.Empty:
                if left_s < SILENCE_S:
                    continue
                seen = Look(sitting.clock(), NO_FRAME)
            _send(connection, _look_line.dump_json(_line_of(seen)))
        _send(connection, _look_line.dump_json(LookLine(done=True)))

    def _refuse(self, connection: socket.socket, problem: str) -> None:
        state = State(
            edgefer=self._state.edgefer, state_dir=self._state.state_dir, model=self._state.model, problem=problem
        )
        _send(connection, _state.dump_json(state))
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):  # what is left unread would cut the answer off
            connection.recv(1 << 16)


def is_daemon_there(state_dir: Path) -> bool:
    """Whether a daemon runs with this gallery (and may be asked)."""
    try:
        asked = _ask(state_dir, Request(ask="state"))
    except InputError:  # it answers in words that we do not know: there it is
        return True
    if asked is not None:
        asked[0].close()
    return asked is not None


def ask_for_looks(state_dir: Path, model: str, seconds: float, *, keep: bool) -> Iterator[Look] | None:
    """Looks through the camera of the daemon that runs with this gallery; None where there is none.

    InputError when the daemon can't, with why.
    """
    asked = _ask(state_dir, Request(ask="looks", seconds=seconds, pictures=keep))
    if asked is None:
        return None
    connection, state = asked
    if state.model != model:
        connection.close()
        raise InputError(
            f"the daemon runs with the model {state.model}, this command with {model}: give both the same "
            "EDGEFER_IDENTITY__MODEL, or restart the daemon"
        )
    return _read_looks(connection)


class _Sitting:
    """One request's looks, from the pipeline's thread to the request's."""

    def __init__(self, pictures: bool) -> None:
        self.looks: queue.SimpleQueue[Look] = queue.SimpleQueue()
        self._pictures = pictures
        self._start_s = time.monotonic()
        self._due_s = 0.0

    def clock(self) -> str:
        """How long it has been going on, for people."""
        return f"{time.monotonic() - self._start_s:.1f} s"

    def show(self, image: Image, faces: Sequence[Detection], template: Callable[[Image, Detection], Embedding]) -> None:
        """Take a look at a frame, now and then."""
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + EVERY_S
            self.looks.put(look(self.clock(), image, faces, template, keep=self._pictures))


def _listen(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    listening = socket.socket(socket.AF_UNIX)
    try:
        try:
            listening.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if living := _connected(path):
                living.close()
                raise
            path.unlink()  # of a daemon that was killed
            listening.bind(str(path))
        path.chmod(0o660)  # before anybody can connect
        listening.listen(4)
    except BaseException:
        listening.close()
        raise
    return listening


def _may_ask(connection: socket.socket) -> bool:
    """Whether the other side is root, our user, or of our group."""
    size = struct.calcsize("3i")
    _, user, group = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return user in (0, os.geteuid()) or group == os.getegid()


def _ask(state_dir: Path, request: Request) -> tuple[socket.socket, State] | None:
    """The connection and the answer's first line, of the daemon that runs with this gallery."""
    for path in socket_paths():
        connection = _connected(path)
        if connection is None:
            continue
        try:
            _send(connection, _request.dump_json(request))
            state = _state.validate_json(_read_line(connection, ANSWER_S, MAX_ANSWER))
            if Path(state.state_dir) != state_dir.resolve():
                log.warning("the daemon at %s has another gallery: EDGEFER_STATE_DIR=%s", path, state.state_dir)
            elif state.problem is not None:
                raise InputError(f"the daemon at {path}: {state.problem}")
            else:
                return connection, state
        except (OSError, ValidationError) as error:
            connection.close()
            if isinstance(error, InputError):
                raise
            raise InputError(f"the daemon at {path} gives no answer that edgefer {__version__} knows") from error
        connection.close()
    return None


def _connected(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(ANSWER_S)
    try:
        connection.connect(str(path))
    except PermissionError:
        log.warning("%s is another user's daemon's: with sudo, or as that user, it could be asked", path)
    except OSError:
        pass  # nobody is there
    else:
        return connection
    connection.close()
    return None


def _read_looks(connection: socket.socket) -> Iterator[Look]:
    with connection:
        connection.settimeout(ANSWER_S)  # for each look anew
        buffered = connection.makefile("rb")
        while True:
            try:
                line = _look_line.validate_json(buffered.readline(MAX_ANSWER))
            except (OSError, ValidationError) as error:
                raise InputError(
                    "the daemon stopped answering, as one does that ends or hangs: see its log, and try again"
                ) from error
            if line.done:
                return
            yield _look_of(line)


def _line_of(seen: Look) -> LookLine:
    if seen.template is None:
        return LookLine(source=seen.source, refused=seen.refused)
    template = seen.template
    picture = None if template.picture is None else base64.b64encode(template.picture).decode()
    values = tuple(template.embedding.tolist())
    return LookLine(source=seen.source, embedding=values, quality=template.quality, picture=picture)


def _look_of(line: LookLine) -> Look:
    if line.embedding is None or line.quality is None:
        return Look(line.source, line.refused or "no face was found")
    picture = None if line.picture is None else base64.b64decode(line.picture)
    return Look(line.source, None, Template(np.array(line.embedding, np.float32), line.quality, picture=picture))


def _send(connection: socket.socket, line: bytes) -> None:
    connection.settimeout(ANSWER_S)
    connection.sendall(line + b"\n")


def _read_line(connection: socket.socket, patience_s: float, most: int) -> bytes:
    """One line, byte by byte as nothing may be taken of what follows; InputError when it is late or too long."""
    patience_until_s = time.monotonic() + patience_s
    line = b""
    while not line.endswith(b"\n"):
        if (left_s := patience_until_s - time.monotonic()) <= 0:
            raise InputError(f"no whole line came within {patience_s:g} s")
        connection.settimeout(left_s)
        try:
            byte = connection.recv(1)
        except TimeoutError:
            continue
        if not byte or len(line) >= most:
            raise InputError(f"a line of at most {most} bytes was expected")
        line += byte
    return line
