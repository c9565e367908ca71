"""What a rule listens to: one kind of events, with a name and a place in the written rule."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from ..bus.subject import ALL_EVENTS, PREFIX, filters_for
from .folding.decision import ADOPTED, DUE
from .matching.condition import AllOf, Node
from .problem import Loc

__all__ = ["Listening", "filters_to_follow"]

_OWN_FILTERS = frozenset({PREFIX + ADOPTED, PREFIX + DUE})
"""What moves the fold itself."""
_MOST_FILTERS = 32
"""With more the broker would take longer to choose events than we take to pass over those nobody wants."""


def filters_to_follow(types: Collection[str]) -> tuple[str, ...]:
    """Return the bus filters under which everything stands that matters to rules that listen to ``types``, in order.

    They may let through more: the types have to be looked at again.
    """
    if len(types) > _MOST_FILTERS:
        return (ALL_EVENTS,)
    wanted = {found for type_ in types for found in filters_for(type_)}
    return (ALL_EVENTS,) if ALL_EVENTS in wanted else tuple(sorted(wanted | _OWN_FILTERS))


@dataclass(frozen=True)
class Listening:
    """One kind of events.

    Attributes:
        name: as people are told of it: ``on``, ``after``, ``deploy``, ``any_of.of[1]``.
        loc: the keys that lead to it in the rule.
        nodes: conditions that all have to hold; ``ifs`` the ones in CEL.
    """

    name: str
    loc: Loc
    types: tuple[str, ...]
    nodes: tuple[Node, ...]
    ifs: tuple[str, ...]

    @cached_property
    def node(self) -> Node | None:
        """The conditions as one."""
        if not self.nodes:
            return None
        return self.nodes[0] if len(self.nodes) == 1 else AllOf(self.nodes)
