"""What is to become of results: whether they are kept, where, and how written; said of a flow, it holds for its tasks.

A task's own word comes first, then that of the task or flow it is called in, and so on outwards, then the settings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...errors import DefinitionError
from ..writing import serializer_meant

if TYPE_CHECKING:
    from ...config import EngineConfig
    from ..context import FlowRunContext, TaskRunContext
    from ..serializers import Serializer

__all__ = ["Keeping", "check_storage", "keeping_here", "keeping_of"]


@dataclass(frozen=True, slots=True)
class Keeping:
    """What has been said of results; None where nothing has been.

    Attributes:
        persist: True: kept, and taken by equal calls of the same run. False: not even recorded.
        storage: as given; see ``filesystems.storage_at``.
        in_memory: what was said of it; nothing depends on it here.
    """

    persist: bool | None = None
    storage: object = None
    serializer: Serializer | None = None
    in_memory: bool = True

    @classmethod
    def of(cls, options: Any, *, key: bool = False, asks: bool = False) -> Keeping | None:
        """Return what the options of a flow or task say; None if nothing.

        Args:
            key, asks: other options are given that make no sense unless the result is kept.
        Raises:
            TypeError, ValueError, DefinitionError: an option makes no sense.
        """
        persist = options.get("persist_result")
        storage = check_storage(options.get("result_storage"))
        serializer = serializer_meant(options.get("result_serializer"))
        in_memory = options.get("cache_result_in_memory") is not False
        if persist is None and (storage is not None or serializer is not None or key or asks):
            persist = True
        if persist is None and in_memory:
            return None
        return cls(persist, storage, serializer, in_memory)

    def within(self, outer: Keeping | None) -> Keeping:
        """Return what holds for something said to be ``self`` inside of ``outer``."""
        if outer is None:
            return self
        return replace(
            self,
            persist=outer.persist if self.persist is None else self.persist,
            storage=outer.storage if self.storage is None else self.storage,
            serializer=outer.serializer if self.serializer is None else self.serializer,
        )


def check_storage(given: object) -> object:
    """Return what was given as ``result_storage``, if it can be one; nothing is opened yet.

    Raises:
        DefinitionError: it cannot.
    """
    if given is None:
        return None
    import os

    is_block = callable(getattr(given, "read_path", None)) and callable(getattr(given, "write_path", None))
    if is_block or isinstance(given, os.PathLike):
        return given
    if (
        isinstance(given, str)
        and given
        and (given == "broker" or "://" in given or given[0] in "/.~" or given.count("/") == 1)
    ):
        return given
    raise DefinitionError(
        f"result_storage cannot be {given!r}",
        hint='a URL ("s3://bucket/prefix"), a path ("./results"), a saved block ("slug/name"), "broker", or a storage',
    )


def keeping_of(own: Keeping | None, around: FlowRunContext | TaskRunContext | None) -> Keeping | None:
    """Return what holds for a run that says ``own`` and is made inside ``around``; None: nothing was said by anybody."""
    outer = around.keeping if around is not None else from_settings()
    return outer if own is None else own.within(outer)


def keeping_here() -> Keeping | None:
    """Return what holds for the run the code is in."""
    from ..context import current_run

    return keeping_of(None, current_run.get())


_read: tuple[object, Keeping | None] = (None, None)


def from_settings() -> Keeping | None:
    """Return what the settings say."""
    global _read
    from ...config import load_settings

    settings = load_settings()
    if _read[0] is not settings:
        _read = settings, _keeping_in(settings.engine)
    return _read[1]


def _keeping_in(engine: EngineConfig) -> Keeping | None:
    if engine.result_storage is None and engine.result_serializer is None and engine.persist_results is None:
        return None
    # A default storage alone keeps nothing by itself: it says where, for what is large and for those who say persist.
    return Keeping(
        engine.persist_results,
        check_storage(engine.result_storage),
        serializer_meant(engine.result_serializer),
    )
