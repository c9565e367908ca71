"""What the client of ``get_client()`` does with what is kept: limits, variables and artifacts, in the words of Prefect's."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from pydantic import BaseModel, Field

from ...errors import AlreadyExists, AlreadyHeld, GuardFailed, UnknownName
from ..limits.limit import BUCKET, TAG_PREFIX, Limit, key_of, name_of
from ..limits.slots import delete_limit, put_limit, reset, standing
from ..values import VARIABLES, Variable
from .run_sorts import ArtifactSort

if TYPE_CHECKING:
    from ...bus import Entry
    from ...bus.session import Session
    from ..artifact_kinds import StoredArtifact
    from ..runs.run import FlowRun
    from .run_filters import ArtifactFilter, FlowRunFilter, TaskRunFilter
    from .run_records import TaskRunRecord

__all__ = [
    "ConcurrencyLimit", "GlobalConcurrencyLimit", "GlobalConcurrencyLimitCreate", "GlobalConcurrencyLimitUpdate",
    "KeptCalls", "VariableCreate", "VariableUpdate",
]  # fmt: skip

T = TypeVar("T")
_TRIES = 20
_NAME = r"^[^/%&><]+$"


class GlobalConcurrencyLimitCreate(BaseModel):
    """A limit to be made. ``active_slots`` does nothing here: who holds slots has asked for them."""

    name: str = Field(pattern=_NAME)
    limit: int = Field(ge=0)
    active: bool = True
    active_slots: int = Field(0, ge=0)
    slot_decay_per_second: float = Field(0.0, ge=0)


class GlobalConcurrencyLimitUpdate(BaseModel):
    """What of a limit is to be changed; None: nothing of it."""

    name: str | None = Field(None, pattern=_NAME)
    limit: int | None = Field(None, ge=0)
    active: bool | None = None
    active_slots: int | None = Field(None, ge=0)
    slot_decay_per_second: float | None = Field(None, ge=0)


class GlobalConcurrencyLimit(GlobalConcurrencyLimitCreate):
    """A limit as it is now. Its ``id`` is its name."""

    id: str = ""


class ConcurrencyLimit(BaseModel):
    """The limit of the tasks that carry a tag, as it is now; ``active_slots`` are the runs that hold its slots."""

    id: str
    tag: str
    concurrency_limit: int
    active_slots: list[str]


class VariableCreate(BaseModel):
    """A variable to be made; its tags are not kept."""

    name: str
    value: Any = None
    tags: list[str] | None = None


class VariableUpdate(VariableCreate):
    """A variable to be changed."""


class KeptCalls:
    """Calls on limits, variables and artifacts. Ids of limits are their names.

    Raises:
        UnknownName: there is none of that name. AlreadyExists: there is one of it already.
    """

    async def _ask(self, what: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        raise NotImplementedError

    async def read_flow_runs(self, *, flow_run_filter: FlowRunFilter | None = None) -> Sequence[FlowRun]:
        raise NotImplementedError

    async def read_task_runs(
        self, *, task_run_filter: TaskRunFilter | None = None
    ) -> Sequence[TaskRunRecord]:
        raise NotImplementedError

    # --- limits ---------------------------------------------------------------------------------------

    async def create_global_concurrency_limit(self, concurrency_limit: GlobalConcurrencyLimitCreate) -> str:
        """Make a limit; return its name."""
        asked = concurrency_limit

        async def make(session: Session) -> str:
            try:
                await session.bus.bucket(BUCKET).create(key_of(asked.name), _dumped(_limit_of(asked)))
            except AlreadyHeld:
                raise AlreadyExists("limit", asked.name) from None
            return asked.name

        return await self._ask(make)

    async def update_global_concurrency_limit(
        self, name: str, concurrency_limit: GlobalConcurrencyLimitUpdate
    ) -> None:
        """Change a limit; who waits for it hears of it at once."""
        said = {
            k: v for k, v in concurrency_limit.model_dump(exclude_none=True).items() if k != "active_slots"
        }

        async def change(session: Session) -> None:
            bucket = session.bus.bucket(BUCKET)
            for _ in range(_TRIES):
                entry = await bucket.get(key_of(name))
                if entry is None:
                    raise UnknownName("limit", name)
                asked = GlobalConcurrencyLimitCreate(**{**_fields_of(_limit_in(entry), name), **said})
                try:
                    await bucket.update(key_of(name), _dumped(_limit_of(asked)), revision=entry.revision)
                except GuardFailed:
                    continue
                if asked.name != name:
                    await put_limit(session.bus, asked.name, _limit_of(asked))
                    await delete_limit(session.bus, name)
                return
            raise GuardFailed(f"{BUCKET}/{name}", expected=0)

        await self._ask(change)

    async def upsert_global_concurrency_limit_by_name(
        self, name: str, limit: int, slot_decay_per_second: float | None = None
    ) -> None:
        """Make a limit, or change how many slots it has."""
        try:
            await self.update_global_concurrency_limit(
                name, GlobalConcurrencyLimitUpdate(limit=limit, slot_decay_per_second=slot_decay_per_second)
            )
        except UnknownName:
            await self.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(
                    name=name, limit=limit, slot_decay_per_second=slot_decay_per_second or 0.0
                )
            )

    async def delete_global_concurrency_limit_by_name(self, name: str) -> None:
        """Remove a limit; nobody waits for it any more."""

        async def remove(session: Session) -> None:
            await _entry(session, name)
            await delete_limit(session.bus, name)

        await self._ask(remove)

    async def read_global_concurrency_limit_by_name(self, name: str) -> GlobalConcurrencyLimit:
        """Return a limit, with how many of its slots are held."""
        return await self._ask(lambda session: _seen(session, name))

    async def read_global_concurrency_limits(
        self, limit: int = 10, offset: int = 0
    ) -> list[GlobalConcurrencyLimit]:
        """Return limits that are not of tags, by name."""

        async def read(session: Session) -> list[GlobalConcurrencyLimit]:
            names = [name for name in await _names(session) if not name.startswith(TAG_PREFIX)]
            return [await _seen(session, name) for name in names[offset : offset + limit]]

        return await self._ask(read)

    # --- limits of tags -------------------------------------------------------------------------------

    async def create_concurrency_limit(self, tag: str, concurrency_limit: int) -> str:
        """Limit how many tasks that carry a tag run at once, or change that; return the tag."""
        await self._ask(
            lambda session: put_limit(session.bus, TAG_PREFIX + tag, Limit(slots=concurrency_limit))
        )
        return tag

    async def read_concurrency_limit_by_tag(self, tag: str) -> ConcurrencyLimit:
        """Return the limit of a tag, with the runs that hold its slots."""
        return await self._ask(lambda session: _of_tag(session, tag))

    async def read_concurrency_limits(self, limit: int, offset: int) -> list[ConcurrencyLimit]:
        """Return the limits of tags."""

        async def read(session: Session) -> list[ConcurrencyLimit]:
            tags = [
                name.removeprefix(TAG_PREFIX) for name in await _names(session) if name.startswith(TAG_PREFIX)
            ]
            return [await _of_tag(session, tag) for tag in tags[offset : offset + limit]]

        return await self._ask(read)

    async def reset_concurrency_limit_by_tag(self, tag: str, slot_override: list[Any] | None = None) -> None:
        """Take every slot of a tag from whoever has it. ``slot_override`` does nothing here."""

        async def again(session: Session) -> None:
            await _entry(session, TAG_PREFIX + tag)
            await reset(session.bus, TAG_PREFIX + tag)

        await self._ask(again)

    async def delete_concurrency_limit_by_tag(self, tag: str) -> None:
        """Remove the limit of a tag."""
        await self.delete_global_concurrency_limit_by_name(TAG_PREFIX + tag)

    # --- variables and artifacts ----------------------------------------------------------------------

    async def create_variable(self, variable: VariableCreate) -> Variable:
        """Make a variable."""
        made: Variable = await Variable.aset(variable.name, variable.value, variable.tags)
        return made

    async def update_variable(self, variable: VariableUpdate) -> None:
        """Change a variable."""
        if await self.read_variable_by_name(variable.name) is None:
            raise UnknownName("variable", variable.name)
        await Variable.aset(variable.name, variable.value, overwrite=True)

    async def read_variable_by_name(self, name: str) -> Variable | None:
        """Return a variable; None if there is none of that name."""

        async def read(session: Session) -> Variable | None:
            entry = await session.bus.bucket(VARIABLES).get(name)
            return None if entry is None else Variable(name, orjson.loads(entry.value))

        return await self._ask(read)

    async def read_variables(self, limit: int | None = None) -> list[Variable]:
        """Return variables, by name."""

        async def read(session: Session) -> list[Variable]:
            entries = await session.bus.bucket(VARIABLES).entries()
            found = [Variable(entry.key, orjson.loads(entry.value)) for entry in entries]
            return sorted(found, key=lambda one: one.name)[:limit]

        return await self._ask(read)

    async def delete_variable_by_name(self, name: str) -> None:
        """Remove a variable."""
        if not await Variable.aunset(name):
            raise UnknownName("variable", name)

    async def read_latest_artifacts(
        self,
        *,
        artifact_filter: ArtifactFilter | None = None,
        flow_run_filter: FlowRunFilter | None = None,
        task_run_filter: TaskRunFilter | None = None,
        sort: ArtifactSort | str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[StoredArtifact]:
        """Return what is shown now under each key, the latest first, unless it is said otherwise.

        Raises:
            ValueError: there is no such order.
        """
        from ..artifact_kinds import read_artifacts

        async def read(session: Session) -> list[StoredArtifact]:
            latest = {one.key: one for one in await read_artifacts(session) if one.key is not None}
            newest = sorted(latest.values(), key=lambda one: str(one.updated), reverse=True)
            newest = await self._of_runs(newest, flow_run_filter, task_run_filter)
            return _wanted(newest, artifact_filter, sort)[offset : None if limit is None else offset + limit]

        return await self._ask(read)

    async def read_artifacts(
        self,
        *,
        artifact_filter: ArtifactFilter | None = None,
        flow_run_filter: FlowRunFilter | None = None,
        task_run_filter: TaskRunFilter | None = None,
        sort: ArtifactSort | str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[StoredArtifact]:
        """Return all that was shown, each as it is now, the latest first, unless it is said otherwise.

        Raises:
            ValueError: there is no such order.
        """
        from ..artifact_kinds import read_artifacts

        async def read(session: Session) -> list[StoredArtifact]:
            each = {one.id: one for one in await read_artifacts(session)}
            newest = await self._of_runs(list(reversed(each.values())), flow_run_filter, task_run_filter)
            return _wanted(newest, artifact_filter, sort)[offset : None if limit is None else offset + limit]

        return await self._ask(read)

    async def _of_runs(
        self,
        artifacts: list[StoredArtifact],
        flow_run_filter: FlowRunFilter | None,
        task_run_filter: TaskRunFilter | None,
    ) -> list[StoredArtifact]:
        if flow_run_filter is not None:
            flow_runs = {str(run.id) for run in await self.read_flow_runs(flow_run_filter=flow_run_filter)}
            artifacts = [one for one in artifacts if one.flow_run_id in flow_runs]
        if task_run_filter is not None:
            task_runs = {str(run.id) for run in await self.read_task_runs(task_run_filter=task_run_filter)}
            artifacts = [one for one in artifacts if one.task_run_id in task_runs]
        return artifacts


def _wanted(
    newest_first: list[StoredArtifact], which: ArtifactFilter | None, sort: ArtifactSort | str | None
) -> list[StoredArtifact]:
    found = [one for one in newest_first if which is None or which.holds(one)]
    word, falls = (str(sort).removesuffix("_ASC").removesuffix("_DESC"), str(sort).endswith("_DESC"))
    if sort is not None and str(sort) not in {str(one) for one in ArtifactSort}:
        raise ValueError(f"there is no order {str(sort)!r}; there are {', '.join(ArtifactSort)}")
    if word in ("KEY", "ID"):
        found.sort(key=lambda one: getattr(one, word.lower()) or "", reverse=falls)
    return found


def _limit_of(asked: GlobalConcurrencyLimitCreate) -> Limit:
    return Limit(slots=asked.limit, slot_decay_per_second=asked.slot_decay_per_second, active=asked.active)


def _fields_of(limit: Limit, name: str) -> dict[str, Any]:
    """Return what Prefect's client says of a limit; one per time is so many slots that become free by themselves."""
    pace = limit.pace
    return {
        "name": name,
        "limit": pace[1] if pace is not None else limit.slots or 0,
        "slot_decay_per_second": 1.0 / pace[0] if pace is not None else 0.0,
        "active": limit.active,
    }


def _limit_in(entry: Entry) -> Limit:
    return Limit.model_validate_json(entry.value)


def _dumped(limit: Limit) -> bytes:
    return limit.model_dump_json(exclude_defaults=True).encode()


async def _entry(session: Session, name: str) -> Entry:
    entry = await session.bus.bucket(BUCKET).get(key_of(name))
    if entry is None:
        raise UnknownName("limit", name, known=await _names(session))
    return entry


async def _names(session: Session) -> list[str]:
    return sorted(name_of(key) for key in await session.bus.bucket(BUCKET).keys())


async def _seen(session: Session, name: str) -> GlobalConcurrencyLimit:
    limit = _limit_in(await _entry(session, name))
    held = sum(one.occupy for one in await standing(session.bus, name, limit) if one.holds)
    return GlobalConcurrencyLimit(id=name, active_slots=held, **_fields_of(limit, name))


async def _of_tag(session: Session, tag: str) -> ConcurrencyLimit:
    name = TAG_PREFIX + tag
    limit = _limit_in(await _entry(session, name))
    holders = [one.holder or "" for one in await standing(session.bus, name, limit) if one.holds]
    ids = [holder.rpartition("/")[2] for holder in holders]
    return ConcurrencyLimit(id=tag, tag=tag, concurrency_limit=limit.slots or 0, active_slots=ids)
