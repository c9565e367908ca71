"""The fork server: a small process without threads that has everything imported and forks warm children on demand.

Started by ``ProcessPool`` (for runs) and ``ForkServer`` (for tasks) as ``python -m hark.engine.executors.process_main FD``,
before which nothing of the worker can leak into it. It does two things: fork a child for each socket it is handed, and
report each child that ends. It lives as long as the worker holds the other end of its socket; then it kills its children
and goes, so a worker killed with -9 leaves no run going behind its back.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import selectors
import signal
import socket
import sys

import orjson

from .frame import encode

__all__ = ["main", "server_command"]

PRELOAD = (
    "hark.bus.bus", "hark.bus.log", "hark.bus.publisher", "hark.bus.run_logs", "hark.bus.work_queue", "hark.bus.session",
    "hark.bus.emit", "nats", "uvloop", "anyio._backends._asyncio", "cloudpickle", "pydantic", "inspect", "concurrent.futures",
    "hark.engine.workers.process_child", "hark.engine.workers.execution", "hark.engine.life.flow_engine", "hark.engine.flows", "hark.engine.tasks",
    "hark.engine.task_runners", "hark.engine.logging", "hark.engine.runs.run_log",
)  # fmt: skip
"""What every child needs, imported once and shared copy-on-write."""


def server_command(fd: int) -> list[str]:
    """Return what starts a server that has this package under all the names it has here (``sys.modules["prefect"] = hark``)."""
    root = __package__.partition(".")[0]
    package = sys.modules[root]
    others = [name for name, module in list(sys.modules.items()) if module is package and name != root]
    return [sys.executable, "-m", f"{root}.engine.executors.process_main", str(fd), *others]


def main(fd: int, *names: str) -> None:
    """Serve until the other end of ``fd`` is closed; ``names`` are those the package has besides its own."""
    for name in names:
        sys.modules[name] = sys.modules[__package__.partition(".")[0]]
    for name in PRELOAD:
        # An optional accelerator may be missing; a module of ours that does not import shows itself in the child.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # The worker decides when children stop; a Ctrl-C at the terminal reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    _Server(socket.socket(fileno=fd)).serve()


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: set[int] = set()
        self._inbox = b""

    def serve(self) -> None:
        wake_r, wake_w = os.pipe()
        for end in (wake_r, wake_w):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        selector = selectors.DefaultSelector()
        selector.register(self._control, selectors.EVENT_READ)
        selector.register(wake_r, selectors.EVENT_READ)
        try:
            self._tell({"ready": os.getpid()})
            while True:
                for key, _ in selector.select():
                    if key.fd == wake_r:
                        with contextlib.suppress(BlockingIOError):
                            os.read(wake_r, 4096)
                    elif not self._hear():
                        return
                self._reap()
        except ConnectionError:
            return  # the worker was killed while we were telling it something, perhaps before we were ready
        finally:
            for pid in self._children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            # Whoever waits for us to go may count on them being gone.
            for pid in self._children:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _hear(self) -> bool:
        """Carry out one request; False when the worker is gone."""
        data, fds, _, _ = socket.recv_fds(self._control, 4096, 1)
        if not data:
            return False
        # A request is a line, written at once; kills are not answered, so several may come in one piece.
        for line in data.splitlines():
            request = orjson.loads(line)
            if request["do"] == "fork":
                self._fork(fds[0], request.get("main", "runs"))
            elif request["do"] == "kill" and request["pid"] in self._children:
                os.kill(request["pid"], signal.SIGKILL)
        return True

    def _fork(self, fd: int, main: str) -> None:
        pid = os.fork()
        if pid:
            os.close(fd)
            self._children.add(pid)
            self._tell({"forked": pid})
            return
        # From here on we are the child. It never returns into the server's code.
        status = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            # A process that is killed would take what it has printed with it.
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(line_buffering=True)
            if main == "tasks":
                from .task_child import task_child_main as child_main
            else:
                from ..workers.process_child import child_main

            status = child_main(socket.socket(fileno=fd))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            # Whoever read what is printed may have gone; the code has to be told all the same.
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._children.discard(pid)
            self._tell({"exited": pid, "code": os.waitstatus_to_exitcode(status)})

    def _tell(self, message: dict[str, int]) -> None:
        self._control.sendall(encode({**message}))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
