"""How often garbage is looked for while a worker lives."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from hark.engine.workers.collection import YOUNG, rare_collections


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_looks_are_rare_until_the_last_who_asked_has_left() -> None:
    """Several workers in one process share one collector, and leave it as they found it."""
    with rare_collections():
        with rare_collections():
            assert gc.get_threshold() == (YOUNG, 10, 10)
        assert gc.get_threshold()[0] == YOUNG
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("young", [0, YOUNG * 5])
def test_what_somebody_has_set_stays(young: int) -> None:
    """A collector that is off, or rarer than ours already, is not ours to change."""
    gc.set_threshold(young, 10, 10)
    with rare_collections():
        assert gc.get_threshold()[0] == young
    assert gc.get_threshold()[0] == young


def test_what_is_set_meanwhile_stays() -> None:
    """By the author of a flow, say."""
    with rare_collections():
        gc.set_threshold(1234, 5, 5)
    assert gc.get_threshold() == (1234, 5, 5)
