"""What a flow can be asked about deployments of it: ``to_deployment``, ``serve``, ``deploy``, and their async twins."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..code_source import GitRepository, LocalStorage

__all__ = ["Deployable", "load_from"]

_FOR_IMAGES = ("image", "build", "push", "print_next_steps", "ignore_warnings")
"""Options of Prefect's ``deploy`` that say how an image is built and how much is printed: no images are built here."""


class Deployable:
    """The part of a flow that makes deployments of it."""

    name: str
    _origin: tuple[GitRepository | LocalStorage, str] | None = None
    """Where its code comes from, and its entrypoint there, if it was loaded from a source."""

    @classmethod
    def from_source(cls, source: object, entrypoint: str, **which: bool) -> Any:
        """Return a flow loaded from a folder or a git repository; deployments of it bring workers the code from there.

        ``flow.from_source("https://host/flows.git", entrypoint="etl.py:nightly").deploy("nightly", work_pool_name="default")``.
        Awaited in async code.

        Args:
            source: a folder, the address of a repository (``https://…``, ``file://…``, ``git@…``), or a ``GitRepository``.
            entrypoint: ``path/file.py:function`` below it.
        Raises:
            SourceFailed: the repository, or git, cannot be had. MissingFlow, DefinitionError: the flow is not there.
        """
        from ..sync_async.either import takes_async

        return cls.afrom_source(source, entrypoint) if takes_async(which) else load_from(source, entrypoint)

    @classmethod
    async def afrom_source(cls, source: object, entrypoint: str) -> Any:
        """Do what ``from_source`` does, in async code."""
        from anyio import to_thread

        return await to_thread.run_sync(load_from, source, entrypoint)

    def to_deployment(self, name: str, **options: Any) -> Any:
        """Return the description of a deployment of this flow, for ``serve(…)`` or ``deploy(…)``.

        The options are those of ``server.description.describe``: ``cron, interval, rrule, schedules, parameters, tags,
        concurrency_limit, paused, work_pool_name, …``.
        """
        return _above("server.description").describe(self, name, **options)

    async def ato_deployment(self, name: str, **options: Any) -> Any:
        """Do what ``to_deployment`` does, in async code."""
        return self.to_deployment(name, **options)

    def serve(
        self,
        name: str | None = None,
        *,
        limit: int | None = None,
        pause_on_shutdown: bool = True,
        print_starting_message: bool = True,
        webserver: bool = False,
        **options: Any,
    ) -> None:
        """Make a deployment of this flow and run what is asked of it in this process, until it is stopped.

        Uses the broker that is known, and starts everything (as ``hark up``) where none is. See ``hark.serve``.

        Args:
            name: default: the flow's.
            limit: runs at once.
            pause_on_shutdown: pause the schedules when it stops.
            webserver: does nothing here: ``hark up`` has one. For flows written for Prefect.
            options: as of ``to_deployment``; ``global_limit`` is its ``concurrency_limit``.
        """
        del webserver
        if "global_limit" in options:
            options["concurrency_limit"] = options.pop("global_limit")
        described = self.to_deployment(name or self.name, **options)
        _public("serve")(
            described,
            limit=limit,
            pause_on_shutdown=pause_on_shutdown,
            print_starting_message=print_starting_message,
        )

    def deploy(self, name: str, work_pool_name: str | None = None, **options: Any) -> Any:
        """Make a deployment of this flow for the workers of a pool and return its name; awaited in async code.

        Args:
            options: as of ``to_deployment``. ``image, build, push, print_next_steps, ignore_warnings`` are taken and do
                nothing: workers have the code, or pull it (``from_source``).
        """
        names = _public("deploy")(self._for_pool(name, work_pool_name, options))
        return _first_of(names) if inspect.isawaitable(names) else names[0]

    async def adeploy(self, name: str, work_pool_name: str | None = None, **options: Any) -> str:
        """Do what ``deploy`` does, in async code."""
        described = self._for_pool(name, work_pool_name, options)
        return await _first_of(_public("deploy").aio(described))

    def _for_pool(self, name: str, pool: str | None, options: dict[str, Any]) -> Any:
        kept = {word: value for word, value in options.items() if word not in _FOR_IMAGES}
        return self.to_deployment(name, work_pool_name=pool, **kept)


def load_from(source: object, entrypoint: str) -> Any:
    """Return a flow loaded from a source; what ``from_source`` does. Blocks."""
    from ...config import load_settings
    from ..code.loader import Loader
    from ..code_source import GitRepository, fetch, source_of

    found = source_of(source)
    if isinstance(found, GitRepository):
        folder = fetch(found.source, load_settings().home_path / "sources", token=found.token)
    else:
        folder = found.path
    flow = Loader().load(entrypoint, str(folder))
    # Not on the flow itself, which belongs to its module and may be deployed from there too.
    loaded = flow.with_options()
    loaded._origin = found, entrypoint
    return loaded


def _public(name: str) -> Any:
    """Return a name of the public face: of a room above this one, which only the face may know."""
    return getattr(import_module(__package__.partition(".")[0]), name)


def _above(module: str) -> Any:
    """Return a module of a room above this one: a flow's own methods lead there, and nothing else here does."""
    return import_module(f"{__package__.partition('.')[0]}.{module}")


async def _first_of(names: Any) -> str:
    found: list[str] = await names
    return found[0]
