"""A process that knows no broker: plain calls just run, and emitting says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hark.bus import session
from hark.bus.emit import emit
from hark.bus.session import close_session, current_session
from hark.config import Settings, load_settings
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


def test_that_there_is_none_is_remembered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every plain call of a flow asks; the file that names the broker is looked for once a second at most."""
    looks = []

    def locate(settings: Settings) -> None:
        looks.append(settings.home)

    monkeypatch.setattr(session, "locate_broker", locate)
    monkeypatch.setattr(session, "_LOOK_AGAIN_S", 3600.0)  # a second may pass on a busy machine
    monkeypatch.setenv("HARK_HOME", str(home))
    load_settings.cache_clear()
    close_session()
    for _ in range(1000):
        assert current_session() is None
    assert len(looks) == 1
    close_session()  # forgets it, and with it the hour
