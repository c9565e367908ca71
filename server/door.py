"""The port people come in by, taken before anything else starts, and who has it when it is taken already."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DefinitionError

__all__ = ["bound", "listen", "port_holder"]

_BACKLOG = 2048
_LISTENING = "0A"
"""``TCP_LISTEN`` as /proc/net/tcp writes it."""


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Hold a socket on the address, not listening yet: callers are told that nobody is here rather than kept waiting.

    Raises:
        DefinitionError: the address cannot be had; the message says who has it, where that can be known.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
    except OSError as exc:
        raise _taken(host, port, exc) from exc
    with sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError as exc:
            raise _taken(host, port, exc) from exc
        yield sock


def listen(sock: socket.socket) -> None:
    """Let callers in, from now on.

    Raises:
        DefinitionError: somebody else listens there since it was bound.
    """
    host, port = sock.getsockname()[:2]
    try:
        sock.listen(_BACKLOG)
    except OSError as exc:
        raise _taken(host, port, exc) from exc
    sock.setblocking(False)


def _taken(host: str, port: int, exc: OSError) -> DefinitionError:
    holder = port_holder(port)
    why = f"{exc.strerror or exc}" + (f" by {holder}" if holder else "")
    return DefinitionError(
        f"cannot listen on {host}:{port}: {why}",
        hint=f"{'stop that process, or ' if holder else ''}choose another port with --port, or 0 for a free one",
    )


def port_holder(port: int, *, proc: Path = Path("/proc")) -> str:
    """Return the process that listens on a TCP port, as ``pid 42 (python -m http.server)``.

    Empty where that cannot be known: on systems without /proc, and for processes of other users.
    """
    wanted = {f"socket:[{inode}]" for inode in _inodes(port, proc)}
    if not wanted:
        return ""
    for process in proc.iterdir():
        if process.name.isdigit() and _has_open(process, wanted):
            return f"pid {process.name} ({_command(process)})"
    return ""


def _inodes(port: int, proc: Path) -> set[str]:
    found: set[str] = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found


def _has_open(process: Path, wanted: set[str]) -> bool:
    try:
        return any(str(fd.readlink()) in wanted for fd in (process / "fd").iterdir())
    except OSError:  # it has ended meanwhile, or is somebody else's
        return False


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "ended meanwhile"
    text = " ".join(word for word in words if word)
    return text if len(text) <= 120 else f"{text[:119]}…"
