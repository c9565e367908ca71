"""The port is taken first, and who has it otherwise is named."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import anyio
import pytest
from hark.errors import DefinitionError
from hark.server.door import bound, listen, port_holder
from hark.server.open_files import for_callers, raise_limit

from tests.server.conftest import Start


@pytest.fixture
def taken() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_the_process_that_has_the_port_is_named(taken: socket.socket) -> None:
    """Its pid and command, so that nobody has to look for it; the hint says what else can be done."""
    with taken:
        port = taken.getsockname()[1]
        holder = rf"127\.0\.0\.1:{port}.* by pid {os.getpid()} \("
        with pytest.raises(DefinitionError, match=holder) as caught, bound("127.0.0.1", port):
            pytest.fail("it is taken")
        assert "--port" in caught.value.hint


def test_who_comes_second_to_a_bound_port_is_told_when_it_listens() -> None:
    """Two that start at once can both bind; one of them listens."""
    with bound("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bound("127.0.0.1", port) as second:
            listen(first)
            with pytest.raises(DefinitionError, match=f"127.0.0.1:{port}"):
                listen(second)


def test_a_bound_port_refuses_callers_until_it_listens() -> None:
    """A caller is told at once that nobody is here yet."""
    with bound("127.0.0.1", 0) as sock:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(sock.getsockname()).close()
        listen(sock)
        socket.create_connection(sock.getsockname()).close()


def test_an_address_of_another_machine_is_refused() -> None:
    """What the system says is passed on."""
    with (
        pytest.raises(DefinitionError, match=r"cannot listen on 192\.0\.2\.1:4280"),
        bound("192.0.2.1", 4280),
    ):
        pytest.fail("it is not here")


def test_no_holder_is_named_where_it_cannot_be_known(tmp_path: Path) -> None:
    """On a system without /proc the message does without."""
    assert port_holder(1, proc=tmp_path) == ""


async def test_a_taken_port_is_told_before_any_part_starts(start: Start, taken: socket.socket) -> None:
    """Whatever the parts run into on their first start does not hide it."""
    with taken, anyio.fail_after(60), pytest.raises(BaseExceptionGroup) as caught:
        async with start(server={"port": taken.getsockname()[1]}):
            pytest.fail("it must not come up")
    assert caught.group_contains(DefinitionError, match="cannot listen")


def test_as_many_files_may_be_open_as_are_allowed_and_callers_never_get_the_last() -> None:
    """A shell's small limit is raised to what it may be, and left alone where it is enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        assert for_callers() == 100
        assert (raise_limit(900), raise_limit(300)) == (900, 900)
        assert for_callers() == 900 - 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
