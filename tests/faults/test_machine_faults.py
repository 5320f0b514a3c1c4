"""A machine that is hot, throttled, short of memory or of the time, or says odd things: told, borne, and over again.

The daemon, the broker and the pictures are real. What the kernel says is written by the test: its files are under
another root, and its answer about the clock is that of a file.
"""

import pytest
from ledger import account

from edgefer.messages import ProblemCode

DAEMON = """
import sys
from pathlib import Path
from edgefer import machine

root = Path(sys.argv[1])
class Kernel:
    def adjtimex(self, request):
        return 0 if (root / "synchronised").exists() else 5  # timex.h: TIME_ERROR
machine.ROOT, machine._libc = root, Kernel

from edgefer import health, heat, service
heat.CALM_S, service.LOOK_EVERY_S, health.EVERY_S = 0.0, 0.1, 1.0
from edgefer.__main__ import main
sys.exit(main(["run"]))
"""
ZONE = "sys/class/thermal/thermal_zone0/temp"
FLAGS = "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"
MEMORY = "proc/meminfo"
WELL = {ZONE: "51000\n", FLAGS: "0\n", MEMORY: "MemAvailable:  500000 kB\n", "synchronised": ""}
FAULTS: list[tuple[str, str, str | None, set[ProblemCode]]] = [
    ("hot", ZONE, "84700\n", {"hot"}),
    ("a sensor without a value", ZONE, "", set()),
    ("a sensor that is gone", ZONE, None, set()),
    ("throttled", FLAGS, "50005\n", {"throttled"}),
    ("flags that are none", FLAGS, "what?\n", set()),
    ("short of memory", MEMORY, "MemAvailable:  30000 kB\n", {"memory"}),
    ("clock not set", "synchronised", None, {"clock"}),
]
FEW_FPS = 10.0
"""Five are looked at on a hot machine, of 25. Over a second, one more is counted."""


@pytest.fixture
def root(tmp_path):
    """Where the kernel's files are: `root(path, text)` writes one of them, or removes it."""

    def write(path: str, text: str | None) -> None:
        file = tmp_path / "root" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            file.unlink()
        else:
            file.write_text(text)

    write.path = tmp_path / "root"
    for path, text in WELL.items():
        write(path, text)
    return write


def test_every_fault_is_told_borne_and_over_again(root, run, mosquitto, subscribe):
    subscriber = subscribe(mosquitto)
    daemon = run(mosquitto, program=("-c", DAEMON, str(root.path)))
    since = ""

    def wait_for(topic: str, holds) -> dict:
        return subscriber.wait_for_payload(topic, lambda told: told["time"] > since and holds(told))

    def troubles(health: dict) -> set[str]:
        return {problem["code"] for problem in health["problems"] if problem["code"] != "disk"}

    for name, path, text, codes in FAULTS:
        well = wait_for("/health", lambda health: not troubles(health) and health["temperature_c"] == 51)
        since = well["time"]
        root(path, text)
        slowed = bool(codes & {"hot", "throttled"})

        def is_told(health: dict, path=path, codes=codes, slowed=slowed) -> bool:
            unknown = path == ZONE and not codes
            return (
                troubles(health) == codes
                and (health["temperature_c"] is None) == unknown
                and (not slowed or 0 < health["camera"]["fps"] < FEW_FPS)
            )

        told = wait_for("/health", is_told)
        assert told["clock_synced"] is ("clock" not in codes)
        since = told["time"]
        wait_for("/face", lambda event, told=told: event["clock_synced"] is told["clock_synced"])
        print(f"{name}: {told['camera']['fps']:.1f} frames/s, {told['status']}")
        root(path, WELL[path])
    wait_for("/health", lambda health: not troubles(health))
    assert daemon.told.count("looking at every frame again") == 2
    assert daemon.stop() == 0
    subscriber.wait_for(lambda messages: messages[-1].payload == "offline")
    found = account(daemon, subscriber)
    assert found.received == found.sent
    assert "Traceback" not in daemon.told
