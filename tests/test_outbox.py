"""The outbox: order, bounds, and every event counted once."""

import time

from examples import face_event
from hypothesis import given
from hypothesis import strategies as st

from edgefer.messages import EventCounts
from edgefer.outbox import Outbox

LONG_AGO_S = 100.0


def drain(outbox: Outbox) -> list[int]:
    """The `seq` of everything that waits, in the order of sending."""
    waiting, number = [], 0
    while (next_one := outbox.next_after(number)) is not None:
        waiting.append(next_one.event.seq)
        number = next_one.number
    return waiting


def test_events_wait_in_order_until_they_are_acknowledged():
    outbox = Outbox(expiry_s=60)
    for seq in range(4):
        outbox.put(face_event(seq), time.monotonic())
    outbox.acknowledge(2, replayed=False)
    outbox.acknowledge(1, replayed=True)
    outbox.give_up(3)
    assert drain(outbox) == [3]
    assert outbox.counts == EventCounts(published=2, waiting=1, replayed=1, dropped=1)


def test_the_oldest_makes_room():
    outbox = Outbox(expiry_s=60, capacity=3)
    for seq in range(5):
        outbox.put(face_event(seq), time.monotonic())
    assert drain(outbox) == [2, 3, 4]
    assert outbox.counts == EventCounts(waiting=3, dropped=2)


def test_an_hour_of_five_faces_fits_by_default():
    outbox = Outbox(expiry_s=3600)
    for seq in range(5 * 3600 // 5):
        outbox.put(face_event(seq), time.monotonic())
    assert outbox.counts.dropped == 0


def test_what_is_too_old_is_expired_and_not_sent():
    outbox = Outbox(expiry_s=60)
    outbox.put(face_event(0), time.monotonic() - 61)
    outbox.put(face_event(1), time.monotonic() - 59)
    assert outbox.counts == EventCounts(waiting=1, expired=1)
    assert drain(outbox) == [1]


def test_what_was_given_up_before_is_not_counted_again_when_its_acknowledgement_comes():
    outbox = Outbox(expiry_s=60, capacity=1)
    outbox.put(face_event(0), time.monotonic())
    outbox.put(face_event(1), time.monotonic())
    outbox.acknowledge(1, replayed=False)
    assert outbox.counts == EventCounts(waiting=1, dropped=1)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from([0.0, LONG_AGO_S])),
        st.tuples(st.sampled_from(["acknowledge", "give up", "next after"]), st.integers(0, 12)),
    ),
    max_size=40,
)


@given(steps)
def test_every_event_is_counted_exactly_once_and_the_order_never_changes(steps):
    outbox = Outbox(expiry_s=LONG_AGO_S / 2, capacity=4)
    put = 0
    for step, value in steps:
        if step == "put":
            outbox.put(face_event(put), time.monotonic() - value)
            put += 1
        elif step == "acknowledge":
            outbox.acknowledge(int(value), replayed=False)
        elif step == "give up":
            outbox.give_up(int(value))
        elif (following := outbox.next_after(int(value))) is not None:
            assert following.number > value
        counts = outbox.counts
        assert counts.published + counts.waiting + counts.expired + counts.dropped == put
        assert counts.waiting <= 4
        assert drain(outbox) == sorted(drain(outbox))
