"""Parameters: binding, checking, showing."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from hark.engine.calls.parameters import MAX_PARAMETER_BYTES, CallShape, parameters_json
from hark.errors import DefinitionError, ParameterBindError, ParameterError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr


def shape(fn: Any) -> CallShape:
    return CallShape(fn, label="flow 'f'")


def plain(a: int, b: int = 2, c: str = "x") -> None: ...


def odd(a: Any, /, b: Any, *rest: Any, c: Any = 3, **more: Any) -> None: ...


@given(
    st.lists(st.integers(), max_size=5), st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.integers())
)
def test_binding_agrees_with_python(args: list[int], kwargs: dict[str, int]) -> None:
    """What a call would accept is bound as the call would bind it; what it would refuse is refused."""
    for fn in (plain, odd):
        if fn is odd and not args and "a" in kwargs:
            continue  # a call refuses it, but the oracle of Python 3.13.0 binds a positional-only argument by its name
        found = shape(fn)
        try:
            expected = found.signature.bind(*args, **kwargs)
        except TypeError:
            with pytest.raises(ParameterBindError):
                found.bind(tuple(args), kwargs)
            continue
        expected.apply_defaults()
        bound = found.bind(tuple(args), kwargs)
        assert bound == dict(expected.arguments)
        again_args, again_kwargs = found.spread(bound)
        assert found.bind(again_args, again_kwargs) == bound


def test_types_are_coerced_by_their_hints() -> None:
    """As pydantic does: a text of digits is an int, a mapping is a model."""

    class Point(BaseModel):
        x: int

    def fn(n: int, point: Point, xs: list[float], *rest: int, **more: bool) -> None: ...

    fn.__annotations__["point"] = Point
    found = shape(fn)
    bound = found.bind(("1", {"x": "2"}, ("1.5", 2), "3"), {"flag": "true"})
    assert found.validate(bound) == {
        "n": 1,
        "point": Point(x=2),
        "xs": [1.5, 2.0],
        "rest": [3],
        "more": {"flag": True},
    }


def test_all_that_does_not_fit_is_named() -> None:
    """The message has each parameter, what is wrong, and the value."""

    def fn(n: int, small: Annotated[int, Field(lt=10)]) -> None: ...

    with pytest.raises(ParameterError, match=r"flow 'f'.*n: .*integer.*'abc'.*small: .*less than 10.*11"):
        shape(fn).validate({"n": "abc", "small": 11})


def test_parameters_may_be_called_anything() -> None:
    """Names that a model has for itself, or that begin with an underscore, are names like others."""

    def fn(json: int, copy: int, model_dump: int, _hidden: int = 4, schema: str = "s") -> None: ...

    found = shape(fn)
    assert found.validate(found.bind(("1", 2, 3), {})) == {
        "json": 1,
        "copy": 2,
        "model_dump": 3,
        "_hidden": 4,
        "schema": "s",
    }


def test_a_default_is_not_shared_between_calls() -> None:
    """Each validation has its own copy of a mutable default."""

    def fn(xs: list[int] = []) -> None: ...  # noqa: B006

    found = shape(fn)
    first = found.validate(found.bind((), {}))
    first["xs"].append(1)
    assert found.validate(found.bind((), {}))["xs"] == []


def test_a_hint_that_names_something_unknown_checks_nothing() -> None:
    """An import under TYPE_CHECKING must not make a flow uncallable, and the other hints still hold."""

    def fn(a: Unknown, b: int) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    found = shape(fn)
    assert found.validate({"a": object, "b": "1"})["b"] == 1


def test_reserved_words_are_refused() -> None:
    """A parameter called `wait_for` could never be given."""

    def fn(wait_for: int) -> None: ...

    with pytest.raises(DefinitionError, match="wait_for"):
        shape(fn)


def test_a_mapping_must_fit() -> None:
    """Deployments give parameters by name: unknown and missing ones are named."""
    found = shape(plain)
    assert found.from_mapping({"a": 1}) == {"a": 1, "b": 2, "c": "x"}
    with pytest.raises(ParameterError, match="'z'"):
        found.from_mapping({"a": 1, "z": 2})
    with pytest.raises(ParameterError, match="needs the parameter 'a'"):
        found.from_mapping({})


def test_a_schema_is_made_for_forms() -> None:
    """The JSON schema has the parameters by their own names."""
    schema = shape(plain).json_schema()
    assert set(schema["properties"]) == {"a", "b", "c"}  # type: ignore[arg-type]
    assert schema["required"] == ["a"]


def test_parameters_are_shown_as_json_whatever_they_are() -> None:
    """Models as mappings, secrets hidden, objects by repr, huge values by size."""

    class Model(BaseModel):
        n: int
        password: SecretStr

    shown = parameters_json(
        {
            "m": Model(n=1, password=SecretStr("hunter2")),
            "o": object(),
            "s": {1},
            "t": (1, 2),
            "f": float("nan"),
        }
    )
    assert shown["m"] == {"n": 1, "password": "**********"}
    assert str(shown["o"]).startswith("<object object")
    assert (shown["s"], shown["t"], shown["f"]) == ([1], [1, 2], None)
    large = parameters_json({"big": "x" * (MAX_PARAMETER_BYTES + 1), "n": 1})
    assert large["n"] == 1
    assert "bytes" in str(large["big"])
