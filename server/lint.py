"""Beyond right and wrong: what in a configuration is likely a mistake, and the tests written inside rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..engine.limit import name_of
from ..errors import UnknownName
from ..vocabulary import JsonObject, JsonValue
from .fault import Fault
from .manifest import Manifest

__all__ = ["lint_manifest", "run_rule_tests"]


def lint_manifest(manifest: Manifest) -> list[Fault]:
    """Return warnings about a configuration that is right."""
    from ..automations.lint import lint_automation
    from ..automations.model import parse_automation

    found: list[Fault] = []

    def warn(record: Any, message: str, suggestion: str) -> None:
        found.append(Fault(record.at, message, f"{record.bucket}.{record.key}", suggestion, is_warning=True))

    used_channels: set[str] = set()
    for (bucket, key), record in manifest.records.items():
        value: Any = record.value
        if bucket == "automations":
            # Names that do not exist are faults, and have been told as such.
            for warned in lint_automation(parse_automation(value, name=key)):
                path = ".".join(map(str, (bucket, key, *warned.loc)))
                place = record.place_of(warned.loc)
                found.append(Fault(place, warned.message, path, warned.hint, is_warning=True))
            used_channels |= _texts_at(value, "notify") | _texts_at(value, "approve")
        elif bucket == "notifications":
            used_channels |= _texts_at(value, "to")
        elif bucket == "webhooks":
            verify = value.get("verify")
            preset = verify.get("preset") if isinstance(verify, dict) else verify
            if preset == "none":
                warn(record, "the webhook accepts requests from anybody", "give it a preset with a secret")
        elif bucket == "limits" and value.get("slots") == 0:
            warn(record, f"limit {name_of(key)!r} has no slots: nobody who asks for one goes on", "")
    if not any("{{" in name for name in used_channels):
        for name in manifest.names("channels"):
            if name not in used_channels:
                warn(manifest.records["channels", name], f"no rule tells the channel {name!r} anything", "")
    return sorted(found, key=lambda f: f.at)


def _texts_at(value: JsonValue, word: str) -> set[str]:
    """Return the texts that stand under a key, however deep it lies."""
    found: set[str] = set()
    if isinstance(value, dict):
        for key, below in value.items():
            if key == word:
                found |= {
                    text for text in (below if isinstance(below, list) else [below]) if isinstance(text, str)
                }
            found |= _texts_at(below, word)
    elif isinstance(value, list):
        found = found.union(*(_texts_at(item, word) for item in value))
    return found


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
