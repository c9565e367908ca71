"""Tools that code written for Prefect calls beside its flows: over collections, functions and hashes, and to run by function."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import threading
from collections import OrderedDict, defaultdict, namedtuple
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import cloudpickle  # type: ignore[import-untyped]
import pytest
from hark import allow_failure, quote, unmapped
from hark.engine.annotations import BaseAnnotation, freeze, opaque
from hark.engine.cache_policies import INPUTS, RUN_ID, TASK_SOURCE, CompoundCachePolicy, Inputs
from hark.engine.exceptions import (
    HashError,
    MappingLengthMismatch,
    MappingMissingIterable,
    ParameterBindError,
    ReservedArgumentError,
    SignatureMismatchError,
)
from hark.engine.locking import MemoryLockManager
from hark.engine.transactions import IsolationLevel
from hark.engine.utilities.callables import (
    call_with_parameters,
    cloudpickle_wrapped_call,
    collapse_variadic_parameters,
    expand_mapping_parameters,
    explode_variadic_parameter,
    get_call_parameters,
    get_parameter_defaults,
    parameter_schema,
    parameter_schema_from_entrypoint,
    parameters_to_args_kwargs,
    raise_for_reserved_arguments,
)
from hark.engine.utilities.hashing import file_hash, hash_objects, stable_hash
from hark.engine.utilities.iterables import (
    AutoEnum,
    batched_iterable,
    distinct,
    ensure_iterable,
    extract_instances,
    isiterable,
    listrepr,
)
from hark.engine.utilities.nested_dicts import (
    deep_merge,
    deep_merge_dicts,
    dict_to_flatdict,
    flatdict_to_dict,
    get_from_dict,
    remove_nested_keys,
    set_in_dict,
)
from hark.engine.utilities.visiting import StopVisiting, visit_collection
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

Pair = namedtuple("Pair", "a b")


class Color(AutoEnum):
    RED = AutoEnum.auto()
    BLUE = AutoEnum.auto()


@dataclasses.dataclass
class Point:
    x: int
    y: Any = None


class Model(BaseModel):
    x: int
    y: Any = None
    _hidden: int = PrivateAttr(7)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    x: int


def negative(value: Any) -> Any:
    """Change even numbers, and nothing else."""
    return -value if type(value) is int and value % 2 == 0 else value


# --- collections ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "changed"),
    [
        (2, -2),
        ([2, 1], [-2, 1]),
        ((2, 3), (-2, 3)),
        ({2, 3}, {-2, 3}),
        ({"a": 2, 2: "b"}, {"a": -2, -2: "b"}),
        (OrderedDict(a=2), OrderedDict(a=-2)),
        (Pair(2, 3), Pair(-2, 3)),
        (Point(2, [4]), Point(-2, [-4])),
        (Open(x=2, z=4), Open(x=-2, z=-4)),
        (quote([2]), quote([-2])),
        (opaque([2]), opaque([2])),
        (opaque(2), opaque(-2)),
        (frozenset({2}), frozenset({2})),
        ({"k": {"j": [2, (4,)]}}, {"k": {"j": [-2, (-4,)]}}),
    ],
)
def test_what_is_visited_is_replaced_wherever_it_stands(value: Any, changed: Any) -> None:
    """In collections, dataclasses, models and annotations, of the kinds they are."""
    found = visit_collection(value, negative, return_data=True)
    assert found == changed
    assert type(found) is type(changed)


def test_what_needs_no_change_is_not_copied() -> None:
    """Also inside of what is."""
    same: list[Any] = [[1], {"a": 1}, Point(1), Model(x=1), (1, [3]), quote([1])]
    for value in same:
        assert visit_collection(value, negative, return_data=True) is value
    kept = [1]
    assert visit_collection([kept, 2], negative, return_data=True)[0] is kept
    counts = defaultdict(list, {"a": [2]})
    assert visit_collection(counts, negative, return_data=True).default_factory is list


def test_a_changed_model_keeps_what_was_set_and_what_is_private() -> None:
    """And is not checked anew."""
    model = Model(x=2)
    model._hidden = 9
    changed = visit_collection(model, negative, return_data=True)
    assert (changed.x, changed._hidden, changed.model_fields_set) == (-2, 9, {"x"})


def test_a_collection_is_visited_before_its_items() -> None:
    """As deep as is said; without return_data there is nothing to return."""
    seen: list[Any] = []
    assert visit_collection([1, {"a": (2,)}], seen.append) is None
    assert seen == [[1, {"a": (2,)}], 1, {"a": (2,)}, "a", (2,), 2]
    for depth, last in ((0, [[1, [2]]]), (1, [[1, [2]], 1, [2]])):
        seen.clear()
        visit_collection([1, [2]], seen.append, max_depth=depth)
        assert seen == last


def test_what_is_set_in_the_context_is_seen_below() -> None:
    """And not beside; what is annotated finds its annotation there."""
    seen: list[tuple[Any, Any, Any]] = []

    def visit(value: Any, context: dict[str, Any]) -> Any:
        seen.append((value, context.get("depth", 0), context.get("annotation")))
        context["depth"] = context.get("depth", 0) + 1
        return value

    mark = unmapped([2])
    visit_collection([1, mark, 3], visit, context={})
    assert seen == [
        ([1, mark, 3], 0, None), (1, 1, None), (mark, 1, None), ([2], 2, mark), (2, 3, mark), (3, 1, None),
    ]  # fmt: skip


def test_a_visit_can_stop_and_unwrap_and_does_not_run_in_circles() -> None:
    """Generators are not used up, and mocks are not looked into."""

    def stops(value: Any) -> Any:
        if value == [4]:
            raise StopVisiting
        return negative(value)

    assert visit_collection([2, [4], [6]], stops, return_data=True) == [-2, [4], [-6]]
    marked = [quote(2), quote([allow_failure(4)])]
    assert visit_collection(marked, negative, return_data=True, remove_annotations=True) == [-2, [-4]]
    ring: list[Any] = [2]
    ring.append(ring)
    seen: list[int] = []
    visit_collection(ring, lambda value: seen.append(id(value)))
    assert len(seen) == 3
    point = Point(1)
    point.y = point
    assert visit_collection(point, lambda value: value, return_data=True) is point
    items = (n for n in range(2))
    assert visit_collection([items], negative, return_data=True)[0] is items
    assert list(items) == [0, 1]
    met: list[Any] = []
    visit_collection([MagicMock()], met.append)
    assert len(met) == 2


nested_dicts = st.recursive(
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(nested_dicts)
def test_a_flat_dict_is_the_same_dict_again(value: dict[str, Any]) -> None:
    """Empty ones and kinds included."""
    assert flatdict_to_dict(dict_to_flatdict(value)) == value
    assert type(dict_to_flatdict(OrderedDict(value))) is OrderedDict


def test_dicts_are_asked_and_changed_by_paths() -> None:
    """Of words and positions."""
    deep: dict[str, Any] = {"a": {"b": {"c": [1, {"d": 5}]}}}
    assert get_from_dict(deep, "a.b.c[1].d") == get_from_dict(deep, ["a", "b", "c", 1, "d"]) == 5
    assert get_from_dict(deep, "a.z", "none") == "none"
    assert get_from_dict(deep, "a.b.c[9]") is None
    made: dict[str, Any] = {"s": 1}
    set_in_dict(made, "a.b.c", 1)
    set_in_dict(made, ["a", "x"], 2)
    assert made == {"s": 1, "a": {"b": {"c": 1}, "x": 2}}
    with pytest.raises(TypeError, match="non-dict value"):
        set_in_dict(made, "s.t", 1)
    assert remove_nested_keys(["a"], {"a": 1, "b": {"a": 2, "c": 3}, "d": [{"a": 1}]}) == {
        "b": {"c": 3},
        "d": [{"a": 1}],
    }
    assert remove_nested_keys(["a"], 5) == 5
    assert deep_merge({"a": {"b": 1}}, {"a": {"c": 2}, "d": 1}) == {"a": {"b": 1, "c": 2}, "d": 1}
    assert deep_merge_dicts({"a": 1}, {"b": {"c": 1}}, {"b": {"d": 2}}) == {"a": 1, "b": {"c": 1, "d": 2}}


def test_iterables_are_told_apart_and_cut_up(tmp_path: Path) -> None:
    """Texts, bytes and files are one thing each."""
    file = (tmp_path / "f").open("w")
    with file:
        one_thing: list[Any] = ["a", b"a", 1, None, file]
        assert not any(isiterable(thing) for thing in one_thing)
    several: list[Any] = [[], {}, range(2)]
    assert all(map(isiterable, several))
    assert (ensure_iterable(1), ensure_iterable("a"), ensure_iterable({1})) == ([1], "a", {1})
    assert (listrepr([1, "a"]), listrepr([1, 2], sep=", ")) == ("1 'a'", "1, 2")
    assert list(batched_iterable(range(5), 2)) == [(0, 1), (2, 3), (4,)]
    assert (list(distinct([1, 1, 2])), list(distinct([1, -1, 2], key=abs))) == ([1, 2], [1, 2])
    assert extract_instances([1, "a", 2.0, 3], int) == [1, 3]
    assert extract_instances([1, "a"], (int, str)) == {int: [1], str: ["a"]}


def test_an_enum_is_named_by_itself() -> None:
    """And is a text."""
    assert (Color.RED.value, repr(Color.RED), json.dumps(Color.RED)) == ("RED", "Color.RED", '"RED"')
    assert Color("BLUE") is Color.BLUE
    assert isinstance(Color.RED, str)


def test_an_annotation_holds_one_thing() -> None:
    """Of one's own kind too; a frozen one is a field of models."""

    class Mine(BaseAnnotation[Any]):
        __slots__ = ()

    (inner,) = unmapped(5)
    assert inner == 5
    other: Any = quote(1)
    assert Mine(1) == Mine(1) != other
    assert Mine(1).rewrap(2) == Mine(2)

    class Holds(BaseModel):
        frozen: freeze  # type: ignore[type-arg]

    assert Holds(frozen=5).frozen == freeze(5)
    assert Holds(frozen=freeze([1])).model_dump_json() == '{"frozen":[1]}'


# --- functions ------------------------------------------------------------------------------------------


def takes_all(a: Any, b: Any = 2, *args: Any, c: Any = 3, **rest: Any) -> Any:
    return a, b, args, c, rest


@given(
    st.lists(st.integers(), min_size=1, max_size=5),
    st.dictionaries(st.sampled_from(["c", "x", "y"]), st.integers()),
)
def test_a_call_by_parameters_is_the_call(args: list[int], kwargs: dict[str, int]) -> None:
    """Whatever the function takes."""
    parameters = get_call_parameters(takes_all, tuple(args), kwargs)
    assert call_with_parameters(takes_all, parameters) == takes_all(*args, **kwargs)


def test_calls_that_do_not_fit_say_so() -> None:
    """Before the function is called."""

    def two(x: int, y: int = Field(default=3)) -> None: ...

    def only(x: int, /, y: int, **rest: int) -> None: ...

    assert get_call_parameters(two, (1,), {}) == {"x": 1, "y": 3}
    assert get_call_parameters(takes_all, (1,), {}, apply_defaults=False) == {"a": 1}
    assert get_parameter_defaults(takes_all) == {"b": 2, "c": 3}
    with pytest.raises(ParameterBindError, match="Error binding parameters for function 'two'"):
        get_call_parameters(two, (), {})
    with pytest.raises(SignatureMismatchError, match=r"Function expects parameters \['x', 'y'\]"):
        parameters_to_args_kwargs(two, {"z": 1})
    with pytest.raises(TypeError, match=r"got multiple values for argument\(s\): y"):
        parameters_to_args_kwargs(only, {"x": 1, "y": 2, "rest": {"y": 3}})
    assert parameters_to_args_kwargs(only, {"x": 1, "y": 2, "rest": {"x": 3}}) == ((1, 2), {"x": 3})
    assert parameters_to_args_kwargs(two, {"x": 1, "y": 2}) == ((1,), {"y": 2})
    with pytest.raises(ReservedArgumentError, match="'y' is a reserved argument name"):
        raise_for_reserved_arguments(two, ["y"])
    raise_for_reserved_arguments(two, ["z"])


def test_a_decorated_function_gets_by_position_what_its_wrapper_takes() -> None:
    """And not what it shows."""

    def inner(x: int, y: int = 2, z: int = 3) -> tuple[int, int, int]:
        return x, y, z

    @wraps(inner)
    def all_of_them(*args: int, **kwargs: int) -> Any:
        return inner(*args, **kwargs)

    @wraps(inner)
    def by_name(**kwargs: int) -> Any:
        return inner(**kwargs)

    @wraps(inner)
    def one_first(x: int, **kwargs: int) -> Any:
        return inner(x, **kwargs)

    parameters = {"x": 1, "y": 5, "z": 6}
    ways = [parameters_to_args_kwargs(fn, parameters) for fn in (all_of_them, by_name, one_first)]
    assert ways == [((1, 5, 6), {}), ((), parameters), ((1,), {"y": 5, "z": 6})]


def test_parameters_are_spread_over_mapped_calls() -> None:
    """With what every call gets whole."""

    def f(a: Any, b: Any = 5, **rest: Any) -> None: ...

    assert explode_variadic_parameter(f, {"a": 1, "rest": {"z": 2}}) == {"a": 1, "z": 2}
    assert collapse_variadic_parameters(f, {"a": 1, "z": 2}) == {"a": 1, "rest": {"z": 2}}
    with pytest.raises(ValueError, match="variadic"):
        collapse_variadic_parameters(lambda a: a, {"z": 1})
    assert expand_mapping_parameters(f, {"a": [1, 2], "rest": {"z": [3, 4]}}) == [
        {"a": 1, "b": 5, "rest": {"z": 3}},
        {"a": 2, "b": 5, "rest": {"z": 4}},
    ]
    assert expand_mapping_parameters(f, {"a": unmapped([1]), "b": allow_failure([2])}) == [
        {"a": [1], "b": allow_failure(2)}
    ]
    with pytest.raises(MappingMissingIterable):
        expand_mapping_parameters(f, {"a": 1})
    with pytest.raises(MappingLengthMismatch):
        expand_mapping_parameters(f, {"a": [1], "b": [1, 2]})


def described(day: str, rows: list[Open], kind: Color = Color.RED, *, json: int = 1, own: Any = None) -> None:
    """Do it.

    Args:
        day: which one
        json: how much of it
    """


def test_a_schema_says_what_a_function_takes(tmp_path: Path) -> None:
    """Types, defaults, order, what its docstring says; a type that has no schema takes anything."""

    class Own: ...

    def takes_own(self: Any, x: Own, y: int = Field(default=3, description="how many")) -> None: ...

    schema = parameter_schema(described)
    assert schema.required == ["day", "rows"]
    assert schema.properties["day"] == {
        "title": "day",
        "type": "string",
        "position": 0,
        "description": "which one",
    }
    assert schema.properties["json"]["description"] == "how much of it"
    assert schema.properties["rows"]["items"] == {"$ref": "#/definitions/Open"}
    assert set(schema.definitions) == {"Open", "Color"}
    assert parameter_schema(takes_own).properties == {
        "x": {"title": "x", "position": 1},
        "y": {"title": "y", "position": 2, "type": "integer", "default": 3, "description": "how many"},
    }
    assert "required" not in parameter_schema(lambda: None).model_dump_for_openapi()
    file = tmp_path / "of_a_file.py"
    file.write_text("from hark import flow\n\n@flow\ndef etl(day: int = 2):\n    return day\n")
    assert parameter_schema_from_entrypoint(f"{file}:etl").properties["day"]["default"] == 2


def test_a_call_goes_through_pickle() -> None:
    """Whatever it closes over."""
    y = 3
    call = pickle.loads(pickle.dumps(cloudpickle_wrapped_call(lambda x: x + y, 4)))
    assert cloudpickle.loads(call()) == 7


# --- hashes ---------------------------------------------------------------------------------------------


def test_hashes_are_the_same_in_every_process(tmp_path: Path) -> None:
    """None for what cannot be hashed, unless an error is asked for."""
    assert stable_hash("hello") == stable_hash(b"hel", "lo") == "5d41402abc4b2a76b9719d911017c592"
    assert stable_hash("a", hash_algo=hashlib.sha256) == hashlib.sha256(b"a").hexdigest()
    (tmp_path / "f").write_text("hello")
    assert file_hash(tmp_path / "f") == stable_hash("hello")
    assert hash_objects({"a": 1, "b": {2, 3}}) == hash_objects({"b": {3, 2}, "a": 1})
    assert len({hash_objects(1, 2), hash_objects(2, 1), hash_objects(1, x=2)}) == 3
    assert hash_objects(threading.Lock()) is None
    with pytest.raises(HashError, match="Unable to create hash"):
        hash_objects(threading.Lock(), raise_on_failure=True)


def test_policies_say_what_they_are_made_of() -> None:
    """And refuse to be added up where they disagree."""
    without: Any = Inputs() - "y"
    assert without.exclude == ["y"]
    both = INPUTS + Inputs(exclude=["x"])
    assert isinstance(both, CompoundCachePolicy)
    assert both.policies == [INPUTS, Inputs(["x"])]
    strict = INPUTS.configure(isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=MemoryLockManager())
    assert strict.isolation_level == IsolationLevel.SERIALIZABLE == "SERIALIZABLE"
    with pytest.raises(ValueError, match="Cannot add CachePolicies with different storage locations"):
        INPUTS.configure(key_storage="/a") + INPUTS.configure(key_storage="/b")
    assert TASK_SOURCE - "y" is TASK_SOURCE
    of_run = TASK_SOURCE + RUN_ID
    assert of_run - "y" is of_run
    with pytest.raises(TypeError, match="Can only subtract strings"):
        INPUTS - 5  # type: ignore[operator]
