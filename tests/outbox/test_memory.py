"""What a place keeps: the value, its bounds, and the rule by which it is kept."""

import datetime as dt
import json
import uuid
from dataclasses import replace

import pytest

from outbox.memory import BYTES, NOTES, Memory, Note, offered

HERE = uuid.UUID("0b6e9c1e-5f0d-4a53-9d1c-5d0b9f6f3a10")
AT = dt.datetime(2026, 11, 30, 8, 0, tzinfo=dt.UTC)
KEPT = Memory(HERE, 2, 100, "aa", notes=())


def note(event: int, **detail: object) -> Note:
    return Note(event, "0123456789abcdef", AT, "hold_engaged", uuid.UUID(int=event), detail)


def test_a_memory_is_read_as_it_was_written() -> None:
    full = replace(KEPT, still=True, notes=(note(98), replace(note(99, why="x"), resource=None)))
    assert Memory.read(full.as_json()) == full
    assert Memory.read(json.dumps(full.as_json())) == full


def test_what_keeps_the_notes_reads_as_none_of_them() -> None:
    assert Memory.read(replace(KEPT, notes=None).as_json()).notes == ()


@pytest.mark.parametrize("words", ["x", "\N{SNOWMAN}" * 50, "\x00\ud800" * 200, "x" * 1_000_000])
def test_a_memory_is_bounded_and_keeps_the_newest_notes(words: str) -> None:
    made = replace(KEPT, notes=tuple(note(n, words=words, more=words) for n in range(2000))).as_json()
    assert len(json.dumps(made)) <= BYTES
    assert 0 < len(made["notes"]) <= NOTES
    assert made["notes"][-1]["event"] == 1999
    assert [n.event for n in Memory.read(json.dumps(made)).notes or ()] == [n["event"] for n in made["notes"]]


@pytest.mark.parametrize(
    ("garbage", "says"),
    [
        (b"\xff\x00" * 50, "no JSON"),
        ("x" * 10_000_000, "10000000 characters"),
        ("[" * 100_000, "no JSON"),
        ("null", "no JSON object"),
        ("[1, 2]", "no JSON object"),
        ("{}", "no `installation`"),
        ({"installation": 5}, "`installation` is wrong: 5"),
        (KEPT.as_json() | {"epoch": "2"}, "`epoch` is wrong: '2'"),
        (KEPT.as_json() | {"event": True}, "`event` is wrong: True"),
        (KEPT.as_json() | {"event": -1}, "`event` is wrong: -1"),
        (KEPT.as_json() | {"event": 2**63}, "`event` is wrong"),
        (KEPT.as_json() | {"hash": "x'; DROP"}, "`hash` is wrong"),
        (KEPT.as_json() | {"hash": None}, "`hash` is wrong: None"),
        (KEPT.as_json() | {"still": 1}, "`still` is wrong: 1"),
        (KEPT.as_json() | {"notes": {}}, "`notes` is wrong: no list"),
        (KEPT.as_json() | {"notes": [7]}, "`notes` is wrong: it is no JSON object: 7"),
        (KEPT.as_json() | {"notes": [note(1).as_json() | {"at": "yesterday"}]}, "its `at` is wrong: 'yesterday'"),
        (KEPT.as_json() | {"notes": [note(1).as_json() | {"at": "2026-11-30T08:00:00"}]}, "its `at` is wrong"),
        (KEPT.as_json() | {"notes": [note(1).as_json() | {"detail": []}]}, "its `detail` is wrong"),
    ],
    ids=range(19),
)
def test_what_is_no_memory_is_an_error_in_few_words(garbage: object, says: str) -> None:
    with pytest.raises(ValueError, match=r"^it") as caught:
        Memory.read(garbage)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


EARLIER, LATER, FORKED = (replace(KEPT, event=99), replace(KEPT, event=101, hash="bb"), replace(KEPT, hash="bb"))


@pytest.mark.parametrize(
    ("there", "new", "left", "kept"),
    [
        (None, KEPT, KEPT, True),
        (KEPT, KEPT, KEPT, True),
        (KEPT, LATER, LATER, True),
        (KEPT, EARLIER, KEPT, False),
        (KEPT, FORKED, KEPT, False),
        (KEPT, replace(LATER, epoch=1), KEPT, False),
        (KEPT, replace(EARLIER, epoch=3), replace(EARLIER, epoch=3), True),
        (replace(KEPT, still=True), LATER, replace(KEPT, still=True), False),
        (replace(KEPT, still=True), replace(LATER, still=True), replace(LATER, still=True), True),
        (KEPT, replace(EARLIER, still=True), replace(KEPT, still=True), False),
        (KEPT, replace(FORKED, still=True), replace(KEPT, still=True), False),
        (KEPT, replace(LATER, epoch=1, still=True), KEPT, False),
        (replace(KEPT, still=True), replace(EARLIER, epoch=3), replace(EARLIER, epoch=3), True),
    ],
)
def test_a_later_memory_stays_and_only_a_later_epoch_clears_still(
    there: Memory | None, new: Memory, left: Memory, kept: bool
) -> None:
    assert offered(there, new) == (left, kept)


def test_notes_are_kept_until_newer_ones_come() -> None:
    noted = replace(KEPT, notes=(note(90), note(95)))
    assert offered(noted, replace(LATER, notes=None))[0].notes == noted.notes
    assert offered(noted, replace(LATER, notes=(note(101),)))[0].notes == (note(101),)
    # Another worker's later event came first: the notes land all the same, and older ones do not.
    assert offered(replace(noted, event=200), replace(LATER, notes=(note(99),))) == (
        replace(noted, event=200, notes=(note(99),)),
        False,
    )
    assert offered(noted, replace(EARLIER, notes=(note(94),)))[0] == noted
    # A database that went back in time must not replace what a recovery needs.
    assert offered(replace(noted, still=True), replace(EARLIER, notes=(note(99),)))[0].notes == noted.notes
    assert offered(noted, replace(EARLIER, still=True, notes=(note(99),)))[0].notes == noted.notes


def test_a_place_that_has_less_than_it_had_is_left_as_it_is() -> None:
    assert offered(None, LATER, (2, 50)) == (None, False)
    assert offered(KEPT, LATER, (2, 101)) == (KEPT, False)
    assert offered(replace(KEPT, lagging=90), LATER, (2, 100)) == (replace(KEPT, lagging=90), False)
    assert offered(replace(KEPT, lagging=90), LATER, (2, 90)) == (LATER, True)
    assert offered(KEPT, LATER, (2, 100)) == (LATER, True)
    assert offered(None, replace(LATER, still=True), (2, 50))[1], "whatever it has lost, it is to keep still"
