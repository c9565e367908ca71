"""Other settings for a while."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hark.config import Settings, load_settings
from hark.errors import DefinitionError
from hark.testing.temporary import SAME_AS, SAYS_NOTHING, Setting, temporary_settings


def test_settings_are_others_inside_and_the_same_again_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under Hark's names and Prefect's; a default does not replace what is set."""
    monkeypatch.setenv("HARK_HOME", str(tmp_path))
    load_settings.cache_clear()
    before = load_settings()
    asked = {
        Setting("PREFECT_RESULTS_PERSIST_BY_DEFAULT"): True,
        "HARK_ENGINE__CRASH_RETRIES": 7,
        "PREFECT_DEBUG_MODE": True,
    }
    with temporary_settings(asked, set_defaults={"PREFECT_HOME": "/x", "HARK_WORKER__POOL": "p"}) as settings:
        assert settings is load_settings()
        assert (settings.engine.persist_results, settings.engine.crash_retries) == (True, 7)
        assert (settings.home, settings.worker.pool) == (tmp_path, "p")
        assert Setting("PREFECT_RESULTS_PERSIST_BY_DEFAULT").value() is True
        assert Setting("PREFECT_HOME").value() == tmp_path
        with temporary_settings(restore_defaults=["HARK_ENGINE__CRASH_RETRIES"]):
            assert load_settings().engine.crash_retries == before.engine.crash_retries
        assert load_settings().engine.crash_retries == 7
    assert load_settings() == before
    assert "HARK_ENGINE__CRASH_RETRIES" not in os.environ


@pytest.mark.parametrize("name", ["PREFECT_CLOUD_UI_URL", "HARK_NO__SUCH"])
def test_a_setting_that_is_none_is_refused_and_changes_nothing(name: str) -> None:
    """Whose ever name it is."""
    before = load_settings()
    with pytest.raises(DefinitionError, match=name), temporary_settings({name: "1"}):
        pass
    assert load_settings() == before


def test_each_setting_of_prefects_stands_for_one_that_is_there() -> None:
    """And can be asked for its value."""
    for name in SAME_AS:
        Setting(name).value()
    assert {Setting(name).value() for name in SAYS_NOTHING} == {None}
    assert Settings.model_fields
