"""Where results can be kept: folders, and with the extra ``fsspec`` whatever that reaches (``s3://``, ``gs://``, ``memory://``).

A storage is any block with ``read_path(path) -> bytes`` and ``write_path(path, content)``, sync or async; these two are
ready to use. Said as a block, as ``"slug/name"`` of a saved one, as a path, or as a URL.
"""

from __future__ import annotations

import inspect
import os
import shutil
from abc import abstractmethod
from collections.abc import Callable
from errno import EISDIR, ENOENT
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import unquote, urlsplit

from anyio import to_thread
from pydantic import BeforeValidator, Field, ValidationError

from ..errors import DefinitionError, InvalidValueError
from ..vocabulary import new_id
from .blocks import Block
from .sync_async.either import is_async_here

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

    def get_directory(self, from_path: str | None = None, local_path: str | None = None) -> Any:
        """Copy all below a path of the storage into a folder here; awaited in async code. Not every storage can."""
        raise NotImplementedError(f"{type(self).__name__} says nothing of folders")

    def put_directory(
        self, local_path: str | None = None, to_path: str | None = None, ignore_file: str | None = None
    ) -> Any:
        """Copy a folder from here below a path of the storage; awaited in async code. Not every storage can.

        Args:
            ignore_file: a file of patterns as in ``.gitignore``: what they match stays here.
        """
        raise NotImplementedError(f"{type(self).__name__} says nothing of folders")

    def where(self) -> str | None:
        """Return the URL by which another process finds the same storage; None if it takes more than a URL."""
        return None


ReadableFileSystem = WritableFileSystem


class PathNotFound(FileNotFoundError, ValueError):
    """Nothing is stored under a path; a ``ValueError`` too, as code written for Prefect expects."""


class PathNotAFile(IsADirectoryError, ValueError):
    """Under a path is a folder; a ``ValueError`` too."""


class _Either(WritableFileSystem):
    """A storage whose own operations are sync; called from async code they are done in a thread, to be awaited."""

    def read_path(self, path: str) -> Any:
        return _either(self._read, path)

    def write_path(self, path: str, content: bytes) -> Any:
        return _either(self._write, path, content)

    def get_directory(self, from_path: str | None = None, local_path: str | None = None) -> Any:
        return _either(self._get, from_path, local_path)

    def put_directory(
        self, local_path: str | None = None, to_path: str | None = None, ignore_file: str | None = None
    ) -> Any:
        return _either(self._put, local_path, to_path, ignore_file)

    def _read(self, path: str) -> bytes:
        raise NotImplementedError

    def _write(self, path: str, content: bytes) -> str:
        raise NotImplementedError

    def _get(self, from_path: str | None, local_path: str | None) -> Any:
        raise NotImplementedError

    def _put(self, local_path: str | None, to_path: str | None, ignore_file: str | None) -> Any:
        raise NotImplementedError


def _either(function: Callable[..., Any], *args: Any) -> Any:
    return to_thread.run_sync(function, *args) if is_async_here() else function(*args)


def kept_files(folder: Path, ignore_file: str | None) -> list[Path]:
    """Return the files below a folder, relative to it and in order, but for those that a file of patterns matches.

    The patterns are read as git reads its ``.gitignore`` at the top of that folder.
    """
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    if ignore_file is None:
        return files
    # Imported here: few flows copy folders, and `import hark` stays light.
    from pathspec import GitIgnoreSpec

    ignored = GitIgnoreSpec.from_lines(Path(ignore_file).read_text().splitlines())
    return [path for path in files if not ignored.match_file(path)]


async def _awaited(function: Callable[..., Any], *args: Any) -> Any:
    """Call what may be sync or async, the first in a thread."""
    if inspect.iscoroutinefunction(function):
        return await function(*args)
    return await to_thread.run_sync(function, *args)


class LocalFileSystem(_Either):
    """A folder. Default: the folder ``storage`` of ``HARK_HOME``."""

    _block_type_name: ClassVar[str | None] = "Local File System"

    basepath: Annotated[
        str | None,
        BeforeValidator(lambda given: os.fspath(given) if isinstance(given, os.PathLike) else given),
    ] = None

    @property
    def folder(self) -> Path:
        """The folder, absolute."""
        if self.basepath is None:
            from ..config import load_settings

            return load_settings().home_path / "storage"
        return Path(self.basepath).expanduser().absolute()

    def _read(self, path: str) -> bytes:
        target = self._inside(path)
        try:
            return target.read_bytes()
        except FileNotFoundError:
            raise PathNotFound(ENOENT, "nothing is stored under this path", str(target)) from None
        except IsADirectoryError:
            raise PathNotAFile(EISDIR, "this is a folder and not a file", str(target)) from None

    def _write(self, path: str, content: bytes) -> str:
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

    def _get(self, from_path: str | None, local_path: str | None) -> None:
        source = self._inside(from_path) if from_path else self.folder
        target = Path(local_path).expanduser().absolute() if local_path else self.folder
        if source != target:
            shutil.copytree(source, target, dirs_exist_ok=True)

    def _put(self, local_path: str | None, to_path: str | None, ignore_file: str | None) -> None:
        source = Path(local_path or ".").expanduser().absolute()
        target = self._inside(to_path) if to_path else self.folder
        for path in kept_files(source, ignore_file):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / path, target / path)

    def where(self) -> str:
        return self.folder.as_uri()

    def _inside(self, path: str) -> Path:
        folder = self.folder
        target = Path(os.path.normpath(folder / path))
        if not target.is_relative_to(folder) or target == folder:
            raise ValueError(f"{path!r} is no path inside {folder}")
        return target


class RemoteFileSystem(_Either):
    """Anything fsspec reaches: ``RemoteFileSystem(basepath="s3://bucket/prefix", settings={"key": …})``.

    Args:
        settings: passed on to fsspec's file system of that scheme: keys, end points, and so on.
    """

    _block_type_name: ClassVar[str | None] = "Remote File System"

    basepath: str
    settings: dict[str, Any] = Field(default_factory=dict)

    def block_initialization(self) -> None:
        if "://" not in self.basepath or not self.basepath.partition("://")[2]:
            raise InvalidValueError(f"{self.basepath!r} is no base path", hint='such as "s3://bucket/prefix"')

    def _read(self, path: str) -> bytes:
        system, whole = self._open(path)
        data: bytes = system.cat_file(whole)
        return data

    def _get(self, from_path: str | None, local_path: str | None) -> str:
        target = Path(local_path or ".").expanduser().absolute()
        system, whole = self._open(from_path or "")
        for found in system.find(whole):
            place = target / str(found).removeprefix(whole).lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(system.cat_file(found))
        return str(target)

    def _put(self, local_path: str | None, to_path: str | None, ignore_file: str | None) -> int:
        """Return how many files that were."""
        source = Path(local_path or ".").expanduser().absolute()
        files = kept_files(source, ignore_file)
        for path in files:
            self._write(
                "/".join(part for part in (to_path, path.as_posix()) if part), (source / path).read_bytes()
            )
        return len(files)

    def _write(self, path: str, content: bytes) -> str:
        system, whole = self._open(path)
        parent = whole.rpartition("/")[0]
        if parent:
            system.makedirs(parent, exist_ok=True)
        system.pipe_file(whole, content)
        return f"{self.basepath.rstrip('/')}/{self._relative(path)}"

    def _relative(self, path: str) -> str:
        """Return a path inside the base path, which may have been written before it."""
        base = self.basepath.rstrip("/") + "/"
        inside = path.removeprefix(base)
        if ".." in inside.split("/") or inside.startswith("/") or "://" in inside:
            raise ValueError(f"{path!r} is no path inside {self.basepath}")
        return inside

    def where(self) -> str | None:
        return None if self.settings else self.basepath

    def _open(self, path: str) -> tuple[Any, str]:
        path = self._relative(path)
        try:
            import fsspec  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError as exc:
            raise DefinitionError(
                f"results at {self.basepath} need fsspec, which is not installed",
                hint="pip install 'hark[fsspec]', or 'hark[s3]' for s3:// addresses",
            ) from exc
        try:
            # One instance per process and settings: fsspec keeps them itself.
            system, whole = fsspec.core.url_to_fs(
                f"{self.basepath.rstrip('/')}/{path}".rstrip("/"), **self.settings
            )
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
            try:
                return RemoteFileSystem(basepath=given), given
            except ValidationError as exc:
                raise InvalidValueError(f"{given!r} is no storage for results: {exc}") from exc
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
