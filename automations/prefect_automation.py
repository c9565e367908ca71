"""``Automation`` in Prefect's words: made, read, changed and removed from code, and kept as a rule of Hark's.

::

    Automation(
        name="three failures", trigger=EventTrigger(expect={"prefect.flow-run.Failed"}, threshold=3, within=600),
        actions=[PauseDeployment(deployment_id="nightly")],
    ).create()

What was written is kept beside the rule it became, so that it is read back as it was. Its id is the name of that rule.
New code writes rules with ``hark.automations.Automation``, which says more.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field

from ..engine.persistence.block_storage import block_named
from ..engine.sync_async.either import Either
from ..errors import AlreadyHeld, GuardFailed, InvalidValueError, UnknownName
from .migrate.migrate_prefect import read_automation
from .migrate.migration import Converted, NotConverted, slug
from .model import Automation as Rule
from .model import parse_automation
from .prefect_action import ActionTypes, Id
from .prefect_trigger import TriggerTypes
from .problem import Problem, RuleInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..bus import Entry
    from ..bus.session import Session

__all__ = ["Automation", "AutomationCore", "UnknownAutomation", "automations_in"]

BUCKET = "automations"
_TRIES = 20
log = logging.getLogger("hark.automations")


class UnknownAutomation(UnknownName, ValueError):
    """There is no automation of this name or id; a ``ValueError`` too, as code written for Prefect expects."""


class AutomationCore(BaseModel):
    """What an automation says: when its trigger fires, its actions are done."""

    model_config = ConfigDict(extra="ignore")

    name: str
    description: str = ""
    enabled: bool = True
    tags: list[str] = Field(default_factory=list)
    trigger: TriggerTypes
    actions: list[ActionTypes]
    actions_on_trigger: list[ActionTypes] = Field(default_factory=list)
    actions_on_resolve: list[ActionTypes] = Field(default_factory=list)


class Automation(AutomationCore):
    """An automation that can be kept. All below are awaited in async code; ``acreate`` and so on are always.

    Attributes:
        id: the name of the rule it became; None until it is made or read.
    """

    id: Id | None = None

    def create(self) -> Any:
        """Make it; return it with its id.

        Raises:
            RuleInvalid: something in it has no equivalent; the message says what.
        """
        return _create(self)

    async def acreate(self) -> Self:
        """Do what ``create`` does, in async code."""
        await _create.aio(self)
        return self

    @classmethod
    def read(cls, id: Id | None = None, name: str | None = None) -> Any:
        """Return the automation of an id, or of a name.

        Raises:
            ValueError: both were given, or none. UnknownAutomation: there is none; also a ``ValueError``.
        """
        return _read(cls, id, name)

    @classmethod
    async def aread(cls, id: Id | None = None, name: str | None = None) -> Self:
        """Do what ``read`` does, in async code."""
        found: Any = await _read.aio(cls, id, name)
        return found  # type: ignore[no-any-return]

    def update(self) -> Any:
        """Keep what was changed. Raises ``UnknownAutomation`` if it is gone, ``ValueError`` if it was never made."""
        return _update(self)

    async def aupdate(self) -> None:
        """Do what ``update`` does, in async code."""
        await _update.aio(self)

    def delete(self) -> Any:
        """Remove it; return whether it was there."""
        return _delete(self)

    async def adelete(self) -> bool:
        """Do what ``delete`` does, in async code."""
        return await _delete.aio(self)

    def disable(self) -> Any:
        """Pause it; return whether it is there."""
        return _pause(self, True)

    async def adisable(self) -> bool:
        """Do what ``disable`` does, in async code."""
        return await _pause.aio(self, True)

    def enable(self) -> Any:
        """Resume it; return whether it is there."""
        return _pause(self, False)

    async def aenable(self) -> bool:
        """Do what ``enable`` does, in async code."""
        return await _pause.aio(self, False)


@Either
async def _create(session: Session, automation: Automation) -> Automation:
    bucket = session.bus.bucket(BUCKET)
    base = slug(automation.name, default="automation")[:90]
    for number in range(1, 1000):
        # Prefect's names need not be unique.
        name = base if number == 1 else f"{base}-{number}"
        if await bucket.get(name) is not None:
            continue
        rule = await _rule(session, automation, name)
        try:
            await bucket.create(name, rule.dumps())
        except AlreadyHeld:
            continue
        automation.id = name
        return automation
    raise InvalidValueError(f"there are a thousand automations named {automation.name!r}")


@Either
async def _read(session: Session, cls: type[Automation], id: Id | None, name: str | None) -> Automation:
    if id and name:
        raise ValueError("say one of id and name, not both")
    if not id and not name:
        raise ValueError("say one of id and name")
    bucket = session.bus.bucket(BUCKET)
    if id:
        entry = await bucket.get(str(id)) if _may_be_a_key(str(id)) else None
        if entry is None:
            raise UnknownAutomation("automation", str(id), known=await bucket.keys())
        return _written(cls, entry)
    known = []
    for entry in await bucket.entries():
        rule = orjson.loads(entry.value)
        named = (rule.get("written") or {}).get("name", entry.key)
        known.append(named)
        if name in (named, entry.key):
            return _written(cls, entry)
    raise UnknownAutomation("automation", str(name), known=known)


async def automations_in(session: Session) -> list[Automation]:
    """Return the automations that are written in Prefect's words, by id."""
    entries = await session.bus.bucket(BUCKET).entries()
    return [
        _written(Automation, entry)
        for entry in sorted(entries, key=lambda one: one.key)
        if orjson.loads(entry.value).get("written") is not None
    ]


@Either
async def _update(session: Session, automation: Automation) -> None:
    rule = await _rule(session, automation, _id(automation, "update"))
    if not await _changed(session, str(automation.id), lambda _: rule):
        raise UnknownAutomation("automation", str(automation.id))


@Either
async def _delete(session: Session, automation: Automation) -> bool:
    bucket = session.bus.bucket(BUCKET)
    if await bucket.get(name := _id(automation, "delete")) is None:
        return False
    await bucket.delete(name)
    return True


@Either
async def _pause(session: Session, automation: Automation, paused: bool) -> bool:
    name = _id(automation, "disable" if paused else "enable")
    return await _changed(session, name, lambda rule: rule.model_copy(update={"paused": paused}))


async def _changed(session: Session, name: str, change: Callable[[Rule], Rule]) -> bool:
    """Put a changed rule in the place of what is there; False if nothing is."""
    bucket = session.bus.bucket(BUCKET)
    for _ in range(_TRIES):
        entry = await bucket.get(name)
        if entry is None:
            return False
        try:
            await bucket.update(name, change(parse_automation(entry.value)).dumps(), revision=entry.revision)
        except GuardFailed:
            continue
        return True
    raise GuardFailed(f"{BUCKET}/{name}", expected=0)


def _id(automation: Automation, doing: str) -> str:
    if automation.id is None:
        raise InvalidValueError(
            f"an automation without an id cannot be asked to {doing}; create or read it first"
        )
    return str(automation.id)


def _may_be_a_key(text: str) -> bool:
    return all(letter.isalnum() or letter in "._-" for letter in text)


def _written(cls: type[Automation], entry: Entry) -> Automation:
    rule = orjson.loads(entry.value)
    written = rule.get("written")
    if written is None:
        raise InvalidValueError(
            f"automation {entry.key!r} is written in Hark's words, which Prefect's cannot say",
            hint=f"`hark automations show {entry.key}`, or hark.Hark().automation({entry.key!r})",
        )
    return cls.model_validate({**written, "id": entry.key, "enabled": not rule.get("paused", False)})


async def _rule(session: Session, automation: AutomationCore, name: str) -> Rule:
    """Return the rule it becomes.

    Raises:
        RuleInvalid: something in it has no equivalent, or the rule does not stand.
    """
    written = automation.model_dump(mode="json", exclude_none=True, exclude={"id"})
    named = orjson.loads(orjson.dumps(written))
    for actions in ("actions", "actions_on_trigger", "actions_on_resolve"):
        for action in named[actions]:
            if "block_document_id" in action:
                action["block_name"] = await block_named(session, action["block_document_id"])
    out = Converted()
    try:
        fields = read_automation(out, named)
    except NotConverted as exc:
        raise RuleInvalid([Problem(exc.note.loc, exc.note.message)], name=automation.name) from None
    for note in out.notes:
        log.warning("automation %r: %s: %s", automation.name, ".".join(map(str, note.loc)), note.message)
    return parse_automation({**fields, "name": name, "written": written})
