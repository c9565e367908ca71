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

    def add(self, alert: Alert) -> None:
        """Take in an open problem."""
        for rule, index in zip(self._rules, self._index, strict=True):
            if rule.source(alert.facts):
                index.setdefault(rule.values(alert.facts), {})[alert.id] = rule.target(alert.facts)

    def discard(self, alert_id: str) -> bool:
        """Forget an alert; return whether it may have held others back."""
        found = False
        for index in self._index:
            for values in [v for v, ids in index.items() if alert_id in ids]:
                del index[values][alert_id]
                if not index[values]:
                    del index[values]
                found = True
        return found

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
