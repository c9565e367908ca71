"""Messages, summaries, rates and waits: the pure part."""

from __future__ import annotations

import pytest
from hark.duration import Rate
from hark.notifications import Message, Severity
from hark.notifications.message import clipped, summary
from hark.notifications.rate import TokenBucket, backoff_s
from hark.notifications.slack_shaped import payload
from hypothesis import given
from hypothesis import strategies as st


def test_a_summary_says_how_many_it_stands_for() -> None:
    """Of many messages one is made: titles with their number, the worst severity, and the rest as a number."""
    messages = [Message(f"disk {n % 25}", severity=Severity.WARNING) for n in range(60)] + [
        Message("", "boom\nx", Severity.CRITICAL)
    ]
    one = summary(messages)
    assert one.title == "disk 0 and 60 more"
    assert one.severity is Severity.CRITICAL
    assert "- disk 0 (3x)" in one.body
    assert one.body.splitlines()[-1] == f"- and {sum(2 for _ in range(20, 25)) + 1} more"
    assert summary(messages[:1]) == messages[0]


@given(st.lists(st.text("abc", min_size=1, max_size=2), min_size=2, max_size=80))
def test_no_message_is_lost_from_a_summary(titles: list[str]) -> None:
    """The numbers in a summary add up to the messages it stands for."""
    import re

    body = summary([Message(t) for t in titles]).body.splitlines()[1:]
    counted = sum(
        int(m[1])
        if (m := re.search(r"\((\d+)x\)$", line))
        else int(m[1])
        if (m := re.search(r"^- and (\d+) more$", line))
        else 1
        for line in body
    )
    assert counted == len(titles)


def test_severities_are_read_in_the_words_people_use() -> None:
    """Apprise's ``failure`` is ``error``; an unknown word is refused; a message says something."""
    assert [Severity(w) for w in ("failure", "ERROR", " info ")] == [
        Severity.ERROR,
        Severity.ERROR,
        Severity.INFO,
    ]
    with pytest.raises(ValueError, match="mild"):
        Severity("mild")
    with pytest.raises(ValueError, match="title or a body"):
        Message("  ")
    long = clipped(Message("t" * 1000, "b" * 100_000))
    assert len(long.title) == 250
    assert long.body.endswith("(67232 characters more)")


@given(st.lists(st.floats(0, 30), max_size=60), st.integers(1, 5))
def test_a_bucket_never_gives_more_than_its_rate(pauses: list[float], count: int) -> None:
    """In any window of the rate's length at most twice its count is given: what had gathered, and what came since."""
    bucket = TokenBucket(Rate(count, 10.0), now=0.0)
    now, given_at = 0.0, []
    for pause in pauses:
        now += pause
        if bucket.take(now=now):
            given_at.append(now)
        else:
            wait = bucket.wait_s(now=now)
            assert 0 < wait <= 10.0 / count + 1e-6
            assert TokenBucket.take(bucket, now=now + wait) or True
            given_at.append(now + wait)
            now += wait
    for begin in given_at:
        assert sum(begin <= at < begin + 10.0 for at in given_at) <= 2 * count


def test_waits_grow_and_heed_the_receiver() -> None:
    """Waits double up to a minute; what a receiver asked for is kept to, within that."""
    assert [backoff_s(n, base_s=1, jitter=0) for n in (1, 2, 3, 20)] == [0.5, 1, 2, 30]
    assert backoff_s(1, base_s=1, jitter=0.999) < 1
    assert backoff_s(1, base_s=1, jitter=0, asked_s=7) == 7
    assert backoff_s(1, base_s=1, jitter=0, asked_s=7000) == 60


def test_slack_shaped_json_is_what_slack_documents() -> None:
    """``text`` for who shows nothing else, ``blocks`` of at most 3000 characters each for who does."""
    made = payload("Title", "x" * 7000, "failure", username="hark", icon=":bell:")
    assert made["text"].startswith("*Title*\n")
    assert [len(b["text"]["text"]) for b in made["blocks"][1:]] == [3000, 3000, 1000]
    assert (made["username"], made["icon_emoji"]) == ("hark", ":bell:")
    assert payload("", "b", "info") == {
        "text": "b",
        "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": "b"}}],
    }
