"""Other settings for a while: ``with temporary_settings({"HARK_ENGINE__PERSIST_RESULTS": "true"}):``."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from ..config import Settings, environment, load_settings
from ..errors import DefinitionError
from .rig import set_environment

__all__ = ["SAME_AS", "temporary_settings"]

SAME_AS: Mapping[str, str] = {
    "PREFECT_API_KEY": "HARK_API_KEY",
    "PREFECT_API_URL": "HARK_API_URL",
    "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK": "HARK_ENGINE__RESULT_STORAGE",
    "PREFECT_FLOWS_DEFAULT_RETRIES": "HARK_ENGINE__FLOW_RETRIES",
    "PREFECT_FLOWS_DEFAULT_RETRY_DELAY_SECONDS": "HARK_ENGINE__FLOW_RETRY_DELAY_S",
    "PREFECT_FLOW_DEFAULT_RETRIES": "HARK_ENGINE__FLOW_RETRIES",
    "PREFECT_FLOW_DEFAULT_RETRY_DELAY_SECONDS": "HARK_ENGINE__FLOW_RETRY_DELAY_S",
    "PREFECT_HOME": "HARK_HOME",
    "PREFECT_LOGGING_LOG_PRINTS": "HARK_ENGINE__LOG_PRINTS",
    "PREFECT_TASKS_REFRESH_CACHE": "HARK_ENGINE__REFRESH_CACHE",
    "PREFECT_LOCAL_STORAGE_PATH": "HARK_ENGINE__RESULT_STORAGE",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "HARK_ENGINE__RESULT_SERIALIZER",
    "PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK": "HARK_ENGINE__RESULT_STORAGE",
    "PREFECT_RESULTS_LOCAL_STORAGE_PATH": "HARK_ENGINE__RESULT_STORAGE",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "HARK_ENGINE__PERSIST_RESULTS",
    "PREFECT_TASKS_DEFAULT_RETRIES": "HARK_ENGINE__TASK_RETRIES",
    "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "HARK_ENGINE__TASK_RETRY_DELAY_S",
    "PREFECT_TASK_DEFAULT_RETRIES": "HARK_ENGINE__TASK_RETRIES",
    "PREFECT_TASK_DEFAULT_RETRY_DELAY_SECONDS": "HARK_ENGINE__TASK_RETRY_DELAY_S",
    "PREFECT_TASKS_DEFAULT_PERSIST_RESULT": "HARK_ENGINE__PERSIST_RESULTS",
    "PREFECT_TASK_RUNNER_THREAD_POOL_MAX_WORKERS": "HARK_ENGINE__THREAD_WORKERS",
    "PREFECT_TASKS_RUNNER_THREAD_POOL_MAX_WORKERS": "HARK_ENGINE__THREAD_WORKERS",
}
"""Settings of Prefect that say the same as one of Hark."""

SAYS_NOTHING = frozenset({
    "PREFECT_API_REQUEST_TIMEOUT", "PREFECT_CLIENT_MAX_RETRIES", "PREFECT_DEBUG_MODE", "PREFECT_LOGGING_COLORS", "PREFECT_LOGGING_MARKUP",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "PREFECT_RUNNER_POLL_FREQUENCY", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE",
    "PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_TASK_RUN_TAG_CONCURRENCY_SLOT_WAIT_SECONDS", "PREFECT_TEST_MODE",
    "PREFECT_TESTING_TEST_MODE", "PREFECT_TESTING_UNIT_TEST_MODE", "PREFECT_UNIT_TEST_MODE",
})  # fmt: skip
"""Settings of how Prefect itself works, which flows and their tests may set: nothing here goes by them."""


class Setting(str):
    """The name of a setting, as ``from hark.settings import PREFECT_HOME`` gives it."""

    __slots__ = ()

    def value(self) -> Any:
        """Return what it says now; None of one that says nothing here."""
        if self in SAYS_NOTHING:
            return None
        section, _, field = _ours(self).removeprefix("HARK_").lower().rpartition("__")
        settings: Any = load_settings()
        return getattr(getattr(settings, section) if section else settings, field)


def __getattr__(name: str) -> Setting:
    if name not in SAME_AS and name not in SAYS_NOTHING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return Setting(name)


@contextmanager
def temporary_settings(
    updates: Mapping[str, Any] | None = None,
    set_defaults: Mapping[str, Any] | None = None,
    restore_defaults: Iterable[str] | None = None,
) -> Generator[Settings]:
    """Be in a process with other settings while inside; children of it have them too. Sessions are begun anew.

    Args:
        updates: by name, as in the environment; names of Prefect's that say the same (``SAME_AS``) are taken, too, and
            those that say nothing here (``SAYS_NOTHING``) do nothing. None takes a setting back to its default.
        set_defaults: for settings that are not set. restore_defaults: settings to take back.
    Raises:
        DefinitionError: there is no such setting, or it cannot have the value; then nothing has changed.
    """
    wanted: dict[str, Any] = {}
    for name, value in (set_defaults or {}).items():
        if name not in SAYS_NOTHING and _ours(name) not in environment():
            wanted[_ours(name)] = value
    wanted.update({_ours(name): None for name in restore_defaults or () if name not in SAYS_NOTHING})
    wanted.update({_ours(name): value for name, value in (updates or {}).items() if name not in SAYS_NOTHING})
    before = {name: environment().get(name) for name in wanted}
    try:
        set_environment({name: None if value is None else _text(value) for name, value in wanted.items()})
        yield load_settings()
    finally:
        set_environment(before)


def _ours(name: object) -> str:
    text = str(name)
    if text.startswith("PREFECT_"):
        if text not in SAME_AS:
            raise DefinitionError(
                f"no setting of Hark says what {text} does", hint="docs/settings.md has those there are"
            )
        return SAME_AS[text]
    return text


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
