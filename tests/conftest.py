"""What the tests share: an environment without edgefer's own variables, and brokers.

`run_mosquitto(**options)` and `run_amqtt()` start a broker that ends with the test, `mosquitto` is a plain one,
`subscribe(broker)` a subscriber: see brokers.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from brokers import Amqtt, Authority, Broker, Cable, Mosquitto, Subscriber


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What this machine's owner has set for edgefer isn't what a test is about; their people and daemon aren't ours."""
    for name in os.environ:
        if name.startswith("EDGEFER_") or name in {"CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    yield
    logging.getLogger("edgefer").setLevel(logging.NOTSET)  # a command that ran in this process has set it


# No test is about the time on the wall, and a busy machine has pauses.
hypothesis.settings.register_profile("edgefer", deadline=None)
hypothesis.settings.load_profile("edgefer")
# Debian keeps servers where only root looks.
os.environ["PATH"] += ":/usr/sbin"


@pytest.fixture
def edgefer(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs one command as a process, in a folder and with a state folder of its own; gives what became of it."""

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        # A broker that may run on this machine isn't ours to publish to.
        own = {"EDGEFER_STATE_DIR": str(tmp_path / "state"), "EDGEFER_MQTT__PORT": "1"}
        environment = os.environ | own | variables
        command = [sys.executable, "-m", "edgefer", *(a if isinstance(a, bytes) else str(a) for a in arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=100, check=False
        )

    return run


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    """Takes what must be closed after the test."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def run_mosquitto(closing: contextlib.ExitStack, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Mosquitto]:
    """Starts a mosquitto, with the options of brokers.Mosquitto."""
    if shutil.which("mosquitto") is None:
        pytest.skip("mosquitto isn't installed: `sudo apt-get install mosquitto`, or `make test` where it may")

    def run(**options: object) -> Mosquitto:
        return _running(Mosquitto(tmp_path_factory.mktemp("mosquitto"), **options), closing)  # type: ignore[arg-type]

    return run


@pytest.fixture
def mosquitto(run_mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    """A plain mosquitto."""
    return run_mosquitto()


@pytest.fixture
def run_amqtt(closing: contextlib.ExitStack, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Amqtt]:
    """Starts an amqtt, which speaks MQTT 3.1.1 only."""
    if importlib.util.find_spec("amqtt") is None:
        pytest.skip("amqtt isn't installed: `pip install '.[demo]'`")
    return lambda: _running(Amqtt(tmp_path_factory.mktemp("amqtt")), closing)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl isn't installed: `sudo apt-get install openssl`")
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def subscribe(closing: contextlib.ExitStack) -> Callable[..., Subscriber]:
    """Subscribes to a broker, with the options of brokers.Subscriber."""

    def subscribe(broker: Broker, *arguments: object, **options: object) -> Subscriber:
        subscriber = Subscriber(broker, *arguments, **options)  # type: ignore[arg-type]
        closing.callback(subscriber.close)
        return subscriber

    return subscribe


@pytest.fixture
def cable(closing: contextlib.ExitStack) -> Callable[..., Cable]:
    """Lays a cable to a port, with the options of brokers.Cable."""

    def lay(port: int, **options: object) -> Cable:
        laid = Cable(port, **options)  # type: ignore[arg-type]
        closing.callback(laid.pull)
        return laid

    return lay


def _running(broker: Broker, closing: contextlib.ExitStack) -> Broker:
    broker.start()
    closing.callback(broker.stop)
    return broker
