"""Where results can be kept: folders, and with the extra ``fsspec`` whatever that reaches (``s3://``, ``gs://``, ``memory://``).

A storage is any block with ``read_path(path) -> bytes`` and ``write_path(path, content)``, sync or async; these two are
ready to use. Said as a block, as ``"slug/name"`` of a saved one, as a path, or as a URL.
"""

from __future__ import annotations

import inspect
import os
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from anyio import to_thread
from pydantic import Field

from ..errors import DefinitionError
from ..vocabulary import new_id
from .blocks import Block

__all__ = ["LocalFileSystem", "ReadableFileSystem", "RemoteFileSystem", "WritableFileSystem", "storage_at"]


class WritableFileSystem(Block):
    """A storage of one's own: say how to read and write bytes under a relative path."""

    @abstractmethod
    def read_path(self, path: str) -> Any:
        """Return the bytes; raise ``FileNotFoundError`` if there are none."""

    @abstractmethod
    def write_path(self, path: str, content: bytes) -> Any:
        """Keep the bytes, in place of what was there."""

    async def aread_path(self, path: str) -> bytes:
        """Do what ``read_path`` does, in async code."""
        return await _awaited(self.read_path, path)  # type: ignore[no-any-return]

    async def awrite_path(self, path: str, content: bytes) -> Any:
        """Do what ``write_path`` does, in async code."""
        return await _awaited(self.write_path, path, content)

    def where(self) -> str | None:
        """Return the URL by which another process finds the same storage; None if it takes more than a URL."""
        return None


ReadableFileSystem = WritableFileSystem


async def _awaited(function: Callable[..., Any], *args: Any) -> Any:
    """Call what may be sync or async, the first in a thread."""
    if inspect.iscoroutinefunction(function):
        return await function(*args)
    return await to_thread.run_sync(function, *args)


class LocalFileSystem(WritableFileSystem):
    """A folder. Default: the folder ``storage`` of ``HARK_HOME``."""

    _block_type_name: ClassVar[str | None] = "Local File System"

    basepath: str | None = None

    @property
    def folder(self) -> Path:
        """The folder, absolute."""
        if self.basepath is None:
            from ..config import load_settings

            return load_settings().home_path / "storage"
        return Path(self.basepath).expanduser().absolute()

    def read_path(self, path: str) -> bytes:
        return self._inside(path).read_bytes()

    def write_path(self, path: str, content: bytes) -> str:
        """Keep the bytes; return the whole path. Renamed into its place, so that nobody ever reads half of it."""
        target = self._inside(path)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = target.with_name(f".{new_id()}")
        try:
            temporary.write_bytes(content)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        return str(target)

    def where(self) -> str:
        return self.folder.as_uri()

    def _inside(self, path: str) -> Path:
        folder = self.folder
        target = Path(os.path.normpath(folder / path))
        if not target.is_relative_to(folder) or target == folder:
            raise ValueError(f"{path!r} is no path inside {folder}")
        return target


class RemoteFileSystem(WritableFileSystem):
    """Anything fsspec reaches: ``RemoteFileSystem(basepath="s3://bucket/prefix", settings={"key": …})``.

    Args:
        settings: passed on to fsspec's file system of that scheme: keys, end points, and so on.
    """

    _block_type_name: ClassVar[str | None] = "Remote File System"

    basepath: str
    settings: dict[str, Any] = Field(default_factory=dict)

    def block_initialization(self) -> None:
        if "://" not in self.basepath or not self.basepath.partition("://")[2]:
            raise DefinitionError(f"{self.basepath!r} is no base path", hint='such as "s3://bucket/prefix"')

    def read_path(self, path: str) -> bytes:
        system, whole = self._open(path)
        data: bytes = system.cat_file(whole)
        return data

    def write_path(self, path: str, content: bytes) -> str:
        system, whole = self._open(path)
        parent = whole.rpartition("/")[0]
        if parent:
            system.makedirs(parent, exist_ok=True)
        system.pipe_file(whole, content)
        return f"{self.basepath.rstrip('/')}/{path}"

    def where(self) -> str | None:
        return None if self.settings else self.basepath

    def _open(self, path: str) -> tuple[Any, str]:
        if ".." in path.split("/") or path.startswith("/"):
            raise ValueError(f"{path!r} is no path inside {self.basepath}")
        try:
            import fsspec  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError as exc:
            raise DefinitionError(
                f"results at {self.basepath} need fsspec, which is not installed",
                hint="pip install 'hark[fsspec]', or 'hark[s3]' for s3:// addresses",
            ) from exc
        try:
            # One instance per process and settings: fsspec keeps them itself.
            system, whole = fsspec.core.url_to_fs(f"{self.basepath.rstrip('/')}/{path}", **self.settings)
        except (ImportError, ValueError) as exc:
            scheme = self.basepath.partition("://")[0]
            raise DefinitionError(
                f"fsspec cannot open {self.basepath}: {exc}",
                hint=f"install what fsspec needs for {scheme}:// (for s3:// pip install 'hark[s3]')",
            ) from exc
        return system, str(whole)


def storage_at(given: object) -> tuple[Any, str | None]:
    """Return a storage, and the text by which another process finds it (None: it cannot).

    Args:
        given: a block; a ``Path``; a URL; a path that begins with ``/``, ``.`` or ``~``; or ``"slug/name"`` of a saved block.
    Raises:
        DefinitionError: it is none of these, or fsspec does not know the URL. UnknownName: no such block.
    """
    if isinstance(given, os.PathLike):
        local = LocalFileSystem(basepath=os.fspath(given))
        return local, local.where()
    if isinstance(given, str):
        if "://" in given:
            if given.startswith("file://"):
                local = LocalFileSystem(basepath=unquote(urlsplit(given).path))
                return local, local.where()
            return RemoteFileSystem(basepath=given), given
        if given[:1] in ("/", ".", "~"):
            local = LocalFileSystem(basepath=given)
            return local, local.where()
        if given.count("/") == 1:
            from .blocks import load_blocking

            return load_blocking(given), given
        raise DefinitionError(
            f"{given!r} is no storage for results",
            hint='a URL ("s3://bucket/prefix"), a path ("./results"), or a saved block ("slug/name")',
        )
    if callable(getattr(given, "read_path", None)) and callable(getattr(given, "write_path", None)):
        where = getattr(given, "where", None)
        return given, where() if callable(where) else None
    raise DefinitionError(
        f"{given!r} is no storage for results", hint="it needs read_path(path) and write_path(path, content)"
    )
