"""Beyond right and wrong: what in a configuration is likely a mistake, and the tests written inside rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..engine.limits.limit import name_of
from ..errors import UnknownName
from ..template import template_roots
from ..vocabulary import JsonObject, JsonValue
from .fault import Fault, did_you_mean
from .manifest import Manifest, Record

__all__ = ["lint_manifest", "run_rule_tests"]


WEBHOOK_NAMES = frozenset({"headers", "body", "form", "form_all", "query", "query_all", "method", "webhook"})
SOURCE_NAMES = frozenset({"subject", "words", "headers", "body", "cloudevent", "source"})


def lint_manifest(manifest: Manifest, *, whole: bool = True) -> list[Fault]:
    """Return warnings about what is right of a configuration.

    Args:
        whole: False where parts of it are wrong and missing here: who uses a thing may then stand in one of them.
    """
    from ..automations.analysis.lint import lint_automation
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
            if isinstance(verify, dict) and any("{{" not in s for s in _each_text(verify.get("secret"))):
                at = record.place_of(("verify", "secret"))
                path = f"{bucket}.{key}.verify.secret"
                message = "the secret is written out in the file, where it can be read"
                hint = f"keep it with `hark secrets set {key}` and write {{{{ secrets.{key} }}}}"
                found.append(Fault(at, message, path, hint, is_warning=True))
            found.extend(_unknown_names(record, ("event",), WEBHOOK_NAMES))
            found.extend(_unknown_names(record, ("dedupe",), WEBHOOK_NAMES))
        elif bucket == "sources":
            found.extend(_unknown_names(record, ("event",), SOURCE_NAMES))
            found.extend(_unknown_names(record, ("dedupe",), SOURCE_NAMES))
        elif bucket == "deployments":
            found.extend(_unknown_names(record, ("concurrency", "key"), frozenset({"parameters", "tags"})))
        elif bucket == "limits" and value.get("slots") == 0:
            warn(record, f"limit {name_of(key)!r} has no slots: nobody who asks for one goes on", "")
    if whole and not any("{{" in name for name in used_channels):
        for name in manifest.names("channels"):
            if name not in used_channels:
                warn(manifest.records["channels", name], f"no rule tells the channel {name!r} anything", "")
    return sorted(found, key=lambda f: f.at)


def _each_text(value: JsonValue) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def _unknown_names(record: Record, loc: tuple[str, ...], known: frozenset[str]) -> Iterator[Fault]:
    """Yield the names that the templates at a place of a record read, and nothing gives."""
    from ..automations.analysis.lint import templates_in

    value: JsonValue = record.value
    for part in loc:
        value = value.get(part) if isinstance(value, dict) else None
    for inner, text in templates_in(value, loc):
        for root in sorted(template_roots(text) - known):
            hint = did_you_mean(root, known) or f"there are {', '.join(sorted(known))}"
            path = ".".join(map(str, (record.bucket, record.key, *inner)))
            yield Fault(
                record.place_of(inner), f"templates here know no {root!r}", path, hint, is_warning=True
            )


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
    from ..automations.analysis.ruletest import run_tests
    from ..automations.model import Automation

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
