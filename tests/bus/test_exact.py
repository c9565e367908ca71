"""JSON in which no number changes unsaid."""

from __future__ import annotations

import json

import orjson
import pytest
from hark.bus.exact import NotExact, loads
from hypothesis import given
from hypothesis import strategies as st

NUMBERS = (
    st.integers() | st.integers(-(2**70), 2**70) | st.sampled_from([2**64 - 1, 2**64, -(2**63), -(2**63) - 1])
)
VALUES = st.recursive(
    NUMBERS
    | st.text(st.characters(codec="utf-8") | st.sampled_from('0123456789"\\'))
    | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("0123456789", min_size=19), inner, max_size=2)
    ),
    max_leaves=8,
)


def _most(value: object) -> int:
    """The largest whole number in a value, as 64 bits see it; -1 for none beyond."""
    if isinstance(value, dict):
        return max((_most(item) for item in value.values()), default=-1)
    if isinstance(value, list):
        return max((_most(item) for item in value), default=-1)
    return abs(value) if isinstance(value, int) and not -(2**63) <= value < 2**64 else -1


@given(VALUES)
def test_a_value_comes_out_as_it_went_in_or_is_refused(value: object) -> None:
    """Whatever stands around a number: other digits, texts that look like numbers, escaped quotes."""
    for raw in (json.dumps(value), json.dumps(value, ensure_ascii=False).encode()):
        if "Infinity" in json.dumps(value):
            continue
        if _most(value) >= 0:
            with pytest.raises(NotExact):
                loads(raw)
        else:
            assert loads(raw) == value


@pytest.mark.parametrize("raw", ["18446744073709551616.0", "1e30", "0.1234567890123456789012", "[-1E+25]"])
def test_numbers_with_a_fraction_or_an_exponent_are_floats(raw: str) -> None:
    """They say so themselves."""
    assert loads(raw) == orjson.loads(raw)


def test_a_number_of_many_digits_is_not_printed_whole() -> None:
    """The message stays readable."""
    with pytest.raises(NotExact, match=r"… \(300 digits\)") as caught:
        loads("[" + "9" * 300 + "]")
    assert len(str(caught.value)) < 200


def test_what_is_not_json_is_told_as_ever() -> None:
    """By the library's own error."""
    with pytest.raises(orjson.JSONDecodeError):
        loads("{99999999999999999999")
