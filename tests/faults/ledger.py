"""The account of a run: what was sent, and what a subscriber received."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from brokers import Subscriber
from daemons import Daemon

BUSY = {
    "EDGEFER_CAMERA": "sample://?loop=1",
    "EDGEFER_EVENTS__INTERVAL_S": "0.1",
    # Standard output shows what there is to send, whatever the broker does.
    "EDGEFER_SINKS": "mqtt,stdout",
    "EDGEFER_IDENTITY__ENABLED": "false",
    "EDGEFER_EMOTION__ENABLED": "false",
}
"""A daemon that has much to tell: some ten events a second and face."""

Key = tuple[str, int]
"""What an event is known by: its `boot_id` and `seq`."""


@dataclass(frozen=True)
class Account:
    """Events by their keys: as sent, as received (the first of each, in the order of arrival), and how often again."""

    sent: list[Key]
    received: list[Key]
    repeated: int
    replayed: int

    def __str__(self) -> str:
        return (
            f"{len(self.sent)} sent, {len(self.received)} received, {self.replayed} of them replayed, "
            f"{self.repeated} came twice, {len(set(self.sent) - set(self.received))} missing"
        )


def account(daemon: Daemon, subscriber: Subscriber) -> Account:
    """What there is to say so far; every event that came twice was the same but for `replayed`."""
    firsts: dict[Key, dict[str, Any]] = {}
    repeated = 0
    for event in subscriber.payloads("/face"):
        first = firsts.setdefault(key(event), event)
        repeated += first is not event
        assert event == first | {"replayed": event["replayed"]}
    replayed = sum(event["replayed"] for event in firsts.values())
    found = Account([key(event) for event in daemon.events], list(firsts), repeated, replayed)
    print(found)  # what docs/reliability.md tells: pytest -s
    return found


def key(event: dict[str, Any]) -> Key:
    """What an event is known by."""
    return event["boot_id"], event["seq"]
