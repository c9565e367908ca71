"""Results as they are recorded."""

from __future__ import annotations

import threading
from typing import Any

import orjson
import pytest
from hark.engine.results import LargeResult, decode_inline, encode_result, is_lossless, read_result
from hark.engine.serializers import CompressedSerializer, JSONSerializer, PickleSerializer, serializer_named
from hark.errors import ResultMissing, UnknownName
from hypothesis import given
from hypothesis import strategies as st

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=4)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    return bool(one == other)


@given(anything)
def test_a_result_comes_back_as_it_was(value: Any) -> None:
    """Values and types survive, by JSON or by pickle."""
    encoded = encode_result(value, inline_bytes=1 << 20)
    assert isinstance(encoded, str)
    recorded = orjson.loads(encoded)
    assert same(decode_inline(recorded, run_id="r", key="k"), value)
    assert recorded["format"] == ("json" if is_lossless(value) else "pickle")


async def test_a_large_result_goes_to_the_object_store_and_back() -> None:
    """The event has its name, size and hash; a changed object is refused, and so is one that is gone."""
    value = ["x" * 100] * 10
    large = encode_result(value, inline_bytes=100)
    assert isinstance(large, LargeResult)
    reference = orjson.loads(large.reference("results/1"))
    assert reference["size"] == len(large.data)

    async def there(name: str) -> bytes:
        assert name == "results/1"
        return large.data

    async def changed(name: str) -> bytes:
        return large.data[:-1] + b" "

    async def gone(name: str) -> bytes:
        raise UnknownName("object", name)

    assert await read_result(there, reference, run_id="r", key="k") == value
    for get in (changed, gone):
        with pytest.raises(ResultMissing, match="run r under key 'k'"):
            await read_result(get, reference, run_id="r", key="k")


def test_what_cannot_be_pickled_says_so_when_it_is_needed() -> None:
    """Recording goes on; reading back names the type and the reason."""
    encoded = encode_result(threading.Lock(), inline_bytes=100)
    assert isinstance(encoded, str)
    with pytest.raises(ResultMissing, match="lock cannot be pickled"):
        decode_inline(orjson.loads(encoded), run_id="r", key="k")


def test_a_text_that_is_no_unicode_is_pickled() -> None:
    """Half a surrogate pair is not JSON."""
    encoded = encode_result("\ud800", inline_bytes=1000)
    assert isinstance(encoded, str)
    assert decode_inline(orjson.loads(encoded), run_id="r", key="k") == "\ud800"


@pytest.mark.parametrize("name", ["pickle", "json", "compressed/pickle", "compressed/json"])
def test_serializers_give_back_what_they_took(name: str) -> None:
    """Each by its name."""
    serializer = serializer_named(name)
    assert serializer.type == name
    assert serializer.loads(serializer.dumps({"a": [1, "x", None]})) == {"a": [1, "x", None]}


def test_serializers_nest_and_refuse_unknown_names() -> None:
    """Compression makes smaller what repeats."""
    assert len(CompressedSerializer(serializer=JSONSerializer()).dumps("x" * 1000)) < 100
    assert PickleSerializer().loads(PickleSerializer().dumps({1, 2})) == {1, 2}
    with pytest.raises(ValueError, match="no serializer"):
        serializer_named("yaml")
