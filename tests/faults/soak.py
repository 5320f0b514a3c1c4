"""A busy daemon for an hour, whose broker and camera fail in turn: is its memory flat, has every event arrived?

`make soak`, or `make soak SOAK_S=300`. Each minute a line; in the end a verdict, and exit code 1 where it is no.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from brokers import Cable, Mosquitto, Subscriber, wait_until
from daemons import Daemon
from ledger import BUSY, account

SAMPLE_S = 60.0
FAULT_S = 20.0
"""A fault begins every so often, and lasts half of it: so the store's file is made and removed again and again."""
GROWTH_MB = 2.0
"""So much more memory of its own (that no file backs) over the run is flat: pages of a heap that is used differently.

It is the slope over all samples after the first quarter. A leak of an event each second would be 3 MB an hour."""
GROWTH_HANDLES = 2
"""A connection that is being opened, and the store. The most of one half is compared with the most of the other: there
are fewer without a camera."""


@dataclass(frozen=True)
class Sample:
    """The daemon at one moment."""

    second: float
    own_mb: float
    pss_mb: float
    rss_mb: float
    handles: int
    threads: int
    camera_mb: float
    """The resident memory of the camera's process, which is another one after most of its faults."""
    state_kb: float

    def __str__(self) -> str:
        return (
            f"{self.second:6.0f} s  {self.own_mb:6.1f} MB own  {self.pss_mb:6.1f} MB PSS  {self.rss_mb:6.1f} MB RSS  "
            f"{self.handles:3d} handles  {self.threads:2d} threads  {self.camera_mb:5.1f} MB camera  "
            f"{self.state_kb:5.0f} kB of state"
        )


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong: what, how it begins, how it ends."""

    name: str
    begin: Callable[[], object]
    end: Callable[[], object]


def look(daemon: Daemon, started_s: float) -> Sample:
    """Take a sample."""
    process = Path(f"/proc/{daemon.process.pid}")
    memory = dict(line.split()[:2] for line in (process / "smaps_rollup").read_text().splitlines()[1:])
    return Sample(
        second=time.monotonic() - started_s,
        own_mb=int(memory["Anonymous:"]) / 1000,
        pss_mb=int(memory["Pss:"]) / 1000,
        rss_mb=int(memory["Rss:"]) / 1000,
        handles=len(list((process / "fd").iterdir())),
        threads=len(list((process / "task").iterdir())),
        camera_mb=camera_mb(process),
        state_kb=sum(path.stat().st_size for path in daemon.state.glob("*")) / 1000,
    )


def camera_mb(daemon: Path) -> float:
    """The resident memory of the camera's process; 0 where it has just ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        (camera,) = " ".join(path.read_text() for path in daemon.glob("task/*/children")).split()
        return int(Path(f"/proc/{camera}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


def faults(broker: Mosquitto, cable: Cable, camera: Path) -> Iterator[Fault]:
    """What can go wrong, one after the other, without end; `camera` is the file that a faulty camera obeys."""
    of_broker = [
        Fault("the broker hangs", broker.pause, broker.resume),
        Fault("the broker is cut off", cable.pull, cable.plug_in),
        Fault("the broker is slow", lambda: cable.slow_down(0.7), lambda: cable.slow_down(0)),
        Fault("the broker is full", cable.fill, lambda: cable.fill(full=False)),
        Fault("the broker is restarted", broker.stop, broker.start),
    ]
    of_camera = [
        Fault(f"the camera: {word}", partial(camera.write_text, word), partial(camera.write_text, "ok"))
        for word in ("freeze", "hang", "crash", "vanish", "dark", "slow")
    ]
    for pair in zip(itertools.cycle(of_broker), itertools.cycle(of_camera), strict=False):
        yield from pair


def verdict(samples: list[Sample]) -> list[str]:
    """What isn't flat."""
    settled = samples[len(samples) // 4 :]
    seconds = np.array([sample.second for sample in settled])
    slope = float(np.polyfit(seconds, [sample.own_mb for sample in settled], 1)[0])
    growth_mb = slope * float(seconds[-1] - seconds[0])
    middle = len(settled) // 2
    before, after = (max(sample.handles for sample in half) for half in (settled[:middle], settled[middle:]))
    handles = after - before
    print(f"memory: {slope * 3600:+.2f} MB an hour, {growth_mb:+.2f} MB over the run (at most {GROWTH_MB} is flat)")
    print(f"file handles: {handles:+d} (at most {GROWTH_HANDLES} is flat)")
    return ["memory"] * (growth_mb > GROWTH_MB) + ["file handles"] * (handles > GROWTH_HANDLES)


def soak(seconds: float) -> list[str]:
    """Run for so long; what is wrong in the end."""
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="edgefer-soak-")))
        broker = Mosquitto(folder)
        broker.start()
        parts.callback(broker.stop)
        cable = Cable(broker.port)
        parts.callback(cable.pull)
        subscriber = Subscriber(broker)
        parts.callback(subscriber.close)
        models = {"EDGEFER_IDENTITY__ENABLED": "true", "EDGEFER_EMOTION__ENABLED": "true"}
        camera = folder / "fault"
        source = {"EDGEFER_CAMERA": f"faulty://{camera}?show=sample", "EDGEFER_FRAME__FPS": "10"}
        daemon = Daemon(folder, broker, **BUSY | models | source, EDGEFER_MQTT__PORT=str(cable.port))
        parts.callback(daemon.process.wait)
        parts.callback(daemon.process.kill)
        subscriber.wait_for_payload("/face", lambda event: event["seq"])
        started_s = time.monotonic()
        samples: list[Sample] = []
        counts = Counter[str]()
        for fault in faults(broker, cable, camera):
            if time.monotonic() - started_s > seconds:
                break
            counts[fault.name] += 1
            fault.begin()
            time.sleep(FAULT_S / 2)
            fault.end()
            time.sleep(FAULT_S / 2)
            if not samples or time.monotonic() - started_s - samples[-1].second >= min(SAMPLE_S, seconds / 10):
                samples.append(look(daemon, started_s))
                print(f"{samples[-1]}  ({fault.name})", flush=True)
        print(", ".join(f"{count} x {name}" for name, count in counts.items()))
        last = daemon.events[-1]["seq"]
        subscriber.wait_for_payload("/face", lambda event: event["seq"] >= last)
        wrong = verdict(samples)
        daemon.stop()
        wait_until(lambda: subscriber.messages[-1].payload == "offline", "the good-bye")
        found = account(daemon, subscriber)
        return wrong + ["the account of events"] * (found.received != found.sent)


if __name__ == "__main__":
    wrong = soak(float(sys.argv[1]))
    print(f"NOT WELL: {', '.join(wrong)}" if wrong else "well: flat, and every event has arrived in order")
    sys.exit(bool(wrong))
