"""What a rule listens to: one kind of events, with a name and a place in the written rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from .condition import AllOf, Node
from .problem import Loc

__all__ = ["Listening"]


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
