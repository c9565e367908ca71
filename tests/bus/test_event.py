"""The event itself: frozen, cheap to make, the same after every copy; and ids, which never repeat."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hark.bus.emit import Emitted
from hark.bus.event import Event, check_type, format_time, lacking, parse_time
from hark.errors import EventInvalid
from hark.vocabulary import new_id
from hypothesis import given
from hypothesis import strategies as st

AT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
FULL = Event(
    type="order.paid", source="/shop", id="1", subject="order/1", time=AT, data={"n": [1, None]},
    datacontenttype="application/json", dataschema="urn:x", correlationid="c", causationid="b", causaldepth=2,
    traceparent="00-1", tracestate="a=b", partitionkey="p", recordedtime=AT, expirytime=AT, replayof="1", replayid="r",
    extensions={"shop": "eu", "n": 1, "ok": True},
)  # fmt: skip

# Whatever CloudEvents lets a text hold: no control characters, and no code points that are no characters.
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cn")), min_size=1, max_size=20)
MOMENTS = st.datetimes(datetime(1900, 1, 1), timezones=st.just(UTC))
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


EVENTS = st.builds(
    Event,
    type=st.from_regex(r"[a-z0-9-]{1,8}(\.[a-z0-9-]{1,8}){0,3}", fullmatch=True),
    source=TEXTS, id=TEXTS, subject=maybe(TEXTS), time=MOMENTS, data=maybe(JSON | st.binary(max_size=20)),
    datacontenttype=maybe(TEXTS), dataschema=maybe(TEXTS), correlationid=maybe(TEXTS), causationid=maybe(TEXTS),
    causaldepth=st.integers(0, 1000), traceparent=maybe(TEXTS), tracestate=maybe(TEXTS), partitionkey=maybe(TEXTS),
    recordedtime=maybe(MOMENTS), expirytime=maybe(MOMENTS), replayof=maybe(TEXTS), replayid=maybe(TEXTS),
    extensions=st.dictionaries(st.from_regex(r"x[a-z0-9]{1,10}", fullmatch=True), TEXTS | st.integers(0, 99) | st.booleans(), max_size=2),
)  # fmt: skip


@given(EVENTS)
def test_what_is_written_is_read_back(event: Event) -> None:
    """Every attribute survives the structured JSON form, and an event equals what it was written from."""
    assert Event.from_json(event.to_json()) == event


@given(MOMENTS)
def test_times_are_written_with_six_digits_whatever_they_are(moment: datetime) -> None:
    """One width for every moment, so that texts sort as times do; and any zone means the same moment."""
    text = format_time(moment)
    assert text == moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")
    assert parse_time(text) == moment
    if moment.year < 9999:
        assert format_time(moment.astimezone(timezone(timedelta(hours=5, minutes=30)))) == text


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_that_utc_has_no_words_for_is_refused(text: str) -> None:
    """As any other that is not valid; it comes from strangers."""
    with pytest.raises(EventInvalid, match="year"):
        parse_time(text)


def test_a_subclass_of_datetime_is_a_time_too() -> None:
    """Libraries bring their own; they are written as any other."""

    class Stamp(datetime):
        pass

    assert format_time(Stamp(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)) == "2026-01-02T03:04:05.000678Z"


@pytest.mark.parametrize("event", [FULL, Emitted(type="a.b", source="/s"), Event(type="a.b", source="/s")])
def test_an_event_cannot_be_changed(event: Event) -> None:
    """Neither set nor deleted: what was said stays said."""
    for name in ("type", "data", "id"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, name, "other")
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(event, name)
    assert type(event) in (Event, Emitted)


def test_every_attribute_is_taken_and_kept() -> None:
    """The hand-written constructor knows each field of the class, and fills in an id and the time."""
    names = {field.name for field in dataclasses.fields(Event)}
    given_ = {name: getattr(FULL, name) for name in names}
    assert Event(**given_) == FULL
    assert all(value not in (None, 0, {}) for value in given_.values())
    before = datetime.now(UTC)
    bare = Event(type="a.b", source="/s")
    assert before <= bare.time <= datetime.now(UTC)
    assert uuid.UUID(bare.id).version == 7
    assert {name for name in names if getattr(bare, name) is not None} == {
        "type", "source", "id", "time", "causaldepth", "extensions",
    }  # fmt: skip


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e)), Event.replace]
)
@pytest.mark.parametrize("event", [FULL, Emitted(type="a.b", source="/s", subject="x")])
def test_a_copy_is_the_same_event(event: Event, again: Any) -> None:
    """Copied, pickled or replaced without a change: equal, of the same class, and as frozen."""
    other = again(event)
    assert (other, type(other)) == (event, type(event))
    with pytest.raises(dataclasses.FrozenInstanceError):
        other.id = "2"


def test_replace_changes_what_it_is_told_to() -> None:
    """All else stays."""
    changed = FULL.replace(subject="order/2")
    assert (changed.subject, changed.replace(subject="order/1")) == ("order/2", FULL)


def test_a_subclass_with_attributes_of_its_own_works() -> None:
    """What derives from an event is made and frozen like one."""

    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True, init=False)
    class Marked(Event):
        mark: str = "m"

        def __init__(self, *, mark: str = "m", **attributes: Any) -> None:
            Event.__init__(self, **attributes)
            object.__setattr__(self, "mark", mark)

    marked = Marked(type="a.b", source="/s", mark="x")
    assert (marked.mark, marked.type, type(marked)) == ("x", "a.b", Marked)
    with pytest.raises(dataclasses.FrozenInstanceError):
        marked.mark = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    "type_", ["", "Order.Paid", "a..b", "a.", "ä.b", "a b", "a\n", "x" * 201, 5, None, ["a.b"]]
)
def test_types_are_lower_case_words(type_: object) -> None:
    """Also the second time, when those that are right are known."""
    for _ in range(2):
        check_type("a.b")
        with pytest.raises(EventInvalid):
            check_type(type_)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("subject", 1), ("time", "noon"), ("recordedtime", 5), ("causaldepth", None), ("causaldepth", True), ("causaldepth", -1),
     ("Shop", "x"), ("shop", [1]), ("id", ""), ("source", None), ("data_base64", "§"), ("data_base64", 3),
     ("specversion", "0.3")],
)  # fmt: skip
def test_what_breaks_the_specification_is_named(attribute: str, value: object) -> None:
    """The error says which attribute."""
    with pytest.raises(EventInvalid) as caught:
        Event.from_dict({"id": "1", "source": "/s", "type": "a.b", attribute: value})
    assert caught.value.field == attribute


def test_ids_never_repeat_and_grow() -> None:
    """Thousands within a millisecond, from several threads at once; those of one thread in order."""
    made: list[list[str]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda ids=ids: ids.extend(new_id() for _ in range(5000))) for ids in made
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one for ids in made for one in ids}) == 20_000
    alone = [new_id() for _ in range(5000)]
    assert alone == sorted(alone)
    for one in alone[::100]:
        parsed = uuid.UUID(one)
        assert (str(parsed), parsed.version, parsed.variant) == (one, 7, uuid.RFC_4122)


FORKING = """
import os
from hark.vocabulary import new_id
reader, writer = os.pipe()
first = new_id()
child = os.fork()
ids = "".join(new_id() for _ in range(50))
if not child:
    os.write(writer, ids.encode())
    os._exit(0)
os.close(writer)
os.waitpid(child, 0)
print(first + ids, os.fdopen(reader).read())
"""


def test_a_forked_child_makes_ids_of_its_own() -> None:
    """It does not go on counting where its parent does, not even in the same millisecond."""
    told = subprocess.run(
        [sys.executable, "-c", FORKING], check=True, capture_output=True, text=True, timeout=240
    )
    mine, theirs = ({text[i : i + 23] for i in range(0, len(text), 36)} for text in told.stdout.split())
    assert theirs
    assert not mine & theirs


@pytest.mark.parametrize(
    "character", ["\x00", "\n", "\x7f", "\x9f", "\ud800", "\ufdd0", "\uffff", "\U0010ffff"]
)
@pytest.mark.parametrize("name", ["id", "source", "subject", "partitionkey", "traceparent", "shop"])
def test_characters_that_cloudevents_forbids_are_refused(name: str, character: str) -> None:
    """In every attribute that is a text, with the character named: it would break headers, logs and terminals."""
    row = {"type": "order.paid", "source": "/shop", "id": "1", name: f"a{character}b"}
    with pytest.raises(EventInvalid, match=rf"{name!r} may not hold the character U\+{ord(character):04X}"):
        Event.from_dict(row)


@pytest.mark.parametrize("text", ["a b", "über", "日本\u3000語", "\U0001f469\u200d\U0001f4bb", "\ue000"])
def test_all_other_characters_are_taken(text: str) -> None:
    """Spaces of any script, joined emoji and private characters are text."""
    event = Event.from_dict({"type": "order.paid", "source": text, "id": text, "subject": text})
    assert Event.from_json(event.to_json()) == event


def test_what_is_no_event_for_its_characters_is_none_to_anybody() -> None:
    """Rules and the read model decide by `lacking`, readers of events by `from_dict`: they agree."""
    row = {"type": "order.paid", "source": "/shop", "id": "a\nb"}
    assert lacking(row) is not None
    assert lacking({**row, "id": "a"}) is None


@pytest.mark.parametrize("depth", [-1, 2**31, True, 1.5])
def test_a_causal_depth_is_a_number_that_can_be_counted_on(depth: object) -> None:
    """Larger ones fit no column and mean nothing."""
    with pytest.raises(EventInvalid, match="causaldepth"):
        Event.from_dict({"type": "order.paid", "source": "/shop", "id": "1", "causaldepth": depth})
