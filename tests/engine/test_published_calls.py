"""Calling, submitting and mapping tasks: as published for Prefect 3, seen there, written down here."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import pydantic
import pytest
from hark import State, allow_failure, flow, quote, task, unmapped
from hark.engine.exceptions import (
    MappingLengthMismatch,
    MappingMissingIterable,
    ParameterBindError,
    ParameterTypeError,
    ReservedArgumentError,
    SignatureMismatchError,
    UnfinishedRun,
)
from hark.engine.futures import as_completed, resolve_futures_to_states, wait


class Boom(Exception):
    """What tests raise."""


@task
def one() -> int:
    return 1


@task
def bad() -> None:
    raise Boom("b")


@task
def same(x: Any) -> Any:
    return x


@task
def add(a: int, b: int = 10) -> int:
    return a + b


@task
def keywords(a: Any, **rest: Any) -> Any:
    return a, rest


def results(mapped: Any) -> list[Any]:
    return [future.result() for future in mapped]


# --- mapping ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapped", "expected"),
    [
        (lambda: add.map([1, 2]), [11, 12]),
        (lambda: add.map([1, 2], [3, 4]), [4, 6]),
        (lambda: add.map([1, 2], unmapped(5)), [6, 7]),
        (lambda: add.map([1, 2], 5), [6, 7]),
        (lambda: add.map(a=[1, 2], b=unmapped(1)), [2, 3]),
        (lambda: keywords.map([1, 2], z=[3, 4]), [(1, {"z": 3}), (2, {"z": 4})]),
        (lambda: keywords.map([1, 2], z=unmapped([3, 4])), [(1, {"z": [3, 4]}), (2, {"z": [3, 4]})]),
        (lambda: same.map({"a": 1, "b": 2}), ["a", "b"]),
        (lambda: same.map(i for i in range(3)), [0, 1, 2]),
        (lambda: same.map(range(3)), [0, 1, 2]),
        (lambda: same.map((1, 2)), [1, 2]),
        (lambda: same.map([]), []),
        (lambda: same.map(same.submit([1, 2, 3])), [1, 2, 3]),
        (lambda: same.map(same([1, 2, 3], return_state=True)), [1, 2, 3]),
        (lambda: same.map([same.submit([1]), same.submit([2])]), [[1], [2]]),
        (lambda: same.map(same.map([1, 2])), [1, 2]),
    ],
)
def test_map_calls_once_for_each_element(mapped: Callable[[], Any], expected: list[Any]) -> None:
    """Of lists, tuples, ranges, generators, mappings' keys, and of futures and states of such."""
    assert flow(lambda: results(mapped()), name="f")() == expected


@pytest.mark.parametrize(
    ("mapped", "raises"),
    [
        (lambda: add.map([1, 2], [3]), MappingLengthMismatch),
        (lambda: add.map(1, 2), MappingMissingIterable),
        (lambda: same.map("abc"), MappingMissingIterable),
        (lambda: same.map(b"abc"), MappingMissingIterable),
        (add.map, ParameterBindError),
    ],
)
def test_map_refuses_what_it_cannot_pair_up(mapped: Callable[[], Any], raises: type[Exception]) -> None:
    """Texts and bytes are single values."""
    with pytest.raises(raises):
        flow(lambda: [mapped()], name="f")()


def test_map_gives_futures_or_states() -> None:
    """A list of futures whose ``result`` is the list of results; ``return_state`` gives states."""

    @flow
    def mapping() -> None:
        futures = same.map([1, 2])
        assert isinstance(futures, list)
        assert futures.result() == [1, 2]
        states = same.map([1, 2], return_state=True)
        assert [state.type.value for state in states] == ["COMPLETED", "COMPLETED"]

    mapping()


def test_a_failed_element_stops_only_what_follows_it() -> None:
    """Its siblings run; what is mapped over it is NotReady, or gets its exception where that is allowed."""

    @task
    def picky(x: int) -> int:
        if x == 2:
            raise Boom("b")
        return x

    @flow
    def mapping() -> None:
        first = picky.map([1, 2, 3])
        second = same.map(first)
        wait([*first, *second])
        assert [future.state.name for future in first] == ["Completed", "Failed", "Completed"]
        assert [future.state.name for future in second] == ["Completed", "NotReady", "Completed"]
        assert [repr(value) for value in first.result(raise_on_failure=False)] == ["1", "Boom('b')", "3"]
        assert [repr(value) for value in results(same.map(allow_failure(first)))] == ["1", "Boom('b')", "3"]
        waiting = same.map([1, 2], wait_for=[bad.submit()])
        wait(waiting)
        assert [future.state.name for future in waiting] == ["NotReady", "NotReady"]
        with pytest.raises(Boom):
            first.result()

    mapping()
    end: State = flow(lambda: picky.map([1, 2, 3]), name="f")(return_state=True)
    assert end.message == "1/3 states failed."


# --- inputs -------------------------------------------------------------------------------------------


class Fields(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    a: Any


@dataclass
class Data:
    a: Any


class Named(NamedTuple):
    a: Any


def test_futures_are_found_wherever_they_stand() -> None:
    """In lists, tuples, sets, mappings, named tuples, dataclasses and models; and not in what is quoted."""

    @flow
    def nesting() -> None:
        future = one.submit()
        assert same([future, [future]]) == [1, [1]]
        assert same({"a": future, "b": {"c": [future]}}) == {"a": 1, "b": {"c": [1]}}
        assert same((future,)) == (1,)
        assert same({future}) == {1}
        assert same(Data(future)).a == 1
        assert same(Fields(a=future)).a == 1
        assert same(Named(future)) == Named(1)
        assert same.submit([future]).result() == [1]
        assert same({"a": one(return_state=True)}) == {"a": 1}
        seen: list[Any] = []
        task(lambda x: seen.append((x,)))(quote(future))
        assert seen == [(future,)]
        states = resolve_futures_to_states({"a": [one.submit()]})
        assert states["a"][0].is_completed()

    nesting()


def test_flows_take_futures_for_parameters() -> None:
    """They get the results, checked against the hints; one that failed leaves the subflow NotReady."""

    def add_one(x: int) -> int:
        return x + 1

    child: Any = flow(add_one)

    @flow
    def parent() -> None:
        assert child(one.submit()) == 2
        assert child(1, wait_for=[one.submit()]) == 2
        for state in (
            child(bad.submit(), return_state=True),
            child(1, wait_for=[bad.submit()], return_state=True),
        ):
            assert (state.type.value, state.name) == ("PENDING", "NotReady")
        with pytest.raises(UnfinishedRun):
            child(bad.submit())

    parent()


def test_a_failure_that_is_allowed_is_an_argument() -> None:
    """The exception stands in the future's place, also in collections, of futures and of states."""

    @task
    def told(x: Any) -> str:
        return repr(x)

    @flow
    def allowing() -> None:
        failed = bad.submit()
        assert told.submit(allow_failure(failed)).result() == "Boom('b')"
        assert told([allow_failure(failed), 1]) == "[Boom('b'), 1]"
        assert told(allow_failure([failed, 1])) == "[Boom('b'), 1]"
        assert told(allow_failure(bad(return_state=True))) == "Boom('b')"
        assert one.submit(wait_for=[allow_failure(failed)]).result() == 1
        refused = one.submit(wait_for=[failed])
        refused.wait()
        assert refused.state.name == "NotReady"
        assert one(wait_for=[failed], return_state=True).name == "NotReady"

    allowing()


def test_wait_for_takes_one_thing_or_several() -> None:
    """Futures, states, and what is neither, which there is no need to wait for."""

    @flow
    def waiting() -> list[int]:
        future = one.submit()
        return [
            one(wait_for=[future]),
            one(wait_for=future),
            one(wait_for=[one(return_state=True)]),
            one(wait_for=[]),
            one(wait_for=[1]),
        ]

    assert waiting() == [1] * 5


# --- futures ------------------------------------------------------------------------------------------


def test_a_future_can_be_asked_waited_for_and_listened_to() -> None:
    """Its state, its result within a time, and callbacks, at once for what is over; one that fails keeps nobody waiting."""
    go = threading.Event()
    heard: list[int] = []

    def fails(_: object) -> None:
        raise RuntimeError("a callback of somebody's")

    @task
    def held() -> int:
        go.wait(30)
        return 3

    @flow
    def asking() -> None:
        future = held.submit()
        assert not future.state.is_final()
        with pytest.raises(TimeoutError, match=r"did not complete within 0.01 seconds"):
            future.result(timeout=0.01)
        future.wait(0.01)
        future.add_done_callback(fails)
        future.add_done_callback(lambda _: heard.append(1))
        go.set()
        assert future.result() == 3
        assert future.state.result() == 3
        future.add_done_callback(lambda _: heard.append(2))
        failed = bad.submit()
        assert repr(failed.result(raise_on_failure=False)) == "Boom('b')"
        failed.wait()
        assert bad.submit(return_state=True).is_failed()

    asking()
    assert heard == [1, 2]


def test_wait_and_as_completed_tell_what_is_done() -> None:
    """Within a time: which are and which are not; in the order they end, until the time is up."""
    go = threading.Event()

    @task
    def held(i: int) -> int:
        if i == 2:
            go.wait(30)
        return i

    @flow
    def watching() -> None:
        futures = [held.submit(i) for i in range(3)]
        wait(futures[:2])
        done, not_done = wait(futures, timeout=0.01)
        assert (done, not_done) == (set(futures[:2]), {futures[2]})
        ending = iter(as_completed(futures, timeout=0.05))
        assert sorted(next(ending).result() for _ in range(2)) == [0, 1]
        with pytest.raises(TimeoutError):
            next(ending)
        go.set()
        assert sorted(future.result() for future in as_completed(futures)) == [0, 1, 2]
        assert wait(futures).not_done == set()

    watching()


# --- arguments ----------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit_are_refused_before_anything_runs() -> None:
    """By kind: what cannot be bound, what cannot be coerced, what no function may take."""

    @flow
    def typed(x: int, y: str = "a") -> int:
        return x

    loose, lax = cast(Any, typed), cast(Any, same)
    for call in (
        loose,
        lambda: loose(1, "b", 3),
        lambda: loose(1, z=3),
        lambda: loose(return_state=True),
        lax,
        lambda: lax.submit(1, 2),
    ):
        with pytest.raises(ParameterBindError):
            call()
    with pytest.raises(ParameterTypeError):
        loose("a")
    state: State = loose("a", return_state=True)
    assert isinstance(state.result(raise_on_failure=False), ParameterTypeError)
    assert loose("5") == 5
    assert loose.with_options(validate_parameters=False)("5") == "5"
    with pytest.raises(SignatureMismatchError):
        loose.validate_parameters({"x": 1, "z": 2})
    for reserved in (lambda return_state: 1, lambda wait_for: 1):
        with pytest.raises(ReservedArgumentError):
            flow(reserved)
        with pytest.raises(ReservedArgumentError):
            task(reserved)


def test_every_kind_of_parameter_arrives() -> None:
    """Positional, variable, keyword and positional-only ones, of flows and tasks, called and submitted."""

    def all_kinds(a: int, *args: int, k: int = 1, **rest: int) -> Any:
        return a, args, k, rest

    def positional(a: int, /, b: int) -> Any:
        return a, b

    assert flow(all_kinds)(1, 2, 3, k=4, z=5) == (1, (2, 3), 4, {"z": 5})
    assert task(all_kinds)(1, 2, 3, k=4, z=5) == (1, (2, 3), 4, {"z": 5})
    assert task(positional)(1, 2) == (1, 2)

    @flow
    def submitting() -> Any:
        return task(all_kinds).submit(1, 2, z=1).result()

    assert submitting() == (1, (2,), 1, {"z": 1})


def test_the_schema_of_parameters_describes_them() -> None:
    """Their names, places, defaults, and what the docstring says of them, in any of three ways of writing."""

    def google(x: int, y: str = "a") -> None:
        """Do.

        Args:
            x: The x,
                at length.
            y (str): The y.

        Returns:
            nothing: at all.
        """

    def numpy(x: int, y: str = "a") -> None:
        """Do.

        Parameters
        ----------
        x : int
            The x,
            at length.
        y : str
            The y.

        Returns
        -------
        nothing
        """

    def sphinx(x: int, y: str = "a") -> None:
        """Do.

        :param x: The x,
            at length.
        :param str y: The y.
        :returns: nothing
        """

    for fn in (google, numpy, sphinx):
        schema: Any = flow(fn).parameters
        x, y = schema["properties"]["x"], schema["properties"]["y"]
        assert (x["title"], x["position"], x["description"]) == ("x", 0, "The x, at length.")
        assert (y["title"], y["position"], y["description"], y["default"]) == ("y", 1, "The y.", "a")
        assert schema["required"] == ["x"]
