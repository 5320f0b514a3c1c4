"""The gallery: who is nearest, what is kept, and what can't be opened."""

import hashlib
import math
import sqlite3
import stat
from contextlib import closing

import numpy as np
import pytest

from edgefer.errors import InputError, UsageError
from edgefer.gallery import Gallery, Newcomer, Template
from edgefer.gallery_file import TracesLeftError

MODEL = "identity-112 0123456789ab"


def direction(*values: float) -> np.ndarray:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


ADA, GRACE, BETWEEN = direction(1, 0, 0, 0), direction(0, 1, 0, 0), direction(1, 1, 0, 0)


@pytest.fixture
def gallery(tmp_path):
    opened = Gallery(tmp_path / "state", MODEL, create=True)
    yield opened
    opened.close()


def test_an_empty_gallery_knows_nobody(gallery):
    assert gallery.is_empty
    assert gallery.match(ADA) is None
    assert gallery.people() == []


def test_one_person_has_no_margin(gallery):
    gallery.enroll("Ada", ADA, 1.0)
    match = gallery.match(BETWEEN)
    assert (match.name, match.margin) == ("Ada", None)
    assert match.similarity == pytest.approx(2**-0.5)


def test_the_nearest_template_of_each_person_counts(gallery):
    gallery.enroll("Ada", ADA, 1.0)
    gallery.enroll("Ada", direction(0, 0, 1, 0), 1.0)
    gallery.enroll("Grace", GRACE, 1.0)
    match = gallery.match(direction(0.2, 0.1, 1, 0))
    assert match.name == "Ada"
    # Ada's two have a variance of a half.
    assert match.similarity == pytest.approx(1 / np.linalg.norm([0.2, 0.1, 1]) - 0.05, abs=1e-6)
    assert match.margin == pytest.approx(0.9 / np.linalg.norm([0.2, 0.1, 1]) - 0.05, abs=1e-6)
    assert [(p.name, p.templates) for p in gallery.people()] == [("Ada", 2), ("Grace", 1)]


def test_what_all_templates_of_a_person_share_counts_too(gallery):
    for sign in (1, -1):
        gallery.enroll("Ada", direction(1, sign, 0, 0), 1.0)
    gallery.enroll("Grace", direction(1, 0, 0.8, 0), 1.0)
    match = gallery.match(ADA)
    assert (match.name, match.similarity) == ("Ada", pytest.approx(0.95)), "each of Ada's alone is further than Grace"


def test_the_nearest_is_found_among_many(gallery):
    """As if every template and everybody's mean were compared by hand, less a tenth of the templates' variance.

    And less what it costs that there are 60 people.
    """
    rng = np.random.default_rng(4)
    people = {f"Person {n}": rng.standard_normal((rng.integers(1, 6), 16)).astype(np.float32) for n in range(60)}
    people = {name: faces / np.linalg.norm(faces, axis=1, keepdims=True) for name, faces in people.items()}
    gallery.add_people([Newcomer(name, [Template(face, 1.0) for face in faces]) for name, faces in people.items()])
    whole = {name: np.stack([*faces, direction(*faces.sum(0))]) for name, faces in people.items()}
    crowd = 0.033 * math.log(60 / 50)
    costs = {name: 0.1 * np.square(faces - faces.mean(0)).sum(1).mean() + crowd for name, faces in people.items()}
    for seen in rng.standard_normal((200, 16)).astype(np.float32):
        face = seen / np.linalg.norm(seen)
        ranked = sorted(((float((whole[name] @ face).max() - costs[name]), name) for name in people), reverse=True)
        match = gallery.match(face)
        assert match.name == ranked[0][1]
        assert match.similarity == pytest.approx(ranked[0][0], abs=1e-5)
        assert match.margin == pytest.approx(ranked[0][0] - ranked[1][0], abs=1e-5)


def test_what_is_there_already_is_not_added_again(gallery):
    assert gallery.add("Ada", [Template(ADA, 1.0), Template(ADA, 0.5), Template(GRACE, 1.0)]) == 2
    assert gallery.add("Ada", [Template(ADA, 1.0), Template(BETWEEN, 1.0)]) == 1
    assert [(p.name, p.templates) for p in gallery.people()] == [("Ada", 3)]


def test_what_is_there_already_gets_the_picture_that_it_had_not(gallery):
    gallery.enroll("Ada", ADA, 1.0)
    gallery.enroll("Grace", ADA, 1.0)
    for picture in (b"first", None, b"later"):
        assert gallery.add("Ada", [Template(ADA, 1.0, picture=picture)]) == 0
        assert [t.picture for t in gallery.templates("Ada")] == [b"first"]
    assert [t.picture for t in gallery.templates("Grace")] == [None]


def test_a_name_is_the_same_however_it_was_typed(gallery):
    gallery.enroll("Zo\u00eb", ADA, 1.0)
    gallery.enroll("Zoe\u0308", GRACE, 1.0)
    assert [(p.name, p.templates) for p in gallery.people()] == [("Zo\u00eb", 2)]


def test_templates_of_another_length_are_refused(gallery):
    gallery.enroll("Ada", ADA, 1.0)
    with pytest.raises(InputError, match=r"Grace: .* 4 values"):
        gallery.enroll("Grace", direction(1, 0), 1.0)
    with pytest.raises(InputError, match=r"Grace: .* no vector of length 1"):
        gallery.enroll("Grace", 0 * GRACE, 1.0)
    assert [p.name for p in gallery.people()] == ["Ada"]


def test_several_people_are_added_or_none(gallery):
    with pytest.raises(UsageError):
        gallery.add_people([Newcomer("Ada", [Template(ADA, 1.0)]), Newcomer("x" * 300, [Template(GRACE, 1.0)])])
    assert gallery.people() == []


def test_rename_and_merge(gallery):
    gallery.enroll("Ada", ADA, 1.0)
    gallery.enroll("Grace", GRACE, 1.0)
    gallery.rename("Ada", "Countess")
    assert gallery.match(ADA).name == "Countess"
    with pytest.raises(UsageError, match=r"Grace is enrolled too.*merge"):
        gallery.rename("Countess", "Grace")
    gallery.merge("Countess", "Grace")
    assert [(p.name, p.templates) for p in gallery.people()] == [("Grace", 2)]
    assert gallery.match(ADA).name == "Grace"
    for change in (
        lambda: gallery.rename("Ada", "Eve"),
        lambda: gallery.merge("Ada", "Grace"),
        lambda: gallery.merge("Grace", "Ada"),
    ):
        with pytest.raises(UsageError, match="nobody named 'Ada'"):
            change()
    assert [(p.name, p.templates) for p in gallery.people()] == [("Grace", 2)]


@pytest.mark.parametrize("pictured", ["Ada", "Countess"])
def test_a_face_that_two_people_have_is_kept_once_by_one(gallery, pictured):
    for name in ("Ada", "Countess"):
        gallery.add(name, [Template(ADA, 1.0, picture=b"JPEG" if name == pictured else None), Template(GRACE, 0.5)])
    gallery.enroll("Ada", BETWEEN, 1.0)
    gallery.merge("Ada", "Countess")
    assert [(p.name, p.templates, p.pictures) for p in gallery.people()] == [("Countess", 3, 1)]
    faces = [template.embedding.tolist() for template in gallery.templates("Countess")]
    assert sorted(faces) == sorted(face.tolist() for face in (ADA, GRACE, BETWEEN))


def test_a_person_whom_another_process_takes_away_meanwhile_is_missed(gallery, tmp_path):
    gallery.enroll("Ada", ADA, 1.0)
    gallery.enroll("Grace", GRACE, 1.0)
    with closing(Gallery(tmp_path / "state", MODEL)) as other:
        gallery.remove("Ada")
        with pytest.raises(UsageError, match="nobody named 'Ada'"):
            other.rename("Ada", "Countess")
        gallery.enroll("Countess", ADA, 1.0)
        with pytest.raises(UsageError, match="Countess is enrolled too"):
            other.rename("Grace", "Countess")


def test_who_is_ignored_is_told_as_such_and_is_nobody_else(gallery):
    gallery.enroll("Ada", ADA, 1.0)
    gallery.add("poster", [Template(GRACE, 1.0)], ignored=True)
    assert gallery.match(GRACE).ignored
    assert not gallery.match(ADA).ignored
    with pytest.raises(UsageError, match="poster is ignored"):
        gallery.enroll("poster", GRACE, 1.0)
    with pytest.raises(UsageError, match="Ada is known by name"):
        gallery.add("Ada", [Template(GRACE, 1.0)], ignored=True)
    with pytest.raises(UsageError, match="one of poster and Ada is ignored"):
        gallery.merge("poster", "Ada")
    with pytest.raises(UsageError, match="Ada is enrolled too: take another name"):
        gallery.rename("poster", "Ada")


def test_of_strangers_only_how_near_they_came_is_kept(gallery):
    gallery.enroll("Ada", ADA, 1.0)
    gallery.note_strangers([0.312, 0.318, 0.2])
    gallery.note_strangers([-0.005, 0.3199])
    assert gallery.strangers() == pytest.approx({0.0: 1, 0.21: 1, 0.32: 3})
    gallery.enroll("Grace", GRACE, 1.0)
    assert gallery.strangers() == {}
    gallery.note_strangers([0.5])
    gallery.remove("Grace")
    assert gallery.strangers() == {}, "it may have been Grace who was so near"


def test_what_is_enrolled_is_there_next_time_and_for_its_owner_only(gallery, tmp_path):
    gallery.enroll("  Ada ", ADA, 0.5)
    again = Gallery(tmp_path / "state", MODEL)
    assert [p.name for p in again.people()] == ["Ada"]
    assert again.match(ADA).similarity == pytest.approx(1.0)
    again.close()
    assert stat.S_IMODE(gallery.path.stat().st_mode) == 0o600


def test_remove_forgets(gallery):
    gallery.enroll("Ada", ADA, 1.0)
    assert gallery.remove("Ada") == 1
    assert gallery.remove("Ada") == 0
    assert gallery.is_empty


def test_what_another_process_did_meanwhile_counts_when_somebody_is_added(gallery, tmp_path):
    gallery.enroll("Ada", ADA, 1.0)
    with closing(Gallery(tmp_path / "state", MODEL)) as other:
        other.enroll("Grace", GRACE, 1.0)
        assert gallery.add("Grace", [Template(GRACE, 1.0)]) == 0
        other.remove("Ada")
        assert gallery.add("Ada", [Template(ADA, 1.0)]) == 1
    assert {person.name: person.templates for person in gallery.people()} == {"Ada": 1, "Grace": 1}


def test_what_is_learnt_anew_goes_to_nobody_who_came_meanwhile(gallery, tmp_path):
    with closing(Gallery(tmp_path / "state", "an older model")) as older:
        older.add("Ada", [Template(ADA, 1.0, picture=b"Ada's")])
        ((number, _, picture),) = gallery.outdated_pictures()
        older.remove("Ada")
        older.add("Grace", [Template(GRACE, 1.0, picture=b"Grace's")])
        assert [row[0] for row in gallery.outdated_pictures()] == [number], "it is given again"
        gallery.replace([(number, Template(ADA, 1.0, picture=picture)), (77, Template(ADA, 1.0, picture=picture))])
        assert gallery.is_empty
        assert [template.picture for template in older.templates("Grace")] == [b"Grace's"]


def test_traces_that_another_program_keeps_are_told(gallery):
    gallery.enroll("Ada", ADA, 1.0)
    with closing(sqlite3.connect(gallery.path)) as backup:
        backup.execute("BEGIN")
        assert backup.execute("SELECT count(*) FROM template").fetchone() == (1,)
        gallery._file._database.execute("PRAGMA busy_timeout=50")
        with pytest.raises(TracesLeftError, match=r"another program reads.*edgefer people remove Ada"):
            gallery.remove("Ada")
    assert gallery.is_empty
    gallery.remove("Ada")


def test_templates_of_another_model_are_left_out_and_named(gallery, tmp_path):
    gallery.enroll("Ada", ADA, 1.0)
    other = Gallery(tmp_path / "state", "another-model")
    assert other.is_empty
    assert other.other_models() == [MODEL]
    other.close()


def test_looking_makes_no_file(tmp_path):
    Gallery(tmp_path / "state", MODEL).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "not 0"),
        ("   ", "not 0"),
        ("x" * 65, "not 65: 'xxx"),
        ("line\nbreak", r"holds U\+000A$"),
        ("bell\a", r"holds U\+0007$"),
        ("\u200cAda", r"holds U\+200C ZERO WIDTH NON-JOINER$"),
        ("علی\u200c", r"holds U\+200C"),
        ("A\u200dda", r"holds U\+200D"),
        ("م\u200c\u200cم", r"holds U\+200C"),
        ("Ada\u202e", r"holds U\+202E RIGHT-TO-LEFT OVERRIDE$"),
        ("\u3164", r"holds U\+3164 HANGUL FILLER$"),
        ("\u2800", r"holds U\+2800 BRAILLE PATTERN BLANK$"),
        ("Ada\ufe0f", r"holds U\+FE0F VARIATION SELECTOR-16$"),
        ("Ren\u00e9\ufe0f", r"holds U\+FE0F"),
        ("م\u034f\u034fم", r"holds U\+034F"),
        ("Ada\U000e0100", r"holds U\+E0100"),
        ("A\u034fda", r"holds U\+034F COMBINING GRAPHEME JOINER$"),
    ],
)
def test_odd_names_are_refused(gallery, name, told):
    with pytest.raises(UsageError, match=f"printable characters, .*{told}"):
        gallery.enroll(name, ADA, 1.0)


@pytest.mark.parametrize(
    "name", ["می\u200cمن", "\u2764\ufe0f Ada", "1\ufe0f\u20e3", "\U0001f468\u200d\U0001f469\u200d\U0001f467 Smith"]
)
def test_what_joins_letters_is_part_of_a_name(gallery, name):
    gallery.enroll(name, ADA, 1.0)
    assert [p.name for p in gallery.people()] == [name]


def test_a_damaged_file_is_told_and_left_alone(tmp_path):
    damaged = tmp_path / "gallery.sqlite3"
    damaged.write_bytes(b"not a database at all" * 100)
    with pytest.raises(InputError, match=r"gallery\.sqlite3: .*move the file away"):
        Gallery(tmp_path, MODEL)
    assert damaged.read_bytes() == b"not a database at all" * 100


def test_a_state_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(InputError, match="EDGEFER_STATE_DIR"):
        Gallery(tmp_path / "state", MODEL, create=True)


class TestSealed:
    """With EDGEFER_GALLERY__KEY."""

    @pytest.fixture(autouse=True)
    def _cryptography(self):
        pytest.importorskip("cryptography", reason="the seal extra isn't installed: pip install '.[seal]'")

    def test_opens_with_its_key_only(self, tmp_path):
        sealed = Gallery(tmp_path, MODEL, "right", create=True)
        sealed.enroll("Ada", ADA, 1.0)
        sealed.close()
        again = Gallery(tmp_path, MODEL, "right")
        assert again.match(ADA).name == "Ada"
        again.close()
        for key, told in (("wrong", "isn't the key"), (None, "is sealed: set EDGEFER_GALLERY__KEY")):
            with pytest.raises(InputError, match=told):
                Gallery(tmp_path, MODEL, key)

    def test_the_file_holds_no_template_in_the_clear(self, tmp_path):
        vector = direction(*range(1, 129))
        sealed = Gallery(tmp_path, MODEL, "right", create=True)
        sealed.enroll("Ada", vector, 1.0)
        sealed.close()
        stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert vector.astype("<f4").tobytes()[:64] not in stored

    def test_no_key_is_made_again_and_again_where_nobody_is_enrolled_yet(self, gallery, tmp_path, monkeypatch):
        made = []
        scrypt = hashlib.scrypt
        monkeypatch.setattr("hashlib.scrypt", lambda *given, **options: made.append(1) or scrypt(*given, **options))
        with closing(Gallery(tmp_path / "state", MODEL, "late")) as watching:
            watching.refresh()
            watching.refresh()
            assert not made
            with closing(Gallery(tmp_path / "state", MODEL, "late", create=True)) as other:
                other.enroll("Ada", ADA, 1.0)
            watching.refresh()
            assert watching.match(ADA).name == "Ada"
            assert made

    def test_a_key_for_a_gallery_made_without_one_is_told(self, gallery, tmp_path):
        gallery.enroll("Ada", ADA, 1.0)
        with pytest.raises(InputError, match="made without a key"):
            Gallery(tmp_path / "state", MODEL, "late")


def test_who_is_removed_is_told_from_who_is_renamed_merged_or_moved_away(gallery, tmp_path):
    """Ada and Eve were enrolled with the same picture, Bob takes the place in the file that Grace had."""
    for name, face in (("Ada", ADA), ("Eve", ADA), ("Grace", GRACE)):
        gallery.enroll(name, face, 1.0)
    here = Gallery(tmp_path / "state", MODEL)

    def found(*changes) -> frozenset[str]:
        for change in changes:
            change()
        assert here.refresh()
        return here.removed

    assert found(lambda: gallery.remove("Ada")) == {"Ada"}
    assert not here.refresh()
    assert here.removed == set()
    assert found(lambda: gallery.rename("Eve", "Countess")) == set()
    assert found(lambda: gallery.remove("Grace"), lambda: gallery.enroll("Bob", BETWEEN, 1.0)) == {"Grace"}
    assert found(lambda: gallery.merge("Countess", "Bob")) == set()
    gallery.add("Robert", [Template(BETWEEN, 1.0, picture=b"a picture")])
    gallery.add("Robert", [Template(ADA, 1.0)])
    assert found() == set()
    assert found(lambda: gallery.merge("Bob", "Robert")) == set(), "though all his faces were there already"
    assert sorted(template.picture or b"" for template in gallery.templates("Robert")) == [b"", b"a picture"]
    gallery.close()
    for path in (tmp_path / "state").iterdir():
        path.rename(tmp_path / path.name)
    assert found() == set()
    assert here.is_empty
    here.close()


def test_what_another_process_changes_is_taken_up(gallery, tmp_path):
    late = Gallery(tmp_path / "elsewhere", MODEL)
    Gallery(tmp_path / "elsewhere", MODEL, create=True).close()
    here = Gallery(tmp_path / "state", MODEL)
    gallery.enroll("Ada", ADA, 1.0)
    assert here.is_empty
    here.refresh()
    assert here.match(ADA).name == "Ada"
    gallery.remove("Ada")
    here.refresh()
    assert here.is_empty
    # A file that wasn't there yet is found too.
    other = Gallery(tmp_path / "elsewhere", MODEL)
    other.enroll("Grace", GRACE, 1.0)
    late.refresh()
    assert late.match(GRACE).name == "Grace"
    for opened in (late, here, other):
        opened.close()
