"""Asking people: one answer counts, and what was written for it is done once."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from cryptography.fernet import Fernet
from hark.automations.acting.approval import ApprovalLinks, Approvals
from hark.automations.acting.dead_letter import DeadLetters
from hark.automations.acting.outbox import Outbox
from hark.automations.acting.perform import Performers
from hark.automations.action import Approve, parse_action
from hark.automations.folding.handover import Handover
from hark.bus import LateValues
from hark.errors import AccessDenied, RefusedError, UnknownName

from tests.automations.conftest import CONFIG, House, at

LINKS = ApprovalLinks(Fernet.generate_key(), base_url="https://hark.example.com/")
ASK: dict[str, Any] = {
    "approve": "oncall", "title": "Restart {{ key }}?",
    "yes": [{"emit": "did.restart", "data": {"host": "{{ key }}", "answer": "{{ approval.answer }}", "n": "{{ event.data.n }}"}}],
    "no": {"emit": "did.nothing"},
}  # fmt: skip


@asynccontextmanager
async def asking(house: House, **more: Any) -> AsyncIterator[None]:
    """A rule that asks, and an outbox that can make links."""
    late = LateValues(house.bus, house.secrets, environ={})
    performers = Performers(
        house.bus, house.control, late, CONFIG, notifier=lambda: house.people, links=LINKS
    )
    handover = Handover()
    async with (
        performers,
        Outbox(house.bus, performers, CONFIG, handover=handover),
        house.engine(handover=handover),
    ):
        await house.define("ask", on="host.down", for_each="data.host", do=[{**ASK, **more}])
        await house.emit("host.down", {"host": "a", "n": 7})
        yield


async def asked(house: House) -> tuple[str, str]:
    """Return the question's id and the text that people got."""
    (done,) = await house.of_type("action.executed")
    return str(at(done, "result.approval")), str(house.people.told[0][1].body)


async def test_yes_does_what_was_written_for_it_once(house: House) -> None:
    """The link leads to the question; answering twice is answering once; the templates see the first event."""
    async with asking(house):
        id_, text = await asked(house)
        (token,) = set(re.findall(r"https://hark\.example\.com/approve/([\w.-]+)\?answer=(?:yes|no)", text))
        assert LINKS.read(token) == id_
        assert house.people.told[0][1].title == "Restart a?"
        questions = Approvals(house.bus)
        assert (await questions.get(id_)).state == "open"
        for _ in range(2):
            assert (await questions.answer(id_, "yes", by="ann")).state == "yes"
        (made,) = await house.of_type("did.restart")
        assert (at(made, "host"), at(made, "answer"), at(made, "n")) == ("a", "yes", 7)
        with pytest.raises(RefusedError, match="answered yes"):
            await questions.answer(id_, "no", by="bob")
        await house.until(lambda e: e.type == "action.executed", count=2)
        (approved,) = await house.events("action.approved")
        assert at(approved.event, "claimed_by") is None, "the outbox that asked has no claim on what follows"
        assert not await house.events("did.nothing")


async def test_nobody_answering_is_an_answer_too(house: House) -> None:
    """The broker's timer says that the time is over, and `otherwise` (no) is done."""
    async with asking(house, wait="200ms"):
        (made,) = await house.of_type("did.nothing")
        (expired,) = await house.of_type("action.expired")
        assert at(expired, "approval.answer") == "expired"
        assert made.causationid == expired.id
        id_ = str(at(expired, "approval.id"))
        with pytest.raises(RefusedError, match="time is over"):
            await Approvals(house.bus).answer(id_, "yes", by="late")


async def test_dropping_an_approve_that_was_given_up_closes_its_question(house: House) -> None:
    """Nobody was told, so nobody's silence is an answer: also the timer that came first does nothing."""
    house.people.channels = ()
    async with asking(house, wait="1h", retries=0):
        (dead,) = await house.of_type("action.dead-lettered")
        questions, key = Approvals(house.bus), str(at(dead, "key"))
        assert (await questions.get(key)).state == "open"
        await DeadLetters(house.bus).drop(key)
        assert (await questions.get(key)).state == "dropped"
        assert not await questions.expire(key)
        assert not await house.bus.timers.cancel(f"approval-{key}"), "its timer is gone"
        with pytest.raises(RefusedError, match="given up"):
            await questions.answer(key, "yes", by="late")
        await questions.drop(key)
        await questions.drop("x/0")


async def test_of_many_answers_at_once_one_counts(house: House) -> None:
    """Whoever comes first; everybody else is told so."""
    async with asking(house):
        id_, _ = await asked(house)
        outcomes: list[str] = []

        async def one(word: Any) -> None:
            try:
                outcomes.append((await Approvals(house.bus).answer(id_, word, by=word)).state)
            except RefusedError:
                outcomes.append("refused")

        async with anyio.create_task_group() as tg:
            for n in range(6):
                tg.start_soon(one, "yes" if n % 2 else "no")
        assert sorted(outcomes) in (["no"] * 3 + ["refused"] * 3, ["refused"] * 3 + ["yes"] * 3)
        assert len(await house.events("action.approved", "action.declined")) == 1


async def test_an_answer_whose_process_died_is_carried_out_when_the_time_is_over(house: House) -> None:
    """Noted as answered, and the event never stored: the end of its time finds out."""
    async with asking(house, wait="1s"):
        id_, _ = await asked(house)
        questions = Approvals(house.bus)
        found, revision = await questions._find(id_)
        await questions._settle(found, revision, "yes", "ann")
        (made,) = await house.of_type("did.restart")
        assert at(made, "host") == "a"
        assert not await house.events("did.nothing")


def test_links_cannot_be_made_up() -> None:
    """Another key, another id, another spelling: not valid."""
    token = LINKS.token("x/0")
    assert LINKS.read(token) == "x/0"
    other = ApprovalLinks(Fernet.generate_key(), base_url="https://x")
    for wrong in (
        token[:-1],
        token + "A",
        other.token("x/0"),
        "",
        ".",
        "é.é",
        LINKS.token("x/1")[:6] + token[6:],
    ):
        with pytest.raises(AccessDenied):
            LINKS.read(wrong)
    with pytest.raises(RefusedError):
        ApprovalLinks(b"k").link("x/0", "yes")


def test_it_is_written_and_read_back() -> None:
    """Its branches are actions like any other."""
    made = parse_action({**ASK, "otherwise": "yes", "wait": "2h"})
    assert isinstance(made, Approve)
    assert made.branches["expired"] == made.branches["yes"]
    assert parse_action({"approve": {"to": "oncall", "yes": []}, "otherwise": [{"notify": "x"}]}).branches[
        "expired"
    ]
    with pytest.raises(ValueError, match="unknown action"):
        parse_action({**ASK, "yes": [{"restart": 1}]})


async def test_a_question_nobody_asked_is_unknown(house: House) -> None:
    """Also where its name is nonsense."""
    for id_ in ("x/0", "", "../..", "a b"):
        with pytest.raises(UnknownName):
            await Approvals(house.bus).answer(id_, "yes", by="x")
