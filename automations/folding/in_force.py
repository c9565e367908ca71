"""A rule in force: its definition, its form, and all the state the fold keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from ...vocabulary import JsonObject, derived_id
from ..forms.form import Dated, EventRef, Firing, Form, Seen
from ..forms.keyed import Keyed
from ..model import Automation
from .decision import Decision
from .key import key_reader, key_values, show_key
from .resolving import Ended, Resolving

if TYPE_CHECKING:
    from .snapshot import Snapshot

__all__ = ["Held", "InForce", "compact"]

_REMEMBERED_BYTES = 64 * 1024
_DAY_S = 86_400.0


class Held(NamedTuple):
    """Why a firing is held back ("": it is not), how many are not told of yet, and until when.

    Attributes:
        number: with this one, if it is held back; else before it.
    """

    reason: str
    number: int
    until: float | None


def compact(raw: bytes) -> bytes:
    """Return a copy of what orjson wrote, to be kept.

    What it returns was cut from a larger piece, and the rest of that lies idle for as long as this is kept: 4 KB for a few bytes.
    """
    return bytes(memoryview(raw))


@dataclass(slots=True)
class InForce:
    """A rule in force, with its state by key.

    Attributes:
        form: None once the rule has been replaced or removed.
        cooling: until when a key's firings are held back (0: that is over, whatever becomes of the cooldown), when
            that began (recorded), and how many were.
        budget_from, fired: the budget's period and what it has spent; held: firings not told of since.
        dumped: the state as it was last put down, if nothing has touched it since.
        defined: revision and definition as JSON.
        keys_of: the keys an event belongs to.
    """

    automation: Automation
    revision: int
    form: Form | None = None
    actions: tuple[JsonObject, ...] = ()
    on_resolve: tuple[JsonObject, ...] = ()
    resolving: Resolving | None = None
    cooling: Keyed[str, tuple[float, float, int]] = field(default_factory=Keyed)
    budget_from: float = 0.0
    fired: int = 0
    held: int = 0
    dumped: bytes | None = None
    defined: bytes = b""
    keys_of: Callable[[dict[str, Any]], Sequence[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.define(self.automation, self.revision)

    def define(self, automation: Automation, revision: int) -> None:
        """Take a definition that asks for the same state."""
        self.automation, self.revision, self.dumped = automation, revision, None
        self.keys_of = key_reader(automation)
        written: Any = automation.to_json()
        self.actions = tuple(written.get("do") or ())
        self.on_resolve = tuple(written.get("on_resolve") or ())
        # Now and not at each checkpoint: of many rules few change.
        self.defined = compact(orjson.dumps({"revision": revision, "definition": written}))

    def set_back(self, by: float, now: float, snapshot: Snapshot | None) -> None:
        """Hear that the broker's clock was set back. ``snapshot``: the state that is being taken."""
        form: object = self.form
        if isinstance(form, Dated):
            if snapshot is not None:
                for kind in form.kinds():
                    for key in kind.cells:
                        snapshot.before(self.automation.name, key)
            self.dumped = None
            form.set_back(by, now)

    @property
    def says_over(self) -> bool:
        """Whether it is told that a firing is over. Of a metric it is known in any case: `on_resolve` may be added."""
        return self.automation.resolve is not None or bool(self.automation.on_resolve)

    def recool(self, cooldown: float | None, *, now: float, lateness: float) -> None:
        """Count another cooldown from the firings whose present one is not over yet."""
        old = self.automation.cooldown
        if old == cooldown:
            return
        cooling: dict[str, tuple[float, float, int]] = {}
        for key, (until, since, held) in self.cooling.items():
            if cooldown is not None and old is not None and until and now - since <= old + lateness:
                cooling[key] = until + cooldown - old, since, held
            elif held:
                cooling[key] = 0.0, since, held
        self.cooling = Keyed()
        self.cooling.update(cooling.items())

    def admit(
        self, key: str, firing: Firing, recorded: float, *, lateness: float, limit: int, per_s: float
    ) -> Held:
        """Let a firing through, or hold it back: by the cooldown first, then by the budget of ``limit`` in ``per_s``."""
        before, keep = 0, (self.automation.cooldown or 0.0) + lateness
        cooling = self.cooling.get(key)
        if cooling is not None:
            until, since, before = cooling
            if self.automation.cooldown is not None and recorded - since <= keep and firing.at < until:
                self.cooling.part(key)[key] = (until, since, before + 1)
                return Held("cooldown", before + 1, until)
            if recorded - since > keep + _DAY_S:
                before = 0
        if recorded - self.budget_from >= per_s:
            self.budget_from, self.fired = recorded, 0
        if self.fired >= limit:
            self.held += 1
            return Held("budget", self.held, self.budget_from + per_s)
        self.fired += 1
        before += self.held
        self.held = 0
        if self.automation.cooldown is not None:
            self._cool(key, firing.at + self.automation.cooldown, recorded, keep)
        elif cooling is not None:
            del self.cooling.part(key)[key]
        return Held("", before, None)

    def _cool(self, key: str, until: float, recorded: float, keep: float) -> None:
        self.cooling.part(key)[key] = (until, recorded, 0)
        if self.cooling.is_full(key):
            self.cooling.sweep(
                key,
                lambda part: [
                    k for k, c in part.items() if recorded - c[1] > keep + (_DAY_S if c[2] else 0.0)
                ],
            )

    def dump_raw(self) -> bytes:
        """Return the state as JSON; of many rules most are as they were at the last checkpoint."""
        if self.dumped is not None:
            return self.dumped
        raw = orjson.dumps(self._dump())
        if len(raw) <= _REMEMBERED_BYTES:
            self.dumped = compact(raw)
        return raw

    def _dump(self) -> JsonObject:
        out: JsonObject = {}
        if self.form is not None and (self.form.keys() or self.automation.kind != "count"):
            out["form"] = self.form.dump()
        if self.cooling:
            cooling: Any = self.cooling.whole()
            out["cooling"] = cooling
        if self.resolving:
            out["open"] = self.resolving.dump()
        if self.fired or self.held:
            out["budget"] = [self.budget_from, self.fired, self.held]
        return out

    def load(self, own: JsonObject) -> None:
        """Take up the state, or a part of it, that was put down."""
        state: Any = own
        if self.form is not None and "form" in state:
            self.form.load(state["form"])
        if self.resolving is not None and "open" in state:
            self.resolving.load(state["open"])
        self.cooling.update((key, tuple(c)) for key, c in state.get("cooling", {}).items())
        if "budget" in state:
            self.budget_from, self.fired, self.held = state["budget"]

    def decision(
        self,
        key: str,
        firing: Firing,
        recorded: float,
        *,
        suppressed: int,
        reason: str = "",
        until: float | None = None,
    ) -> Decision:
        """Return the decision that the rule fires, or with a reason: that it is held back."""
        automation = self.automation
        what = "suppressed" if reason else "triggered"
        ids = [ref.id for ref in firing.refs]
        keys = key_values(automation, key)
        return Decision(
            id=derived_id(f"automation.{what}", automation.name, automation.version, key, firing.mark, *ids),
            what="suppressed" if reason else "triggered", automation=automation.name, version=automation.version,
            key=show_key(keys), keys=keys, count=firing.count, at=firing.at, recorded=recorded, refs=firing.refs,
            row=firing.row, depth=firing.depth,
            actions=() if reason or automation.mode == "shadow" else self.actions,
            suppressed=suppressed, reason=reason, until=until, shadow=automation.mode == "shadow", kind=automation.kind,
            extra=firing.extra,
        )  # fmt: skip

    def resolution(
        self,
        key: str,
        ended: Ended,
        at: float,
        recorded: float,
        *,
        reason: str,
        seen: Seen | None = None,
        extra: JsonObject | None = None,
    ) -> Decision:
        """Return the decision that a firing is over."""
        automation = self.automation
        keys = key_values(automation, key)
        shadow = automation.mode == "shadow"
        refs: tuple[EventRef, ...] = (seen.ref,) if seen is not None else ()
        return Decision(
            id=derived_id("automation.resolved", automation.name, automation.version, key, ended.decision),
            what="resolved", automation=automation.name, version=automation.version, key=show_key(keys), keys=keys,
            count=ended.firings, at=at, recorded=recorded, refs=refs, row=seen.row if seen is not None else None,
            depth=seen.depth if seen is not None else ended.depth, actions=() if shadow else self.on_resolve,
            reason=reason, shadow=shadow, kind=automation.kind, extra=extra, firing=ended.decision,
            fired_at=ended.fired_at,
        )  # fmt: skip
