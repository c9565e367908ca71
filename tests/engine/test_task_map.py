"""Tasks mapped over their inputs, and waiting for many futures."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hark import allow_failure, task, unmapped
from hark.engine.futures import FutureList, as_completed, wait
from hark.errors import (
    MappingError,
    MappingLengthMismatch,
    MappingMissingIterable,
)


@task
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@task
def broken(_: object = None) -> int:
    raise ValueError("broken")


def test_map_runs_once_for_each_element() -> None:
    """Iterables run in step, single values and `unmapped` ones go to every call, texts are single values."""

    @task
    def show(a: Any, b: Any = 0, c: Any = (7, 8)) -> Any:
        return a, b, c

    assert add.map([1, 2, 3]).result() == [2, 3, 4]
    assert add.map([1, 2], b=[10, 20]).result() == [11, 22]
    assert show.map([1, 2], b=unmapped([5])).result() == [(1, [5], (7, 8)), (2, [5], (7, 8))]
    assert show.map("ab", b=range(2)).result() == [("ab", 0, (7, 8)), ("ab", 1, (7, 8))]
    assert show.map(n for n in (1, 2)).result() == [(1, 0, (7, 8)), (2, 0, (7, 8))]
    assert add.map(add.submit(1, 1).result() and [1, 2]).result() == [2, 3]


def test_map_takes_futures() -> None:
    """A list of futures is mapped over one by one, a future of a list by its elements, failures allowed where said."""

    @task
    def numbers() -> list[int]:
        return [1, 2]

    @task
    def kind(x: Any) -> str:
        return type(x).__name__

    assert add.map(numbers.submit()).result() == [2, 3]
    assert add.map([add.submit(1), 5]).result() == [3, 6]
    assert kind.map(allow_failure([broken.submit(), 1])).result() == ["ValueError", "int"]
    states = broken.map([1, 2], return_state=True)
    assert [state.is_failed() for state in states] == [True, True]


def test_map_says_what_is_wrong() -> None:
    """Nothing to iterate over, or lengths that differ, with the lengths."""
    with pytest.raises(MappingError, match="mapped over nothing"):
        add.map(1)
    with pytest.raises(MappingError, match=r"a: 2, b: 3"):
        add.map([1, 2], b=[1, 2, 3])


def test_map_explodes_keyword_arguments() -> None:
    """Each of `**kwargs` is an argument of its own."""

    @task
    def show(x: int, **more: Any) -> Any:
        return x, more

    assert show.map([1, 2], y=[3, 4], z="s").result() == [(1, {"y": 3, "z": "s"}), (2, {"y": 4, "z": "s"})]


def test_wait_says_what_is_done() -> None:
    """All, or the first, or the first failure; within a time that may not be negative; doubles count once."""
    release = threading.Event()

    @task
    def waits(fails: bool = False) -> int:
        release.wait(60)
        if fails:
            raise ValueError
        return 1

    slow, quick = waits.submit(), add.submit(1)
    quick.wait()
    done, not_done = wait([quick, slow, quick], timeout=0.05)
    assert (done, not_done) == ({quick}, {slow})
    first = wait([slow, quick], return_when="FIRST_COMPLETED")
    assert (first.done, first.not_done) == ({quick}, {slow})
    broke = broken.submit()
    assert broke in wait([slow, broke], return_when="FIRST_EXCEPTION").done
    with pytest.raises(ValueError, match="broken"):
        FutureList([slow, broke]).result()
    with pytest.raises(TimeoutError, match=r"within 0\.05 seconds"):
        FutureList([slow, quick]).result(timeout=0.05)
    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        list(as_completed([slow, quick], timeout=0.05))
    for call in (wait, as_completed):
        with pytest.raises(ValueError, match="non-negative"):
            call([slow], timeout=-1)
    release.set()
    assert wait([slow, quick]) == ({slow, quick}, set())


async def test_as_completed_in_a_loop_limits_only_its_own_waits() -> None:
    """Those that are done come first; what is done with them in between is not interrupted."""
    release = threading.Event()
    slow, quick = task(release.wait).submit(60), add.submit(1)
    await quick
    seen = []
    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):  # noqa: PT012
        both: list[Any] = [slow, quick]
        async for future in as_completed(both, timeout=0.05):
            seen.append(future)
            await asyncio.sleep(0.1)
    assert seen == [quick]
    release.set()
    await slow


def test_map_takes_what_python_iterates_over() -> None:
    """Also what has only a length and items; and it says which rule was broken by the class of the error."""

    class Rows:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> int:
            if i >= 3:
                raise IndexError
            return i * 10

    assert add.map(Rows()).result() == [1, 11, 21]
    assert add.map(range(2)).result() == [1, 2]
    assert add.map(n for n in (1, 2)).result() == [2, 3]
    with pytest.raises(MappingMissingIterable):
        add.map(unmapped([1]))
    with pytest.raises(MappingLengthMismatch):
        add.map([1, 2], [1])
