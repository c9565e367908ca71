"""Looking into structures."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hark.engine.annotations import allow_failure, quote
from hark.engine.calls.nested import is_plain, replace_leaves
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel


class Leaf:
    """Something to find."""


class Pair(NamedTuple):
    one: Any
    other: Any


@dataclass(frozen=True)
class Box:
    item: Any
    kept: int = field(default=7, init=False)


class Model(BaseModel):
    item: Any
    other: int = 1


structures = st.recursive(
    st.integers() | st.text() | st.builds(Leaf),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.builds(Pair, inner, inner)
        | st.builds(Box, inner)
        | st.builds(lambda item: Model(item=item), inner)
    ),
    max_leaves=10,
)


def shown(value: Any) -> str:
    """A text that tells structures apart."""
    return repr(value)


@given(structures)
def test_every_leaf_is_replaced_and_nothing_else(value: Any) -> None:
    """Types and places stay as they were."""
    changed = replace_leaves(value, lambda leaf: "X" if isinstance(leaf, Leaf) else leaf)
    import re

    assert shown(changed) == re.sub(r"<\S*\.Leaf object at 0x[0-9a-f]+>", "'X'", shown(value))


@given(structures)
def test_what_has_nothing_to_replace_is_not_copied(value: Any) -> None:
    """The same object comes back."""
    assert replace_leaves(value, lambda leaf: leaf) is value


def test_annotations_are_handed_over_whole() -> None:
    """Whoever replaces decides about what is inside."""
    seen: list[Any] = []

    def change(leaf: Any) -> Any:
        seen.append(leaf)
        return leaf

    marked = [quote([Leaf()]), allow_failure(Leaf())]
    assert replace_leaves(marked, change) is marked
    assert seen == marked


def test_subclasses_keep_their_type() -> None:
    """Of mappings and sequences."""
    changed = replace_leaves(OrderedDict(a=Leaf(), b=1), lambda leaf: 2 if isinstance(leaf, Leaf) else leaf)
    assert type(changed) is OrderedDict
    assert changed == {"a": 2, "b": 1}


def test_a_structure_in_itself_ends() -> None:
    """It is left alone from some depth on."""
    loop: list[Any] = [1]
    loop.append(loop)
    assert replace_leaves(loop, lambda leaf: leaf)[0] == 1
    assert is_plain([1, "a", None])
    assert not is_plain([[1]])
