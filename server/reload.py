"""The configuration beside a running service: applied at start, and again whenever its files change."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anyio
from anyio import AsyncContextManagerMixin, to_thread

from ..errors import HarkError, UnavailableError
from .apply import apply_manifest, names_besides_config
from .audit import CONFIGURATION, audit_event
from .fault import ManifestInvalid
from .manifest import Manifest, load_manifest
from .plan import Change, Plan

if TYPE_CHECKING:
    from ..bus import Bus

__all__ = ["ConfigFeed"]

log = logging.getLogger("hark.config")

_AGAIN_S = 2.0
_STEP_MS = 100
"""How often the watching thread looks up; it also bounds how long stopping takes."""
_STOP_S = 2.0


class ConfigFeed(AsyncContextManagerMixin):
    """Keeps what is live in step with a file or folder, once ``apply`` has made it so for the first time.

    A file that is not there yet is applied when it comes; what a removed one said stays live.
    While entered, it is applied again whenever it changes; faults are logged and what is live stays.
    """

    def __init__(self, bus: Bus, path: Path) -> None:
        self._bus, self.path = bus, path.absolute()
        self.error = ""
        self._seen: tuple[object, ...] = ()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with anyio.create_task_group() as tg:
            stop, stopped = anyio.Event(), anyio.Event()
            tg.start_soon(self._watch, stop, stopped)
            tg.start_soon(self._catch_up)
            try:
                yield self
            finally:
                # The thread that watches looks at the event; cancelling would wait for a change of the files.
                stop.set()
                with anyio.move_on_after(_STOP_S, shield=True):
                    await stopped.wait()
                tg.cancel_scope.cancel("configuration closing")

    async def apply(self) -> Plan:
        """Read the files and make live what they say.

        Raises:
            ManifestInvalid: nothing was changed.
        """
        self._seen = self._look()
        live = await names_besides_config(self._bus)
        manifest: Manifest = await to_thread.run_sync(lambda: load_manifest(self.path, live=live))
        for warning in manifest.warnings:
            log.warning("config.warning", extra={"at": str(warning.at), "why": warning.message})
        plan = await apply_manifest(self._bus, manifest)
        for left in plan.steps:
            if left.change is Change.ORPHANED:
                log.warning(
                    "config.orphaned",
                    extra={"what": f"{left.bucket}/{left.key}", "advice": "`hark apply --prune` removes it"},
                )
        for warning_text in plan.warnings:
            log.warning("config.warning", extra={"why": warning_text})
        if plan.changes:
            what = f"{self.path}: {plan.summary()}"
            await self._bus.log.append(audit_event(CONFIGURATION, what))
        return plan

    def _look(self) -> tuple[object, ...]:
        """Return what tells one version of the files from another."""
        files = sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path]
        looks: list[object] = []
        for file in files:
            if self._is_ours(file):
                with suppress(FileNotFoundError):
                    stat = file.stat()
                    looks.append((str(file), stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return tuple(looks)

    async def _catch_up(self) -> None:
        """Apply what was written after it was read (or looked for) and before it was watched."""
        # Started behind the watching task, which has its watch by its first wait.
        if (seen := self._look()) and seen != self._seen:
            await self._apply_again()

    async def _watch(self, stop: anyio.Event, stopped: anyio.Event) -> None:
        from watchfiles import awatch

        # A file is watched through its folder: editors write a new file and rename it into place.
        folder = self.path if self.path.is_dir() else self.path.parent
        try:
            async for changes in awatch(
                folder, recursive=self.path.is_dir(), step=_STEP_MS, debounce=400, rust_timeout=60_000,
                stop_event=stop, watch_filter=lambda _, changed: self._is_ours(Path(changed)),
            ):  # fmt: skip
                log.debug("config.changed", extra={"files": len(changes)})
                await self._apply_again()
        finally:
            stopped.set()

    def _is_ours(self, changed: Path) -> bool:
        if self.path.is_dir():
            return changed.suffix in (".yaml", ".yml")
        return changed.name == self.path.name

    async def _apply_again(self) -> None:
        while True:
            if not self.path.exists():
                log.warning(
                    "config.gone", extra={"path": str(self.path), "advice": "what was live stays live"}
                )
                return
            try:
                await self.apply()
            except ManifestInvalid as exc:
                self.error = str(exc)
                for fault in exc.faults:
                    log.error(
                        "config.fault",
                        extra={"at": str(fault.at), "why": fault.message, "advice": fault.suggestion or None},
                    )
                log.error(
                    "config.refused", extra={"faults": len(exc.faults), "advice": "what was live stays live"}
                )
            except UnavailableError as exc:
                log.warning("config.again", extra={"error": str(exc), "in_s": _AGAIN_S})
                await anyio.sleep(_AGAIN_S)
                continue
            except HarkError as exc:
                self.error = str(exc)
                log.error("config.refused", extra={"error": str(exc), "advice": exc.hint or None})
            else:
                self.error = ""
            return
