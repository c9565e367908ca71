"""Assets: data that tasks make, known by an address. ``@materialize("s3://lake/orders.parquet")`` is a task that says so.

When such a task ends, an event says of each asset that it was made (``asset.materialization.succeeded``) or not (``….failed``),
with the asset as its subject, and of each asset it was made of that it was read (``asset.referenced``); rules and ``hark
events`` find them there. A result out of the cache makes nothing, so nothing is said. Where no broker is known, neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypeVar, Unpack, cast
from weakref import WeakKeyDictionary

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..bus.emit import emit
from ..bus.session import current_session
from ..errors import MissingContextError
from ..vocabulary import JsonObject
from .calls.parameters import parameters_json
from .context import TaskRunContext
from .options.task_options import TaskOptions
from .runs.task_run import TaskRun
from .states import State
from .tasks import Task

__all__ = ["Asset", "AssetProperties", "MaterializingTask", "add_asset_metadata", "materialize"]

P = ParamSpec("P")
R = TypeVar("R")

_KEY = re.compile(r"[a-z][a-z0-9+.-]*://[^\s<>#?&%\"']+")


def _check_key(key: str) -> str:
    if not _KEY.fullmatch(key) or len(key) > 512:
        raise ValueError(
            f"an asset is known by an address such as 's3://bucket/orders.csv', got {key[:100]!r}"
        )
    return key


class AssetProperties(BaseModel):
    """What people are told of an asset."""

    model_config = ConfigDict(frozen=True)

    name: str | None = None
    url: str | None = None
    description: str | None = Field(None, max_length=2500)
    owners: list[str] | None = None


class Asset(BaseModel):
    """Data that tasks make and read, known by its address: ``Asset(key="s3://lake/orders.parquet")``."""

    model_config = ConfigDict(frozen=True)

    key: Annotated[str, AfterValidator(_check_key)]
    properties: AssetProperties | None = None

    def __hash__(self) -> int:
        return hash(self.key)

    def add_metadata(self, metadata: dict[str, Any]) -> None:
        """Say something of this asset as it is made now; see ``add_asset_metadata``."""
        add_asset_metadata(self, metadata)


_metadata: WeakKeyDictionary[TaskRun, dict[str, JsonObject]] = WeakKeyDictionary()
"""What task runs that are going on have said of the assets they make, by key."""


def add_asset_metadata(asset: str | Asset, metadata: dict[str, Any]) -> None:
    """Say something of an asset that the task makes: it is in the event, under ``metadata``. Later words win.

    Raises:
        MissingContextError: the code is in no task that makes assets; also a ``RuntimeError``.
        ValueError: it makes others.
    """
    run = TaskRunContext.here()
    if run is None or not isinstance(run.task, MaterializingTask):
        raise MissingContextError(
            "metadata of an asset are said by the task that makes it", hint="mark it with @materialize(…)"
        )
    key = asset if isinstance(asset, str) else asset.key
    made = [one.key for one in run.task.assets]
    if key not in made:
        raise ValueError(f"task {run.task.name!r} makes {', '.join(made)}, not {key!r}")
    said = _metadata.setdefault(run.task_run, {})
    said[key] = {**said.get(key, {}), **metadata}


@dataclass(frozen=True)
class _Telling:
    """The hook that says how the making of assets ended; it goes wherever the task's hooks go."""

    assets: tuple[Asset, ...]
    made_of: tuple[Asset, ...]
    by: str | None

    def __call__(self, task: Task[..., Any], run: TaskRun, state: State) -> None:
        said = _metadata.pop(run, {})
        if state.name == "Cached" or current_session(tracking=False) is None:
            return
        who: JsonObject = {"task_run": {"id": run.id, "name": run.name}, "task": task.name, "by": self.by}
        for asset in self.made_of:
            emit("asset.referenced", subject=asset.key, data={**who, "properties": _shown(asset)})
        word = "succeeded" if state.is_completed() else "failed"
        for asset in self.assets:
            data: JsonObject = {
                **who,
                "properties": _shown(asset),
                "made_of": [one.key for one in self.made_of],
            }
            data["metadata"] = parameters_json(said.get(asset.key, {}))
            emit(f"asset.materialization.{word}", subject=asset.key, data=data)


def _shown(asset: Asset) -> JsonObject:
    return asset.properties.model_dump(exclude_none=True) if asset.properties is not None else {}


class MaterializingTask(Task[P, R]):
    """A task that makes assets.

    Args:
        assets: what it makes, addresses or ``Asset`` objects. materialized_by: the tool that does it, such as ``"dbt"``.
    """

    def __init__(
        self,
        fn: Callable[P, R],
        *,
        assets: Iterable[str | Asset] = (),
        materialized_by: str | None = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        super().__init__(fn, **options)
        made = _assets(assets)
        if made:
            self._tell(_Telling(made, _assets(options.get("asset_deps") or ()), materialized_by))

    def _tell(self, telling: _Telling) -> None:
        for argument in ("on_completion", "on_failure"):
            hooks = self.hooks.setdefault(argument, [])
            hooks[:] = [telling, *(hook for hook in hooks if not isinstance(hook, _Telling))]
        self.needs_care = True

    @property
    def _telling(self) -> _Telling | None:
        return next((hook for hook in self.on_completion_hooks if isinstance(hook, _Telling)), None)

    @property
    def assets(self) -> list[Asset]:
        return list(self._telling.assets) if self._telling is not None else []

    @property
    def materialized_by(self) -> str | None:
        return self._telling.by if self._telling is not None else None

    def with_options(
        self, *, assets: Iterable[str | Asset] | None = None, **options: Unpack[TaskOptions]
    ) -> MaterializingTask[P, R]:
        """Return a copy with some options, or with other assets."""
        now, deps = self._telling, options.get("asset_deps")
        new = cast("MaterializingTask[P, R]", super().with_options(**options))
        new.__class__ = MaterializingTask
        made = _assets(assets) if assets is not None else (now.assets if now is not None else ())
        made_of = _assets(deps) if deps is not None else (now.made_of if now is not None else ())
        new._tell(_Telling(made, made_of, self.materialized_by))
        return new


def _assets(given: Iterable[str | Asset]) -> tuple[Asset, ...]:
    return tuple(Asset(key=one) if isinstance(one, str) else one for one in given)


def materialize(
    *assets: str | Asset, by: str | None = None, **options: Unpack[TaskOptions]
) -> Callable[[Callable[P, R]], MaterializingTask[P, R]]:
    """Mark a function as a task that makes assets: ``@materialize("s3://lake/orders.parquet", by="dbt", retries=2)``.

    Args:
        assets: what it makes. by: the tool that does it. options: those of ``@task``; ``asset_deps`` is what it is made of.
    Raises:
        TypeError: no asset is given. ValueError: one has no address.
    """
    if not assets:
        raise TypeError(
            "materialize takes the assets that the task makes: @materialize('s3://bucket/orders.csv')"
        )
    made = _assets(assets)
    return lambda fn: MaterializingTask(fn, assets=made, materialized_by=by, **options)
