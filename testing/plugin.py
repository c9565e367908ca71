"""Fixtures for pytest: ``pytest_plugins = ["hark.testing.plugin"]`` in a ``conftest.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .harness import Harness
from .harness import harness as open_harness

__all__ = ["harness"]


@pytest.fixture
def harness() -> Iterator[Harness]:
    """A real broker and a temporary home; flows called in the test are tracked there."""
    with open_harness() as running:
        yield running
