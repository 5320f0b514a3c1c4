"""The gallery's file: what it survives, what it refuses, and what it never overwrites."""

import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest

from edgefer.errors import InputError
from edgefer.gallery import FILE, Gallery, Newcomer, Template

MODEL = "identity-112 0123456789ab"


def faces(count: int, seed: int = 1) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, 128)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def crowd(count: int) -> list[Newcomer]:
    return [Newcomer(f"Person {n}", [Template(face, 1.0)]) for n, face in enumerate(faces(count))]


def fill(folder, people=3, **options) -> None:
    with closing(Gallery(folder, MODEL, create=True, **options)) as gallery:
        gallery.add_people(crowd(people))


ANOTHER_FACE = "UPDATE template SET embedding = ? WHERE id = 8"


def changed(folder, statement: str, *values) -> bytes:
    """The file once something in it was changed."""
    with closing(sqlite3.connect(folder / FILE)) as database, database:
        database.execute(statement, values)
    return (folder / FILE).read_bytes()


def names(folder, key=None) -> list[str]:
    with closing(Gallery(folder, MODEL, key)) as gallery:
        return [person.name for person in gallery.people()]


def contents(folder) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def elsewhere(script: str, *arguments: object) -> subprocess.Popen:
    """A script in a process of its own, with a gallery class at hand."""
    head = "import sys, os; import numpy as np; from pathlib import Path\nfrom edgefer.gallery import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestDamage:
    @pytest.fixture(
        params=[
            "not a database",
            "of a format that is yet to come",
            "to be written by a later SQLite",
            "torn",
            "overwritten in the middle",
            "a flipped bit in a face",
            "a face that is no number",
            "a face of another size",
            "a face of half a value",
            "a name that isn't text",
            "a name that is bytes",
            "a table that isn't text",
        ]
    )
    def damaged(self, request, tmp_path):
        fill(tmp_path, 300)
        whole = (tmp_path / FILE).read_bytes()
        face = faces(300)[7].tobytes()
        flipped = face[:3] + bytes([face[3] ^ 0x40]) + face[4:]  # of the first value's exponent

        def once(statement: str, *values) -> bytes:
            broken = changed(tmp_path, statement, *values)
            (tmp_path / FILE).write_bytes(whole)
            return broken

        broken = {
            "not a database": b"not a database at all" * 100,
            "of a format that is yet to come": whole[:47] + b"\x7f" + whole[48:],
            "to be written by a later SQLite": whole[:18] + b"\x03" + whole[19:],
            "torn": whole[: len(whole) // 2],
            "overwritten in the middle": whole[:20000] + b"\xa5" * 40000 + whole[60000:],
            "a flipped bit in a face": whole.replace(face, flipped),
            "a face that is no number": whole.replace(face, face[:4] + b"\xff" * 4 + face[8:]),
            "a face of another size": once(ANOTHER_FACE, face[:-4]),
            "a face of half a value": once(ANOTHER_FACE, face[:-2]),
            "a name that isn't text": whole.replace(b"Person 77", b"Perso\xee 77"),
            "a name that is bytes": once("UPDATE person SET name = CAST(name AS BLOB) WHERE id = 8"),
            "a table that isn't text": whole.replace(b"REFERENCES person", b"REFER\xd2NCES person"),
        }[request.param]
        assert broken != whole
        (tmp_path / FILE).write_bytes(broken)
        return tmp_path, broken

    def test_who_only_looks_is_told_and_touches_nothing(self, damaged):
        folder, broken = damaged
        with pytest.raises(InputError, match=r"gallery\.sqlite3: the file is damaged .*away together with its -wal"):
            Gallery(folder, MODEL)
        assert (folder / FILE).read_bytes() == broken

    def test_who_writes_keeps_it_aside_and_begins_anew(self, damaged, caplog):
        folder, broken = damaged
        fill(folder, 2)
        assert len(names(folder)) == 2
        (aside,) = folder.glob("gallery.damaged-*.sqlite3")
        assert aside.read_bytes() == broken
        assert f"it is kept as {aside.name}; enrol again" in caplog.text
        assert "move the file away" not in caplog.text

    def test_one_kept_aside_never_replaces_another(self, tmp_path):
        for content in (b"first" * 100, b"second" * 100, b"third" * 100):
            (tmp_path / FILE).write_bytes(content)
            fill(tmp_path, 1)
        assert sorted(path.read_bytes()[:5] for path in tmp_path.glob("*damaged*")) == [b"first", b"secon", b"third"]

    def test_the_daemon_goes_on_without_people_until_it_is_mended(self, damaged, tmp_path):
        folder, broken = damaged
        with closing(Gallery(folder, MODEL, outlast=True)) as daemons:
            assert daemons.is_empty
            assert "damaged" in daemons.problem
            assert not daemons.refresh()
            assert "damaged" in daemons.problem
            assert (folder / FILE).read_bytes() == broken
            fill(folder, 2)
            assert daemons.refresh()
            assert (daemons.problem, len(daemons.people())) == (None, 2)

    def test_people_who_were_loaded_stay_known_when_the_file_is_damaged_later(self, tmp_path):
        fill(tmp_path, 2)
        with closing(Gallery(tmp_path, MODEL)) as daemons:
            (tmp_path / FILE).unlink()
            (tmp_path / FILE).write_bytes(b"no database" * 100)
            assert not daemons.refresh()
            assert "damaged" in daemons.problem
            assert daemons.match(faces(2)[1]).name == "Person 1"

    def test_people_who_were_loaded_stay_known_while_the_state_folder_cannot_be_read(self, tmp_path):
        fill(tmp_path / "state", 2)
        with closing(Gallery(tmp_path / "state", MODEL)) as daemons:
            (tmp_path / "state").rename(tmp_path / "away")
            (tmp_path / "state").touch()
            assert not daemons.refresh()
            assert "Not a directory; EDGEFER_STATE_DIR must be a folder" in daemons.problem
            assert daemons.match(faces(2)[1]).name == "Person 1"
            (tmp_path / "state").unlink()
            (tmp_path / "away").rename(tmp_path / "state")
            daemons.refresh()
            assert daemons.problem is None

    def test_people_who_were_loaded_stay_known_when_a_face_is_damaged_later(self, tmp_path):
        fill(tmp_path, 10)
        with closing(Gallery(tmp_path, MODEL)) as daemons:
            changed(tmp_path, ANOTHER_FACE, np.full(128, 1e37, np.float32).tobytes())
            assert not daemons.refresh()
            assert "face 8 isn't what was enrolled" in daemons.problem
            assert "Person" not in daemons.problem, "it is published and logged"
            assert daemons.match(faces(10)[7]).name == "Person 7"
            assert daemons.match(-faces(10)[7]).similarity < 0.5
            changed(tmp_path, ANOTHER_FACE, faces(10)[7].tobytes())
            assert daemons.refresh()
            assert daemons.problem is None


def test_a_file_that_was_deleted_is_forgotten(tmp_path):
    fill(tmp_path)
    with closing(Gallery(tmp_path, MODEL)) as daemons:
        for path in tmp_path.iterdir():
            path.unlink()
        assert daemons.refresh()
        assert daemons.is_empty


def test_a_damaged_name_that_only_another_model_knows_is_outlasted_too(tmp_path):
    fill(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE)) as database:
        database.execute("UPDATE person SET name = CAST(x'ff41' AS TEXT) WHERE id = 1")
        database.commit()
    with closing(Gallery(tmp_path, "another model", outlast=True)) as daemons:
        assert "damaged" in daemons.problem
        assert daemons.people() == []
    with closing(Gallery(tmp_path, "another model", create=True)) as anew:
        assert anew.people() == []
    assert len([*tmp_path.glob("gallery.damaged-*.sqlite3")]) == 1


@pytest.mark.parametrize("create", [False, True])
def test_a_gallery_of_a_newer_version_is_refused_and_not_touched(tmp_path, create):
    fill(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE)) as newer:
        newer.execute("PRAGMA user_version=7")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"newer edgefer \(version 7 .*EDGEFER_STATE_DIR"):
        Gallery(tmp_path, MODEL, create=create, outlast=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("create", [False, True])
def test_a_database_of_something_else_is_refused_and_not_touched(tmp_path, create, version):
    with closing(sqlite3.connect(tmp_path / FILE)) as other:
        other.execute("CREATE TABLE song (title TEXT)")
        other.execute(f"PRAGMA user_version={version}")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="no gallery that this edgefer knows"):
        Gallery(tmp_path, MODEL, create=create)
    assert contents(tmp_path) == before


def test_two_processes_enrol_at_once(tmp_path):
    script = """
for n in range(10):
    gallery = Gallery(Path(sys.argv[1]), "model", create=True)
    gallery.enroll(f"{sys.argv[2]} {n}", np.eye(4, dtype=np.float32)[n % 4], 1.0)
    gallery.close()
"""
    writers = [elsewhere(script, tmp_path / "state", who) for who in ("Ada", "Grace")]
    for writer in writers:
        assert (writer.communicate(timeout=60)[1], writer.returncode) == ("", 0)
    with closing(Gallery(tmp_path / "state", "model")) as gallery:
        assert len(gallery.people()) == 20


def test_what_was_enrolled_survives_a_kill(tmp_path):
    writer = elsewhere(
        """
gallery = Gallery(Path(sys.argv[1]), "model", create=True)
gallery.enroll("Ada", np.eye(4, dtype=np.float32)[0], 1.0)
os.kill(os.getpid(), 9)
""",
        tmp_path,
    )
    writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL
    with closing(Gallery(tmp_path, "model")) as gallery:
        assert [person.name for person in gallery.people()] == ["Ada"]


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path):
    fill(tmp_path, 3)
    writer = elsewhere(
        """
import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000,) * 2)
from edgefer.errors import InputError
gallery = Gallery(Path(sys.argv[1]), sys.argv[2], create=True)
people = [Newcomer(f"New {n}", [Template(np.eye(128, dtype=np.float32)[n % 128], 1.0)]) for n in range(2000)]
try:
    gallery.add_people(people)
except InputError as error:
    print(error)
print(len(gallery.people()))
""",
        tmp_path,
        MODEL,
    )
    told, errors = writer.communicate(timeout=60)
    assert errors == ""
    assert "nothing was changed; make room on the disk" in told
    assert told.endswith("\n3\n")
    assert names(tmp_path) == ["Person 0", "Person 1", "Person 2"]


def test_the_daemon_starts_on_a_full_disk_without_people_and_finds_them_once_there_is_room(tmp_path):
    fill(tmp_path, 3)
    daemon = elsewhere(
        """
import resource
limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit))
gallery = Gallery(Path(sys.argv[1]), sys.argv[2], outlast=True)
print(gallery.is_empty, gallery.problem)
print(gallery.refresh())
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print(gallery.refresh(), len(gallery.people()), gallery.problem)
""",
        tmp_path,
        MODEL,
    )
    told, errors = daemon.communicate(timeout=60)
    first, *later = told.splitlines()
    assert first.startswith("True ")
    assert "disk I/O error: nothing was changed; make room on the disk" in first
    assert later == ["False", "True 3 None"], errors


@pytest.mark.parametrize(
    ("change", "done"),
    [
        ('gallery.remove("Person 7")', "Person 7 is removed"),
        ('gallery.rename("Person 7", "Ada")', "Person 7 is Ada now"),
        ('gallery.merge("Person 7", "Person 8")', "Person 7 is Person 8 now"),
    ],
)
def test_what_a_full_disk_leaves_of_who_was_removed_is_told_and_goes_later(tmp_path, change, done):
    """The log takes the change, but what was deleted can't be overwritten in the file."""
    fill(tmp_path, 300)
    with closing(Gallery(tmp_path, MODEL)):  # a daemon's: nobody else is the last to close the file, and folds it
        writer = elsewhere(
            f"""
import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000,) * 2)
from edgefer.errors import InputError
gallery = Gallery(Path(sys.argv[1]), sys.argv[2])
try:
    {change}
except InputError as error:
    print(error)
print([person.name for person in gallery.people()].count("Person 7"))
""",
            tmp_path,
            MODEL,
        )
        told, errors = writer.communicate(timeout=60)
        assert errors == ""
        assert f"{done}, but traces of what was before stay in {tmp_path / FILE} (disk I/O error)" in told
        assert "make room on the disk" in told
        assert told.endswith("then `edgefer people remove 'Person 7'`\n0\n")
        assert "Person 7" not in names(tmp_path)
        assert re.search(rb"Person 7(?!\d)", contents(tmp_path))
        with closing(Gallery(tmp_path, MODEL)) as gallery:
            assert gallery.remove("Person 7") == 0
        assert not re.search(rb"Person 7(?!\d)", contents(tmp_path))


def test_who_is_removed_is_overwritten_before_the_file_gets_shorter(tmp_path):
    fill(tmp_path, 400)
    secret = faces(1, seed=9)[0].tobytes()[:16]
    with closing(Gallery(tmp_path, MODEL)) as gallery:
        gallery.add("Ada", [Template(face, 1.0) for face in faces(50, seed=9)])
        gallery._file._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert secret in (tmp_path / FILE).read_bytes()
        stored, size = [], (tmp_path / FILE).stat().st_size

        def before(statement):
            if statement == "VACUUM":
                stored.append((tmp_path / FILE).read_bytes())

        gallery._file._database.set_trace_callback(before)
        gallery.remove("Ada")
        (content,) = stored
        assert len(content) == size > (tmp_path / FILE).stat().st_size
        assert secret not in content


@pytest.mark.parametrize("part", ["", "-wal"])
def test_what_a_link_leads_to_is_left_alone(tmp_path, part):
    (tmp_path / "state").mkdir()
    (victim := tmp_path / "victim").write_text("not ours")
    victim.chmod(0o644)
    (tmp_path / "state" / f"{FILE}{part}").symlink_to(victim)
    with pytest.raises(InputError, match=f"{FILE}{part} is a link; EDGEFER_STATE_DIR says"):
        Gallery(tmp_path / "state", MODEL, create=True)
    with pytest.raises(InputError, match="is a link") if not part else suppress(InputError):
        Gallery(tmp_path / "state", MODEL).close()
    assert (victim.read_text(), stat.S_IMODE(victim.stat().st_mode)) == ("not ours", 0o644)


def test_who_is_removed_leaves_no_trace(tmp_path):
    """Among many, with pictures, while a daemon has the file open: not in the database, nor in its log."""
    picture = os.urandom(20_000)
    fill(tmp_path, 400)
    face = faces(1, seed=9)[0]
    with closing(Gallery(tmp_path, MODEL, create=True)) as gallery, closing(Gallery(tmp_path, MODEL)) as daemons:
        gallery.add("Ada Lovelace", [Template(face, 1.0, picture=picture), Template(-face, 1.0)])
        gallery.add_people([Newcomer(f"Later {n}", [Template(f, 1.0)]) for n, f in enumerate(faces(100, 3))])
        daemons.refresh()
        secrets = face.tobytes() + (-face).tobytes() + picture
        traces = [b"Ada Lovelace", *(secrets[n : n + 16] for n in range(0, len(secrets), 16))]
        stored = contents(tmp_path)
        assert sum(trace in stored for trace in traces) > 0.9 * len(traces), "some lie across a page's edge"
        gallery.rename("Ada Lovelace", "Countess")
        assert b"Ada Lovelace" not in contents(tmp_path)
        assert gallery.remove("Countess") == 2
        stored = contents(tmp_path)
        assert not any(trace in stored for trace in [*traces, b"Countess"])
        assert daemons.refresh()
        assert len(daemons.people()) == 500


def test_who_is_removed_leaves_no_trace_where_rows_had_grown(tmp_path):
    """SQLite leaves old copies of rows behind where it moves them, and pictures that come later make rows grow."""
    rng, everybody = np.random.default_rng(2), crowd(300)
    with closing(Gallery(tmp_path, MODEL, create=True)) as gallery:
        for start in range(0, 300, 10):
            gallery.add_people(everybody[start : start + 10])
        for who in (everybody[number] for number in rng.choice(300, 150, replace=False)):
            picture = rng.bytes(int(rng.integers(50, 2500)))
            gallery.add(who.name, [Template(who.templates[0].embedding, 1.0, picture=picture)])
        for number in rng.choice(300, 20, replace=False):
            gallery.remove(everybody[number].name)
            face = everybody[number].templates[0].embedding.tobytes()
            stored = contents(tmp_path)
            assert not any(face[n : n + 16] in stored for n in range(0, len(face), 16))
    assert len(names(tmp_path)) == 280


def test_nothing_of_a_face_goes_to_a_file_elsewhere(tmp_path):
    fill(tmp_path)
    with closing(Gallery(tmp_path, MODEL)) as gallery:
        assert gallery._file.read("PRAGMA temp_store") == [(2,)], "in memory"


def test_every_file_is_the_owners_alone(tmp_path):
    (tmp_path / FILE).touch()
    (tmp_path / FILE).chmod(0o644)
    with closing(Gallery(tmp_path, MODEL, create=True)) as gallery:
        gallery.enroll("Ada", faces(1)[0], 1.0)
        found = list(tmp_path.iterdir())
        assert len(found) == 3, "SQLite's log and index are meant too"
        assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}


def test_a_copy_that_was_put_there_by_hand_is_the_owners_alone_too(tmp_path):
    with closing(Gallery(tmp_path, MODEL, create=True)) as gallery:
        gallery.enroll("Ada", faces(1)[0], 1.0)
        copy = tmp_path / "copy"
        copy.mkdir()
        for path in tmp_path.glob(f"{FILE}*"):  # with its log, as long as it is open
            (copy / path.name).write_bytes(path.read_bytes())
            (copy / path.name).chmod(0o644)
    with closing(Gallery(copy, MODEL)) as gallery:
        assert not gallery.is_empty
        assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in copy.iterdir()} == {
            f"{FILE}{suffix}": 0o600 for suffix in ("", "-wal", "-shm")
        }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root acts for others")
def test_root_leaves_the_files_to_the_folders_owner(tmp_path):
    os.chown(tmp_path, 4321, 4322)
    with closing(Gallery(tmp_path, MODEL, create=True)) as gallery:
        gallery.enroll("Ada", faces(1)[0], 1.0)
        assert {(path.stat().st_uid, path.stat().st_gid) for path in tmp_path.iterdir()} == {(4321, 4322)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_of_roots_is_outlasted_with_what_mends_it():
    with tempfile.TemporaryDirectory() as name:  # pytest's own lies where nobody else may go
        folder = Path(name)
        folder.chmod(0o755)
        with closing(Gallery(folder, MODEL, create=True)) as gallery:
            gallery.enroll("Ada", faces(1)[0], 1.0)
        os.chown(folder, 4321, 4322)

        def problem() -> str:
            with closing(Gallery(folder, MODEL, outlast=True)) as gallery:
                assert gallery.is_empty == bool(gallery.problem)
                return gallery.problem or ""

        told = as_user(4321, problem)
        assert "belongs to root, and its folder to user 4321" in told
        with pytest.raises(InputError, match="belongs to root"):
            as_user(4321, lambda: str(Gallery(folder, MODEL)))
        (mend,) = re.findall("`sudo (chown .*)`", told)
        subprocess.run(mend, shell=True, check=True)
        assert as_user(4321, problem) == ""


def as_user(uid: int, ask: Callable[[], str]) -> str:
    """What a function gives in a process of that user's; what it raises of ours is raised here."""
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        told = "2it failed otherwise"
        try:
            os.setuid(uid)
            told = f"0{ask()}"
        except InputError as error:
            told = f"1{error}"
        finally:
            os.write(theirs, told.encode())
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    if told[0] == "1":
        raise InputError(told[1:])
    assert told[0] == "0", told
    return told[1:]


class TestSealed:
    """With EDGEFER_GALLERY__KEY."""

    @pytest.fixture(autouse=True)
    def _cryptography(self):
        pytest.importorskip("cryptography", reason="the seal extra isn't installed: pip install '.[seal]'")

    def test_a_wrong_key_is_never_an_empty_gallery(self, tmp_path):
        fill(tmp_path, key="right")
        for outlast in (False, True):
            with pytest.raises(InputError, match=r"gallery\.sqlite3: .*isn't the key .*move the file away"):
                Gallery(tmp_path, MODEL, "wrong", outlast=outlast)
        with pytest.raises(InputError, match="isn't the key"):
            Gallery(tmp_path, MODEL, "wrong", create=True)
        assert len(names(tmp_path, "right")) == 3

    def test_a_changed_byte_is_damage_and_no_wrong_key(self, tmp_path):
        fill(tmp_path, 10, key="right")
        with closing(sqlite3.connect(tmp_path / FILE)) as database:
            (face,) = database.execute("SELECT embedding FROM template WHERE id = 8").fetchone()
        for sealed in (face[:100] + bytes([face[100] ^ 1]) + face[101:], face[:5], b""):
            broken = changed(tmp_path, ANOTHER_FACE, sealed)
            with pytest.raises(InputError, match=r"gallery\.sqlite3: the file is damaged .*sealed.*changed"):
                Gallery(tmp_path, MODEL, "right")
            with closing(Gallery(tmp_path, MODEL, "right", outlast=True)) as daemons:
                assert daemons.is_empty
            assert (tmp_path / FILE).read_bytes() == broken
        fill(tmp_path, 2, key="right")
        (aside,) = tmp_path.glob("gallery.damaged-*.sqlite3")
        assert aside.read_bytes() == broken
        assert len(names(tmp_path, "right")) == 2

    def test_a_daemon_takes_up_a_gallery_that_is_begun_sealed(self, tmp_path):
        Gallery(tmp_path, MODEL, create=True).close()
        with closing(Gallery(tmp_path, MODEL, "right")) as daemons:
            assert daemons.is_empty
            fill(tmp_path, key="right")
            assert daemons.refresh()
            assert daemons.match(faces(3)[2]).name == "Person 2"

    def test_a_daemon_without_the_key_says_so_and_keeps_whom_it_knows(self, tmp_path):
        fill(tmp_path)
        with closing(Gallery(tmp_path, MODEL)) as daemons:
            for name in names(tmp_path):
                with closing(Gallery(tmp_path, MODEL)) as gallery:
                    gallery.remove(name)
            assert daemons.refresh()
            fill(tmp_path, key="late")
            assert not daemons.refresh()
            assert "is sealed" in daemons.problem
            assert daemons.is_empty

    def test_everything_works_sealed_and_nothing_is_in_the_clear(self, tmp_path):
        face, picture = faces(1, 5)[0], os.urandom(5000)
        fill(tmp_path, key="right")
        with closing(Gallery(tmp_path, MODEL, "right")) as gallery:
            gallery.add("Ada", [Template(face, 0.5, "2026-11-20T00:00:00+00:00", picture)])
            gallery.rename("Ada", "Countess")
            gallery.merge("Person 0", "Countess")
            (first, second) = gallery.templates("Countess")
            assert second.picture == picture
            assert (second.embedding == face).all()
            assert gallery.match(first.embedding).name == "Countess"
            stored = contents(tmp_path)
            assert face.tobytes()[:32] not in stored
            assert picture[:32] not in stored
        with closing(Gallery(tmp_path, MODEL, "right")) as gallery:
            assert gallery.match(face).name == "Countess"
