"""Beyond right and wrong: what in a configuration is likely a mistake, and the tests written inside rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UnknownName
from ..vocabulary import JsonObject
from .fault import Fault
from .manifest import Manifest

__all__ = ["lint_manifest", "run_rule_tests"]


def lint_manifest(manifest: Manifest) -> list[Fault]:
    """Return warnings about a configuration that is right."""
    found: list[Fault] = []

    def warn(record: Any, message: str, suggestion: str) -> None:
        found.append(Fault(record.at, message, f"{record.bucket}.{record.key}", suggestion, is_warning=True))

    used_channels: set[str] = set()
    for (bucket, _), record in manifest.records.items():
        value: Any = record.value
        if bucket == "automations":
            if "if" in value:
                warn(
                    record,
                    "`if` is not indexed: it is evaluated for every event of its types",
                    "prefer `where`",
                )
            if not value.get("do"):
                warn(record, "the rule does nothing when it fires", "add `do:`")
            for action in value.get("do", ()):
                to = action.get("notify", ())
                used_channels.update([to] if isinstance(to, str) else to)
        elif bucket == "webhooks":
            verify = value.get("verify")
            preset = verify.get("preset") if isinstance(verify, dict) else verify
            if preset == "none":
                warn(record, "the webhook accepts requests from anybody", "give it a preset with a secret")
    if not any("{{" in name for name in used_channels):
        for name in manifest.names("channels"):
            if name not in used_channels:
                warn(manifest.records["channels", name], f"no rule tells the channel {name!r} anything", "")
    return sorted(found, key=lambda f: f.at)


def run_rule_tests(manifest: Manifest, *, rules: Sequence[str] | None = None) -> list[JsonObject]:
    """Run the ``tests:`` of rules in virtual time: ``[{"automation", "test", "ok", "message"}]``."""
    from ..automations.model import Automation
    from ..automations.ruletest import run_tests

    results: list[JsonObject] = []
    for name in rules if rules is not None else manifest.names("automations"):
        record = manifest.records.get(("automations", name))
        if record is None:
            raise UnknownName("automation", name, known=manifest.names("automations"))
        results += [
            {"automation": name, "test": outcome.name, "ok": outcome.ok, "message": outcome.message}
            for outcome in run_tests(Automation.model_validate(record.value))
        ]
    return results
