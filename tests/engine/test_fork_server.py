"""The fork server reaps its children: none stays behind as a zombie, and how each ended is known."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hark.engine.executors.fork_server import ForkServer, how_it_ended
from hark.engine.executors.process_main import PRELOAD
from hark.errors import UnavailableError


@pytest.fixture
def forks() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


def is_there(pid: int) -> bool:
    """Whether there is a process of that id, be it a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_children_that_end_are_reaped_and_their_codes_told(forks: ForkServer) -> None:
    """Killed by us, killed by somebody else, or gone because nobody wants them: known once, and nothing is left of them."""
    children = [forks.fork() for _ in range(3)]
    pids = [pid for pid, _ in children]
    assert len(set(pids)) == 3
    forks.kill(pids[0])
    os.kill(pids[1], signal.SIGTERM)
    os.kill(pids[1], signal.SIGKILL)
    children[2][1].close()
    codes = [forks.code_of(pid) for pid in pids]
    assert codes[:2] == [-signal.SIGKILL, -signal.SIGKILL]
    assert codes[2] is not None
    # A zombie would still be there: whoever is told of an end may count on the process being gone.
    assert not any(is_there(pid) for pid in pids)
    assert f"its process {pids[0]} was killed by SIGKILL" == how_it_ended(pids[0], codes[0])
    for _, channel in children[:2]:
        channel.close()
    # Ends that are told while another is waited for are not forgotten, in whatever order they are asked for.
    more = [forks.fork() for _ in range(3)]
    forks.kill(pids[0])  # long gone: nothing happens, to nobody
    for pid, _ in more:
        forks.kill(pid)
    for pid, channel in reversed(more):
        assert forks.code_of(pid) == -signal.SIGKILL
        assert not is_there(pid)
        channel.close()


def test_closing_leaves_no_process_behind() -> None:
    """The server kills and reaps what is left, and goes; after that it makes no more."""
    forks = ForkServer()
    children = [forks.fork() for _ in range(2)]
    server = forks._process
    assert server is not None
    of_server = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    if of_server.exists():
        assert {int(pid) for pid in of_server.read_text().split()} == {pid for pid, _ in children}
    forks.close()
    assert server.returncode is not None
    assert not any(is_there(pid) for pid, _ in children)
    with pytest.raises(UnavailableError, match="closed"):
        forks.fork()
    for _, channel in children:
        channel.close()


def test_what_the_server_has_ready_for_its_children_is_there() -> None:
    """It goes on without a module that is missing: a name of ours that has moved would cost every child its import."""
    assert [
        name for name in PRELOAD if name.startswith("hark.") and importlib.util.find_spec(name) is None
    ] == []
