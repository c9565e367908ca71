"""The pytest plugin: fixtures, and the ``tests:`` written inside rules collected as tests.

It is an entry point of the package, so pytest finds it wherever Hark is installed. Nothing of Hark is imported before a
fixture or a file of rules needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .capture import CapturedNotifications
    from .collect import RuleFile
    from .rig import Harness

__all__ = ["captured_notifications", "harness"]

PATTERNS = ("hark.yaml", "hark.yml", "*.rules.yaml", "*.rules.yml")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting that says which files hold rules."""
    parser.addini(
        "hark_rule_files",
        "names of files whose rules' `tests:` are collected; empty: none",
        type="args",
        default=list(PATTERNS),
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> RuleFile | None:
    """Collect a file of rules."""
    if not any(file_path.match(pattern) for pattern in parent.config.getini("hark_rule_files")):
        return None
    from .collect import RuleFile

    return RuleFile.from_parent(parent, path=file_path)


@pytest.fixture
def harness() -> Iterator[Harness]:
    """A real broker and a temporary home; flows called in the test are tracked there."""
    from .rig import harness as open_harness

    with open_harness() as running:
        yield running


@pytest.fixture
def captured_notifications() -> Iterator[CapturedNotifications]:
    """What would have been sent to people during the test; nothing is."""
    from .capture import capture_notifications

    with capture_notifications() as captured:
        yield captured
