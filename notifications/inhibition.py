"""Which open alerts hold back which others: an index from what has to be equal to the sources there are. Pure."""

from __future__ import annotations

from .alert import Alert
from .routing import Inhibition

__all__ = ["Sources"]


class Sources:
    """The open alerts that inhibit others, by rule and by the values that have to be equal."""

    def __init__(self, rules: tuple[Inhibition, ...]) -> None:
        self._rules = rules
        # rule -> equal values -> alert id -> whether it matches the target side too
        self._index: list[dict[str, dict[str, bool]]] = [{} for _ in rules]
        self._reach: dict[str, set[tuple[int, str, bool]]] = {}  # alert id -> its places in the index

    def replace(self, alert_id: str, alert: Alert | None) -> bool:
        """Let an open problem hold others back as it is now (None: no longer); return whether it may have let go of any."""
        before = self._reach.pop(alert_id, set())
        for place, values, _ in before:
            ids = self._index[place][values]
            del ids[alert_id]
            if not ids:
                del self._index[place][values]
        now: set[tuple[int, str, bool]] = set()
        if alert is not None:
            for place, rule in enumerate(self._rules):
                if rule.source(alert.facts):
                    values, is_target = rule.values(alert.facts), rule.target(alert.facts)
                    self._index[place].setdefault(values, {})[alert_id] = is_target
                    now.add((place, values, is_target))
        if now:
            self._reach[alert_id] = now
        return not before <= now

    def holding(self, alert: Alert) -> str | None:
        """Return the id of an alert that holds this one back, None if none does.

        An alert on both sides of a rule is not held back by others on both sides, or two would silence each other.
        """
        for rule, index in zip(self._rules, self._index, strict=True):
            if not index or not rule.target(alert.facts):
                continue
            sources = index.get(rule.values(alert.facts))
            if not sources:
                continue
            both = rule.source(alert.facts)
            for id_, is_target in sources.items():
                if id_ != alert.id and not (both and is_target):
                    return id_
        return None
