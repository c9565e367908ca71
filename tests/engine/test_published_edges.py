"""Odd corners of what is published for Prefect 3: functions of all kinds, and errors that code makes itself."""

from __future__ import annotations

import functools
import inspect
import pickle
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hark import Flow, Task, flow, task
from hark.engine import exceptions
from hark.engine.cache_policies import INPUTS, RUN_ID, TASK_SOURCE
from hark.engine.concurrency import missing
from hark.engine.context import get_run_context
from hark.engine.exceptions import (
    CrashedRun,
    MissingFlowError,
    MissingResult,
    NotPausedError,
    ObjectAlreadyExists,
    ObjectNotFound,
    ParameterBindError,
    ParameterTypeError,
    PausedRun,
    ScriptError,
    SignatureMismatchError,
)
from hark.engine.flows import load_flow_from_entrypoint
from hark.engine.tasks import task_input_hash
from hark.engine.utilities import field_types
from hark.errors import (
    AlreadyExists,
    HarkError,
    MissingFlow,
    NotPaused,
    ResultMissing,
    UnknownBlock,
    UnknownName,
)
from pydantic import BaseModel, TypeAdapter, ValidationError

a_task: Any = task
a_flow: Any = flow


class Adder:
    def __init__(self, by: int = 1) -> None:
        self.by = by

    def __call__(self, x: int) -> int:
        return x + self.by

    def times(self, x: int) -> int:
        return x * self.by

    @a_task  # type: ignore[untyped-decorator]
    @classmethod
    def undocumented_task(cls, x: int) -> str:
        return f"{cls.__name__}{x}"

    @a_flow  # type: ignore[untyped-decorator]
    @classmethod
    def undocumented_flow(cls, x: int) -> str:
        return f"{cls.__name__}{x}"


class Wider(Adder):
    pass


def plus(y: int, x: int) -> int:
    return x + y


# --- functions of all kinds ---------------------------------------------------------------------------


def test_class_methods_without_a_docstring_are_tasks_and_flows() -> None:
    """Python looks for the docstring in the class, where it finds the task."""
    assert (Adder.undocumented_task(1), Wider.undocumented_task(2)) == ("Adder1", "Wider2")
    assert (Adder.undocumented_flow(1), Wider().undocumented_flow(2)) == ("Adder1", "Wider2")


def test_a_task_keeps_its_key_under_another_name() -> None:
    """It tells functions from one another, not names."""
    step = task(plus)
    assert step.with_options(name="other", retries=2).task_key == step.task_key
    assert step.task_key == task(functools.partial(plus, 1)).task_key != task(len).task_key
    assert task(plus, name="said").task_key.startswith("plus-")
    assert task(Adder()).task_key.startswith("Adder-")


def test_a_name_may_be_said_by_its_place() -> None:
    """After the function."""
    assert (Task(plus, "p").name, Flow(plus, "q", retries=2).name) == ("p", "q")
    assert pickle.loads(pickle.dumps(Task(plus, "p"))).name == "p"


def test_functions_without_source_of_their_own_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be called is not one and the same to TASK_SOURCE and task_input_hash because it is no function."""
    monkeypatch.setenv("HARK_HOME", str(tmp_path))
    written: dict[str, Callable[[int], int]] = {}
    exec("def one(x): return x + 100\ndef two(x): return x + 200", written)
    odd = [
        functools.partial(plus, 1), functools.partial(plus, 2), Adder(7), Adder(3).times, lambda x: x - 1, abs,
        written["one"], written["two"],
    ]  # fmt: skip

    def outcomes(**options: Any) -> list[tuple[str, Any]]:
        @flow
        def whole() -> list[tuple[str, Any]]:
            steps = [a_task(fn, name="same", **options) for fn in odd for _ in (1, 2)]
            states = [step(5, return_state=True) for step in steps]
            return [(state.name, state.result()) for state in states]

        found: list[tuple[str, Any]] = whole()
        return found

    values = [6, 7, 12, 15, 4, 5, 105, 205]
    both = [(name, value) for value in values for name in ("Completed", "Cached")]
    assert outcomes(cache_policy=INPUTS + TASK_SOURCE) == both
    assert outcomes(cache_key_fn=task_input_hash) == both


def test_policies_give_no_key_without_a_run() -> None:
    """As outside of any."""
    assert [
        policy.compute_key(None, {}, {}) for policy in (INPUTS, TASK_SOURCE, RUN_ID, INPUTS + RUN_ID)
    ] == [None] * 4


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (field_types.PositiveInteger, 1, 0),
        (field_types.NonNegativeInteger, 0, -1),
        (field_types.NonNegativeTimeDelta, timedelta(0), timedelta(-1)),
        (field_types.LogLevel, "DEBUG", "LOUD"),
        (field_types.Name, "a b", "a/b"),
        (field_types.NameOrEmpty, "", "a>b"),
        (field_types.NonEmptyishName, "a", " "),
        (field_types.StatusCode, 404, 99),
    ],
)
def test_types_of_fields_take_what_their_names_say(type_: Any, good: object, bad: object) -> None:
    """And nothing else."""
    checked = TypeAdapter(type_)
    assert checked.validate_python(good) == good
    with pytest.raises(ValidationError):
        checked.validate_python(bad)
    assert TypeAdapter(field_types.SecondsTimeDelta).validate_python("1.5") == timedelta(seconds=1.5)
    assert TypeAdapter(field_types.ListOfNonEmptyStrings).validate_python(["a", " "]) == ["a"]


# --- errors that code makes itself --------------------------------------------------------------------


class Form(BaseModel):
    x: int
    y: str


def _error_of(fn: Callable[[], object]) -> Any:
    with pytest.raises((ValidationError, TypeError)) as caught:
        fn()
    return caught.value


def _two(a: int, b: int = 1) -> None: ...


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (
            lambda: ParameterTypeError.from_validation_error(
                _error_of(lambda: Form.model_validate({"x": "a", "y": 3}))
            ),
            "Flow run received invalid parameters:\n"
            " - x: Input should be a valid integer, unable to parse string as an integer\n"
            " - y: Input should be a valid string",
        ),
        (
            lambda: ParameterBindError.from_bind_failure(
                _two, _error_of(lambda: inspect.signature(_two).bind(1, 2, 3)), (1, 2, 3), {"k": 1}
            ),
            "Error binding parameters for function '_two': too many positional arguments.\nFunction '_two' has signature"
            " 'a: 'int', b: 'int' = 1) -> 'None'' but received args: (1, 2, 3) and kwargs: ['k'].",
        ),
        (
            lambda: SignatureMismatchError.from_bad_params(["a"], ["b"]),
            "Function expects parameters ['a'] but was provided with parameters ['b']",
        ),
        (
            lambda: ScriptError(ValueError("q"), "/a/b.py"),
            "Script at '/a/b.py' encountered an exception: ValueError('q')",
        ),
        (lambda: ObjectNotFound(http_exc=ValueError("e"), help_message="look there"), "look there"),
        (lambda: ObjectAlreadyExists(ValueError("e")), ""),
        (CrashedRun, ""),
        (lambda: MissingFlowError("a", "b"), "('a', 'b')"),
    ],
)
def test_errors_are_made_as_published(made: Callable[[], Exception], text: str) -> None:
    """And travel as they are."""
    error = made()
    assert str(error) == text
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.args, set(vars(back))) == (type(error), error.args, set(vars(error)))


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (get_run_context, "No run context available"),
        (lambda: a_task(3), "'fn' must be callable"),
        (lambda: a_flow(plus).validate_parameters({"q": 1}), "but was provided with parameters ['q']"),
        (lambda: a_flow(plus).validate_parameters({"x": 1}), "Flow run received invalid parameters"),
        (
            lambda: load_flow_from_entrypoint(f"{__file__}:nonesuch"),
            "Flow function with name 'nonesuch' not found in '/",
        ),
        (
            lambda: missing("db", strict=True),
            "Concurrency limits ['db'] must be created before acquiring slots: there is no",
        ),
    ],
)
def test_errors_say_what_is_published(ask: Callable[[], object], words: str) -> None:
    """Among other things; tests written for Prefect look for it."""
    with pytest.raises((HarkError, TypeError), match=re.escape(words)):
        ask()
    assert str(UnknownBlock("block", "kind/a")).startswith(
        "Unable to find block document named a for block type kind: "
    )


def test_errors_carry_what_they_are_given() -> None:
    """The state of a paused run, the answer of a server; and every kind takes a message, or none."""
    assert (PausedRun("x", state=3).state, PausedRun().state) == (3, None)
    cause = ValueError("e")
    assert ObjectNotFound(cause).http_exc is ObjectAlreadyExists(cause).http_exc is cause
    for name in ("MissingResult", "NotPausedError", "FailedRun", "HashError", "UpstreamTaskError"):
        kind = getattr(exceptions, name)
        assert (kind("boom").args, kind().args) == (("boom",), ())


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        (UnknownName("limit", "a", known=["b"]), ObjectNotFound),
        (AlreadyExists("limit", "a"), ObjectAlreadyExists),
        (MissingFlow("file", "a"), MissingFlowError),
        (ResultMissing("r", "k", why="gone"), MissingResult),
        (NotPaused("r", from_state="RUNNING"), NotPausedError),
    ],
)
def test_our_errors_are_of_the_published_kinds(ours: Exception, published: type[Exception]) -> None:
    """They are caught under those names, and go from process to process with their facts."""
    assert isinstance(ours, published)
    back = pickle.loads(pickle.dumps(ours))
    assert (type(back), str(back), vars(back)) == (type(ours), str(ours), vars(ours))
