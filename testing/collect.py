"""Tests of rules as pytest sees them: a file of rules, and an item for each test written in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..automations.analysis.ruletest import run_test
from ..automations.model import Automation
from ..server.fault import ManifestInvalid, Position
from ..server.manifest import check_manifest

if TYPE_CHECKING:
    from ..automations.given import RuleTest

__all__ = ["RuleFile", "RuleItem", "RuleTestFailed"]


class RuleTestFailed(AssertionError):
    """A test inside a rule failed; the message says why, and how each event fared."""


class RuleFile(pytest.File):
    """A ``hark.yaml`` or ``*.rules.yaml``. What its rules refer to need not be defined in it."""

    def collect(self) -> Iterable[RuleItem]:
        manifest, faults = check_manifest(self.path, references=False)
        if any(not fault.is_warning for fault in faults):
            raise self.CollectError(str(ManifestInvalid(faults)))
        for name in manifest.names("automations"):
            record = manifest.records["automations", name]
            rule = Automation.model_validate(record.value)
            used: Counter[str] = Counter()
            for index, test in enumerate(rule.tests):
                shown = test.name or str(index)
                used[shown] += 1
                if used[shown] > 1:
                    shown = f"{shown}-{used[shown]}"
                at = record.place_of(("tests", index))
                yield RuleItem.from_parent(
                    self, name=f"{name}::{shown}", rule=rule, test=test, index=index, at=at
                )


class RuleItem(pytest.Item):
    """One test of one rule."""

    def __init__(self, *, rule: Automation, test: RuleTest, index: int, at: Position, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rule, self.test, self.index, self.at = rule, test, index, at

    def runtest(self) -> None:
        outcome = run_test(self.rule, self.test, index=self.index)
        if not outcome.ok:
            raise RuleTestFailed(outcome.message)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, RuleTestFailed):
            return f"{self.at}: rule {self.rule.name!r}\n{excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.at.line - 1, self.name
