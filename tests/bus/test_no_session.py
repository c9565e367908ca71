"""A process that knows no broker: plain calls just run, and emitting says what is missing."""

from __future__ import annotations

import timeit
from pathlib import Path

import pytest
from hark.bus.emit import emit
from hark.bus.session import close_session, current_session
from hark.config import load_settings
from hark.errors import BusUnavailable


def test_without_a_broker_there_is_no_session_and_emit_says_what_to_do(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain calls just run; emitting needs somebody to tell."""
    monkeypatch.setenv("HARK_HOME", str(home))
    load_settings.cache_clear()
    close_session()
    assert current_session() is None
    with pytest.raises(BusUnavailable, match=r"no broker to emit 'order\.paid' to") as caught:
        emit("order.paid")
    assert "hark up" in caught.value.hint
    assert "HARK_NATS_URL" in caught.value.hint


def test_knowing_that_there_is_none_costs_next_to_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every plain call of a flow asks; the answer is remembered for a second."""
    monkeypatch.setenv("HARK_HOME", str(home))
    load_settings.cache_clear()
    close_session()
    current_session()
    calls = 2000
    # The best of several rounds, because the machine is shared.
    best_s = min(timeit.repeat(current_session, number=calls, repeat=5)) / calls
    assert best_s < 2e-6
