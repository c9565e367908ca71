"""The arguments of ``@flow`` and ``@task``: as published for Prefect 3, seen there, written down here."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hark import State, flow, get_run_logger, runtime, tags, task
from hark.engine.cache_policies import INPUTS, NO_CACHE, TASK_SOURCE
from hark.engine.context import FlowRunContext, TaskRunContext, get_run_context
from hark.engine.exceptions import InvalidNameError, MissingContextError
from hark.engine.states import Cancelled, Completed, Crashed, Failed
from hark.engine.task_runners import ConcurrentTaskRunner, ThreadPoolTaskRunner
from hark.engine.tasks import exponential_backoff, task_input_hash

a_flow: Any = flow
a_task: Any = task
"""The decorators, for what a type checker would refuse."""


class Boom(Exception):
    """What tests raise."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, so that nothing is cached yet."""
    monkeypatch.setenv("HARK_HOME", str(tmp_path))
    return tmp_path


def names_of(fn: Callable[[], State], times: int) -> list[str]:
    """Return the names of the states that so many calls end in."""
    return [fn().name for _ in range(times)]


# --- retries ------------------------------------------------------------------------------------------


def test_a_task_is_tried_again_and_counts() -> None:
    """``run_count`` is the try, from 1; the last failure stands."""
    counts: list[int] = []

    @task(retries=2)
    def bad() -> None:
        counts.append(runtime.task_run.run_count)
        raise ValueError("e")

    assert bad(return_state=True).is_failed()
    assert counts == [1, 2, 3]


def test_a_failure_that_is_returned_is_tried_again() -> None:
    """By tasks and by flows, as if it had been raised; the condition is asked."""
    tried: list[str] = []

    def returned(name: str) -> State:
        tried.append(name)
        return Failed(message="x") if tried.count(name) < 2 else Completed(message="at last")

    assert task(returned, retries=1)("task", return_state=True).message == "at last"
    assert flow(returned, retries=1)("flow", return_state=True).message == "at last"
    assert task(returned, retries=0)("once", return_state=True).message == "x"
    refusing = task(returned, retries=3, retry_condition_fn=lambda t, r, s: False)
    assert refusing("asked", return_state=True).message == "x"
    assert tried == ["task", "task", "flow", "flow", "once", "asked"]


def test_a_generator_is_tried_again_from_its_beginning() -> None:
    """Its reader gets what each try yields; values can be sent into it."""
    tries: list[int] = []

    @task(retries=1)
    def counting() -> Iterator[int]:
        tries.append(1)
        yield 1
        if len(tries) == 1:
            raise Boom("x")
        yield 2

    assert list(counting()) == [1, 1, 2]

    @task
    def echo() -> Any:
        got = yield "first"
        yield got

    talking = echo()
    assert [next(talking), talking.send("a")] == ["first", "a"]
    talking.close()


def test_a_generator_has_hooks_and_a_time_limit() -> None:
    """``on_running`` as of other tasks; the limit counts what the generator takes, not what its reader does."""
    heard: list[str] = []

    @task(timeout_seconds=0.05, on_running=[lambda t, r, s: heard.append(s.name)])
    def endless() -> Iterator[int]:
        yield 1
        while True:
            pass

    reading = endless()
    assert next(reading) == 1
    with pytest.raises(TimeoutError):
        next(reading)
    assert heard == ["Running"]


def test_the_condition_decides_on_retries() -> None:
    """It sees the failed state; one that itself fails means no retry."""
    tries: list[str] = []

    def only_values(task: Any, run: Any, state: State) -> bool:
        return isinstance(state.result(raise_on_failure=False), ValueError)

    def broken(*_: Any) -> bool:
        raise RuntimeError("x")

    @task(retries=5, retry_condition_fn=only_values)
    def picky() -> None:
        tries.append("picky")
        raise ValueError if len(tries) < 3 else KeyError

    @task(retries=5, retry_condition_fn=broken)
    def hopeless() -> None:
        tries.append("hopeless")
        raise ValueError

    picky(return_state=True)
    hopeless(return_state=True)
    assert tries == ["picky"] * 3 + ["hopeless"]


def test_delays_are_shown_as_they_will_be() -> None:
    """Numbers, lists, and what a function of the number of retries gives."""

    def of(**options: Any) -> Any:
        return task(lambda: 1, **options).retry_delay_seconds

    assert of(retries=3, retry_delay_seconds=exponential_backoff(2)) == [2, 4, 8]
    assert of(retries=3, retry_delay_seconds=[1, 2]) == [1, 2]
    assert of(retries=2, retry_delay_seconds=5) == 5
    assert exponential_backoff(3)(4) == [3, 6, 12, 24]
    for wrong in ({"retry_delay_seconds": [1] * 51}, {"retry_jitter_factor": -1}):
        with pytest.raises(ValueError, match="retry"):
            of(retries=1, **wrong)


# --- names, descriptions, options ---------------------------------------------------------------------


def test_names_and_descriptions_come_from_the_function() -> None:
    """Dashes for flows, the name as it is for tasks, the docstring for both."""

    def my_step() -> None:
        "Does it."

    assert (flow(my_step).name, flow(my_step).description) == ("my-step", "Does it.")
    assert (task(my_step).name, task(my_step).description) == ("my_step", "Does it.")
    assert task(my_step).task_key.startswith("my_step-")
    for bad in ("a/b", "a%b", "a&b", "a<b", "a>b"):
        with pytest.raises(InvalidNameError):
            flow(my_step, name=bad)


@pytest.mark.parametrize(
    "made",
    [
        lambda: a_flow(5),
        lambda: a_task("x"),
        lambda: a_flow(lambda: 1, flow_run_name=5),
        lambda: a_task(lambda: 1, task_run_name=5),
        lambda: a_flow(lambda: 1, on_failure=5),
        lambda: a_task(lambda: 1, on_completion=["x"]),
        lambda: a_task(retry_condition_fn="x")(lambda: 1),
        lambda: a_task(bogus=1),
        lambda: a_flow(bogus=1),
    ],
)
def test_what_makes_no_sense_is_a_type_error(made: Callable[[], Any]) -> None:
    """At the decorator, not at the first run."""
    with pytest.raises(TypeError):
        made()


def test_options_can_be_changed_in_a_copy() -> None:
    """What is not given stays, hooks that decorators added included; 0 takes a time limit away."""
    heard: list[str] = []

    @flow(retries=3, name="n", timeout_seconds=5, log_prints=True)
    def first() -> None: ...

    @first.on_completion
    def hook(f: Any, r: Any, s: Any) -> None:
        heard.append(f.name)

    second = first.with_options(retries=0, name="m")
    assert (second.name, second.retries, second.timeout_seconds, second.log_prints) == ("m", 0, 5.0, True)
    assert first.with_options(timeout_seconds=0).timeout_seconds is None
    assert first.with_options(name=None).name == "n"
    second()
    first()
    assert heard == ["m", "n"]
    assert [len(f.on_completion_hooks) for f in (first, second)] == [1, 1]

    @task(retries=3, tags=["a"], retry_delay_seconds=[1, 2, 3])
    def third() -> None: ...

    fourth = third.with_options(retries=0, tags=["b"], retry_delay_seconds=0)
    assert (fourth.retries, set(fourth.tags), fourth.retry_delay_seconds) == (0, {"b"}, 0)
    assert (third.retries, set(third.tags), third.retry_delay_seconds) == (3, {"a"}, [1, 2, 3])


def test_flows_and_tasks_can_be_methods_of_every_kind() -> None:
    """Either decorator first; bound to the object, the class, or nothing."""

    class Kit:
        def __init__(self) -> None:
            self.x = 3

        @task
        def step(self, y: int) -> int:
            return self.x + y

        @flow
        def whole(self, y: int) -> Any:
            return self.step(y), self.step.submit(y).result(), self.step.map([1, 2]).result()

        @flow
        @classmethod
        def of_class(cls, y: int) -> Any:
            return cls.__name__, y

        @classmethod
        @task
        def class_of(cls, y: int) -> Any:
            return cls.__name__, y

        @task
        @staticmethod
        def of_none(y: int) -> int:
            return y

        @staticmethod
        @flow
        def none_of(y: int) -> int:
            return y

    kit: Any = Kit()
    assert kit.whole(1) == (4, 4, [4, 5])
    for holder in (Kit, kit):
        assert holder.of_class(4) == ("Kit", 4)
        assert holder.class_of(4) == ("Kit", 4)
        assert holder.of_none(4) == 4
        assert holder.none_of(4) == 4
    assert kit.step.with_options(retries=2)(1) == 4
    assert (kit.step.ismethod, Kit.of_class.isclassmethod, kit.of_none.isstaticmethod) == (True, True, True)
    assert not kit.step.isstaticmethod


def test_runners_are_given_as_objects_or_classes() -> None:
    """And are context managers of their own."""
    assert flow(lambda: 1, name="f", task_runner=ThreadPoolTaskRunner)() == 1
    assert issubclass(ConcurrentTaskRunner, ThreadPoolTaskRunner)

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=2))
    def two() -> Any:
        return task(lambda i: i).map([1, 2, 3]).result()

    assert two() == [1, 2, 3]


# --- run names and facts ------------------------------------------------------------------------------


def test_runs_are_named_by_templates_and_functions() -> None:
    """Of the parameters; a function may take them, or ask ``runtime``."""

    def name() -> Any:
        return runtime.task_run.name

    def named(x: int) -> Any:
        return name()

    @flow(flow_run_name="f-{x}-{d:%A}")
    def naming(x: int, d: date = date(2024, 1, 1)) -> Any:
        return (
            runtime.flow_run.name,
            task(named, task_run_name="t-{x}")(x),
            task(named, task_run_name=lambda: "fn")(x),
            task(named, task_run_name=lambda parameters: f"p{parameters['x']}")(x),
            task(named, task_run_name="m-{x}").map([5, 6]).result(),
            task(named, name="plain", task_run_name="")(x).startswith("plain-"),
        )

    assert naming(1) == ("f-1-Monday", "t-1", "fn", "p1", ["m-5", "m-6"], True)
    asked = flow(
        lambda: runtime.flow_run.name, name="g", flow_run_name=lambda: f"g-{runtime.flow_run.flow_name}"
    )
    assert asked() == "g-g"
    assert flow(lambda: 1, name="b", flow_run_name="bad-{nope}")(return_state=True).is_failed()


def test_runtime_tells_of_the_innermost_runs() -> None:
    """In a flow, in its tasks and subflows; empty outside any."""

    @task(tags=["tt"])
    def step(a: int, b: int = 2) -> Any:
        return (
            runtime.task_run.task_name, sorted(runtime.task_run.tags), runtime.task_run.parameters,
            runtime.flow_run.flow_name, runtime.flow_run.parameters,
        )  # fmt: skip

    @flow
    def child() -> Any:
        return runtime.flow_run.parent_flow_run_id, runtime.flow_run.root_flow_run_id

    @flow(version="9")
    def whole(x: int, y: str = "q") -> Any:
        with tags("z"):
            told = step(1)
        own = runtime.flow_run.id
        assert child() == (own, own)
        assert runtime.task_run.name is None
        return told, runtime.flow_run.flow_version, runtime.flow_run.run_count, runtime.flow_run.tags

    with tags("outer"):
        told, version, count, its_tags = whole("3")  # type: ignore[call-overload]
    assert told == ("step", ["outer", "tt", "z"], {"a": 1, "b": 2}, "whole", {"x": 3, "y": "q"})
    assert (version, count, its_tags) == ("9", 1, ["outer"])
    facts = runtime.flow_run
    assert (facts.id, facts.name, facts.tags, facts.parameters, facts.run_count) == (None, None, [], {}, 0)
    assert (facts.parent_deployment_id, facts.job_variables) == (None, None)
    assert (runtime.task_run.id, runtime.task_run.run_count, runtime.task_run.tags) == (None, 0, [])
    assert (runtime.deployment.id, runtime.deployment.name, runtime.deployment.version) == (None, None, None)


def test_a_subflow_that_a_task_calls_is_in_that_task_run() -> None:
    """Its facts stay those of the task run; what is called by a flow is in none. ``*args`` of a flow are a list, of a task a tuple."""

    def seen() -> tuple[Any, ...]:
        return runtime.flow_run.parameters, runtime.task_run.parameters, runtime.task_run.run_count

    @flow
    def inner(n: int, *args: int) -> tuple[Any, ...]:
        return seen()

    @task
    def step(*args: int) -> list[tuple[Any, ...]]:
        assert isinstance(get_run_context(), TaskRunContext)
        return [inner(1, 2), seen()]

    @flow
    def outermost(*args: int) -> list[tuple[Any, ...]]:
        return [*step(7), inner(3), seen()]

    assert outermost(5, 6) == [
        ({"n": 1, "args": [2]}, {"args": (7,)}, 1),
        ({"args": [5, 6]}, {"args": (7,)}, 1),
        ({"n": 3, "args": []}, {}, 0),
        ({"args": [5, 6]}, {}, 0),
    ]


def test_the_context_is_the_innermost_run() -> None:
    """With the flow around it; outside any there is none, and no logger of a run."""

    @task
    def step() -> None:
        context = get_run_context()
        assert isinstance(context, TaskRunContext)
        assert TaskRunContext.get() is context
        assert FlowRunContext.get() is not None
        get_run_logger().info("there is one")

    @flow
    def whole() -> None:
        assert get_run_context() is FlowRunContext.get()
        assert TaskRunContext.get() is None
        step()

    whole()
    assert FlowRunContext.get() is None
    for outside in (get_run_context, get_run_logger):
        with pytest.raises(MissingContextError):
            outside()
    assert issubclass(MissingContextError, RuntimeError)


def test_prints_are_logged_where_that_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    """Tasks and subflows do as their flow does, unless they say otherwise."""

    @task
    def loud() -> None:
        print("in task")

    @task(log_prints=False)
    def quiet() -> None:
        print("quiet")

    @flow
    def child() -> None:
        print("in child")

    @flow(log_prints=True)
    def whole() -> None:
        print("in flow")
        loud()
        quiet()
        child()
        loud.submit().wait()

    with caplog.at_level(logging.INFO):
        whole()
    said = [record.message for record in caplog.records if record.message.startswith(("in ", "quiet"))]
    assert said == ["in flow", "in task", "in child", "in task"]


# --- hooks --------------------------------------------------------------------------------------------


def test_hooks_are_called_in_order_with_what_they_are_about() -> None:
    """Before the body, after it, once retries are used up; of tasks ``on_running`` for each try."""
    log: list[Any] = []

    def hook(word: str) -> Callable[..., None]:
        return lambda what, run, state: log.append((word, type(what).__name__, state.name))

    def body(fails: bool) -> None:
        log.append("body")
        if fails:
            raise Boom

    kinds: Any = {
        "on_running": [hook("r")],
        "on_completion": [hook("c1"), hook("c2")],
        "on_failure": [hook("f")],
    }
    made = flow(body, name="f", **kinds)
    made(False)
    made(True, return_state=True)
    assert log == [
        ("r", "Flow", "Running"), "body", ("c1", "Flow", "Completed"), ("c2", "Flow", "Completed"),
        ("r", "Flow", "Running"), "body", ("f", "Flow", "Failed"),
    ]  # fmt: skip
    log.clear()
    task(body, retries=1, **kinds)(True, return_state=True)
    assert log == [
        ("r", "Task", "Running"),
        "body",
        ("r", "Task", "Retrying"),
        "body",
        ("f", "Task", "Failed"),
    ]


def test_hooks_may_fail_be_async_and_carry_arguments() -> None:
    """The run ends as it would have, and the other hooks are called."""
    log: list[Any] = []

    def broken(*_: Any) -> None:
        raise Boom

    async def waiting(what: Any, run: Any, state: Any) -> None:
        log.append(state.name)

    def with_more(what: Any, run: Any, state: Any, extra: int) -> None:
        log.append(extra)

    hooks: Any = [broken, waiting, functools.partial(with_more, extra=3)]
    assert flow(lambda: 1, name="f", on_completion=hooks)() == 1
    assert task(lambda: 1, on_completion=hooks)() == 1
    assert log == ["Completed", 3] * 2


def test_hooks_see_the_run_as_it_ended() -> None:
    """By the attributes of Prefect's runs."""
    seen: list[Any] = []

    @task(
        tags=["q"],
        on_completion=[lambda t, r, s: seen.append((r.tags, r.run_count, r.state_name, r.task_inputs))],
    )
    def step(x: int) -> None: ...

    @flow(
        flow_run_name="n-{x}",
        on_completion=[lambda f, r, s: seen.append((r.name, r.parameters, r.state_name))],
    )
    def whole(x: int) -> None:
        step(x)

    whole(3)
    assert seen == [({"q"}, 1, "Completed", {"x": []}), ("n-3", {"x": 3}, "Completed")]


@pytest.mark.parametrize(
    ("made", "heard"),
    [(Failed, "failure"), (Crashed, "crashed"), (Cancelled, "cancellation"), (Completed, "completion")],
)
def test_a_returned_state_calls_the_hooks_of_its_type(made: Callable[[], State], heard: str) -> None:
    """Also where no exception was raised."""
    log: list[str] = []
    kinds = ("failure", "crashed", "cancellation", "completion")
    hooks: Any = {f"on_{kind}": [lambda f, r, s, kind=kind: log.append(kind)] for kind in kinds}
    flow(made, name="f", **hooks)(return_state=True)
    assert log == [heard]


# --- caching ------------------------------------------------------------------------------------------


def test_a_key_makes_calls_equal(home: Path) -> None:
    """Of the author's, across flow runs; None is no key, and what fails is not kept."""
    ran: list[int] = []

    @task(cache_key_fn=lambda context, parameters: f"k-{parameters['x']}", persist_result=True)
    def step(x: int) -> None:
        ran.append(x)

    def whole() -> list[str]:
        return [step(i, return_state=True).name for i in (1, 1, 2)]

    assert flow(whole)() == ["Completed", "Cached", "Completed"]
    assert flow(whole)() == ["Cached"] * 3
    assert ran == [1, 2]
    no_key = task(lambda: 1, cache_key_fn=lambda c, p: None, persist_result=True)
    assert names_of(lambda: no_key(return_state=True), 2) == ["Completed", "Completed"]
    tries: list[int] = []

    @task(cache_key_fn=lambda c, p: "fails", retries=1)
    def at_last() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise Boom

    assert names_of(lambda: at_last(return_state=True), 3) == ["Failed", "Completed", "Cached"]


def test_policies_make_calls_equal(home: Path) -> None:
    """By their inputs, some of them, their source; NO_CACHE and persist_result=False by nothing."""

    def names(calls: list[tuple[int, int]], **options: Any) -> list[str]:
        step = task(lambda x, y: (x, y), **options)

        @flow
        def whole() -> list[str]:
            return [step(*call, return_state=True).name for call in calls]

        found: list[str] = whole()
        return found

    assert names([(1, 1), (1, 1), (1, 2)], cache_policy=INPUTS) == ["Completed", "Cached", "Completed"]
    assert names([(5, 1), (5, 2)], cache_policy=INPUTS - "y") == ["Completed", "Cached"]
    assert names([(3, 3), (3, 3)], cache_policy=INPUTS + TASK_SOURCE) == ["Completed", "Cached"]
    assert names([(4, 4), (4, 4)], cache_policy=NO_CACHE) == ["Completed", "Completed"]
    assert names([(6, 6), (6, 6)], cache_policy=INPUTS, persist_result=False) == ["Completed", "Completed"]
    assert names([(7, 7), (7, 7)], persist_result=True) == ["Completed", "Cached"]
    assert names([(8, 8), (8, 8)]) == ["Completed", "Completed"]
    assert names([(9, 9), (9, 9)], cache_key_fn=task_input_hash) == ["Completed", "Cached"]


def test_cached_results_expire_and_can_be_refreshed(home: Path) -> None:
    """An expiration in the past never counts; a refresh replaces what is kept."""
    kept = {"cache_key_fn": lambda c, p: "late", "persist_result": True}
    never = task(lambda: 1, cache_expiration=timedelta(seconds=-1), **kept)  # type: ignore[call-overload]
    assert names_of(lambda: never(return_state=True), 2) == ["Completed", "Completed"]
    hour = task(lambda: 1, cache_expiration=timedelta(hours=1), **kept)  # type: ignore[call-overload]
    assert names_of(lambda: hour(return_state=True), 2) == ["Completed", "Cached"]
    ran: list[int] = []

    @task(cache_key_fn=lambda c, p: "fresh", persist_result=True)
    def counted() -> int:
        ran.append(1)
        return len(ran)

    assert [counted(), counted(), counted.with_options(refresh_cache=True)(), counted()] == [1, 1, 2, 2]
