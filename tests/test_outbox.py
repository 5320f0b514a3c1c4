"""The outbox: order, bounds, and every event counted once."""

import contextlib
import json
import shutil
import sqlite3
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import hypothesis
import pytest
from brokers import PATIENCE_S, wait_until
from examples import face_event
from hypothesis import given
from hypothesis import strategies as st

from edgefer import outbox as outbox_module
from edgefer import store as store_module
from edgefer.messages import EventCounts, Identity
from edgefer.outbox import Outbox, forget
from edgefer.payload import as_replayed, to_json
from edgefer.settings import Settings
from edgefer.store import FILE, Store, StoreError

LONG_AGO_S = 100.0


def drain(outbox: Outbox) -> list[int]:
    """The `seq` of everything that waits, in the order of sending."""
    waiting, number = [], 0
    while (next_one := outbox.next_after(number)) is not None:
        waiting.append(json.loads(next_one.payload)["seq"])
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


@hypothesis.settings(deadline=None)
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


# On disk


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A state folder; events that wait are written there at once, and an empty file goes at once."""
    monkeypatch.setattr(outbox_module, "KEPT_AFTER_S", 0.05)
    monkeypatch.setattr(outbox_module, "EMPTY_FOR_S", 0.1)
    monkeypatch.setattr(outbox_module, "CLOSE_S", PATIENCE_S)
    return tmp_path / "state"


@pytest.fixture
def open_outbox(folder, closing):
    """Opens an outbox on the state folder, that is closed after the test."""

    def open_outbox(key: str | None = None, **options) -> Outbox:
        outbox = Outbox(options.pop("expiry_s", 60), store=Store(folder, key), **options)
        closing.callback(outbox.close)
        return outbox

    return open_outbox


def put(outbox: Outbox, *seqs: int, name: str = "Ada", age_s: float = 0) -> None:
    for seq in seqs:
        identity = Identity("known", name, 0.71, 0.29)
        outbox.put(face_event(seq, identity=identity), time.monotonic() - age_s)


def rows(folder: Path) -> int:
    """How many events are in the file, as another process sees it."""
    with contextlib.suppress(sqlite3.OperationalError):  # it isn't there, or just being made
        address = f"{(folder / FILE).as_uri()}?mode=rw"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=PATIENCE_S)) as database:
            return database.execute("SELECT count(*) FROM event").fetchone()[0]
    return 0


def wait_for_rows(folder: Path, count: int) -> None:
    wait_until(lambda: rows(folder) == count, f"{count} event(s) in the file")


def settings(folder: Path, key: str | None = None) -> Settings:
    return Settings(state_dir=folder, gallery={"key": key})


def test_a_broker_that_answers_in_time_costs_no_write(tmp_path, closing):
    outbox = Outbox(60, store=Store(tmp_path / "state"))
    closing.callback(outbox.close)
    for seq in range(20):
        put(outbox, seq)
        outbox.acknowledge(seq + 1, replayed=False)
    outbox.close()
    assert not (tmp_path / "state").exists()


def test_what_waits_is_found_after_a_restart_in_order_and_comes_first(folder, open_outbox):
    first = open_outbox()
    put(first, 1, 2, 3)
    assert first.close() == 0
    again = open_outbox()
    assert again.counts == EventCounts(waiting=3)
    put(again, 7)
    assert drain(again) == [1, 2, 3, 7]
    assert [again.next_after(n).restored for n in range(4)] == [True, True, True, False]
    for number in range(1, 5):
        again.acknowledge(number, replayed=True)
    assert again.counts == EventCounts(published=4, replayed=4)
    wait_until(lambda: not (folder / FILE).exists(), "the file to go")


def test_a_killed_process_leaves_what_it_had_written(folder, open_outbox):
    put(open_outbox(), 1, 2)
    wait_for_rows(folder, 2)
    # As after `kill -9`: the files as they are now, and nobody who holds them.
    grave = folder.with_name("grave")
    shutil.copytree(folder, grave)
    outbox = Outbox(60, store=Store(grave))
    assert drain(outbox) == [1, 2]
    outbox.close()


def test_the_file_is_its_owners_alone(folder, open_outbox):
    outbox = open_outbox()
    put(outbox, 1)
    wait_for_rows(folder, 1)
    assert {path.stat().st_mode & 0o777 for path in folder.glob(f"{FILE}*")} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_leaves_memory_leaves_the_file(folder, open_outbox):
    outbox = open_outbox(capacity=3)
    put(outbox, 1, 2, 3)
    wait_for_rows(folder, 3)
    put(outbox, 4)
    outbox.acknowledge(2, replayed=False)
    outbox.give_up(3)
    wait_for_rows(folder, 1)
    assert drain(outbox) == [4]
    assert outbox.counts == EventCounts(published=1, waiting=1, dropped=2)


def test_bytes_are_bounded_too(monkeypatch):
    monkeypatch.setattr(outbox_module, "MAX_BYTES", 3 * len(to_json(face_event(1))))
    outbox = Outbox(60)
    put(outbox, *range(1, 6))
    assert drain(outbox) == [3, 4, 5]
    assert outbox.counts == EventCounts(waiting=3, dropped=2)


def test_age_goes_on_while_nobody_runs(open_outbox):
    first = open_outbox()
    put(first, 1, age_s=50)
    put(first, 2, age_s=10)
    first.close()
    assert open_outbox(expiry_s=40).counts == EventCounts(waiting=1, expired=1)


@pytest.mark.parametrize(
    ("synced", "days", "expired"),
    [(True, 1, True), (True, -1, False), (False, 1, False)],
    ids=["a day by a set clock", "the clock went back", "the clock wasn't set"],
)
def test_over_a_restart_of_the_machine_only_a_clock_that_is_set_tells_the_age(
    folder, open_outbox, monkeypatch, synced, days, expired
):
    first = open_outbox()
    then = datetime.now(timezone.utc) - timedelta(days=days)
    first.put(face_event(1, time=then, clock_synced=synced), time.monotonic())
    first.close()
    monkeypatch.setattr(store_module, "_machine_boot", lambda: "another")
    monkeypatch.setattr(store_module.machine, "is_clock_synced", lambda: True)
    again = open_outbox()
    assert again.counts == (EventCounts(expired=1) if expired else EventCounts(waiting=1))
    if not expired:
        assert again.next_after(0).restored


def test_nobody_is_younger_than_who_came_later(open_outbox, monkeypatch):
    first = open_outbox()
    first.put(face_event(1, clock_synced=False), time.monotonic())
    first.close()
    second = open_outbox()
    put(second, 2, age_s=50)
    second.close()
    with_boot = sqlite3.connect(second._store.path)
    with_boot.execute("UPDATE event SET machine_boot = 'another' WHERE id = 1")
    with_boot.commit()
    with_boot.close()
    assert open_outbox(expiry_s=40).counts == EventCounts(expired=2)


DAMAGED = {
    "text": b"no database at all" * 1000,
    "zeros in the middle": None,
    "a later version": "PRAGMA user_version = 2",
    "somebody else's": "PRAGMA user_version = 0",
    "another table": "ALTER TABLE event DROP COLUMN captured_at",
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_cannot_be_used_is_kept_aside_and_told(folder, open_outbox, caplog, damage):
    first = open_outbox()
    put(first, *range(200))
    first.close()
    file = folder / FILE
    if isinstance(damage, str):
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute(damage)
    elif damage is None:
        content = file.read_bytes()
        file.write_bytes(content[:4096] + bytes(len(content) - 8192) + content[-4096:])
    else:
        file.write_bytes(damage)
    content = file.read_bytes()
    outbox = open_outbox()
    assert outbox.counts == EventCounts()
    [aside] = folder.glob(f"{FILE}.aside-*")
    assert aside.read_bytes() == content
    assert f"it was kept as {aside.name}" in outbox.problem
    assert f"it was kept as {aside.name}" in caplog.text
    put(outbox, 1)
    assert outbox.close() == 0
    assert drain(open_outbox()) == [1]


def test_a_file_that_was_set_aside_is_no_problem_any_more_once_it_is_gone(folder, open_outbox):
    folder.mkdir()
    (folder / FILE).write_bytes(b"no database at all" * 1000)
    outbox = open_outbox()
    put(outbox, 1)
    wait_for_rows(folder, 1)
    assert "it was kept as" in outbox.problem
    for aside in folder.glob(f"{FILE}.aside-*"):
        aside.unlink()
    wait_until(lambda: outbox.problem is None, "the problem to be over")


def test_an_event_that_cannot_be_read_is_left_out(folder, open_outbox, caplog):
    first = open_outbox()
    put(first, 1, 2, 3)
    first.close()
    with contextlib.closing(sqlite3.connect(folder / FILE)) as database:
        database.execute("UPDATE event SET payload = '{}' WHERE id = 2")
        database.commit()
    assert drain(open_outbox()) == [1, 3]
    assert "1 event(s) in it can't be read" in caplog.text
    assert rows(folder) == 2


def test_a_folder_that_cannot_be_written_is_told_until_it_can(folder, open_outbox, caplog):
    folder.write_text("a file where the folder should be")
    outbox = open_outbox()
    put(outbox, 1)
    wait_until(lambda: outbox.problem, "the problem")
    assert "EDGEFER_STATE_DIR must be a folder we may write to" in outbox.problem
    assert outbox.counts == EventCounts(waiting=1)
    folder.unlink()
    wait_for_rows(folder, 1)
    wait_until(lambda: outbox.problem is None, "the problem's end")
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


def test_an_outage_is_logged_once_for_each_of_its_reasons_and_so_is_its_end(tmp_path, folder, open_outbox, caplog):
    caplog.set_level("INFO")
    no_folder, no_file, well = (tmp_path / name for name in ("no_folder", "no_file", "well"))
    no_folder.touch()
    (no_file / FILE).mkdir(parents=True)
    well.mkdir()

    def use(target: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(target)
        link.replace(folder)

    use(no_folder)
    outbox = open_outbox()
    put(outbox, 1)
    for target, reason in ((no_folder, "File exists"), (no_file, "Is a directory"), (no_folder, "File exists")):
        use(target)
        wait_until(lambda reason=reason: reason in (outbox.problem or ""), "the problem")
    use(well)
    wait_until(lambda: outbox.problem is None, "the problem's end")
    told = [(record.levelname, record.message) for record in caplog.records]
    assert [level for level, _ in told] == ["WARNING", "WARNING", "INFO"]
    assert told[-1][1] == f"{folder / FILE} can be written again"


def test_a_full_disk_keeps_events_in_memory_until_there_is_room(folder, open_outbox, caplog):
    outbox = open_outbox()
    put(outbox, 1)
    wait_for_rows(folder, 1)
    outbox._store._database.execute("PRAGMA max_page_count = 8")
    put(outbox, *range(2, 60))
    wait_until(lambda: "full" in caplog.text, "the problem")
    assert outbox.counts == EventCounts(waiting=59)
    wait_for_rows(folder, 59)  # the limit went with the connection
    wait_until(lambda: outbox.problem is None, "the problem's end")
    outbox.close()
    assert drain(open_outbox()) == list(range(1, 60))


def test_what_cannot_be_written_at_the_end_is_told(folder, open_outbox):
    folder.write_text("a file where the folder should be")
    outbox = open_outbox()
    put(outbox, 1, 2)
    assert outbox.close() == 2


def test_a_store_has_one_owner(folder, open_outbox):
    first, second = open_outbox(), None
    put(first, 1)
    wait_for_rows(folder, 1)
    second = open_outbox()
    assert "another edgefer" in second.problem
    assert second.counts == EventCounts()
    put(second, 2)
    first.close()
    wait_until(lambda: second.counts.waiting == 2, "what the first one left")
    wait_until(lambda: second.problem is None, "the problem's end")


def test_what_can_be_read_late_still_comes_before_all_that_is_not_sent_yet(folder, open_outbox):
    first = open_outbox()
    put(first, 1, 2)
    wait_for_rows(folder, 2)
    second = open_outbox()
    put(second, 7, 8, 9)
    sent = second.next_after(0)
    assert b'"seq":7' in sent.payload
    first.close()
    wait_until(lambda: second.counts.waiting == 5, "what the first one left")
    second.acknowledge(sent.number, replayed=False)
    following = [second.next_after(sent.number)]
    while (following_one := second.next_after(following[-1].number)) is not None:
        following.append(following_one)
    assert [(json.loads(w.payload)["seq"], w.restored) for w in following] == [
        (1, True),
        (2, True),
        (8, False),
        (9, False),
    ]
    assert second.counts == EventCounts(published=1, waiting=4)
    second.close()
    assert drain(open_outbox()) == [1, 2, 8, 9]


def test_what_can_be_read_late_is_numbered_after_all_that_was_sent(folder, open_outbox):
    first = open_outbox()
    put(first, 1)
    wait_for_rows(folder, 1)
    second = open_outbox()
    put(second, 7, 8, 9)
    for number in (1, 2, 3):
        second.acknowledge(number, replayed=False)
    assert second.next_after(0) is None, "as a new connection asks"
    first.close()
    wait_until(lambda: second.counts.waiting == 1, "what the first one left")
    assert second.next_after(0).number == 4


def test_what_can_be_read_late_makes_room_for_what_is_newer(folder, open_outbox):
    first = open_outbox()
    put(first, 1, 2)
    wait_for_rows(folder, 2)
    second = open_outbox(capacity=4)
    put(second, 7, 8, 9)
    first.close()
    wait_until(lambda: second.counts == EventCounts(waiting=4, dropped=1), "what the first one left")
    assert drain(second) == [2, 7, 8, 9]
    wait_for_rows(folder, 4)


# Sealed


def contents(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_a_key_seals_the_events(folder, open_outbox):
    pytest.importorskip("cryptography")
    first = open_outbox("a secret")
    put(first, 1, name="Ada Lovelace")
    first.close()
    assert b"Lovelace" not in contents(folder)
    second = open_outbox("a secret")
    assert drain(second) == [1]
    second.close()
    third = open_outbox("another secret")
    assert "EDGEFER_GALLERY__KEY" in third.problem
    assert third.counts == EventCounts()


def test_who_forgets_with_another_key_than_the_owner_leaves_the_file_to_that_one(folder, open_outbox):
    pytest.importorskip("cryptography")
    outbox = open_outbox()
    put(outbox, 1, 2)
    put(outbox, 3, name="Ada Lovelace")
    wait_for_rows(folder, 3)
    assert forget(settings(folder, "a secret"), "Ada Lovelace") == 1
    put(outbox, 4)
    wait_for_rows(folder, 3)
    outbox.close()
    sealed = open_outbox("a secret")
    assert drain(sealed) == [1, 2, 4]
    with pytest.raises(StoreError, match="set the key that the daemon has"):
        forget(settings(folder), "Ada")
    with pytest.raises(StoreError, match="set the key that the daemon has"):
        forget(settings(folder, "another"), "Ada")


def test_a_key_that_comes_later_seals_what_waits(folder, open_outbox):
    pytest.importorskip("cryptography")
    first = open_outbox()
    put(first, 1, name="Ada Lovelace")
    first.close()
    assert b"Lovelace" in contents(folder)
    second = open_outbox("a secret")
    assert drain(second) == [1]
    second.close()
    assert b"Lovelace" not in contents(folder)


# Forgetting


@pytest.mark.parametrize("key", [None, "a secret"])
def test_who_is_forgotten_is_not_in_the_file_any_more(folder, open_outbox, key):
    if key:
        pytest.importorskip("cryptography")
    outbox = open_outbox(key)
    put(outbox, 1, 2, name="Ada Lovelace")
    put(outbox, 3, name="Grace Hopper")
    outbox.close()
    (folder / f"{FILE}.aside-before").write_bytes(b"Ada Lovelace")
    assert forget(settings(folder, key), "Ada Lovelace") == 2
    assert b"Lovelace" not in contents(folder)
    assert drain(open_outbox(key)) == [3]


def test_who_is_forgotten_while_the_daemon_runs_leaves_its_memory_too(folder, open_outbox):
    outbox = open_outbox()
    put(outbox, 1, 2)
    put(outbox, 3, name="Grace")
    wait_for_rows(folder, 3)
    assert forget(settings(folder), "Ada") == 2
    wait_until(lambda: outbox.counts == EventCounts(waiting=1, dropped=2), "Ada's events to be dropped")
    put(outbox, 4)  # recognised once more, before the gallery is read again
    put(outbox, 5, name="Grace")
    assert drain(outbox) == [3, 5]
    assert outbox.counts == EventCounts(waiting=2, dropped=3)


def test_names_that_are_removed_leave_memory_and_the_file(folder, open_outbox):
    outbox = open_outbox()
    put(outbox, 1)
    wait_for_rows(folder, 1)
    put(outbox, 2)
    put(outbox, 3, name="Grace")
    outbox.forget({"Ada", "Eve"})
    assert drain(outbox) == [3]
    assert outbox.counts == EventCounts(waiting=1, dropped=2)
    wait_for_rows(folder, 1)
    assert outbox.close() == 0
    assert drain(open_outbox()) == [3]


def test_nobody_to_forget_makes_no_file(folder):
    assert forget(settings(folder), "Ada") == 0
    assert not folder.exists()


def test_a_file_that_cannot_be_read_is_not_passed_over_when_somebody_is_forgotten(folder):
    folder.mkdir()
    (folder / FILE).write_bytes(b"no database at all" * 1000)
    with pytest.raises(StoreError, match="stop edgefer and delete it: it may name anybody"):
        forget(settings(folder), "Ada")
    assert (folder / FILE).exists()


def test_who_forgets_is_told_that_a_file_in_use_keeps_its_events(folder, open_outbox, monkeypatch):
    monkeypatch.setattr(store_module, "BUSY_S", 0.1)
    outbox = open_outbox()
    put(outbox, 1)
    outbox.close()
    with contextlib.closing(sqlite3.connect(folder / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            StoreError, match=r"can't be deleted now \(database is locked\), so they stay; .* try again"
        ):
            forget(settings(folder), "Ada")


def test_traces_of_events_that_another_program_keeps_are_told(folder, monkeypatch):
    monkeypatch.setattr(store_module, "BUSY_S", 0.1)
    payload = to_json(face_event(1, identity=Identity("known", "Ada", 0.71, 0.29)))
    with contextlib.closing(Store(folder)) as store:
        store.write([(payload, time.monotonic())], [])
        with contextlib.closing(sqlite3.connect(folder / FILE)) as backup:
            backup.execute("BEGIN")
            assert backup.execute("SELECT count(*) FROM event").fetchone() == (1,)
            with pytest.raises(
                StoreError, match=r"1 waiting event\(s\) are deleted, but traces .* another program reads"
            ):
                forget(settings(folder), "Ada")
        assert forget(settings(folder), "Ada") == 0
        assert b"Ada" not in b"".join(path.read_bytes() for path in folder.iterdir())


def test_who_is_forgotten_while_the_file_was_shut_leaves_memory_too(folder):
    full = "CREATE TRIGGER full BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
    payload = to_json(face_event(1, identity=Identity("known", "Ada", 0.71, 0.29)))
    with contextlib.closing(Store(folder)) as store:
        [kept] = store.write([(payload, time.monotonic())], [])
        assert store.ids_if_changed() in (None, {kept})
        with contextlib.closing(sqlite3.connect(folder / FILE)) as other:
            other.execute(full)
        with pytest.raises(StoreError, match="disk is full"):
            store.write([(payload, time.monotonic())], [])
        assert forget(settings(folder), "Ada") == 1
        assert store.ids_if_changed() == set()


@hypothesis.settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_replayed_event_is_marked_whatever_it_says(name):
    event = face_event(1, identity=Identity("known", name, 0.7), camera='","replayed":false,"')
    marked = json.loads(as_replayed(to_json(event)))
    assert marked == json.loads(to_json(event)) | {"replayed": True}
    assert marked["identity"]["name"] == name
