"""`edgefer run` as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brokers import Broker

RUN_S = 100
"""How long a daemon may take to its end: a guard, never a measure."""


class Daemon:
    """`edgefer run` as a process; what it logs, and what it writes to standard output.

    `command` goes before it; `program` is what Python runs.
    """

    def __init__(
        self,
        folder: Path,
        broker: Broker,
        *,
        command: Sequence[str] = (),
        program: Sequence[str] = ("-m", "edgefer", "run"),
        **variables: str,
    ) -> None:
        self.log = folder / "edgefer.log"
        self.lines = folder / "edgefer.jsonl"
        self.state = folder / "state"
        with self.log.open("ab") as log, self.lines.open("ab") as lines:
            self.process = subprocess.Popen(
                [*command, sys.executable, *program],
                env=environment(folder) | broker.variables | variables,
                cwd=folder,
                stdout=lines,
                stderr=log,
            )

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        return self.process.wait(RUN_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop; the exit code."""
        self.process.send_signal(number)
        return self.wait()

    @property
    def told(self) -> str:
        """What it has logged."""
        return self.log.read_text()

    @property
    def event_count(self) -> int:
        """How many face events it has written to standard output."""
        return self.lines.read_bytes().count(b'"edgefer.face/1"')

    @property
    def events(self) -> list[dict[str, Any]]:
        """The face events that it has written to standard output, where EDGEFER_SINKS names that."""
        lines = self.lines.read_text().split("\n")[:-1]  # what follows the last line's end is still being written
        return [event for event in map(json.loads, lines) if event["schema"] == "edgefer.face/1"]


def environment(folder: Path) -> dict[str, str]:
    """A device of its own, that nobody has configured."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EDGEFER_")}
    own = {"EDGEFER_STATE_DIR": str(folder / "state"), "RUNTIME_DIRECTORY": str(folder / "run")}
    return kept | own | {"EDGEFER_DEVICE": "hall-pi"}
