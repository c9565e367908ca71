"""Asking people: a question goes out with links, and what was written for the answer is done when it comes.

A question is one key of the bucket ``approvals``, changed under guard, so that of two answers (or an answer and the end
of its time) one counts. The answer is an event, ``action.approved``, ``action.declined`` or ``action.expired``, which
carries the actions to do; the outbox carries them out like those of a decision. The end of the time is a timer of the
broker, set before anybody is asked, and outlives every process.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import orjson

from ...bus import Bus, Event
from ...bus.event import format_time, parse_time
from ...clock import SYSTEM_CLOCK, Clock
from ...errors import AccessDenied, AlreadyHeld, GuardFailed, RefusedError, UnknownName
from ...vocabulary import JsonObject, derived_id
from ..folding.handover import CLAIMED_BY

if TYPE_CHECKING:
    from .perform import Firing

__all__ = ["ANSWERED", "EXPIRED", "Answer", "Approval", "ApprovalLinks", "Approvals"]

Answer: TypeAlias = Literal["yes", "no"]
BUCKET = "approvals"
SOURCE = "/hark/actions"
ANSWERED = ("action.approved", "action.declined")
EXPIRED = "action.expired"
KEEP_S = 30 * 86_400.0
"""How long a question is remembered after its time is over."""
_ENDS = {"expired": "its time is over", "dropped": "the action that asked it was given up"}
_TYPES = {"yes": ANSWERED[0], "no": ANSWERED[1], "expired": EXPIRED}


@dataclass(frozen=True, slots=True)
class Approval:
    """A question. ``state``: open, yes, no, expired or dropped (with the action that asked it). ``id`` is the key of the action that asked it."""

    id: str
    automation: str
    title: str
    body: str
    state: str
    asked_at: datetime
    expires_at: datetime
    answered_at: datetime | None
    by: str
    carried: JsonObject
    branches: JsonObject

    def to_json(self) -> JsonObject:
        return {
            "id": self.id, "automation": self.automation, "title": self.title, "body": self.body, "state": self.state,
            "asked_at": format_time(self.asked_at), "expires_at": format_time(self.expires_at),
            "answered_at": format_time(self.answered_at) if self.answered_at is not None else None, "by": self.by,
        }  # fmt: skip

    def dumps(self) -> bytes:
        return orjson.dumps({**self.to_json(), "carried": self.carried, "branches": self.branches})

    @classmethod
    def loads(cls, raw: bytes) -> Approval:
        v: Any = orjson.loads(raw)
        answered = v["answered_at"]
        return cls(
            v["id"], v["automation"], v["title"], v["body"], v["state"], parse_time(v["asked_at"]),
            parse_time(v["expires_at"]), parse_time(answered) if answered else None, v["by"], v["carried"], v["branches"],
        )  # fmt: skip

    def event(self, state: str, *, now: datetime, by: str = "") -> Event:
        """Return the event that says how it ended and carries what to do then. Its id belongs to the question."""
        data: JsonObject = {
            **self.carried,
            "actions": self.branches.get(state) or [],
            "approval": {
                "id": self.id,
                "answer": state,
                "by": by,
                "title": self.title,
                "asked_at": format_time(self.asked_at),
            },
        }
        cause: Any = self.carried.get("cause")
        return Event(
            type=_TYPES[state], source=SOURCE, id=derived_id("approval", self.id, state), subject=f"action/{self.id}",
            time=now, data={k: v for k, v in data.items() if k != "cause"}, **cause,
        )  # fmt: skip


class ApprovalLinks:
    """Makes the tokens of links and reads them: the question's id under a signature.

    ``key`` is secret bytes; of several, separated by commas, the first signs and all are good.
    """

    def __init__(self, key: bytes, *, base_url: str = "") -> None:
        self._keys = [hmac.digest(one.strip(), b"hark approval links", "sha256") for one in key.split(b",")]
        self.base_url = base_url.rstrip("/")

    def __repr__(self) -> str:
        return "ApprovalLinks()"

    def token(self, id: str) -> str:
        return f"{_text(id.encode())}.{_text(_mac(self._keys[0], id))}"

    def link(self, id: str, answer: Answer) -> str:
        """Return the address of the page that asks whether ``answer`` is meant.

        Raises:
            RefusedError: nobody knows what this server is called.
        """
        if not self.base_url:
            raise RefusedError(
                "a question cannot be asked: no server is known that answers could go to",
                hint="set HARK_SERVER__PUBLIC_URL to the address people reach it under",
            )
        return f"{self.base_url}/approve/{self.token(id)}?answer={answer}"

    def read(self, token: str) -> str:
        """Return the id of the question.

        Raises:
            AccessDenied: the token is not one of ours.
        """
        body = token.partition(".")[0]
        try:
            id_ = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode()
        except ValueError:
            id_ = ""
        # As text: two texts may be the same bytes, and a link has one form.
        ours = (f"{_text(id_.encode())}.{_text(_mac(key, id_))}" for key in self._keys)
        if not any(hmac.compare_digest(one.encode(), token.encode()) for one in ours):
            raise AccessDenied("this link is not valid", hint="use the link of the message")
        return id_


def _mac(key: bytes, id_: str) -> bytes:
    return hmac.new(key, id_.encode(), hashlib.sha256).digest()[:16]


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Approvals:
    """The questions there are. Stateless."""

    def __init__(self, bus: Bus, clock: Clock = SYSTEM_CLOCK) -> None:
        self._bus, self._clock = bus, clock
        self._bucket = bus.bucket(BUCKET)

    async def open(
        self, id: str, firing: Firing, *, title: str, body: str, wait_s: float, branches: JsonObject
    ) -> Approval:
        """Note a question, with the timer of its end, before anybody is asked; asking again returns the first one.

        Args:
            branches: the actions (as written) for ``yes``, ``no`` and ``expired``.
        """
        now = self._clock.now()
        carried: JsonObject = {
            k: v for k, v in firing.data.items() if k not in ("actions", "event", CLAIMED_BY)
        }
        cause = {**firing.event.caused(), "causaldepth": firing.event.causaldepth}
        made = Approval(
            id, firing.automation, title, body, "open", now, now + timedelta(seconds=wait_s), None, "",
            {**carried, "cause": cause}, branches,
        )  # fmt: skip
        try:
            await self._bucket.create(id, made.dumps())
        except AlreadyHeld:
            entry = await self._bucket.get(id)
            assert entry is not None
            made = Approval.loads(entry.value)
        if made.state == "open":
            event = made.event("expired", now=made.expires_at)
            await self._bus.timers.set(f"approval-{id}", event, at=made.expires_at)
        return made

    async def get(self, id: str) -> Approval:
        """Return a question.

        Raises:
            UnknownName: there is none (any more).
        """
        found, _ = await self._find(id)
        return found

    async def named(self, beginning: str) -> Approval:
        """Return the question whose id is, or begins with, this.

        Raises:
            UnknownName: there is none. RefusedError: there are several.
        """
        found = [one for one in await self.list() if one.id.startswith(beginning)] if beginning else []
        exact = [one for one in found if one.id == beginning]
        if not found:
            raise UnknownName("approval", beginning)
        if len(exact or found) > 1:
            raise RefusedError(
                f"{len(found)} questions begin with {beginning!r}", hint="write more of its id"
            )
        return (exact or found)[0]

    async def list(self) -> list[Approval]:
        """Return all questions that are remembered, the newest first."""
        found = [Approval.loads(entry.value) for entry in await self._bucket.entries()]
        return sorted(found, key=lambda a: (a.asked_at, a.id), reverse=True)

    async def _find(self, id: str) -> tuple[Approval, int]:
        known = bool(id) and all(c.isalnum() or c in "-_/" for c in id) and id.isascii()
        entry = await self._bucket.get(id) if known else None
        if entry is None:
            raise UnknownName("approval", id)
        return Approval.loads(entry.value), entry.revision

    async def answer(self, id: str, answer: Answer, *, by: str) -> Approval:
        """Answer a question and have done what follows from it. The same answer again changes nothing.

        Raises:
            UnknownName: there is no such question. RefusedError: it was answered otherwise or dropped, or its time is over.
        """
        fresh = False
        while True:
            found, revision = await self._find(id)
            if found.state == "open":
                if self._clock.now() >= found.expires_at:
                    raise RefusedError("the time for an answer is over")
                try:
                    await self._settle(found, revision, answer, by)
                except GuardFailed:
                    continue
                found, fresh = await self.get(id), True
            elif found.state != answer:
                said = _ENDS.get(found.state) or f"it was answered {found.state}"
                raise RefusedError(f"this question is not open any more: {said}")
            assert found.answered_at is not None
            event = found.event(answer, now=found.answered_at, by=found.by)
            # Also when an earlier answerer died before it could.
            if fresh or not await self._is_stored(event, found.answered_at):
                await self._bus.log.append(event)
            await self._bus.timers.cancel(f"approval-{id}")
            return found

    async def _settle(self, found: Approval, revision: int, state: str, by: str) -> None:
        settled = replace(found, state=state, answered_at=self._clock.now(), by=by[:200])
        await self._bucket.update(found.id, settled.dumps(), revision=revision, ttl_s=KEEP_S)

    async def expire(self, id: str) -> bool:
        """Hear that the time of a question is over; return whether that is how it ended.

        An answer whose event was never stored, because its process died, is stored now.
        """
        while True:
            try:
                found, revision = await self._find(id)
            except UnknownName:
                return False
            if found.state in ("yes", "no"):
                assert found.answered_at is not None
                word = found.state
                wanted = found.event(word, now=found.answered_at, by=found.by)
                if not await self._is_stored(wanted, found.answered_at):
                    await self._bus.log.append(wanted)
                return False
            if found.state == "open":
                try:
                    await self._settle(found, revision, "expired", "")
                except GuardFailed:
                    continue
                return True
            return found.state == "expired"

    async def drop(self, id: str) -> None:
        """Close a question for good, with nothing done for it; one that has ended, or was never opened, is left as it is."""
        while True:
            try:
                found, revision = await self._find(id)
            except UnknownName:
                return
            if found.state == "open":
                try:
                    await self._settle(found, revision, "dropped", "")
                except GuardFailed:
                    continue
            if found.state in ("open", "dropped"):
                await self._bus.timers.cancel(f"approval-{id}")
            return

    async def _is_stored(self, event: Event, since: datetime) -> bool:
        filters = [f"hark.ev.{event.type}"]
        async with self._bus.log.read(filters, since=since - timedelta(seconds=5)) as batches:
            return any([orjson.loads(r.raw).get("id") == event.id async for b in batches for r in b.records])
