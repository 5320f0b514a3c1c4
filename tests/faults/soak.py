"""A busy daemon for an hour, whose broker fails now and then: are memory and handles flat, has every event arrived?

`make soak`, or `make soak SOAK_S=300`. Each minute a line; in the end a verdict, and exit code 1 where it is no.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
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
"""A connection that is being opened, and the store."""


@dataclass(frozen=True)
class Sample:
    """The daemon at one moment."""

    second: float
    own_mb: float
    pss_mb: float
    rss_mb: float
    handles: int
    threads: int
    state_kb: float

    def __str__(self) -> str:
        return (
            f"{self.second:7.0f} s  {self.own_mb:6.1f} MB own  {self.pss_mb:7.1f} MB PSS  {self.rss_mb:7.1f} MB RSS  "
            f"{self.handles:4d} handles  {self.threads:3d} threads  {self.state_kb:8.0f} kB of state"
        )


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
        state_kb=sum(path.stat().st_size for path in daemon.state.glob("*")) / 1000,
    )


def faults(broker: Mosquitto, cable: Cable) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """What can go wrong, one after the other, without end: its name, its beginning and its end."""
    yield from itertools.cycle(
        [
            ("hangs", broker.pause, broker.resume),
            ("is cut off", cable.pull, cable.plug_in),
            ("is slow", lambda: cable.slow_down(0.7), lambda: cable.slow_down(0)),
            ("is full", cable.fill, lambda: cable.fill(full=False)),
            ("is restarted", broker.stop, broker.start),
        ]
    )


def verdict(samples: list[Sample]) -> list[str]:
    """What isn't flat."""
    settled = samples[len(samples) // 4 :]
    seconds = np.array([sample.second for sample in settled])
    slope = float(np.polyfit(seconds, [sample.own_mb for sample in settled], 1)[0])
    growth_mb = slope * float(seconds[-1] - seconds[0])
    handles = settled[-1].handles - settled[0].handles
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
        daemon = Daemon(folder, broker, **BUSY | models, EDGEFER_MQTT__PORT=str(cable.port))
        parts.callback(daemon.process.wait)
        parts.callback(daemon.process.kill)
        subscriber.wait_for_payload("/face", lambda event: event["seq"])
        started_s = time.monotonic()
        samples: list[Sample] = []
        for name, begin, end in faults(broker, cable):
            if time.monotonic() - started_s > seconds:
                break
            begin()
            time.sleep(FAULT_S / 2)
            end()
            time.sleep(FAULT_S / 2)
            if not samples or time.monotonic() - started_s - samples[-1].second >= min(SAMPLE_S, seconds / 10):
                samples.append(look(daemon, started_s))
                print(f"{samples[-1]}  (the broker {name})", flush=True)
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
