"""Names of runs."""

from __future__ import annotations

import re

import pytest
from hark.engine.runs.naming import (
    check_name,
    check_template,
    default_run_name,
    flow_name_of,
    name_of_run,
    render_name,
)
from hark.errors import DefinitionError


def test_a_default_name_is_two_words() -> None:
    """An adjective and an animal."""
    assert all(re.fullmatch(r"[a-z]+-[a-z]+", default_run_name()) for _ in range(50))
    names = [name_of_run(f"run-{n}") for n in range(200)]
    assert all(re.fullmatch(r"[a-z]+-[a-z]+", name) for name in names)
    assert names == [name_of_run(f"run-{n}") for n in range(200)]
    assert len(set(names)) > 190


def test_a_flow_is_named_after_its_function() -> None:
    """Underscores become dashes; a lambda has a name too."""

    def my_flow() -> None: ...

    assert flow_name_of(my_flow) == "my-flow"
    assert flow_name_of(lambda: None) == "unknown-lambda"


def test_a_template_is_filled_with_parameters() -> None:
    """Format specifications included; what is no parameter is named, with those there are."""
    assert render_name("flow_run_name", "{n:03d}-{x.real}", {"n": 7, "x": 1}) == "007-1"
    with pytest.raises(DefinitionError, match="nope") as caught:
        render_name("flow_run_name", "{nope}", {"n": 7})
    assert "n" in caught.value.hint


def test_a_function_may_take_parameters_or_nothing() -> None:
    """Both forms give the name; one that gives no text is refused."""
    assert render_name("task_run_name", lambda: "x", {}) == "x"
    assert render_name("task_run_name", lambda parameters: f"{parameters['n']}", {"n": 1}) == "1"
    with pytest.raises(TypeError, match="returned type int"):
        render_name("task_run_name", lambda: 3, {})  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("name", ["", "a/b", "a%b", "a\nb", "x" * 201])
def test_a_bad_name_is_refused(name: str) -> None:
    """Names stand in addresses."""
    with pytest.raises(DefinitionError):
        check_name("flow", name)


def test_a_name_that_is_no_text_is_a_type_error() -> None:
    """A function that makes one has to be called."""
    with pytest.raises(TypeError, match="got int instead"):
        check_name("flow", 3)
    with pytest.raises(TypeError, match="meant to call it"):
        check_name("flow", lambda: "x")


def test_a_broken_template_is_refused_when_it_is_written() -> None:
    """Not only when the first run is named."""
    with pytest.raises(DefinitionError):
        check_template("flow_run_name", "{n")
    with pytest.raises(TypeError):
        check_template("flow_run_name", 3)
