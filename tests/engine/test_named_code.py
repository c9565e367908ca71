"""Under which names tasks are found by other processes."""

from __future__ import annotations

from typing import Any

import pytest
from hark import task
from hark.engine.code.named_code import NO_NAME, name_of


def told(task: Any, run: Any, state: Any) -> None:
    """A hook."""


@task(on_completion=[told])
def plain() -> None: ...


given_others = plain.with_options(on_failure=[told])
same_hooks = plain.with_options(name="another name")


def test_a_name_is_found_and_remembered_as_long_as_it_leads_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been bound to something else meanwhile is not found under it any more."""
    for _ in range(2):
        assert [name_of(one) for one in (plain, given_others, same_hooks)] == [
            (__name__, "plain"), (__name__, "given_others"), (__name__, "plain"),
        ]  # fmt: skip
    variant = given_others
    monkeypatch.setitem(globals(), "given_others", plain)
    assert name_of(variant) == (__name__, f"plain.{NO_NAME}")
    monkeypatch.setitem(globals(), "under_another", variant)
    assert name_of(variant) == (__name__, "under_another")


def test_a_hook_that_is_added_later_tells_two_tasks_apart() -> None:
    """One that was found as the other, because their hooks were the same, is it no longer."""
    variant = same_hooks.with_options()
    assert name_of(variant) == (__name__, "plain")
    variant.on_failure(told)
    assert name_of(variant) == (__name__, f"plain.{NO_NAME}")
