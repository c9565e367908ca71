"""Where and how results are kept that nobody has said anything of, as code written for Prefect asks for it."""

from __future__ import annotations

from typing import Any

from anyio import to_thread

from ..context import current_run
from ..filesystems import LocalFileSystem, storage_at
from ..options.task_options import engine_settings
from ..serializers import PickleSerializer, Serializer, serializer_of
from ..sync_async.either import takes_async

__all__ = [
    "aget_default_result_storage", "aresolve_result_storage", "get_default_persist_setting",
    "get_default_persist_setting_for_tasks", "get_default_result_serializer", "get_default_result_storage",
    "resolve_result_storage", "resolve_serializer", "should_persist_result",
]  # fmt: skip


def get_default_result_storage(**kwargs: Any) -> Any:
    """Return the storage of the settings (``engine.result_storage``), else the folder of results without a broker.

    Where a broker is known and the settings say nothing, results are kept by it, which is no file system. Awaited in async code.

    Raises:
        DefinitionError: what the settings say is no storage. UnknownName: no such block.
    """
    return aget_default_result_storage() if takes_async(kwargs) else _default()


async def aget_default_result_storage() -> Any:
    """Do what ``get_default_result_storage`` does, in async code."""
    return await to_thread.run_sync(_default)


def _default() -> Any:
    said = engine_settings().result_storage
    return (
        storage_at(said)[0] if said is not None else LocalFileSystem(basepath=str(LocalFileSystem().folder))
    )


def resolve_result_storage(result_storage: object, **kwargs: Any) -> Any:
    """Return the storage that is meant by what ``result_storage=`` takes. Awaited in async code.

    Raises:
        DefinitionError: it is none. UnknownName: no such block.
    """
    return aresolve_result_storage(result_storage) if takes_async(kwargs) else storage_at(result_storage)[0]


async def aresolve_result_storage(result_storage: object) -> Any:
    """Do what ``resolve_result_storage`` does, in async code."""
    found, _ = await to_thread.run_sync(storage_at, result_storage)
    return found


def resolve_serializer(serializer: Serializer | str) -> Serializer:
    """Return the serializer that is meant. Raises ``TypeError`` or ``ValueError`` if it is none."""
    return serializer_of(serializer) or PickleSerializer()


def get_default_result_serializer() -> Serializer:
    """Return the serializer of the settings (``engine.result_serializer``), else pickle."""
    return serializer_of(engine_settings().result_serializer) or PickleSerializer()


def get_default_persist_setting() -> bool:
    """Return what ``persist_result`` is where nobody says (``engine.persist_results``)."""
    return bool(engine_settings().persist_results)


get_default_persist_setting_for_tasks = get_default_persist_setting


def should_persist_result() -> bool:
    """Return what ``persist_result`` is in the run the code is in; outside of runs, what the settings say."""
    run = current_run.get()
    return run.persist_result if run is not None else get_default_persist_setting()
