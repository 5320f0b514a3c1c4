"""What the tests of faults share: a daemon that has much to tell."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from brokers import Broker
from daemons import Daemon
from ledger import BUSY

from edgefer.cameras import sample
from edgefer.errors import InputError


@pytest.fixture(scope="session")
def pictures() -> None:
    """Skips the test where they are missing: the sample camera's pictures come with an extra."""
    try:
        for actor in sample.CAST:
            sample.picture_path(actor)
    except InputError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def run(pictures: None, tmp_path: Path, closing: contextlib.ExitStack) -> Callable[..., Daemon]:
    """Starts a busy daemon that ends with the test; `variables` change its settings, `program` what Python runs."""

    def start(broker: Broker, program: Sequence[str] = ("-m", "edgefer", "run"), **variables: str) -> Daemon:
        daemon = Daemon(tmp_path, broker, program=program, **BUSY | variables)
        closing.callback(daemon.process.wait)
        closing.callback(daemon.process.kill)
        return daemon

    return start
