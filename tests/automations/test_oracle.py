"""The compiled fold against an evaluator that looks at the whole history again for every instant."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from tests.automations.compared import drawn, made_small
from tests.automations.histories import RULES

T = TypeVar("T")
HISTORIES = int(os.environ.get("ORACLE_HISTORIES", "48"))
"""How many of each form are played; `make oracle` asks for 20 000."""

pytestmark = pytest.mark.timeout(300 + HISTORIES)


@pytest.mark.parametrize("form", RULES)
@settings(max_examples=10, derandomize=True)
@given(data=st.data())
def test_the_fold_decides_what_the_rules_page_says(form: str, data: st.DataObject) -> None:
    """The same firings at the same times with the same events, wherever the fold is taken down and restored."""

    def pick(values: Sequence[T], /) -> T:
        return data.draw(st.sampled_from(values))

    case = drawn(pick, form)
    note(str(case))
    assert case.does() == case.must()


@pytest.mark.parametrize("form", RULES)
def test_in_many_histories_the_fold_decides_what_the_rules_page_says(form: str) -> None:
    """The same without the search for the smallest example, at a fifth of the cost; what fails is made small."""
    first = int(os.environ.get("ORACLE_FROM", "0"))
    for seed in range(first, first + HISTORIES):
        case = drawn(random.Random(f"{form} {seed}").choice, form)
        if case.does() != case.must():
            case = made_small(case)
            assert case.does() == case.must(), f"history {seed} of {form}:\n{case}"
