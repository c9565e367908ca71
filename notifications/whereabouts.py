"""Where each alert is: in which groups, of which rule, and which came first. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from .alert import Alert

__all__ = ["Whereabouts"]

_ROOM = 1000


class Whereabouts:
    """The alerts there are, by their ids. One may be in several groups, since when is noted for each."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, float]] = {}  # alert id -> keys of its groups, since when
        self._said_by: dict[tuple[str, str], dict[str, None]] = {}  # rule and key -> alerts they have named
        self._named: dict[str, set[tuple[str, str]]] = {}
        self._by_age: list[
            tuple[float, str, str]
        ] = []  # heap: since when, in which group, which; some have left

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._groups))

    def groups_of(self, alert_id: str) -> list[str]:
        """Return the keys of the groups an alert is in, in order."""
        return sorted(self._groups.get(alert_id, ()))

    def said_by(self, automation: str, key: str) -> list[str]:
        """Return the alerts that a rule has raised for a key, at some time; others may have been said of them since."""
        return list(self._said_by.get((automation, key), ()))

    def join(self, alert: Alert, group: str, since: float) -> None:
        """Note that an alert is in a group."""
        self._groups.setdefault(alert.id, {})[group] = since
        heapq.heappush(self._by_age, (since, group, alert.id))
        self.name(alert)
        if len(self._by_age) > 4 * len(self._groups) + _ROOM:
            self._sort()

    def name(self, alert: Alert) -> None:
        """Note which rule speaks of an alert, and for which key."""
        automation, key = alert.rule
        if isinstance(automation, str) and isinstance(key, str):
            said = automation, key
            self._said_by.setdefault(said, {})[alert.id] = None
            self._named.setdefault(alert.id, set()).add(said)

    def leave(self, alert_id: str, group: str) -> bool:
        """Note that an alert is no longer in a group; return whether it is in none now."""
        groups = self._groups.get(alert_id, {})
        groups.pop(group, None)
        if groups:
            return False
        self._groups.pop(alert_id, None)
        for rule in self._named.pop(alert_id, ()):
            del self._said_by[rule][alert_id]
            if not self._said_by[rule]:
                del self._said_by[rule]
        return True

    def set_back(self, to: float) -> None:
        """Have none have come after ``to``, to which the clock was set back."""
        for groups in self._groups.values():
            for group, since in groups.items():
                groups[group] = min(since, to)
        self._sort()

    def oldest(self, *, but: str) -> tuple[str, str]:
        """Return the group and the id of the alert that came first, ``but`` one; there must be another."""
        aside = []
        while True:
            since, group, alert_id = self._by_age[0]
            if self._groups.get(alert_id, {}).get(group) != since:
                heapq.heappop(self._by_age)
            elif alert_id == but:
                aside.append(heapq.heappop(self._by_age))
            else:
                break
        for one in aside:
            heapq.heappush(self._by_age, one)
        return group, alert_id

    def _sort(self) -> None:
        self._by_age = [
            (since, group, alert_id)
            for alert_id, groups in self._groups.items()
            for group, since in groups.items()
        ]
        heapq.heapify(self._by_age)
