"""``hark backup`` and ``hark restore``: the whole state in one file, and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .call import AsJson, plain, run_async, show, to_json

if TYPE_CHECKING:
    from ..bus.archive import Archive
    from ..bus.backup import BackupTaken
    from ..bus.restore import Restored
    from ..vocabulary import JsonObject, JsonValue

_File = Annotated[Path, typer.Argument(help="The backup file.")]


def backup(
    file: _File,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    without_key: Annotated[
        bool, typer.Option("--without-secret-key", help="Leave out the key that secrets are encrypted with.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy the whole state into one file, while the service runs (or while it does not)."""
    from ..config import load_settings

    settings = load_settings()
    given = settings.secret_key is not None
    key_file = settings.home_path / "secret.key"
    key = key_file.read_bytes().strip() if key_file.exists() and not given else None
    taken = run_async(lambda: _backup(file, key=key, with_key=not without_key, overwrite=force))
    said = {
        "included": "The key of the secrets is in it: keep it where only you can read it.",
        "left out": f"The key of the secrets is not in it: keep {key_file} as well.",
        "not in the home": "It holds no key of secrets: keep HARK_SECRET_KEY as well."
        if given
        else "There is no key of secrets in the home.",
    }[taken.secret_key]
    value: JsonObject = {
        "file": str(taken.path), "id": taken.id, "taken_at": taken.taken_at.isoformat(), "streams": taken.streams,
        "size_bytes": taken.size_bytes, "last_seq": taken.last_seq, "secret_key": taken.secret_key,
    }  # fmt: skip
    text = f"{taken.path}: {_size(taken.size_bytes)}, {taken.streams} streams, the log up to event {taken.last_seq}.\n{said}"
    show(value, text, as_json=as_json)


async def _backup(file: Path, *, key: bytes | None, with_key: bool, overwrite: bool) -> BackupTaken:
    from contextlib import AsyncExitStack

    from ..bus.address import locate_broker
    from ..bus.backup import take_backup
    from ..bus.broker import EmbeddedBroker
    from ..bus.bus import Bus
    from ..bus.session import no_broker
    from ..config import load_settings

    settings = load_settings()
    async with AsyncExitStack() as stack:
        address = locate_broker(settings)
        if address is None:
            home = settings.home_path
            if not (home / "nats" / "store").exists() and not (home / "restore.json").exists():
                raise no_broker("there is nothing to back up")
            address = (await stack.enter_async_context(EmbeddedBroker(home, settings.bus))).address
        bus = await stack.enter_async_context(Bus(address, settings.bus, name="hark backup", manage=False))
        return await take_backup(
            bus, file, key=key, with_key=with_key, overwrite=overwrite, on_piece=_progress("copied")
        )


def restore(
    file: _File,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also where there is a Hark already; what it holds is kept beside."),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only read the file and compare its hashes; change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the home (or the broker of HARK_NATS_URL) what a backup holds. The service must not run."""
    from ..bus.archive import read_archive
    from ..bus.restore import check_archive

    archive = read_archive(file)
    check_archive(archive)
    pieces: list[JsonValue] = [
        {"name": p.name, "size_bytes": p.size_bytes, "sha256": p.sha256} for p in archive.pieces
    ]
    about: JsonObject = {
        "file": str(file), "id": archive.header.get("id"), "taken_at": archive.header.get("taken_at"),
        "hark": archive.header.get("hark"), "broker": archive.header.get("broker"),
        "secret_key": archive.header.get("secret_key"), "size_bytes": archive.size_bytes,
        "pieces": pieces,
    }  # fmt: skip
    if check:
        text = f"{file} is whole: {len(archive.pieces)} pieces, {_size(archive.size_bytes)}, taken {about['taken_at']}"
        show(about, text, as_json=as_json)
        return
    done = run_async(lambda: _restore(archive, force=force))
    if as_json:
        kept = str(done.kept) if done.kept else None
        typer.echo(
            to_json({**about, "last_seq": done.last_seq, "kept": kept, "note": done.secret_key or None})
        )
        return
    typer.echo(
        f"restored {done.streams} streams as of {about['taken_at']}; the log is at event {done.last_seq}"
    )
    if done.kept:
        typer.echo(f"what was there before is in {done.kept}")
    if done.secret_key:
        typer.echo(f"look at this: {done.secret_key}", err=True)
    typer.echo("start it: hark up")


async def _restore(archive: Archive, *, force: bool) -> Restored:
    from ..bus.address import external_address
    from ..bus.restore import restore_broker, restore_home
    from ..config import load_settings

    settings, told = load_settings(), _progress("restored")
    if settings.nats_url:
        address = external_address(settings.nats_url, settings.bus)
        return await restore_broker(
            archive, address, settings.home_path, settings.bus, force=force, on_piece=told
        )
    return await restore_home(archive, settings.home_path, settings.bus, force=force, on_piece=told)


class _progress:  # noqa: N801 - used as a function
    """Tells of each piece on stderr: in one line that changes on a terminal, in plain lines elsewhere if it is large."""

    def __init__(self, verb: str) -> None:
        self._verb, self._told = verb, 0

    def __call__(self, name: str, size_bytes: int) -> None:
        if sys.stderr.isatty():
            # Written over by the next, and by the result.
            typer.echo(f"\r\x1b[K{self._verb} {plain(name)} ({_size(size_bytes)})\r", err=True, nl=False)
        elif size_bytes - self._told > 100 << 20:
            self._told = size_bytes
            typer.echo(f"{self._verb} {plain(name)}: {_size(size_bytes)}", err=True)


def _size(count: int) -> str:
    for bound, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= bound:
            return f"{count / bound:.1f} {unit}"
    return f"{count} bytes"
