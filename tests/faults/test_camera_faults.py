"""A camera that freezes, hangs, crashes, is unplugged, dark or slow: it is told, nobody stays, and it comes back."""

import itertools
from datetime import datetime, timezone

import pytest
from brokers import Subscriber
from ledger import account


@pytest.fixture
def fault(tmp_path):
    """The file that says what the camera suffers from."""
    return tmp_path / "fault"


def seconds(earlier: str, later: str) -> float:
    """Between two published times."""
    begin, end = (datetime.fromisoformat(time.replace("Z", "+00:00")) for time in (earlier, later))
    return (end - begin).total_seconds()


def test_every_fault_is_told_and_nobody_stays_in_view_of_a_lost_camera(run, mosquitto, subscribe, fault):
    subscriber: Subscriber = subscribe(mosquitto)
    daemon = run(mosquitto, EDGEFER_CAMERA=f"faulty://{fault}?show=sample", EDGEFER_FRAME__FPS="10")
    since = ""

    def wait_for(topic: str, holds) -> dict:
        return subscriber.wait_for_payload(topic, lambda told: told["time"] > since and holds(told))

    def troubles(health: dict) -> set[str]:
        return {problem["code"] for problem in health["problems"] if problem["part"] == "camera"}

    codes = {"freeze": "frozen", "hang": "lost", "crash": "lost", "vanish": "lost", "dark": "dark", "slow": "slow"}
    for word, code in codes.items():
        wait_for("/presence", lambda presence: presence["count"] > 0)
        fault.write_text(word)
        begun = datetime.now(timezone.utc).isoformat()
        told = wait_for("/health", lambda health, code=code: troubles(health) == {code})
        assert told["status"] == ("degraded" if code in ("dark", "slow") else "failed")
        # In the dark nobody is found, and tracks end in their own time; of a lost camera nothing more is known.
        since = told["time"]
        if code != "slow":
            nobody = subscriber.wait_for_payload(
                "/presence", lambda told, t=begun: told["time"] > t and not told["count"]
            )
            since = max(since, nobody["time"])
        fault.write_text("ok")
        well = wait_for("/health", lambda health: not troubles(health))
        print(
            f"{word}: told after {seconds(begun, told['time']):.1f} s, well again {seconds(since, well['time']):.1f} s"
        )
        since = well["time"]
    assert daemon.stop() == 0
    subscriber.wait_for(lambda messages: messages[-1].payload == "offline")

    events = subscriber.payloads("/face")
    found = account(daemon, subscriber)
    assert found.received == found.sent
    for _, of_one in itertools.groupby(sorted(events, key=lambda e: e["track_id"]), key=lambda e: e["track_id"]):
        kinds = [event["event"] for event in sorted(of_one, key=lambda e: e["seq"])]
        assert (kinds[0], kinds[-1]) == ("appeared", "left")
        assert set(kinds[1:-1]) <= {"updated"}
    assert "Traceback" not in daemon.told
